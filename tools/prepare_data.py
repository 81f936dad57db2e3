#!/usr/bin/env python
"""Build a job's document index ahead, as training would at its start.

    python tools/prepare_data.py train_configs/llama3_8b_128k.toml --processes 32 \
        --training.dataset jsonl --training.dataset_path /data/corpus

Takes the training's own configuration file and flags, so that the training finds exactly this index (below
``<job.dump_folder>/wlb/index``). May run while other processes want the same index: one builds it.
"""

from __future__ import annotations

import argparse
import sys


def main() -> None:
    """Reads the configuration, builds or opens the index and describes it."""
    parser = argparse.ArgumentParser(
        description="Tokenise the documents of a training configuration into its index.",
        epilog="Every other flag is one of the training: --training.dataset jsonl --job.dump_folder outputs ...",
    )
    parser.add_argument("config", help="TOML file of the training")
    parser.add_argument("--processes", type=int, default=None, help="worker processes (default: one per core, to 16)")
    own, of_training = parser.parse_known_args()
    if own.processes is not None and own.processes < 1:
        parser.error(f"--processes {own.processes} must be at least 1")
    try:
        _prepare(["--job.config_file", own.config, *of_training], own.processes)
    except (ValueError, OSError) as error:
        sys.exit(f"prepare_data: {' '.join(str(error).split())}")


def _prepare(flags: list[str], num_processes: int | None) -> None:
    # slow imports stand here, so that worker processes, which import this file, start at once
    import numpy as np

    import titan_wlb.compat.cpu  # noqa: F401  before TorchTitan

    # isort: split
    from torchtitan.tools.logging import init_logger

    from titan_wlb import models
    from titan_wlb.compat.config import CheckedConfigManager
    from titan_wlb.data.from_config import index_from_config
    from titan_wlb.data.tokenizer import build_tokenizer
    from titan_wlb.job_config import JobConfig
    from titan_wlb.validate import check_toml

    init_logger()
    config = CheckedConfigManager(JobConfig, check_toml).parse_args(flags)
    models.register()
    index = index_from_config(config, build_tokenizer(config), num_processes=num_processes)
    window, last = config.training.seq_len, index.opened[-1].meta
    lengths = np.concatenate([segment.lengths() for segment in index.opened])
    print(
        f"folder     {index.folder}\n"
        f"documents  {len(lengths):,} in segments of {config.wlb.segment_tokens:,} tokens: {len(index.opened):,}; "
        f"bad ones left out: {last.skipped:,}\n"
        f"tokens     {lengths.sum():,} of a vocabulary of {last.vocab_size:,}\n"
        f"longest    {lengths.max():,} tokens, median {np.median(lengths):,.0f}; "
        f"{np.count_nonzero(lengths > window):,} are longer than the context window of {window:,}"
    )


if __name__ == "__main__":
    main()
