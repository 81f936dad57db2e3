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

    packing: Literal["original", "fixed_length", "karmarkar_karp", "solver", "variable_length", "lookahead"] = (
        "variable_length"
    )
    """"original" packs documents in arrival order and cuts them every training.seq_len tokens (Plain-4D);
    "variable_length" balances predicted work over a step's micro-batches and delays outlier documents (WLB-LLM);
    "lookahead" balances better at less delay, since it looks at the lengths of the next steps (ours);
    "fixed_length" and "solver" balance micro-batches of training.seq_len tokens (the paper's baselines);
    "karmarkar_karp" balances each step's documents and delays none."""

    packing_window: int = 1
    """Global batches that "fixed_length" and "solver" pack together."""

    outlier_thresholds: list[int] | Literal["auto"] = field(default_factory=list)
    """Tokens from which on "variable_length" lets a document wait in an outlier queue, ascending, one queue each.
    Empty: a quarter, a half and three quarters of training.seq_len; "auto": tuned on the run's own lengths."""

    balance_tolerance: float | Literal["auto"] = 0.001
    """At which rate "lookahead" gives balance for delay: a step may exceed the mean work by this share for 5 % of a
    global batch waiting a step less. No bound on a single step. "auto": tuned on the run's own lengths."""

    max_delay_iterations: float = 0.5
    """Mean delay of a token, in steps, that what is "auto" is tuned for: the best balance at no more delay."""

    max_age_iterations: int = 0
    """Steps after which "variable_length" and "lookahead" train a document although it unbalances the step; 0: any
    number."""

    steady_tokens: bool = False
    """Whether "lookahead" draws documents such that every step trains equally many tokens."""

    micro_batch_shape: Literal["equal", "schedule"] = "equal"
    """"schedule" gives "variable_length" and "lookahead" the works of a pipeline's micro-batches with which its
    schedule takes the least time: not equal ones where micro-batches are few."""

    max_tokens: int = 0
    """Largest number of real tokens in a micro-batch; 0 means twice training.seq_len. "original", "fixed_length" and
    "solver" always use training.seq_len."""

    max_rank_tokens: int = 0
    """Real tokens that a data-parallel rank may get in a step, whose activations the first stage of its pipeline may
    hold all at once: micro-batches are exchanged between ranks for it, also where that unbalances them. 0: any
    number."""

    profile: str = ""
    """File of tools/profile_latency.py that says what a document costs and how fast attention is; "" counts a
    document's operations instead, and takes for attention what ships for the device."""

    sharding: Literal["per_sequence", "per_document", "hybrid", "adaptive"] = "per_document"
    """How a micro-batch is cut for context parallelism: into 2 x CP chunks as a whole, or document by document;
    "hybrid" keeps short documents whole and cuts long ones where it costs no tile; "adaptive" takes for each
    micro-batch what is predicted to be fastest."""

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
