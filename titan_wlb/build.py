"""From the job's configuration to what the planner needs."""

from typing import Any

from titan_wlb.job_config import JobConfig
from titan_wlb.models.llama3_wlb.flavors import ffn_dim
from titan_wlb.planning.planner import PlannerConfig
from titan_wlb.planning.workload import ModelShape, analytic

# Of the device's peak, what the analytic cost model assumes to be reached. Only the ratio of attention to the rest
# decides a plan, so this scales predicted times and nothing else.
PERCENT_OF_PEAK = 40


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


def planner_config(job_config: JobConfig, model_args: Any, flops_per_second: int) -> PlannerConfig:
    """What the plan of this job depends on."""
    training, wlb = job_config.training, job_config.wlb
    window = training.seq_len
    return PlannerConfig(
        packing=wlb.packing,
        num_micro_batches=training.global_batch_size,
        context_window=window,
        max_tokens=wlb.max_tokens or 2 * window,
        workload=analytic(model_shape(model_args), flops_per_second),
        outlier_thresholds=tuple(wlb.outlier_thresholds) or default_thresholds(window),
        seed=job_config.debug.seed or 0,
        sharding=wlb.sharding,
    )


def default_thresholds(window: int) -> tuple[int, ...]:
    """Three outlier queues, from a quarter, a half and three quarters of the window on (ours)."""
    return tuple(sorted({max(1, window * quarters // 4) for quarters in (1, 2, 3)}))
