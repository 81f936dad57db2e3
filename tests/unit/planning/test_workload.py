from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from titan_wlb.planning.workload import ModelShape, Workload, analytic

TINY = ModelShape(dim=4, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=2, ffn_dim=8, vocab_size=10)
LLAMA2_7B = ModelShape(dim=4096, n_layers=32, n_heads=32, n_kv_heads=32, head_dim=128, ffn_dim=11008, vocab_size=32000)


def test_the_drawn_example():
    workload = Workload(constant=100, linear=3, quadratic=1, denominator=2)
    assert [workload.cost(4), workload.cost(8), workload.costs([4, 8])] == [114, 144, 258]


@given(st.integers(1, 2**40))
def test_costs_stay_exact_whatever_the_length(length):
    workload = Workload(7, 10**9 + 7, 10**9 + 9, 10**12 + 39)
    exact = Fraction((10**9 + 7) * length + (10**9 + 9) * length**2, 10**12 + 39)
    assert workload.cost(length) == 7 + exact.numerator // exact.denominator


def test_floats_keep_their_exact_values():
    workload = Workload.from_floats(0.5, 0.1, 1e-9)
    exact = (Fraction(0.1) * 131072 + Fraction(1e-9) * 131072**2) * 10**6
    assert workload.cost(131072) == 500_000 + int(exact)
    assert Workload.from_floats(2, 3, 4, scale=1) == Workload(2, 3, 4, 1)


@pytest.mark.parametrize("coefficients", [(-1, 0, 0, 1), (0, -1, 0, 1), (0, 0, -1, 1), (0, 0, 0, 0)])
def test_coefficients_that_make_no_cost_are_refused(coefficients):
    with pytest.raises(ValueError, match="cost coefficients"):
        Workload(*coefficients)


def test_json_gives_the_same_workload_back():
    workload = Workload(1, 2, 3, 4)
    assert Workload.from_json(workload.to_json()) == workload


def test_operations_counted_by_hand():
    # A layer: wq 4x4, wk 4x2, wv 4x2, wo 4x4, three of 4x8; then the output projection 4x10.
    assert TINY.matmul_params == 2 * (16 + 8 + 8 + 16 + 96) + 40
    # 3 tokens: 6 causal pairs in each of 2 layers x 2 heads, two products of 2 operations per head_dim of 2.
    assert TINY.forward_flops(3) == (2 * 3 * 328, 2 * 2 * 6 * 8)
    assert TINY.flops(3) == 3 * (1968 + 192)


def test_the_7b_shape_has_llama_2s_parameters():
    assert LLAMA2_7B.matmul_params + LLAMA2_7B.dim * LLAMA2_7B.vocab_size == pytest.approx(6.738e9, rel=1e-3)


@pytest.mark.parametrize("length", [1, 2, 777, 131072])
def test_analytic_costs_are_gemms_three_times_and_attention_three_and_a_half_times_forward(length):
    gemm, attention = LLAMA2_7B.forward_flops(length)
    rate = 400 * 10**12
    assert analytic(LLAMA2_7B, rate).cost(length) == (6 * gemm + 7 * attention) * 10**9 // (2 * rate)


def test_the_stated_rate_scales_all_costs_alike():
    slow, fast = analytic(TINY, 10**6), analytic(TINY, 10**7)
    assert [slow.cost(length) // 10 for length in (1, 50, 999)] == [fast.cost(length) for length in (1, 50, 999)]
    with pytest.raises(ValueError, match="flops_per_second"):
        analytic(TINY, 0)
