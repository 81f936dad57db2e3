"""Defects to plant: each a small change of the product's code, and an ordinary test that it must turn red."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Mutant:
    """One planted defect.

    Args:
        name: what is wrong.
        file: below the repository.
        old: text that stands there exactly once.
        new: what replaces it.
        test: pytest id of the test that must fail.
    """

    name: str
    file: str
    old: str
    new: str
    test: str


_NEEDED = "tests/unit/planning/test_sharding_needed.py"
_CAUSES = "tests/unit/planning/test_timeline_causes.py"
_PARITY = "tests/distributed/test_parity.py::test_layout_trains_as_one_process"

MUTANTS = (
    Mutant(
        "the loss is normalised by this rank's labels",
        "titan_wlb/trainer.py",
        "self.loss_fn.num_labels = batch.plan.num_labels",
        "self.loss_fn.num_labels = sum(m.num_labels for m in batch.micro_batches)",
        f"{_PARITY}[dp2]",
    ),
    Mutant(
        "gradients of keys and values are not summed over the CP group",
        "titan_wlb/context_parallel/exchange.py",
        "self._redistribute(rows, Partial(), Shard(0))",
        "self._redistribute(rows, Replicate(), Shard(0))",
        f"{_PARITY}[cp2]",
    ),
    Mutant(
        "every micro-batch is received in the shape of the first",
        "titan_wlb/pipeline_parallel/stage.py",
        "self._rows[micro_batch]",
        "self._rows[0]",
        f"{_PARITY}[pp2_1f1b]",
    ),
    Mutant(
        "the checkpoint holds the state that was planned ahead",
        "titan_wlb/data/dataloader.py",
        "self._state = batch.plan.state",
        "self._state = self.planner.state",
        "tests/unit/data/test_data_dataloader.py"
        "::test_the_state_is_that_of_the_step_handed_out_whatever_was_read_ahead",
    ),
    Mutant(
        "the extra tokens of documents always go to the same ranks",
        "titan_wlb/planning/sharding/per_document.py",
        "turn = np.cumsum(extra) - extra",
        "turn = np.zeros_like(extra)",
        "tests/unit/planning/test_sharding.py::test_ranks_hold_equally_many_tokens_to_within_one",
    ),
    Mutant(
        "waiting for another stage is called waiting for FSDP",
        "titan_wlb/compat/pipeline_waits.py",
        'clock.wait("pipeline")',
        'clock.wait("fsdp")',
        "tests/unit/clocks/test_planted_delays.py::test_a_planted_sleep_is_the_peers_wait_in_the_right_category",
    ),
    Mutant(
        "waiting for keys and values is called waiting for FSDP",
        "titan_wlb/context_parallel/exchange.py",
        'self.clock.wait("cp", collective=True)',
        'self.clock.wait("fsdp", collective=True)',
        "tests/distributed/test_attribution.py::test_ranks_wait_in_the_categories_of_their_own_axes_alone[cp2]",
    ),
    Mutant(
        "a builder that goes on behind another one's segment begins with the first document again",
        "titan_wlb/data/index_builder.py",
        "if place < skip:",
        "if place < 0:",
        "tests/unit/data/test_data_index.py::test_whoever_builds_a_segment_it_is_the_same",
    ),
    Mutant(
        "the planner's state leaves out where in the segment the intake stands",
        "titan_wlb/planning/intake.py",
        "return *self._position, self.drawn, self.goal",
        "return *self._position[:2], 0, self.drawn, self.goal",
        "tests/unit/planning/test_planner_resume.py::test_restoring_again_and_again_changes_nothing",
    ),
    Mutant(
        "short documents fill a micro-batch beyond its cap",
        "titan_wlb/planning/packing/lookahead_fill.py",
        "while by_need and tokens[by_need[0][1]] + length > cap:",
        "while by_need and tokens[by_need[0][1]] + length > 2 * cap:",
        "tests/unit/planning/test_packing_lookahead.py::test_short_documents_wait_where_the_cap_leaves_them_no_room",
    ),
    Mutant(
        "a hybrid plan gives each rank a token more than its share",
        "titan_wlb/planning/sharding/hybrid.py",
        "base + (rank < extra)",
        "base + 1",
        "tests/unit/planning/test_sharding_hybrid.py::test_extreme_sequences",
    ),
    Mutant(
        "a rank does not receive the last row of a prefix",
        "titan_wlb/planning/sharding/needed.py",
        "- shared.start, 0, shared.length)",
        "- shared.start, 0, shared.length - 1)",
        f"{_NEEDED}::test_a_rank_receives_exactly_what_its_queries_see_and_it_lacks",
    ),
    Mutant(
        "rows are split over the ranks in the wrong order",
        "titan_wlb/planning/sharding/needed.py",
        "tuple(counts.sum(axis=1).tolist())",
        "tuple(counts.sum(axis=1)[::-1].tolist())",
        f"{_NEEDED}::test_the_counts_are_those_of_the_row_lists",
    ),
    Mutant(
        "adaptive takes the slowest plan of its family",
        "titan_wlb/planning/sharding/adaptive.py",
        "latency < least",
        "latency > least",
        "tests/unit/planning/test_sharding_adaptive.py",
    ),
    Mutant(
        "gradients of received keys and values are not returned to their owners",
        "titan_wlb/context_parallel/keys.py",
        "return own.index_add_(0, needed.send, under_way.wait().to(own.dtype))",
        "return (under_way.wait(), own)[1]",
        "tests/unit/context_parallel/test_cp_attention_op.py::"
        "test_any_plan_of_whole_and_cut_documents_equals_dense_attention",
    ),
    Mutant(
        "CP ranks are compared over the wrong axis",
        "titan_wlb/planning/timeline/peers.py",
        "own.actions / share, 1)",
        "own.actions / share, 0)",
        f"{_CAUSES}::test_a_late_action_is_found_at_its_rank_and_under_its_axis[50.0-cp2]",
    ),
    Mutant(
        "lost time of the pipeline and of data parallelism change places",
        "titan_wlb/planning/timeline/causes.py",
        '"pipeline": even.pipeline,\n        "dp": even.dp,',
        '"pipeline": even.dp,\n        "dp": even.pipeline,',
        f"{_CAUSES}::test_a_late_action_is_found_at_its_rank_and_under_its_axis[50.0-dp2]",
    ),
    Mutant(
        "waiting is told from transfer over the wrong axis",
        "titan_wlb/records/transfer.py",
        '"cp": (pp_rank, dp_rank, tp_rank)',
        '"cp": (pp_rank, cp_rank, tp_rank)',
        "tests/unit/metrics/test_transfer.py::test_ranks_wait_for_those_of_their_own_group_only",
    ),
    Mutant(
        "a document's last token has another document's first one as its label",
        "titan_wlb/data/local_batch.py",
        "labels[0, row : row + len(read) - 1] = read[1:]",
        "labels[0, row : row + len(read)] = [*read[1:], *index.tokens(max(document.id - 1, 0), 0, 1)]",
        "tests/unit/data/test_data_local_batch.py::test_labels_never_cross_a_document_boundary",
    ),
)
