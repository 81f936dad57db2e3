"""The job that the planner's tests plan."""

from titan_wlb.planning.kernel_file import default_kernel_profile
from titan_wlb.planning.planner import PlannerConfig
from titan_wlb.planning.sharding import LatencyModel
from titan_wlb.planning.workload import Workload

CONFIG = PlannerConfig(
    packing="variable_length",
    num_micro_batches=4,
    context_window=64,
    max_tokens=128,
    outlier_thresholds=(24, 48),
    workload=Workload(10, 64, 1, 64),
    seed=3,
)
LATENCY = LatencyModel.of_model(default_kernel_profile("cpu", 16), n_heads=4, n_kv_heads=2, head_dim=16)
