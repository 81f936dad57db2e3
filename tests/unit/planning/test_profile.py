"""A measured workload model: what it makes of a document, and its file."""

import json
from dataclasses import replace
from fractions import Fraction

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from titan_wlb.planning.profile import Latency, Measurement, Profile
from titan_wlb.planning.profile_file import from_json, read_profile, to_json, write_profile
from titan_wlb.planning.workload import ModelShape

SHAPE = ModelShape(dim=8, n_layers=2, n_heads=2, n_kv_heads=1, head_dim=4, ffn_dim=16, vocab_size=32)
MIXED = Measurement("model", 2, ((1, 4), (1, 2)), 50, 70)
PROFILE = Profile(
    shape=SHAPE,
    tp=2,
    cp=1,
    device="a device",
    clock="a clock",
    settings={"dtype": "bfloat16", "kernel": "flash_attn"},
    versions={"torch": "2.13.0"},
    attention_runs=1.0,
    attention=Latency(10, 5, 1, 0.5),
    rest=Latency(20, 0, 3, 0),
    head=Latency(7, 0, 2, 0),
    measured=(Measurement("attention", 1, ((2, 4),), 20, 24), MIXED),
)


def test_the_drawn_model_costs_what_the_docstring_says() -> None:
    assert PROFILE.model == Latency(67, 10, 10, 1)
    workload = PROFILE.workload(SHAPE, tp=2)
    assert workload.cost(4) == 66
    assert PROFILE.model.of([4]) == 67 + 66


def test_a_prediction_adds_what_every_micro_batch_pays_to_the_costs_of_its_documents() -> None:
    lengths = [1, 5, 9]
    assert PROFILE.model.of(lengths) == 67 + PROFILE.workload(SHAPE, tp=2).costs(lengths)


def test_a_line_is_compared_with_the_parts_that_ran() -> None:
    assert PROFILE.predicted(PROFILE.measured[0]) == PROFILE.time(PROFILE.measured[0]) == 44
    assert PROFILE.residual("attention") == (0.0, 0.0)
    assert PROFILE.predicted(MIXED) == 67 + 2 * 10 + 6 * 10 + 20
    assert PROFILE.residual("model") == pytest.approx((47 / 120, 47 / 120))
    assert PROFILE.residual("head") == (0.0, 0.0)


def test_attention_counts_as_often_as_training_runs_it() -> None:
    checkpointed = replace(PROFILE, attention_runs=2.0)
    assert checkpointed.time(checkpointed.measured[0]) == 2 * 20 + 24
    assert checkpointed.time(MIXED) == 120, "what a model repeats is in its backward"


