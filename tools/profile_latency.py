#!/usr/bin/env python
"""Measure what documents cost on the device at hand, for ``wlb.profile``.

    python tools/profile_latency.py train_configs/debug_cpu.toml --output profile.json
    torchrun --nproc_per_node 8 tools/profile_latency.py train_configs/llama3_8b_128k.toml    TP x CP = 8 ranks

Takes the training's own configuration file and flags. One process measures one device (TP 1, CP 1); under torchrun the
ranks measure the configuration's tensor and context parallelism together, collectives included. Measures attention,
forward and backward, by length and number of documents, everything else by tokens; fits what a document of d tokens
costs, a + b d + c d^2; compares the fit with mixed micro-batches that it has not seen; and writes all of it as JSON.
Costs are of forward and backward through the whole model; gathering parameters and the optimizer are no part of them.

Then the attention kernel alone: FLOP/s by query rows and key length, forward and backward, and under torchrun the
collectives of the CP group, for ``sharding = "adaptive"``: section "kernel" of the same file. For that alone:

    python tools/profile_latency.py train_configs/debug_cpu.toml --kernel-of 8x2x128 --output kernel.json
"""

from __future__ import annotations

import argparse
import math
import os
import re
import sys
from pathlib import Path

from titan_wlb.planning.kernel_profile import DIRECTIONS, KernelProfile
from titan_wlb.planning.profile import PARTS, Measurement, Profile
from titan_wlb.planning.workload import analytic

LONGEST_ON_CPU = 16_384  # tokens; attention to a window of 131,072 takes a core minutes


def main() -> None:
    """Reads the configuration, measures, prints the table and writes the profile."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="Every other flag is one of the training: --model.flavor 7B --training.seq_len 65536 ...",
    )
    parser.add_argument("config", help="TOML file of the training")
    parser.add_argument("--output", type=Path, help="default: <job.dump_folder>/wlb/profile.json")
    parser.add_argument("--repeats", type=int, default=5, help="of every micro-batch (default: %(default)s)")
    parser.add_argument(
        "--longest",
        type=int,
        help=f"tokens of the longest document (default: training.seq_len, on CPUs at most {LONGEST_ON_CPU})",
    )
    parser.add_argument(
        "--kernel-of",
        metavar="HxKxD",
        help="measure the attention kernel alone, for H query heads and K key/value heads of dimension D on a rank",
    )
    own, of_training = parser.parse_known_args()
    if own.repeats < 1:
        parser.error(f"--repeats {own.repeats} must be at least 1")
    if own.longest is not None and own.longest < 64:
        parser.error(f"--longest {own.longest} must be at least 64, or attention cannot be told from the rest")
    if own.kernel_of is not None and not _heads_of(own.kernel_of):
        parser.error(
            f"--kernel-of {own.kernel_of} must be HxKxD, three whole numbers, H a multiple of K, such as 8x2x128"
        )
    try:
        profile, kernel, output = _profile(own, ["--job.config_file", own.config, *of_training])
    except (ValueError, OSError) as error:
        sys.exit(f"profile_latency: {' '.join(str(error).split())}")
    if int(os.environ.get("RANK", "0")) == 0:
        print("\n\n".join([*([_report(profile)] if profile else []), _kernel_report(kernel)]))
        print(f"\nwrote {output}; train with --wlb.profile {output}" if profile else f"\nwrote {output}")


def _heads_of(text: str) -> tuple[int, int, int] | None:
    found = re.fullmatch(r"([1-9][0-9]{0,4})x([1-9][0-9]{0,4})x([1-9][0-9]{0,4})", text)
    query, kv, dim = map(int, found.groups()) if found else (1, 2, 0)
    return None if query % kv else (query, kv, dim)


def _profile(own: argparse.Namespace, flags: list[str]) -> tuple[Profile | None, KernelProfile, Path]:
    import titan_wlb.compat.cpu  # noqa: F401  before TorchTitan

    # isort: split
    from dataclasses import replace

    import torch.distributed as dist
    from torchtitan.tools.logging import init_logger

    from titan_wlb.build import latency_model, model_shape
    from titan_wlb.compat.config import CheckedConfigManager
    from titan_wlb.job_config import JobConfig
    from titan_wlb.models.llama3_wlb.flavors import FLAVORS
    from titan_wlb.planning.kernel_file import add_kernel_profile, write_kernel_profile
    from titan_wlb.planning.profile_file import write_profile
    from titan_wlb.profiling.kernel import Heads, heads_of, measure_kernel
    from titan_wlb.profiling.measure import device_name, measure_profile
    from titan_wlb.profiling.site import open_site
    from titan_wlb.validate import check_toml
    from titan_wlb.validate.layout import model_problems

    init_logger()
    config = CheckedConfigManager(JobConfig, check_toml).parse_args(flags)
    for problem in model_problems(config):
        raise ValueError(problem)
    site = open_site(config)
    window = config.training.seq_len
    longest = own.longest or (window if site.device.type == "cuda" else min(window, LONGEST_ON_CPU))
    if longest > window:
        raise ValueError(f"--longest {longest} must be at most training.seq_len {window}")
    first = int(os.environ.get("RANK", "0")) == 0
    model_args = replace(FLAVORS[config.model.flavor], max_seq_len=window)
    profile = None
    name = "cpu" if site.device.type == "cpu" else device_name(site.device)
    site = replace(site, latency=latency_model(config, model_shape(model_args), name, site))
    if own.kernel_of is None:
        profile = measure_profile(config, model_args, site, longest=longest, repeats=own.repeats, progress=first)
    heads = Heads(*of_flag) if (of_flag := _heads_of(own.kernel_of or "")) else heads_of(model_args, site.tp)
    kernel = measure_kernel(site, heads, longest=longest, repeats=own.repeats, progress=first)
    output = own.output or Path(config.job.dump_folder) / "wlb" / ("profile.json" if profile else "kernel.json")
    if first and profile:
        write_profile(profile, output)
        add_kernel_profile(kernel, output)
    elif first:
        write_kernel_profile(kernel, output)
    if dist.is_initialized():
        dist.destroy_process_group()
    return profile, kernel, output


def _kernel_report(kernel: KernelProfile) -> str:
    """FLOP/s by query rows and key length, as in the paper's Figure 10, and the collectives."""
    lines = [
        f"attention kernel {kernel.kernel}, {kernel.dtype}, heads {kernel.heads}x{kernel.kv_heads}x{kernel.head_dim}: "
        "GFLOP/s by query rows, of the keys beside them and of so many keys before them"
    ]
    for direction in DIRECTIONS:
        rates = kernel.rates(direction)
        lines += ["", f"{direction:9} rows    beside" + "".join(f"{keys:>10,}" for keys in kernel.keys)]
        for rows, square, line in zip(kernel.queries, rates.square, rates.rectangle, strict=True):
            lines.append(f"{rows:14,}" + "".join(f"{rate / 1e9:10,.1f}" for rate in (square, *line)))
    links = ", ".join(
        f"{name} {link.latency / 1e3:,.0f} us and {link.bytes_per_second / 1e9:,.2f} GB/s"
        for name, link in kernel.exchange.items()
    )
    return "\n".join([*lines, "", f"exchange ({kernel.exchange_origin}): {links}"])


