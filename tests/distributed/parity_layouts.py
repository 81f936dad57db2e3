"""The layouts whose training must equal one process's, as data; and the model and flags that they share.

Imports nothing heavy: the tests read it, and the program that runs the layouts (parity_worlds.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

DOCUMENTS = Path(__file__).parents[1] / "documents"
STEPS = 6
WINDOW = 128
MICRO_BATCHES = 4
MAX_NORM = 0.5  # below every step's norm, so that clipping bites
TOLERANCE = 1e-5

# Four layers, one a stage, give PP 4 and Interleaved1F1B on PP 2 their four stages. The vocabulary is the byte
# tokenizer's.
FLAVOR = "parity"
SHAPE = {"dim": 64, "n_layers": 4, "n_heads": 4, "n_kv_heads": 2, "vocab_size": 258, "multiple_of": 32}

# With seed 1847 the first step holds documents of 3, 7 and 128 tokens and a piece of the one of 302 tokens, and a later
# micro-batch is one document of 5 tokens: fewer than 2 x CP, and one row on some ranks of CP 4.
SHARED = (
    "--model.name=llama3_wlb",
    f"--model.flavor={FLAVOR}",
    "--model.hf_assets_path=",
    "--training.dataset=jsonl",
    f"--training.seq_len={WINDOW}",
    f"--training.global_batch_size={MICRO_BATCHES}",
    "--training.mixed_precision_param=float32",
    f"--training.max_norm={MAX_NORM}",
    "--optimizer.lr=1e-3",
    "--lr_scheduler.warmup_steps=2",
    "--metrics.log_freq=1",
    "--activation_checkpoint.mode=none",
    "--checkpoint.enable",
    "--comm.trace_buf_size=0",
    "--parallelism.pipeline_parallel_first_stage_less_layers=0",
    "--parallelism.pipeline_parallel_last_stage_less_layers=0",
)
PARITY = (
    f"--training.dataset_path={DOCUMENTS / 'parity.jsonl'}",
    f"--training.steps={STEPS}",
    "--debug.seed=1847",
    "--wlb.outlier_thresholds",
    "64",
    "100",
)
# No document waits: all are shorter than the only threshold.
EXACT_FIT = (
    f"--training.dataset_path={DOCUMENTS / 'exact_fit.jsonl'}",
    "--training.steps=1",
    "--debug.seed=0",
    "--wlb.outlier_thresholds",
    f"{WINDOW}",
)
ORIGINAL = ("--wlb.packing=original",)
OTHER_PACKINGS = ("fixed_length", "karmarkar_karp", "lookahead")
PER_SEQUENCE = ("--wlb.sharding=per_sequence",)
HYBRID = ("--wlb.sharding=hybrid",)
ADAPTIVE = ("--wlb.sharding=adaptive",)
FULL_AC = ("--activation_checkpoint.mode=full",)
SELECTIVE_AC = ("--activation_checkpoint.mode=selective", "--activation_checkpoint.selective_ac_option=op")
COMPILED = ("--compile.enable", "--compile.components", "model", "--compile.backend=aot_eager")


@dataclass(frozen=True)
class Layout:
    """A run of ``WLBTrainer``.

    Args:
        name: of the test case and of the folder with its results.
        flags: beside ``SHARED``.
        dp, replicas, cp, tp, pp: degrees; dp shards parameters, replicas are HSDP's.
        schedule: of the pipeline.
        reference: the run whose losses, norms and gradients must be equal.
    """

    name: str
    flags: tuple[str, ...] = ()
    dp: int = 1
    replicas: int = 1
    cp: int = 1
    tp: int = 1
    pp: int = 1
    schedule: str = "1F1B"
    reference: str = "one_process"
    documents: tuple[str, ...] = PARITY

    @property
    def ranks(self) -> int:
        """Processes that it takes."""
        return self.dp * self.replicas * self.cp * self.tp * self.pp

    def args(self, seed_checkpoint: str, dump_folder: str) -> list[str]:
        """The command line; nothing is saved, parameters come from the seed checkpoint."""
        return [
            *SHARED,
            *self.documents,
            *self.flags,
            f"--job.dump_folder={dump_folder}",
            f"--checkpoint.initial_load_path={seed_checkpoint}",
            "--checkpoint.load_only",
            f"--parallelism.data_parallel_shard_degree={self.dp}",
            f"--parallelism.data_parallel_replicate_degree={self.replicas}",
            f"--parallelism.context_parallel_degree={self.cp}",
            f"--parallelism.tensor_parallel_degree={self.tp}",
            f"--parallelism.pipeline_parallel_degree={self.pp}",
            f"--parallelism.pipeline_parallel_schedule={self.schedule}",
        ]


ONE_PROCESS = (
    Layout("one_process"),
    Layout("one_process_original", ORIGINAL),
    *(Layout(f"one_process_{packing}", (f"--wlb.packing={packing}",)) for packing in OTHER_PACKINGS),
    Layout("exact_fit_original", ORIGINAL, documents=EXACT_FIT),
    Layout("exact_fit_variable_length", documents=EXACT_FIT),
)
EAGER = (
    Layout("tp2", tp=2),
    Layout("cp2", FULL_AC, cp=2),
    Layout("cp2_per_sequence", PER_SEQUENCE + SELECTIVE_AC, cp=2),
    Layout("pp2_gpipe", pp=2, schedule="GPipe"),
    Layout("pp2_1f1b", FULL_AC, pp=2),
    Layout("pp2_interleaved1f1b", SELECTIVE_AC, pp=2, schedule="Interleaved1F1B"),
    Layout("dp2", SELECTIVE_AC, dp=2),
    Layout("cp4", SELECTIVE_AC, cp=4),
    Layout("cp4_per_sequence", PER_SEQUENCE, cp=4),
    Layout("pp4_1f1b", pp=4),
    Layout("hsdp2x2", dp=2, replicas=2),
    Layout("tp2_cp2", FULL_AC, tp=2, cp=2),
    Layout("pp2_cp2", SELECTIVE_AC, pp=2, cp=2, schedule="Interleaved1F1B"),
    Layout("dp2_cp2", PER_SEQUENCE + FULL_AC, dp=2, cp=2),
    Layout("dp2_cp2_original", ORIGINAL, dp=2, cp=2, reference="one_process_original"),
    Layout("tp2_cp2_pp2", SELECTIVE_AC, tp=2, cp=2, pp=2),
    Layout("cp2_hybrid", HYBRID + FULL_AC, cp=2),
    Layout("cp4_hybrid", HYBRID, cp=4),
    Layout("tp2_cp2_hybrid", HYBRID + SELECTIVE_AC, tp=2, cp=2),
    Layout("pp2_cp2_adaptive", ADAPTIVE + SELECTIVE_AC, pp=2, cp=2, schedule="Interleaved1F1B"),
    Layout("dp2_cp2_adaptive", ADAPTIVE + FULL_AC, dp=2, cp=2),
    Layout("tp2_cp2_pp2_hybrid", HYBRID, tp=2, cp=2, pp=2),
    *(
        Layout(f"dp2_{packing}", (f"--wlb.packing={packing}",), dp=2, reference=f"one_process_{packing}")
        for packing in OTHER_PACKINGS
    ),
)
# The schedule decides which documents share a micro-batch, so that no other layout has the same ones.
SCHEDULE_SHAPE = Layout("exact_fit_schedule", ("--wlb.micro_batch_shape=schedule",), pp=4, documents=EXACT_FIT)
COMPILED_LAYOUTS = (
    Layout("cp2_compiled", COMPILED, cp=2),
    Layout("tp2_cp2_compiled", COMPILED, tp=2, cp=2),
    Layout("cp2_hybrid_compiled", COMPILED + HYBRID, cp=2),
)
LAYOUTS = (*ONE_PROCESS, *EAGER, SCHEDULE_SHAPE, *COMPILED_LAYOUTS)
