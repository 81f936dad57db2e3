"""From the job's configuration to what the planner needs."""

from dataclasses import dataclass
from typing import Any

from titan_wlb.job_config import JobConfig
from titan_wlb.models.llama3_wlb.flavors import ffn_dim
from titan_wlb.planning.config import PlannerConfig, of_packing
from titan_wlb.planning.kernel_file import default_kernel_profile, read_kernel_profile
from titan_wlb.planning.packing.variable_length import default_thresholds
from titan_wlb.planning.profile_file import read_profile
from titan_wlb.planning.sharding import PREDICTING, LatencyModel
from titan_wlb.planning.workload import ModelShape, Workload, analytic
from titan_wlb.records import Layout

# Of the device's peak, what the analytic cost model assumes to be reached. Only the ratio of attention to the rest
# decides a plan, so this scales predicted times and nothing else.
PERCENT_OF_PEAK = 40


@dataclass(frozen=True)
class CostModel:
    """What a document costs, and how that was found.

    Args:
        workload: nanoseconds of a document.
        num_ranks: that share them equally; each computes for a part of the cost.
        note: a line for the person who started the run.
        per_micro_batch: nanoseconds that every micro-batch takes beside its documents; they decide no plan.
    """

    workload: Workload
    num_ranks: int
    note: str
    per_micro_batch: float = 0.0

    def rank_ms(self, cost: int) -> float:
        """What each rank computes, in ms, for a micro-batch whose documents cost so many ns."""
        return (cost + self.per_micro_batch) / 1e6 / self.num_ranks


def model_shape(model_args: Any) -> ModelShape:
    """The shape of a Llama flavor, as the cost model takes it."""
    return ModelShape(
        dim=model_args.dim,
        n_layers=model_args.n_layers,
        n_heads=model_args.n_heads,
        n_kv_heads=model_args.n_kv_heads or model_args.n_heads,
        head_dim=model_args.dim // model_args.n_heads,
        ffn_dim=ffn_dim(model_args),
        vocab_size=model_args.vocab_size,
    )


def assumed_flops_per_second(metrics_processor: Any) -> int:
    """The rate at which the analytic cost model turns operations into time, of one device."""
    return int(metrics_processor.gpu_peak_flops) * PERCENT_OF_PEAK // 100


def cost_model(job_config: JobConfig, shape: ModelShape, flops_per_second: int, layout: Layout) -> CostModel:
    """The job's cost model: of its profile, or from the model's shape.

    Raises:
        ValueError: the profile cannot be read, or is of another model; one line.
    """
    path = job_config.wlb.profile
    if not path:
        # of the whole model on one device, so that the plan does not depend on the layout
        note = f"operations of the model's shape at {flops_per_second:.3g} a second and device"
        return CostModel(analytic(shape, flops_per_second), layout.pp * layout.cp * layout.tp, note)
    profile = read_profile(path)
    workload = profile.workload(shape, tp=layout.tp, cp=layout.cp)
    note = f"{path}, {profile.note(tp=layout.tp, cp=layout.cp)}"
    return CostModel(workload, layout.pp, note, profile.model.per_micro_batch)


def latency_model(job_config: JobConfig, shape: ModelShape, device: str, layout: Layout) -> LatencyModel | None:
    """What attention of a sharded micro-batch takes; None where the job's sharding does not ask.

    Args:
        device: "cpu", or the name of the GPU.

    Raises:
        ValueError: the profile cannot be read; one line.
    """
    if job_config.wlb.sharding not in PREDICTING or layout.cp == 1:
        return None
    path = job_config.wlb.profile
    profile = read_kernel_profile(path) if path else None
    full_precision = device == "cpu" and job_config.training.mixed_precision_param == "float32"
    return LatencyModel.of_model(
        profile or default_kernel_profile(device, shape.head_dim),
        n_heads=shape.n_heads,
        n_kv_heads=shape.n_kv_heads,
        head_dim=shape.head_dim,
        tp=layout.tp,
        element_bytes=4 if full_precision else 2,
    )


def planner_config(job_config: JobConfig, workload: Workload) -> PlannerConfig:
    """What the plan of this job depends on, before what is "auto" is tuned."""
    training, wlb = job_config.training, job_config.wlb
    window, thresholds = training.seq_len, wlb.outlier_thresholds
    tolerance = 0 if wlb.balance_tolerance == "auto" else round(wlb.balance_tolerance * 1_000_000)
    return of_packing(
        wlb.packing,
        num_micro_batches=training.global_batch_size,
        context_window=window,
        max_tokens=wlb.max_tokens or 2 * window,
        workload=workload,
        outlier_thresholds=() if thresholds == "auto" else tuple(thresholds) or default_thresholds(window),
        packing_window=wlb.packing_window,
        max_age_iterations=wlb.max_age_iterations,
        balance_tolerance_ppm=tolerance,
        steady_tokens=wlb.steady_tokens,
        micro_batch_shape=wlb.micro_batch_shape,
        max_rank_tokens=wlb.max_rank_tokens,
        seed=job_config.debug.seed or 0,
        sharding=wlb.sharding,
    )
