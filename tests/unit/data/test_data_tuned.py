"""What is "auto" is tuned once for an index and a configuration, and found again."""

import pytest
from data_cases import index_of, random_texts

import titan_wlb.tuned
from titan_wlb.job_config import WLB
from titan_wlb.planning.planner import PlannerConfig
from titan_wlb.planning.workload import Workload
from titan_wlb.tuned import tune


@pytest.fixture(scope="module")
def index(tmp_path_factory):
    return index_of(random_texts(400, longest=90), tmp_path_factory.mktemp("data") / "index")


@pytest.fixture
def fresh(index):
    """The same index, nothing tuned yet."""
    yield index
    for file in index.folder.glob("tuned-*.json"):
        file.unlink()


def config_of(packing, **changes):
    values = {"num_micro_batches": 4, "context_window": 96, "max_tokens": 192, "workload": Workload(0, 48, 1, 48)}
    return PlannerConfig(packing=packing, **values | changes)


THRESHOLDS = WLB(outlier_thresholds="auto", max_delay_iterations=0.6)


def test_thresholds_are_tuned_for_the_limit_on_delay_and_kept_beside_the_index(fresh, monkeypatch, caplog):
    config = config_of("variable_length")
    with caplog.at_level("INFO"):
        tuned = tune(config, THRESHOLDS, fresh)
    assert tuned.outlier_thresholds and tuned.outlier_thresholds[-1] <= 96
    assert f"wlb.outlier_thresholds = 'auto' is {list(tuned.outlier_thresholds)}: imbalance 1." in caplog.text
    monkeypatch.setattr(titan_wlb.tuned, "tune_config", lambda *args, **kwargs: pytest.fail("tuned again"))
    assert tune(config, THRESHOLDS, fresh) == tuned


def test_the_tolerance_of_lookahead_is_tuned(fresh):
    tuned = tune(config_of("lookahead"), WLB(balance_tolerance="auto"), fresh)
    assert 0 <= tuned.balance_tolerance_ppm <= 1_000_000
    assert len(list(fresh.folder.glob("tuned-*.json"))) == 1


@pytest.mark.parametrize(
    ("config", "wlb"),
    [
        (config_of("variable_length", outlier_thresholds=(24,)), WLB(outlier_thresholds=[24])),
        (config_of("original"), THRESHOLDS),
        (config_of("lookahead"), THRESHOLDS),
    ],
    ids=["given", "original has none", "lookahead has another"],
)
def test_what_is_given_or_not_looked_at_is_left_alone(fresh, config, wlb):
    assert tune(config, wlb, fresh) == config
    assert not list(fresh.folder.glob("tuned-*.json"))


def test_another_limit_or_job_is_tuned_anew(fresh):
    tune(config_of("variable_length"), THRESHOLDS, fresh)
    tune(config_of("variable_length"), WLB(outlier_thresholds="auto", max_delay_iterations=0.3), fresh)
    tune(config_of("variable_length", num_micro_batches=8), THRESHOLDS, fresh)
    assert len(list(fresh.folder.glob("tuned-*.json"))) == 3


@pytest.mark.parametrize("text", ["", "{", "[]", '{"knob": [24]}'])
def test_a_damaged_file_is_written_again(fresh, text):
    tuned = tune(config_of("variable_length"), THRESHOLDS, fresh)
    (file,) = fresh.folder.glob("tuned-*.json")
    file.write_text(text)
    assert tune(config_of("variable_length"), THRESHOLDS, fresh) == tuned
    assert file.read_text() != text
