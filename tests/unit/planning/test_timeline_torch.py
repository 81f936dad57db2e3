"""Our lists of what each rank does against what torch's own schedules do, line by line."""

from types import SimpleNamespace

import pytest
from torch.distributed.pipelining import schedules as torch_schedules

from titan_wlb.planning.timeline.program import Post, Wait, program
from titan_wlb.planning.timeline.schedule import Action, build_schedule

TORCH = {
    "GPipe": torch_schedules.ScheduleGPipe,
    "1F1B": torch_schedules.Schedule1F1B,
    "Interleaved1F1B": torch_schedules.ScheduleInterleaved1F1B,
}


class RecordingStage(SimpleNamespace):
    """A stage that computes nothing, and whose sends and receives are named by the action whose output travels."""

    def __init__(self, steps, index, rank, pp, num_stages):
        super().__init__(steps=steps, stage_index=index, group_rank=rank, group_size=pp, num_stages=num_stages)
        self.is_first, self.is_last, self.submod = index == 0, index == num_stages - 1, None

    def forward_one_chunk(self, micro_batch, *args, **kwargs):
        self.steps.append(Action("F", self.stage_index, micro_batch))

    def backward_one_chunk(self, micro_batch, *args, **kwargs):
        self.steps.append(Action("B", self.stage_index, micro_batch))

    def get_fwd_recv_ops(self, micro_batch):
        return [] if self.is_first else [Action("F", self.stage_index - 1, micro_batch)]

    def get_fwd_send_ops(self, micro_batch):
        return [] if self.is_last else [Action("F", self.stage_index, micro_batch)]

    def get_bwd_recv_ops(self, micro_batch):
        return [] if self.is_last else [Action("B", self.stage_index + 1, micro_batch)]

    def get_bwd_send_ops(self, micro_batch):
        return [] if self.is_first else [Action("B", self.stage_index, micro_batch)]

    def nothing(self, *args):
        pass

    perform_reduce_grad = set_local_fwd_input = set_local_bwd_input = get_local_bwd_output = nothing


def steps_of_torch(monkeypatch, name, rank, pp, num_micro_batches, virtual_stages):
    """What a rank does when torch's own schedule runs on it."""
    steps, num_posts = [], 0

    def post(ops, desc=None):
        nonlocal num_posts
        if not ops:
            return []
        steps.append(Post(tuple(ops)))
        num_posts += 1
        return [num_posts - 1]

    monkeypatch.setattr(torch_schedules, "_batch_p2p", post)
    monkeypatch.setattr(torch_schedules, "_sorted_batch_p2p", lambda ops, desc=None: {0: post(ops)})
    monkeypatch.setattr(torch_schedules, "_wait_batch_p2p", lambda work: steps.extend(map(Wait, work)))
    stages = [
        RecordingStage(steps, virtual * pp + rank, rank, pp, pp * virtual_stages) for virtual in range(virtual_stages)
    ]
    schedule = TORCH[name](stages if name == "Interleaved1F1B" else stages[0], num_micro_batches)
    schedule._initialize_stage = schedule._initialize_stages = lambda *args: None
    nothing = [None] * num_micro_batches
    schedule._step_microbatches([()] * num_micro_batches, [{}] * num_micro_batches, nothing)
    return tuple(steps)


@pytest.mark.parametrize("pp", [1, 2, 3, 4, 8])
@pytest.mark.parametrize("num_micro_batches", [1, 2, 3, 4, 5, 8, 12, 16])
@pytest.mark.parametrize(
    "name, virtual_stages", [("GPipe", 1), ("1F1B", 1), ("Interleaved1F1B", 2), ("Interleaved1F1B", 3)]
)
def test_every_rank_does_what_torch_does_in_the_same_order(monkeypatch, name, virtual_stages, pp, num_micro_batches):
    try:
        ours = build_schedule(name, pp, num_micro_batches, virtual_stages)
    except ValueError:
        with pytest.raises(ValueError):
            steps_of_torch(monkeypatch, name, 0, pp, num_micro_batches, virtual_stages)
        return
    for rank, steps in enumerate(program(ours)):
        torchs = steps_of_torch(monkeypatch, name, rank, pp, num_micro_batches, virtual_stages)
        assert steps == torchs
        assert ours.ranks[rank] == tuple(step for step in torchs if isinstance(step, Action))


def test_the_order_that_interleaved_schedules_publish_is_ours():
    stages = [RecordingStage([], virtual * 4 + 1, 1, 4, 8) for virtual in range(2)]
    published = torch_schedules.ScheduleInterleaved1F1B(stages, 12).pipeline_order
    ours = build_schedule("Interleaved1F1B", 4, 12, 2)
    for rank, actions in enumerate(ours.ranks):
        theirs = [action for action in published[rank] if action is not None]
        assert [(a.computation_type.value, a.stage_index, a.microbatch_index) for a in theirs] == list(actions)
