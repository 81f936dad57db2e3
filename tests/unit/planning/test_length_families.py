from __future__ import annotations

import numpy as np
import pytest

from titan_wlb.planning.length_families import LENGTH_FAMILIES, lengths_of_family

WINDOW = 131_072
GLOBAL_BATCHES = 260 * 4 * WINDOW  # what a benchmark with N = 4 reads

# median, mean, longest, share of the tokens in documents above half the window, as the module's docstring says
FIGURES = {
    "skewed_web": (3200, 6000, 125_000, 0.13),
    "long_context": (5000, 16_000, WINDOW, 0.46),
    "code_like": (1200, 3700, WINDOW, 0.30),
}


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", LENGTH_FAMILIES)
def test_a_family_has_the_figures_that_its_docstring_says(name: str, seed: int) -> None:
    lengths = lengths_of_family(name, num_tokens=GLOBAL_BATCHES, seed=seed)
    median, mean, longest, long_share = FIGURES[name]
    assert np.median(lengths) == pytest.approx(median, rel=0.05)
    assert lengths.mean() == pytest.approx(mean, rel=0.06)
    assert lengths.max() == pytest.approx(longest, rel=0.02) and lengths.max() <= longest
    assert lengths[lengths > WINDOW // 2].sum() / lengths.sum() == pytest.approx(long_share, abs=0.025)


@pytest.mark.parametrize("seed", range(4))
def test_documents_below_half_the_window_hold_over_three_quarters_of_skewed_tokens(seed: int) -> None:
    lengths = lengths_of_family("skewed_web", num_tokens=GLOBAL_BATCHES, seed=seed)
    assert lengths[lengths < WINDOW // 2].sum() > 0.75 * lengths.sum()


def test_code_ends_in_a_spike_at_the_window() -> None:
    lengths = lengths_of_family("code_like", num_tokens=GLOBAL_BATCHES, seed=0)
    assert np.mean(lengths[lengths >= WINDOW // 4] == WINDOW) == pytest.approx(0.25, abs=0.05)


def test_more_documents_begin_with_the_same_ones() -> None:
    few = lengths_of_family("skewed_web", num_tokens=10**6, seed=5)
    many = lengths_of_family("skewed_web", num_tokens=10**9, seed=5)
    assert few.tolist() == many[: len(few)].tolist()
    assert few.sum() >= 10**6 > few[:-1].sum()


def test_lengths_scale_with_the_window() -> None:
    wide = lengths_of_family("long_context", num_tokens=10**8, seed=1)
    narrow = lengths_of_family("long_context", num_tokens=10**6, seed=1, context_window=WINDOW // 16)
    assert np.abs(wide[: len(narrow)] / 16 - narrow).max() <= 1
    assert narrow.min() >= 1 and narrow.max() <= WINDOW // 16


def test_seeds_differ_and_a_family_that_is_none_is_refused() -> None:
    first, second = (lengths_of_family("skewed_web", num_tokens=10**6, seed=seed).tolist() for seed in (0, 1))
    assert first != second
    with pytest.raises(ValueError, match="no length family 'web': choose one of skewed_web, long_context, code_like"):
        lengths_of_family("web", num_tokens=1, seed=0)
