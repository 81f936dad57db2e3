"""The loader hands out what the planner planned, and its state is that of the step handed out."""

import threading
import time

import pytest
import torch.distributed.checkpoint as dcp
from data_cases import index_of, planner_of, random_texts

from titan_wlb.data.dataloader import BalancedDataLoader, ResumeError
from titan_wlb.data.local_batch import read_step


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return index_of(random_texts(50), tmp_path_factory.mktemp("data") / "index")


@pytest.fixture
def loader_of(index):
    loaders = []

    def build(dp=1, cp=1, dp_rank=0, cp_rank=0, planner=None, changes=None, **kwargs):
        planner = planner or planner_of(index, dp=dp, cp=cp, **(changes or {}))
        loaders.append(BalancedDataLoader(planner, index, dp_rank=dp_rank, cp_rank=cp_rank, **kwargs))
        return loaders[-1]

    yield build
    for loader in loaders:
        loader.close()


def wait_until(condition):
    while not condition():
        time.sleep(0.01)


def documents_of(batch):
    """What is trained in the step, without the layout."""
    return [
        [(s.document.id, s.start, s.stop, s.document.arrival) for s in micro_batch.segments]
        for micro_batch in batch.plan.micro_batches
    ]


def assert_same(ours, others):
    assert ours.plan == others.plan
    for mine, its in zip(ours.micro_batches, others.micro_batches, strict=True):
        assert mine.place == its.place
        assert mine.tokens.equal(its.tokens) and mine.labels.equal(its.labels) and mine.positions.equal(its.positions)


def test_steps_come_in_order_as_planned(index, loader_of):
    planner = planner_of(index, dp=2, cp=2)
    loader = loader_of(dp=2, cp=2, dp_rank=1, cp_rank=1, tp=2)
    for _ in range(6):
        assert_same(next(loader), read_step(planner.plan(), index, dp_rank=1, cp_rank=1, tp=2))


def test_it_reads_ahead_in_the_background_but_not_without_bound(index, loader_of):
    planner = planner_of(index)
    loader = loader_of(planner=planner, read_ahead=3)
    assert next(loader).plan.step == 1
    wait_until(lambda: planner.step == 4)
    time.sleep(0.1)
    assert planner.step == 4
    assert next(loader).plan.step == 2


def test_the_state_is_that_of_the_step_handed_out_whatever_was_read_ahead(index, loader_of):
    planner = planner_of(index)
    loader = loader_of(planner=planner, read_ahead=3)
    for _ in range(4):
        batch = next(loader)
        wait_until(lambda: planner.step == batch.plan.step + 3)  # noqa: B023
        assert loader.state_dict() == {"planner": batch.plan.state}
        assert planner.state != batch.plan.state


def test_a_peek_hands_nothing_out(loader_of):
    loader = loader_of()
    next(loader)
    state = loader.state_dict()
    peeked = loader.peek()
    assert loader.state_dict() == state
    assert next(loader) is peeked and peeked.plan.step == 2


def test_a_resumed_loader_equals_one_that_was_not_stopped(loader_of):
    whole = loader_of(dp=2, cp=2, dp_rank=1)
    for _ in range(7):
        next(whole)
    state = whole.state_dict()
    resumed = loader_of(dp=2, cp=2, dp_rank=1)
    next(resumed)  # what was read ahead is dropped
    resumed.load_state_dict(state)
    assert resumed.state_dict() == state
    for _ in range(7):
        mine, its = next(resumed), next(whole)
        assert mine.plan.state == its.plan.state and documents_of(mine) == documents_of(its)
        for a, b in zip(mine.micro_batches, its.micro_batches, strict=True):
            assert a.tokens.equal(b.tokens) and a.labels.equal(b.labels)


def test_a_resume_on_another_layout_trains_the_same_micro_batches(loader_of):
    whole = loader_of()
    for _ in range(5):
        next(whole)
    resumed = loader_of(dp=4, cp=2, dp_rank=3, cp_rank=1, tp=2)
    resumed.load_state_dict(whole.state_dict())
    for _ in range(5):
        assert documents_of(next(resumed)) == documents_of(next(whole))


