"""torch.compile does not change what is trained, and compiles nothing after step 2 though lengths go on changing."""

from __future__ import annotations

import pytest
from parity_layouts import COMPILED_LAYOUTS
from parity_results import assert_same_training, of_all_ranks, of_rank_0


@pytest.mark.parametrize("layout", COMPILED_LAYOUTS, ids=lambda layout: layout.name)
def test_compiled_layout_trains_as_one_process(runs, layout):
    for result in of_all_ranks(runs, layout):
        assert_same_training(result, of_rank_0(runs, layout.reference))


@pytest.mark.parametrize("layout", COMPILED_LAYOUTS, ids=lambda layout: layout.name)
def test_nothing_is_compiled_again_after_step_2(runs, layout):
    for result in of_all_ranks(runs, layout):
        _, after_step_2, *later = result.graphs
        assert after_step_2 >= 1, "nothing was compiled at all"
        assert later == [after_step_2] * len(later)
        lengths = {len_ for plan in result.plans[2:] for shard in plan.shards for len_ in shard.tokens}
        assert lengths - {len_ for plan in result.plans[:2] for shard in plan.shards for len_ in shard.tokens}
