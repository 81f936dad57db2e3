"""What is assumed of a GPU until tools/profile_latency.py has measured it: public figures and stated guesses.

    data sheet (NVIDIA, SXM)        bf16 dense      memory       NVLink, both directions    multiprocessors
    H100                            989 TFLOP/s     3.35 TB/s    900 GB/s                   132
    H200                            989 TFLOP/s     4.8 TB/s     900 GB/s                   132

Guessed: a busy kernel reaches half of the peak forward and two fifths backward (between what the FlashAttention papers
report of versions 2 and 3 on an H100), four fifths of that below 256 query rows (the paper: from there on TMA multicast
pays), and k / (k + 256) of it with k keys; one tile alone has its multiprocessor's part; a launch costs 5 us; NVLink
gives two thirds of its one direction, a collective costs 20 us, and what surrounds an exchange 25 us forward and 50
backward (ten and twenty small kernels); gathering rows reads and writes memory once, adding
them back moves it twice that, at seven tenths of the data sheet's rate.

Only ratios of times decide a plan, so that a wrong peak does no harm; a wrong ratio of exchange to compute does.
Source: ours.
"""

from __future__ import annotations

from dataclasses import dataclass

from titan_wlb.planning.kernel_profile import COLLECTIVES, KernelProfile, Link, Rates
from titan_wlb.planning.tiles import Tile

__all__ = ["ASSUMED_GPUS", "CPU_EXCHANGE", "Gpu", "assumed_profile"]

_QUERIES = (128, 256, 512, 1024, 2048, 4096)
_KEYS = (128, 256, 512, 1024, 2048, 4096, 8192, 16384)
_SMALL_ROWS, _KEYS_OF_HALF = 256, 256
_TERA = 10**12


@dataclass(frozen=True, slots=True)
class Gpu:
    """Of a data sheet.

    Args:
        name: as it names itself.
        flops: bf16, dense, FLOP/s.
        memory: bytes/s.
        link: bytes/s in one direction.
        multiprocessors: their number.
    """

    name: str
    flops: int
    memory: int
    link: int
    multiprocessors: int


ASSUMED_GPUS = {
    "h100": Gpu("NVIDIA H100 SXM", 989 * 10**12, 3350 * 10**9, 450 * 10**9, 132),
    "h200": Gpu("NVIDIA H200 SXM", 989 * 10**12, 4800 * 10**9, 450 * 10**9, 132),
}
# gloo between two processes of the machine of benchmarks/sharding_latency.md, measured while it was busy.
CPU_EXCHANGE = {
    "all_gather": Link(latency=200_000, bytes_per_second=400_000_000),
    "reduce_scatter": Link(latency=400_000, bytes_per_second=200_000_000),
    "all_to_all": Link(latency=200_000, bytes_per_second=300_000_000),
}


def assumed_profile(gpu: Gpu) -> KernelProfile:
    """FlashAttention in bf16 at head dim 128, on a GPU of this data sheet."""
    return KernelProfile(
        origin="assumed",
        note="from the data sheet and guesses, see titan_wlb/planning/kernel_assumed.py; measure this device with "
        "tools/profile_latency.py",
        device=gpu.name,
        clock="none",
        kernel="flash_attn",
        dtype="bfloat16",
        versions={},
        heads=32,
        kv_heads=8,
        head_dim=128,
        queries=_QUERIES,
        keys=_KEYS,
        forward=_rates(gpu, gpu.flops // 2, Tile(128, 128), per_exchange=25_000),
        backward=_rates(gpu, gpu.flops * 2 // 5, Tile(64, 128), per_exchange=50_000),
        exchange_origin="assumed",
        exchange={name: Link(latency=20_000, bytes_per_second=gpu.link * 2 // 3) for name in COLLECTIVES},
        select_bytes=gpu.memory * 7 // 20,
        add_bytes=gpu.memory * 7 // 40,
    )


def _rates(gpu: Gpu, top: int, tile: Tile, per_exchange: int) -> Rates:
    def rate(rows: int, keys: int) -> int:
        whole = top * (4 if rows < _SMALL_ROWS else 5) // 5 * keys // (keys + _KEYS_OF_HALF)
        return whole // _TERA * _TERA

    return Rates(
        tile=tile,
        square=tuple(rate(rows, rows) for rows in _QUERIES),
        rectangle=tuple(tuple(rate(rows, rows + keys) for keys in _KEYS) for rows in _QUERIES),
        one_tile=top // gpu.multiprocessors,
        per_launch=5_000,
        per_exchange=per_exchange,
    )
