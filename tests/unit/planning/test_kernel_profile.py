"""What a kernel reaches: interpolation, the floor, files, the profiles that ship, and rates from measured times."""

import json
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from titan_wlb.planning.kernel_assumed import ASSUMED_GPUS, assumed_profile
from titan_wlb.planning.kernel_file import (
    add_kernel_profile,
    default_kernel_profile,
    kernel_from_json,
    kernel_to_json,
    read_kernel_profile,
    write_kernel_profile,
)
from titan_wlb.planning.kernel_profile import COLLECTIVES, FLOPS_OF_CELL, KernelProfile, Link, Rates
from titan_wlb.planning.profile import Latency, Profile
from titan_wlb.planning.profile_file import read_profile, write_profile
from titan_wlb.planning.tiles import Tile, padded_work
from titan_wlb.planning.workload import ModelShape
from titan_wlb.profiling.kernel_grid import CPU_TILE, GPU_TILES, grid, rates_of

QUERIES, KEYS = (1, 4, 32, 200), (1, 10, 300)
EXACT = Tile(1, 1)


def a_profile(forward: Rates, backward: Rates | None = None, queries=QUERIES, keys=KEYS) -> KernelProfile:
    return KernelProfile(
        origin="measured",
        note="by hand",
        device="a device",
        clock="none",
        kernel="cpu",
        dtype="float32",
        versions={"torch": "2.13.0"},
        heads=1,
        kv_heads=1,
        head_dim=1,
        queries=queries,
        keys=keys,
        forward=forward,
        backward=backward or forward,
        exchange_origin="assumed",
        exchange={name: Link(latency=10, bytes_per_second=10**9) for name in COLLECTIVES},
        select_bytes=10**9,
        add_bytes=10**9,
    )


def flat(square: int, rectangle: int, tile=EXACT, **others) -> Rates:
    return Rates(tile=tile, square=(square,) * 4, rectangle=((rectangle,) * 3,) * 4, **others)


def test_the_drawn_chunk_takes_five_seconds() -> None:
    profile = a_profile(flat(4, 8))
    assert profile.kernel_ns("forward", [2], [4], heads=1, head_dim=1).tolist() == [5_000_000_000]
    assert profile.kernel_ns("backward", [2], [4], heads=1, head_dim=1).tolist() == [12_500_000_000]