def test_what_the_checkpoint_packed_with_stays_in_force_and_is_said(loader_of, caplog):
    whole = loader_of()
    next(whole)
    resumed = loader_of(changes={"max_tokens": 48})
    resumed.load_state_dict(whole.state_dict())
    assert documents_of(next(resumed)) == documents_of(next(whole))
    assert "wlb.max_tokens: 96 in the checkpoint stays in force" in caplog.text


def test_a_checkpoint_from_before_the_first_step_holds_no_packing(index, loader_of):
    seed = loader_of()
    seed.peek()
    changes = {"packing": "original"}
    loader = loader_of(changes=changes)
    loader.load_state_dict(seed.state_dict())
    assert next(loader).plan == planner_of(index, **changes).plan()


def test_a_closed_loader_goes_on_where_it_was(index, loader_of):
    loader, planner = loader_of(), planner_of(index)
    loader.peek()
    loader.close()
    for step in range(1, 4):
        batch = next(loader)
        assert batch.plan.step == step and batch.plan.state == planner.plan().state
        loader.close()
        loader.close()
    assert not any(thread.name == "titan_wlb data" for thread in threading.enumerate())


def test_dcp_keeps_a_state_whose_size_changed(tmp_path, loader_of):
    whole = loader_of()
    for _ in range(9):
        next(whole)
    saved = whole.state_dict()["planner"]
    dcp.save({"dataloader": whole}, checkpoint_id=tmp_path, no_dist=True)
    untouched, elsewhere = loader_of(), loader_of()
    for _ in range(2):
        next(elsewhere)
    sizes = {len(loader.state_dict()["planner"]) for loader in (untouched, elsewhere)}
    assert len(sizes | {len(saved)}) == 3
    for loader in (untouched, elsewhere):
        dcp.load({"dataloader": loader}, checkpoint_id=tmp_path, no_dist=True)
        assert loader.state_dict()["planner"] == saved
    assert documents_of(next(untouched)) == documents_of(next(elsewhere)) == documents_of(next(whole))


def test_what_goes_wrong_in_the_background_is_raised_by_next_behind_the_steps_that_went_well(index, loader_of):
    class Failing:
        def __init__(self, planner):
            self.planner, self.state = planner, planner.state

        def plan(self):
            if self.planner.step == 2:
                raise ValueError("the disk is gone")
            return self.planner.plan()

    loader = loader_of(planner=Failing(planner_of(index)))
    assert [next(loader).plan.step, next(loader).plan.step] == [1, 2]
    for _ in range(2):
        with pytest.raises(ValueError, match="the disk is gone"):
            next(loader)


def test_a_plan_that_ranks_do_not_agree_on_is_not_handed_out(loader_of):
    def agree(plan):
        if plan.step == 2:
            raise RuntimeError("rank 1 planned another step")

    loader = loader_of(agree=agree)
    assert next(loader).plan.step == 1
    with pytest.raises(RuntimeError, match="rank 1 planned another step"):
        next(loader)


def test_nothing_is_planned_behind_the_last_step(index, loader_of):
    planner = planner_of(index)
    loader = loader_of(planner=planner, last_step=5, read_ahead=3)
    assert [batch.plan.step for batch in loader] == [1, 2, 3, 4, 5]
    assert planner.step == 5
    resumed = loader_of(last_step=7)
    resumed.load_state_dict(loader.state_dict())
    assert [batch.plan.step for batch in resumed] == [6, 7]
    finished = loader_of(last_step=5)
    finished.load_state_dict(loader.state_dict())
    assert list(finished) == []


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"num_micro_batches": 8}, "training.global_batch_size = 8 cannot replace the checkpoint's 4"),
        ({"context_window": 40}, "training.seq_len = 40 is below the checkpoint's context window of 48"),
    ],
)
def test_a_state_that_this_run_has_no_shapes_for_is_refused(loader_of, changes, says):
    loader = loader_of()
    next(loader)
    with pytest.raises(ResumeError, match=says):
        loader_of(changes=changes).load_state_dict(loader.state_dict())


def test_a_state_of_another_index_is_refused(tmp_path, loader_of):
    loader = loader_of()
    next(loader)
    other = index_of(random_texts(50, seed=1), tmp_path / "index")
    stranger = BalancedDataLoader(planner_of(other), other, dp_rank=0, cp_rank=0)
    with pytest.raises(ValueError, match="another document index"):
        stranger.load_state_dict(loader.state_dict())