def _report(profile: Profile) -> str:
    """The table, the fit and how good it is."""
    settings = ", ".join(f"{key} {value}" for key, value in profile.settings.items())
    lines = [
        f"{profile.device}, TP {profile.tp} x CP {profile.cp}, {profile.clock}; {settings}",
        "",
        "part      layers        documents   tokens  forward ms  backward ms     fit ms   error",
    ]
    for line in profile.measured:
        guess, time = profile.predicted(line), profile.time(line)
        lines.append(
            f"{line.part:9} {line.layers:6}  {_documents(line):>15} {sum(line.lengths):8,}  {line.forward / 1e6:10.2f} "
            f" {line.backward / 1e6:11.2f} {guess / 1e6:10.2f} {100 * (guess - time) / time:+6.1f} %"
        )
    model = profile.model
    lines += ["", "relative error of the fit"]
    for part in PARTS:
        largest, mean = profile.residual(part)
        unseen = "   mixed micro-batches, not fitted" if part == "model" else ""
        lines.append(f"  {part:10} mean {100 * mean:5.1f} %, at most {100 * largest:5.1f} %{unseen}")
    lines += [
        "",
        "the same mixed micro-batches, all costs times one factor, as only ratios decide a plan",
        *_compared(profile),
        "",
        f"cost of a document of d tokens: {model.per_document / 1e3:.4g} us + {model.per_token / 1e3:.4g} us x d "
        f"+ {model.per_token_squared / 1e3:.4g} us x d^2",
        f"and {model.per_micro_batch / 1e6:.4g} ms of every micro-batch, whatever is in it",
    ]
    if model.per_token_squared:
        equal = model.per_token / model.per_token_squared
        lines.append(f"the quadratic part equals the linear part at {equal:,.0f} tokens")
    else:
        lines.append("no quadratic part was found: documents as short as these are balanced by their tokens")
    return "\n".join(lines)


def _compared(profile: Profile) -> list[str]:
    """How well cost models tell the mixed micro-batches apart, a line each."""
    lines = [line for line in profile.measured if line.part == "model"]
    if not lines:
        return ["  none was measured"]
    from_shape = analytic(profile.shape, 10**12)  # whatever the rate, the factor makes up for it
    measured = profile.workload(profile.shape, tp=profile.tp, cp=profile.cp)
    said = []
    for name, cost in (("tokens alone", sum), ("analytic", from_shape.costs), ("this profile", measured.costs)):
        ratios = [cost(line.lengths) / profile.time(line) for line in lines]
        factor = math.exp(sum(map(math.log, ratios)) / len(ratios))
        errors = [abs(ratio / factor - 1) for ratio in ratios]
        mean = sum(errors) / len(errors)
        said.append(f"  {name:12} mean {100 * mean:5.1f} %, at most {100 * max(errors):5.1f} %")
    return said


def _documents(line: Measurement) -> str:
    (number, length), *others = line.documents
    return f"{number} x {length:,}" if not others else f"{len(line.lengths)} mixed"


if __name__ == "__main__":
    main()
