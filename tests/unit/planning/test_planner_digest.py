import os
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from planner_cases import CONFIG, LATENCY

import titan_wlb.planning.planner as planner_module
from titan_wlb.planning.kernel_file import default_kernel_profile
from titan_wlb.planning.lengths import KnownLengths
from titan_wlb.planning.plan import Chunk
from titan_wlb.planning.planner import Planner
from titan_wlb.planning.workload import Workload

LENGTHS = [1 + 37 * id % 97 for id in range(200)]

IN_ANOTHER_PROCESS = """
from titan_wlb.planning.lengths import KnownLengths
from titan_wlb.planning.planner import Planner, PlannerConfig
from titan_wlb.planning.workload import Workload
config = PlannerConfig(packing="variable_length", num_micro_batches=4, context_window=64, max_tokens=128,
                       outlier_thresholds=(24, 48), workload=Workload(10, 64, 1, 64), seed=3)
planner = Planner(KnownLengths([1 + 37 * id % 97 for id in range(200)]), config, dp=2, cp=2)
for _ in range(20):
    plan = planner.plan()
print(plan.digest)
"""


def digests(lengths=LENGTHS, config=CONFIG, dp=2, cp=2, num_steps=20, **options):
    planner = Planner(KnownLengths(lengths, **options), config, dp=dp, cp=cp)
    return [planner.digest, *(planner.plan().digest for _ in range(num_steps))]


def test_every_process_plans_the_same_whatever_its_hash_seed():
    for seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": seed}
        run = subprocess.run(
            [sys.executable, "-c", IN_ANOTHER_PROCESS], env=environment, capture_output=True, text=True, check=True
        )
        assert run.stdout.strip() == digests()[-1]


def test_the_plans_are_those_of_every_python_and_numpy():
    # Written down once; a change here means that a resumed run would not continue as it was planned.
    assert digests()[-1] == "cb478579ed10ca6fbaed9b94f20169b1"
    assert digests(config=replace(CONFIG, packing="original"))[-1] == "aa52db18c1c35ab65ae77dd2b3a2257a"


def test_a_list_and_an_array_of_lengths_plan_the_same():
    assert digests() == digests(np.array(LENGTHS)) == digests(np.array(LENGTHS, dtype=np.int32))


def test_another_model_of_the_attention_kernel_shows_before_the_first_plan():
    config = replace(CONFIG, sharding="adaptive")
    models = (LATENCY, replace(LATENCY, heads=8), replace(LATENCY, profile=default_kernel_profile("cpu", 64)))
    assert len({Planner(KnownLengths(LENGTHS), config, dp=2, cp=2, latency=model).digest for model in models}) == 3


@pytest.mark.parametrize(
    "change",
    [
        {"config": replace(CONFIG, seed=4)},
        {"config": replace(CONFIG, workload=Workload(10, 64, 1, 65))},
        {"config": replace(CONFIG, max_tokens=129)},
        {"config": replace(CONFIG, sharding="per_sequence")},
        {"config": replace(CONFIG, max_rank_tokens=500)},
        {"lengths": [*LENGTHS[:-1], LENGTHS[-1] + 1]},
        {"fingerprint": "other tokens"},
        {"dp": 4},
        {"cp": 4},
    ],
    ids=lambda change: next(iter(change)),
)
def test_another_configuration_index_or_layout_shows_before_the_first_plan(change):
    assert digests(num_steps=0) != digests(num_steps=0, **change)


def planted(monkeypatch, name, wrong, step):
    """The digests where ``name`` of the planner does something ``wrong`` in one step alone."""
    calls = 0
    right = getattr(planner_module, name)

    def sometimes(*args):
        nonlocal calls
        calls += 1
        per_step = CONFIG.num_micro_batches if name == "shard" else 1
        return wrong(right(*args)) if -(-calls // per_step) == step else right(*args)

    with monkeypatch.context() as patch:
        patch.setattr(planner_module, name, sometimes)
        return digests()


@pytest.mark.parametrize(
    ("name", "wrong"),
    [
        ("deal", lambda dealt: (dealt[0], tuple(1 - rank for rank in dealt[1]))),
        ("shard", lambda plan: replace(plan, ranks=plan.ranks[::-1])),
        ("shard", lambda plan: replace(plan, ranks=((Chunk(0, 0, 0), *plan.ranks[0]), *plan.ranks[1:]))),
        ("shard", lambda plan: replace(plan, strategy="per_segment")),
        ("MicroBatch", lambda micro_batch: replace(micro_batch, cost=micro_batch.cost + 1)),
        ("MicroBatch", lambda micro_batch: replace(micro_batch, segments=micro_batch.segments[::-1])),
    ],
)
def test_a_difference_in_one_step_shows_in_that_step_and_ever_after(monkeypatch, name, wrong):
    if name == "MicroBatch":
        step_of_call = 4 * 6 + 3  # in its third micro-batch, which has two segments
        expected = 7
    else:
        step_of_call = expected = 7
    equal = [a == b for a, b in zip(digests(), planted(monkeypatch, name, wrong, step_of_call), strict=True)]
    assert equal == [True] * expected + [False] * (len(equal) - expected)


def test_after_a_resume_the_chain_starts_from_the_state_alike_on_all_ranks():
    planner = Planner(KnownLengths(LENGTHS), CONFIG, dp=2, cp=2)
    state = [planner.plan().state for _ in range(3)][-1]
    chains = []
    for _ in range(2):
        resumed = Planner(KnownLengths(LENGTHS), CONFIG, dp=2, cp=2)
        resumed.plan()  # whatever was planned before
        resumed.restore(state)
        chains.append([resumed.digest, resumed.plan().digest, resumed.plan().digest])
    assert chains[0] == chains[1]
    assert len(set(chains[0])) == 3
