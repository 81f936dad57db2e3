import threading
import time
from itertools import pairwise

import pytest

from titan_wlb.clocks import CpuClock, build_clock
from titan_wlb.records import WAITS

PARTS = ("compute", "starved", *WAITS)


def run_step(clock):
    clock.begin(1)
    with clock.wait("data"):
        time.sleep(0.02)
    clock.mark("F", 0, 0)
    time.sleep(0.05)
    sum(range(100_000))
    clock.end()
    return clock.read()


def test_build_clock_follows_the_device():
    assert type(build_clock("cpu")) is CpuClock


def test_a_step_sums_up_to_the_wall_time_that_the_host_saw():
    clock = CpuClock()
    times = run_step(clock)
    (first, *_), (*_, last) = clock.intervals(), clock.intervals()
    assert sum(times.ms(part) for part in PARTS) == pytest.approx((last[1] - first[0]) / 1e6, abs=1e-6)
    assert times.ms("wall") == pytest.approx((last[1] - first[0]) / 1e6, abs=1e-6)


def test_intervals_are_gapless_and_name_what_happened():
    clock = CpuClock()
    run_step(clock)
    intervals = clock.intervals()
    assert [category for _, _, category in intervals] == ["compute", "data", "compute", "compute"]
    assert all(a[1] == b[0] for a, b in pairwise(intervals))


@pytest.mark.skipif(not CpuClock().knows_run_delay, reason="the kernel does not tell run-queue delays")
def test_a_sleep_is_blocked_compute_and_a_sleep_in_a_wait_is_not():
    times = run_step(CpuClock())
    assert times.ms("blocked") == pytest.approx(50, abs=20)
    assert times.ms("compute") >= times.ms("blocked")
    assert times.ms("data") >= 19


def test_without_the_kernels_run_delay_a_sleep_counts_as_starved(monkeypatch):
    def missing(*args):
        raise FileNotFoundError

    monkeypatch.setattr("titan_wlb.clocks.cpu.os.open", missing)
    clock = CpuClock()
    times = run_step(clock)
    assert not clock.knows_run_delay
    assert times.ms("starved") >= 45
    assert times.ms("blocked") == 0
    assert times.ms("data") >= 19
    assert sum(times.ms(part) for part in PARTS) == pytest.approx(times.ms("wall"))


def test_waits_of_another_thread_are_not_on_the_timeline():
    clock = CpuClock()
    clock.begin(1)

    def wait():
        with clock.wait("fsdp", collective=True):
            time.sleep(0.01)
        clock.mark("F", 0, 0)

    thread = threading.Thread(target=wait)
    thread.start()
    thread.join()
    clock.end()
    times = clock.read()
    assert times.ms("fsdp") == 0
    assert [section.kind for section in times.sections] == ["head"]
