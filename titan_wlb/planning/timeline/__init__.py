"""What a pipeline schedule makes of the durations of its forwards and backwards."""

from titan_wlb.planning.timeline.optimum import target_works
from titan_wlb.planning.timeline.replay import Timeline, replay, step_time
from titan_wlb.planning.timeline.schedule import SCHEDULES, Schedule, build_schedule
from titan_wlb.planning.timeline.works import order_for_schedule, step_time_over_balanced

__all__ = [
    "SCHEDULES",
    "Schedule",
    "Timeline",
    "build_schedule",
    "order_for_schedule",
    "replay",
    "step_time",
    "step_time_over_balanced",
    "target_works",
]
