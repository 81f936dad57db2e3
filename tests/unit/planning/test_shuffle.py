from collections import Counter

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from titan_wlb.planning.shuffle import Shuffle


@given(st.integers(1, 3000), st.integers(0, 2**63), st.integers(0, 1000))
def test_an_epochs_order_holds_every_document_once(num_documents, seed, epoch):
    ids = Shuffle(num_documents, seed, epoch).ids(0, num_documents)
    assert sorted(ids.tolist()) == list(range(num_documents))


@given(st.integers(1, 500), st.data())
def test_any_part_of_the_order_is_computed_alone(num_documents, data):
    start = data.draw(st.integers(0, num_documents))
    stop = data.draw(st.integers(start, num_documents))
    shuffle = Shuffle(num_documents, 3, 1)
    assert shuffle.ids(start, stop).tolist() == shuffle.ids(0, num_documents).tolist()[start:stop]


def test_seed_and_epoch_decide_the_order():
    orders = {(seed, epoch): tuple(Shuffle(100, seed, epoch).ids(0, 100)) for seed in range(5) for epoch in range(5)}
    assert len(set(orders.values())) == 25
    assert orders[2, 3] == tuple(Shuffle(100, 2, 3).ids(0, 100))


def test_the_order_is_the_same_on_every_machine():
    assert Shuffle(10, 0, 0).ids(0, 10).tolist() == [8, 9, 0, 3, 1, 7, 5, 4, 6, 2]


def test_a_very_large_index_needs_no_memory():
    ids = Shuffle(10**14 + 7, 1, 0).ids(10**13, 10**13 + 1000)
    assert len(set(ids.tolist())) == 1000
    assert ids.min() >= 0 and ids.max() < 10**14 + 7


def test_every_order_of_three_documents_occurs():
    orders = Counter(tuple(Shuffle(3, seed, 0).ids(0, 3)) for seed in range(3000))
    assert len(orders) == 6


def test_places_and_documents_are_unrelated():
    # Where documents 0 .. 19 stand of 20, over many seeds: 190 degrees of freedom short of 361, far below chaos.
    counts = np.zeros((20, 20))
    for seed in range(2000):
        counts[np.arange(20), Shuffle(20, seed, 0).ids(0, 20)] += 1
    chi_square = ((counts - 100) ** 2 / 100).sum()
    assert 250 < chi_square < 480, "361 expected, standard deviation 27"


def test_neighbours_in_the_index_are_not_neighbours_in_the_order():
    ids = Shuffle(100_000, 5, 2).ids(0, 100_000)
    assert abs(np.corrcoef(ids[:-1], ids[1:])[0, 1]) < 0.02
    assert (np.abs(np.diff(ids)) == 1).sum() < 15, "2 expected of a random order"