def test_another_layout_divides_tokens_by_the_ranks_and_keeps_the_constant() -> None:
    four = PROFILE.workload(SHAPE, tp=2, cp=4)
    assert [four.cost(length) for length in (4, 8)] == [10 + (40 + 16) // 4, 10 + (80 + 64) // 4]
    assert "measured with TP 2 x CP 1, run with TP 2 x CP 4" in PROFILE.note(tp=2, cp=4)
    assert "run with" not in PROFILE.note(tp=2)


def test_the_note_tells_the_residual_of_unseen_micro_batches() -> None:
    assert "off by 39.2 % on the mean, 39.2 % at most" in PROFILE.note(tp=2)
    assert "off by" not in replace(PROFILE, measured=()).note(tp=2)


@pytest.mark.parametrize("field", ["dim", "n_layers", "n_heads", "n_kv_heads", "head_dim", "ffn_dim", "vocab_size"])
def test_a_profile_of_another_model_is_refused_in_one_line(field: str) -> None:
    other = replace(SHAPE, **{field: getattr(SHAPE, field) + 1})
    with pytest.raises(ValueError, match=f"with {field} {getattr(SHAPE, field)}, this run's has") as refusal:
        PROFILE.workload(other)
    assert "\n" not in str(refusal.value)


COEFFICIENTS = st.floats(0, 1e9, allow_nan=False)


@settings(max_examples=50, deadline=None)
@given(
    st.builds(Latency, COEFFICIENTS, COEFFICIENTS, COEFFICIENTS, st.floats(0, 1e3)),
    st.lists(st.integers(1, 200_000), max_size=5),
)
def test_costs_are_the_fit_rounded_down_per_document(attention: Latency, lengths: list[int]) -> None:
    profile = replace(PROFILE, attention=attention)
    workload, model = profile.workload(SHAPE, tp=2), profile.model
    for length in lengths:
        exact = (
            Fraction(model.per_document)
            + Fraction(model.per_token) * length
            + Fraction(model.per_token_squared) * length**2
        )
        rounding = Fraction(length + length**2, 2**21) + 2
        assert abs(workload.cost(length) - exact) <= rounding


def test_costs_of_a_long_window_fit_into_64_bits() -> None:
    profile = replace(PROFILE, attention=Latency(1e5, 1e4 / 3, 1e3 / 3, 7 / 3), rest=Latency(0, 0, 1e4 / 7, 0))
    workload = profile.workload(SHAPE)
    assert workload.denominator <= 2**20
    assert workload.linear * 2**18 + workload.quadratic * 2**36 < 2**63


def test_a_profile_survives_its_file(tmp_path) -> None:
    path = tmp_path / "folder" / "profile.json"
    write_profile(PROFILE, path)
    assert read_profile(path) == PROFILE
    values = json.loads(path.read_text())
    assert values["fit"]["model"]["per_document"] == 10 and values["residuals"]["model"]["max"] == pytest.approx(
        47 / 120
    )
    assert values["model_shape"]["dim"] == 8 and values["layout"] == {"tp": 2, "cp": 1}
    assert '  {"part": "model", "layers": 2, "documents": [[1, 4], [1, 2]], "forward": 50, "backward": 70}\n' in (
        path.read_text()
    )


@pytest.mark.parametrize(
    ("keys", "value", "line"),
    [
        (("schema",), "other", "schema is 'other', this program reads 'titan_wlb.profile/1'"),
        (("layout", "tp"), 0, "layout.tp is 0, it must be at least 1"),
        (("layout", "cp"), 1.5, "layout.cp is 1.5, it must be a whole number"),
        (("layout", "cp"), True, "layout.cp is True, it must be a whole number"),
        (("model_shape",), None, "model_shape.dim is missing"),
        (("model_shape", "dim"), "8", "model_shape.dim is '8', it must be a whole number"),
        (("fit", "rest", "per_token"), -3, "fit.rest.per_token is -3, it must be a finite number >= 0"),
        (("fit", "head", "per_token"), float("nan"), "fit.head.per_token is nan, it must be a finite number >= 0"),
        (("fit", "attention"), {}, "fit.attention.per_micro_batch is missing"),
        (("measured", 0, "part"), "tail", "measured.0.part is 'tail', it must be one of attention, layer, head, model"),
        (("measured", 0, "documents"), [[2]], "measured.0.documents.0.1 is missing"),
        (("settings", "dtype"), 3, "settings.dtype is 3, it must be a text"),
        (("measured",), {}, "measured is {}, it must be an array"),
    ],
)
def test_a_file_that_is_no_profile_is_refused_in_one_line(tmp_path, keys: tuple, value: object, line: str) -> None:
    values = json.loads(json.dumps(to_json(PROFILE)))
    inner = values
    for key in keys[:-1]:
        inner = inner[key]
    inner[keys[-1]] = value
    path = tmp_path / "profile.json"
    path.write_text(json.dumps(values))
    with pytest.raises(ValueError) as refusal:
        read_profile(path)
    assert str(refusal.value).startswith(f"wlb.profile {str(path)!r}: {line}")
    assert "measure again with tools/profile_latency.py" in str(refusal.value) and "\n" not in str(refusal.value)


def test_a_file_that_cannot_be_read_is_refused_in_one_line(tmp_path) -> None:
    path = tmp_path / "profile.json"
    with pytest.raises(ValueError, match="cannot be read: No such file or directory"):
        read_profile(path)
    path.write_text("{")
    with pytest.raises(ValueError, match="is no JSON"):
        read_profile(path)
    with pytest.raises(ValueError, match="schema is None"):
        from_json([])
