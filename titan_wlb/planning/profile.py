"""What a document costs on a real device: a profile that tools/profile_latency.py measured once, as JSON.

Latencies are forward + backward, in ns, of a micro-batch of n documents with T tokens, S their lengths squared and
added up:

                   per micro-batch   per document n   per token T   per token squared S
    attention             10                5               1               0.5           of a layer
    rest                  20                                3                             of a layer: all but attention
    head                   7                                2                             embedding, output, loss
    model of 2 layers     67               10              10               1

    document of 4 tokens   10 + 10 x 4 + 1 x 16 = 66

The cost of a document is its time on one chain of pipeline stages, each stage being TP x CP devices that work together:
the sum over the stages. Over PP stages a rank computes for cost / PP on the mean. What every micro-batch pays alike
(67) is kept for predictions of its time, and is no document's: no plan depends on it.

Source: the paper fits its predictors to offline profiles (section 4); the constant per document is ours (hundreds of
tiny documents set the step time of real runs, swiss-ai/Megatron-LM#118).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields

from titan_wlb.planning.workload import ModelShape, Workload

PARTS = ("attention", "layer", "head", "model")


@dataclass(frozen=True, slots=True)
class Latency:
    """Nanoseconds of a micro-batch: e + a per document + b per token + c per token squared, all >= 0."""

    per_micro_batch: float
    per_document: float
    per_token: float
    per_token_squared: float

    def of(self, lengths: Iterable[int]) -> float:
        """Of documents of these lengths that share a micro-batch, in ns."""
        lengths = list(lengths)
        return (
            self.per_micro_batch
            + self.per_document * len(lengths)
            + self.per_token * sum(lengths)
            + self.per_token_squared * sum(length * length for length in lengths)
        )

    def __add__(self, other: Latency) -> Latency:
        """Of one after the other."""
        return Latency(*(getattr(self, field.name) + getattr(other, field.name) for field in fields(self)))

    def times(self, number: int) -> Latency:
        """Of ``number`` of them, one after the other."""
        return Latency(*(getattr(self, field.name) * number for field in fields(self)))


@dataclass(frozen=True, slots=True)
class Measurement:
    """One line of the measured table.

    Args:
        part: "attention", "layer", "head" or "model".
        layers: how many decoder layers ran: 1 for the first two, 0 for the head.
        documents: (how many, tokens of each), ...: the micro-batch.
        forward: ns.
        backward: ns; what checkpointing computes again is in it for layers and models, not for attention alone.
    """

    part: str
    layers: int
    documents: tuple[tuple[int, int], ...]
    forward: int
    backward: int

    @property
    def lengths(self) -> list[int]:
        """Tokens of each document."""
        return [length for number, length in self.documents for _ in range(number)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """A measured workload model, and where it was measured.

    Args:
        shape: of the whole model.
        tp, cp: devices that worked on a micro-batch together, in tensor and context parallelism.
        device: its name.
        clock: what the times were read from.
        settings: dtype, kernel and whatever else of the configuration changes latency, as text.
        versions: of the packages.
        attention_runs: how often training runs a layer's attention forward: 2 where checkpointing repeats it.
        attention: of one decoder layer, fitted, with so many runs.
        rest: of one decoder layer, fitted: all but attention.
        head: of embedding, final norm, output projection and loss, fitted.
        measured: the table. "model" is mixed micro-batches that were not fitted.
    """

    shape: ModelShape
    tp: int
    cp: int
    device: str
    clock: str
    settings: dict[str, str]
    versions: dict[str, str]
    attention_runs: float
    attention: Latency
    rest: Latency
    head: Latency
    measured: tuple[Measurement, ...] = ()

    @property
    def model(self) -> Latency:
        """Of the whole model."""
        return (self.attention + self.rest).times(self.shape.n_layers) + self.head

    def workload(self, shape: ModelShape, *, tp: int = 1, cp: int = 1) -> Workload:
        """What a document costs in a run of this model shape and layout, in ns.

        Where the layout is not that of the profile, what a token costs is divided by the ranks (as if all of it were
        shared equally, collectives included) and the constant of a document is kept: every rank of a context-parallel
        group has a part of each document. ``note`` says so to the person who started the run.

        Raises:
            ValueError: the profile is of another model shape; one line.
        """
        for field in fields(ModelShape):
            ours, theirs = getattr(self.shape, field.name), getattr(shape, field.name)
            if ours != theirs:
                raise ValueError(
                    f"wlb.profile was measured for a model with {field.name} {ours}, this run's has {theirs}; measure "
                    'this configuration with tools/profile_latency.py, or set wlb.profile to "" for the analytic model'
                )
        model, ranks = self.model, self.tp * self.cp / (tp * cp)
        return Workload.from_floats(
            model.per_document, _dyadic(model.per_token * ranks), _dyadic(model.per_token_squared * ranks), scale=1
        )

    def predicted(self, line: Measurement) -> float:
        """What the fit gives the micro-batch of a line of the table, in ns."""
        parts = {
            "attention": self.attention,
            "layer": (self.attention + self.rest).times(line.layers),
            "head": self.head,
            "model": (self.attention + self.rest).times(line.layers) + self.head,
        }
        return parts[line.part].of(line.lengths)

    def time(self, line: Measurement) -> float:
        """What ``predicted`` predicts: the line's forward and backward, as often as training runs them, in ns."""
        return (self.attention_runs if line.part == "attention" else 1.0) * line.forward + line.backward

    def residual(self, part: str) -> tuple[float, float]:
        """(largest, mean) relative error over the lines of a part; zeros where it has none."""
        lines = [line for line in self.measured if line.part == part]
        errors = [abs(self.predicted(line) - self.time(line)) / self.time(line) for line in lines]
        return (max(errors), sum(errors) / len(errors)) if errors else (0.0, 0.0)

    def note(self, *, tp: int = 1, cp: int = 1) -> str:
        """One line for a run's log: what its workload model is, how good, and what it assumes in this layout."""
        line = f"measured on {self.device} ({', '.join(f'{key} {value}' for key, value in self.settings.items())})"
        if any(measured.part == "model" for measured in self.measured):
            largest, mean = self.residual("model")
            line += f", off by {100 * mean:.1f} % on the mean, {100 * largest:.1f} % at most, on mixed micro-batches"
        if (tp, cp) != (self.tp, self.cp):
            line += (
                f"; measured with TP {self.tp} x CP {self.cp}, run with TP {tp} x CP {cp}: costs per token are divided "
                "by the ranks, the constant per document is kept"
            )
        return line


def _dyadic(nanoseconds: float) -> float:
    """To a millionth of a nanosecond: costs of long documents stay below 2^63, for whoever computes them in numpy."""
    return round(nanoseconds * 2**20) / 2**20