@settings(deadline=None)
@given(
    st.lists(st.integers(0, 10**6), min_size=4, max_size=4).filter(any),
    st.integers(1, 200),
    st.integers(1, 300),
)
def test_calls_rows_keys_and_cells_that_cost_a_constant_each_are_found_between_the_tables_points(costs, rows, before):
    def time(rows, before):
        return 1000 + sum(cost * x for cost, x in zip(costs, (1, rows, before, rows * before), strict=True))

    heads, none = 10**6, 10**30  # so many that a rate is known to many digits, and a square that takes no time
    rectangle = tuple(tuple(4 * heads * q * a * 10**9 // time(q, a) for a in KEYS) for q in QUERIES)
    profile = a_profile(Rates(tile=Tile(1, 1), square=(none,) * 4, rectangle=rectangle))
    found = profile.kernel_ns("forward", [before], [before + rows], heads=heads, head_dim=1)
    assert found[0] == pytest.approx(time(rows, before), rel=1e-5, abs=1)


def test_beyond_the_table_the_outermost_rate_counts() -> None:
    square, rectangle = (10, 20, 30, 40), ((1, 2, 3),) * 3 + ((4, 5, 6),)
    profile = a_profile(Rates(tile=Tile(1, 1), square=square, rectangle=rectangle))
    rows, before = 1000, 5000
    expected = 4 * (rows * (rows + 1) // 2) / 40 + 4 * rows * before / 6
    found = profile.kernel_ns("forward", [before], [before + rows], heads=1, head_dim=1)
    assert found[0] == pytest.approx(expected * 1e9, rel=1e-12)


def test_operations_of_padded_tiles_are_counted() -> None:
    profile = a_profile(flat(10**12, 10**12, Tile(128, 128)))
    start, stop = np.array([0, 0, 100, 1000]), np.array([1, 129, 101, 1300])
    expected = padded_work(start, stop, Tile(128, 128)) * 4 * 8 * 128 / 1e3
    assert np.abs(profile.kernel_ns("forward", start, stop, heads=8, head_dim=128) - expected).max() <= 0.5 + 1e-9


def test_the_deepest_tile_walks_along_the_keys_forward_and_along_the_queries_backward() -> None:
    forward = flat(10**12, 10**12, Tile(4, 2), one_tile=4 * 10**9)
    backward = flat(10**12, 10**12, Tile(2, 4), one_tile=10 * 10**9)
    profile = a_profile(forward, backward)
    assert profile.deepest_tile_ns("forward", [6, 0], [9, 3], head_dim=1).tolist() == [4 * 10, 4 * 4]
    assert profile.deepest_tile_ns("backward", [6, 0], [9, 3], head_dim=1).tolist() == [4 * 4, 4 * 4]
    assert a_profile(flat(1, 1)).deepest_tile_ns("forward", [6], [9], head_dim=1).tolist() == [0]


def test_a_link_costs_its_latency_and_its_bytes() -> None:
    link = Link(latency=7, bytes_per_second=2 * 10**9)
    assert link.nanoseconds(np.array([0, 1, 2, 5])).tolist() == [7, 7, 8, 9]


def test_a_file_is_read_as_it_was_written(tmp_path) -> None:
    profile = a_profile(flat(11, 12, one_tile=5, per_launch=6), flat(13, 14, Tile(64, 128)))
    write_kernel_profile(profile, tmp_path / "folder" / "kernel.json")
    assert read_kernel_profile(tmp_path / "folder" / "kernel.json") == profile
    assert kernel_from_json(kernel_to_json(profile)) == profile


def test_a_workload_profile_holds_the_kernels_beside_its_own(tmp_path) -> None:
    path, latency = tmp_path / "profile.json", Latency(0.1, 0.25, 1 / 3, 1e-9)
    shape = ModelShape(8, 1, 1, 1, 8, 8, 8)
    workload = Profile(
        shape=shape, tp=1, cp=1, device="d", clock="c", settings={"a": "b"}, versions={}, attention_runs=1.0,
        attention=latency, rest=latency, head=latency,
    )  # fmt: skip
    write_profile(workload, path)
    assert read_kernel_profile(path) is None
    kernel = a_profile(flat(11, 12))
    add_kernel_profile(kernel, path)
    assert (read_profile(path), read_kernel_profile(path)) == (workload, kernel)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda values: values.pop("heads"), "heads is missing"),
        (lambda values: values.update(schema="other/1", kernel=[]), "schema is None"),
        (lambda values: values.update(origin="guessed"), "origin is 'guessed', it must be one of measured, assumed"),
        (lambda values: values.update(queries=[4, 1, 32, 200]), "queries is [4, 1, 32, 200], it must be rising"),
        (lambda values: values["forward"].update(tile="128"), "tile '128' must be ROWSxKEYS"),
        (lambda values: values["forward"]["square"].pop(), "forward.square has 3 numbers, it must have 4"),
        (lambda values: values["backward"]["rectangle"][1].__setitem__(2, 0), "backward.rectangle.1.2 is 0, it must"),
        (lambda values: values["exchange"].pop("all_to_all"), "exchange.all_to_all.latency is missing"),
    ],
)
def test_what_is_no_profile_is_refused_in_one_line(tmp_path, change, said) -> None:
    values = kernel_to_json(a_profile(flat(11, 12)))
    change(values)
    path = tmp_path / "kernel.json"
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError) as refusal:
        read_kernel_profile(path)
    assert said in str(refusal.value) and "\n" not in str(refusal.value) and str(path) in str(refusal.value)


def test_files_that_cannot_be_read_are_refused_in_one_line(tmp_path) -> None:
    (tmp_path / "text").write_text("{")
    for name, said in (("none", "cannot be read"), ("text", "is no JSON")):
        with pytest.raises(ValueError, match=said):
            read_kernel_profile(tmp_path / name)


@pytest.mark.parametrize("name", sorted(ASSUMED_GPUS))
def test_assumed_profiles_ship_as_they_are_assumed(name) -> None:
    shipped = default_kernel_profile(ASSUMED_GPUS[name].name)
    assert shipped == assumed_profile(ASSUMED_GPUS[name])
    assert (shipped.origin, shipped.exchange_origin) == ("assumed", "assumed")
    assert (str(shipped.forward.tile), str(shipped.backward.tile)) == ("128x128", "64x128")


