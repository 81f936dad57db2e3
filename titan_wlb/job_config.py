"""TorchTitan's JobConfig with the [wlb] section.

``training.global_batch_size`` is the number N of micro-batches in a step and has to be given;
``training.local_batch_size`` follows from it (N / DP) and is refused where it says something else.
"""

# No `from __future__ import annotations` here: TorchTitan merges these classes by their real types.
from dataclasses import dataclass, field
from typing import Literal

import titan_wlb.compat.cpu  # noqa: F401  (before torchtitan)

# isort: split
from torchtitan.config import JobConfig as TitanJobConfig
from torchtitan.config.job_config import Training as TitanTraining


@dataclass
class WLB:
    """Workload balancing: what is packed together, who computes which part of it."""

    packing: Literal["original", "variable_length"] = "variable_length"
    """"original" packs documents in arrival order and cuts them every training.seq_len tokens (Plain-4D);
    "variable_length" balances predicted work over a step's micro-batches and delays outlier documents (WLB-LLM)."""

    outlier_thresholds: list[int] = field(default_factory=list)
    """Tokens from which on a document waits in an outlier queue, ascending, one queue each.
    Empty: a quarter, a half and three quarters of training.seq_len."""

    max_tokens: int = 0
    """Largest number of real tokens in a micro-batch; 0 means twice training.seq_len. "original" always uses
    training.seq_len."""

    sharding: Literal["per_sequence", "per_document"] = "per_document"
    """How a micro-batch is cut for context parallelism: into 2 x CP chunks as a whole, or document by document."""

    attention_backend: Literal["auto", "flash_attn", "torch_varlen", "cpu"] = "auto"
    """Attention kernel. "auto": flash_attn where it is installed, else torch's varlen attention, on CPUs "cpu"."""

    on_bad_document: Literal["skip", "stop"] = "skip"
    """What to do with a document that cannot be read or decoded, or has no text."""

    segment_tokens: int = 1 << 28
    """Tokens of a segment of the document index. Training starts when the first segment is ready, the next ones are
    tokenised while it trains, and documents are shuffled within a segment."""

    log_documents: bool = False
    """Append a JSON line per step to <job.dump_folder>/wlb/documents.jsonl: the documents of each micro-batch."""


@dataclass
class Training(TitanTraining):
    """TorchTitan's [training] with a local batch size that follows from the global one."""

    dataset: str = "python_stdlib"
    """"python_stdlib" (one top-level class or function a document), "text" (a folder, one file a document), "jsonl",
    or the name or local folder of a Hugging Face dataset; the last three with dataset_path where the data is local."""

    local_batch_size: int = -1
    """Micro-batches of a data-parallel rank in a step; -1: training.global_batch_size / data-parallel degree."""


@dataclass
class JobConfig(TitanJobConfig):
    """TorchTitan's configuration and ours."""

    training: Training = field(default_factory=Training)
    wlb: WLB = field(default_factory=WLB)
