import json
from dataclasses import replace

import pytest
from planner_cases import CONFIG

from titan_wlb.planning.config import USER_KEYS, PlannerConfig


def test_every_field_but_those_of_the_layout_is_in_the_state_under_a_key_that_users_know():
    values = CONFIG.to_json()
    assert values.keys() == USER_KEYS.keys() == set(PlannerConfig.__slots__) - {"sharding", "max_rank_tokens"}
    assert PlannerConfig.from_json(json.loads(json.dumps(values)), sharding="per_document") == CONFIG


@pytest.mark.parametrize(
    "config",
    [
        replace(CONFIG, packing="fixed_length", packing_window=8),
        replace(CONFIG, max_age_iterations=12, balance_tolerance_ppm=1500),
    ],
)
def test_a_state_brings_every_setting_back(config):
    values = json.loads(json.dumps(config.to_json()))
    assert PlannerConfig.from_json(values, sharding=config.sharding) == config


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"packing": "fixed_length", "packing_window": 0}, "wlb.packing_window 0 must be at least 1"),
        ({"packing_window": 4}, "leave it out, or choose fixed_length or solver"),
        ({"packing_window": 4}, "wlb.packing_window 4 does nothing with wlb.packing 'variable_length'"),
        ({"max_age_iterations": -1}, "wlb.max_age_iterations -1 must be at least 1, or 0 for no bound"),
        ({"packing": "original", "max_age_iterations": 5}, "wlb.max_age_iterations 5 does nothing with"),
        ({"balance_tolerance_ppm": 1_000_001}, "wlb.balance_tolerance 1.000001 must be between 0 and 1"),
        ({"micro_batch_shape": "round"}, "wlb.micro_batch_shape 'round' must be one of equal, schedule"),
        ({"packing": "solver", "micro_batch_shape": "schedule"}, "wlb.micro_batch_shape schedule does nothing with"),
        ({"steady_tokens": True}, "wlb.steady_tokens True does nothing with wlb.packing 'variable_length'"),
    ],
)
def test_a_value_that_is_not_valid_or_does_nothing_is_refused_in_one_line(change, message):
    with pytest.raises(ValueError, match=message) as error:
        replace(CONFIG, **change)
    assert "\n" not in str(error.value)
