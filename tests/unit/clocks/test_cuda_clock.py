"""The CUDA clock over a stand-in for a stream: the host runs ahead of it, and it reaches an event when told to."""

from types import SimpleNamespace

import pytest

from titan_wlb.clocks import CudaClock
from titan_wlb.compat import fsdp_waits


class Stream:
    def __init__(self):
        self.ms = 0.0  # of work that was queued
        self.done_ms = -1.0  # the stream has come so far
        self.synchronized = 0
        self.waits = []

    def wait_event(self, event):
        self.waits.append(event)
        self.ms += event.ms

    def catch_up(self):
        self.done_ms = self.ms


class Event:
    made = 0

    def __init__(self, stream):
        self.stream, self.at = stream, None
        Event.made += 1

    def record(self):
        self.at = self.stream.ms

    def query(self):
        return self.at <= self.stream.done_ms

    def synchronize(self):
        self.stream.synchronized += 1
        self.stream.done_ms = max(self.stream.done_ms, self.at)

    def elapsed_time(self, until):
        assert self.query() and until.query(), "CUDA raises for events that are not reached yet"
        return until.at - self.at


@pytest.fixture
def stream(monkeypatch):
    stream = Stream()
    monkeypatch.setattr("torch.cuda.current_stream", lambda device=None: stream)
    Event.made = 0
    return stream


@pytest.fixture
def clock(stream):
    return CudaClock(new_event=lambda: Event(stream), is_capturing=lambda: False)


def run_step(clock, stream, step):
    clock.begin(step)
    clock.mark("F", 0, 0)
    stream.ms += 10
    with clock.wait("cp", collective=True):
        stream.ms += 3
    clock.mark("B", 0, 0)
    stream.ms += 20
    clock.end()


def test_no_step_synchronises_and_times_come_once_the_stream_has_got_there(clock, stream):
    run_step(clock, stream, 1)
    run_step(clock, stream, 2)
    assert stream.synchronized == 0
    assert clock._last is None, "a step was measured before the stream had run it"
    stream.catch_up()
    run_step(clock, stream, 3)
    assert stream.synchronized == 0
    assert clock._last.step == 2
    assert (clock._last.ms("compute"), clock._last.ms("cp")) == (30, 3)
    assert clock._last.collectives_ms["cp"] == (3,)


def test_reading_waits_for_the_step_that_ended_last(clock, stream):
    for step in range(1, 6):
        run_step(clock, stream, step)
    times = clock.read()
    assert stream.synchronized > 0
    assert (times.step, times.ms("wall"), times.ms("starved"), times.ms("blocked")) == (5, 33, 0, 0)
    assert times.totals.steps == 3


def test_events_are_used_again(clock, stream):
    for step in range(1, 20):
        run_step(clock, stream, step)
        stream.catch_up()
    assert Event.made <= 3 * 6


def test_capture_into_a_cuda_graph_is_refused(stream):
    clock = CudaClock(new_event=lambda: Event(stream), is_capturing=lambda: True)
    with pytest.raises(RuntimeError, match="CUDA graph"):
        clock.begin(1)


def test_fsdp_waits_lie_on_the_compute_stream_between_two_events(clock, stream, monkeypatch):
    copied = []
    monkeypatch.setattr(fsdp_waits, "_copy_out", lambda result, *args: copied.append(result))
    gathered = SimpleNamespace(all_gather_event=SimpleNamespace(ms=7.0), all_gather_work=None)
    clock.begin(1)
    fsdp_waits._timed_copy_out(clock)(gathered, [], None)
    clock.end()
    times = clock.read()
    assert copied == [gathered]
    assert stream.waits == [gathered.all_gather_event]
    assert (times.ms("fsdp"), times.collectives_ms["fsdp"]) == (7, (7,))


@pytest.mark.parametrize("reduces, kept, waited", [(True, 1, 1), (True, 0, 0), (False, 1, 0)])
def test_reuse_of_a_reduce_scatter_buffer_is_waited_for_where_fsdp_would(
    clock, stream, monkeypatch, reduces, kept, waited
):
    monkeypatch.setattr(fsdp_waits, "_post_backward", lambda group, *args: None)
    states = [SimpleNamespace(event=SimpleNamespace(ms=5.0))] * kept
    comm_ctx = SimpleNamespace(reduce_scatter_states=states, reduce_scatter_max_input_buffers=1)
    group = SimpleNamespace(comm_ctx=comm_ctx, reduce_grads=reduces, _param_group_index=0, _num_param_groups=1)
    clock.begin(1)
    fsdp_waits._timed_post_backward(clock)(group)
    clock.end()
    assert clock.read().ms("fsdp") == 5 * waited
    assert len(states) == kept, "the buffer is FSDP's to release"


@pytest.mark.parametrize("pending, num_collectives", [({"stream": "event"}, 1), ({}, 0)])
def test_the_end_of_backward_is_one_wait(clock, stream, monkeypatch, pending, num_collectives):
    monkeypatch.setattr(fsdp_waits, "_finalize_backward", lambda group: setattr(stream, "ms", stream.ms + 9))
    group = SimpleNamespace(comm_ctx=SimpleNamespace(_last_post_reduce_events=pending), _post_reduce_event=None)
    clock.begin(1)
    fsdp_waits._timed_finalize_backward(clock)(group)
    clock.end()
    times = clock.read()
    assert len(times.collectives_ms["fsdp"]) == num_collectives
    assert times.ms("wall") == 9