def test_a_default_is_picked_by_device_and_head_dim() -> None:
    dims = {asked: default_kernel_profile("cpu", asked).head_dim for asked in (8, 16, 30, 40, 80, 96, 256)}
    assert dims == {8: 16, 16: 16, 30: 16, 40: 64, 80: 64, 96: 128, 256: 128}
    assert all(default_kernel_profile("cpu", dim).origin == "measured" for dim in (16, 64, 128))
    assert "H200" in default_kernel_profile("NVIDIA H200").device
    assert "H100" in default_kernel_profile("NVIDIA A100-SXM4-80GB").device


@pytest.mark.parametrize("name", ["cpu", "NVIDIA H100 80GB HBM3"])
def test_more_rows_and_more_keys_never_take_less_time_than_half(name) -> None:
    """Within the measurement's noise times rise: no point of a shipped table is an outlier."""
    profile = default_kernel_profile(name, 64)
    rows, before = np.meshgrid([64, 100, 150, 300, 600, 1200, 2400, 4800], [1, 100, 300, 1000, 3000, 9000])
    for direction in ("forward", "backward"):
        times = profile.kernel_ns(direction, before, before + rows, heads=4, head_dim=64)
        assert (times[1:] > 0.9 * times[:-1]).all() and (times[:, 1:] > 0.9 * times[:, :-1]).all()
        assert (times[2:] > times[:-2]).all() and (times[:, 2:] > times[:, :-2]).all()


def test_rates_give_back_the_times_that_they_were_made_of() -> None:
    queries, keys = (1, 16, 100), (1, 64)
    times = {(1, 0): 50, (1, 1): 100, (1, 64): 300, (16, 0): 900, (16, 1): 1500, (16, 64): 9000, (100, 0): 20_000}
    rates = rates_of("backward", times, queries, keys, tile=Tile(1, 1), heads=2, head_dim=8)
    profile = a_profile(rates, queries=queries, keys=keys)
    for (rows, before), time in times.items():
        found = profile.kernel_ns("backward", [before], [before + rows], heads=2, head_dim=8)[0]
        assert found == pytest.approx(time, rel=1e-2, abs=7)
    assert rates.rectangle[2] == rates.rectangle[1]  # left out
    assert rates.per_chunk == 50


def test_a_chunk_that_is_a_call_of_its_own_costs_its_constant_between_the_tables_points_too() -> None:
    """A constant, a time per row and one per cell: all that a small square's time is made of."""

    def time(rows):
        return 20_000 + 1000 * rows + 50 * rows * rows

    queries = (1, 2, 16, 64)
    times = {(rows, 0): time(rows) for rows in queries} | {(rows, 1): time(rows) + 1000 for rows in queries}
    rates = rates_of("forward", times, queries, (1,), tile=Tile(1, 1), heads=4, head_dim=64)
    profile = a_profile(rates, queries=queries, keys=(1,))
    rows = np.arange(1, 65)
    found = profile.kernel_ns("forward", 0 * rows, rows, heads=4, head_dim=64)
    assert np.abs(found / time(rows) - 1).max() < 0.07


def test_a_rectangle_is_not_faster_than_noise_allows() -> None:
    times = {(16, 0): 1000, (16, 64): 1000}
    rates = rates_of("forward", times, (16,), (64,), tile=Tile(1, 1), heads=1, head_dim=1)
    best = 4 * (16 * 17 // 2 + 16 * 64) * 1e9 / 1000
    assert rates.rectangle[0][0] == pytest.approx(1.3 * best, rel=1e-3)


def test_the_grid_ends_at_the_longest_chunk() -> None:
    assert grid("cpu", 16384) == (
        (1, 2, 16, 32, 64, 128, 191, 192, 384, 767, 768, 1536, 3072),
        (1, 64, 512, 2048, 8192),
    )
    assert grid("cpu", 64) == ((1, 2, 16, 32, 64), (1, 64))
    assert grid("cuda", 64) == ((128,), (128,))
    assert max(grid("cuda", 131_072)[1]) == 131_072


def test_tiles_are_those_of_the_kernels() -> None:
    assert {str(tile) for tile in CPU_TILE.values()} == {"1x1"}
    assert [str(GPU_TILES[direction]) for direction in FLOPS_OF_CELL] == ["128x128", "64x128"]


def test_equal_profiles_are_equal_whatever_their_tables_cache() -> None:
    profile = a_profile(flat(1, 2))
    assert profile == replace(profile) and profile != replace(profile, heads=2)
