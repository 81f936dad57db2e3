"""What a document costs: a + b * d + c * d^2 for a document of d tokens, in whole nanoseconds.

    Workload(constant=100, linear=3, quadratic=1, denominator=2)

    document of 4 tokens    100 + (3 * 4 + 1 * 16) // 2 = 114 ns
    document of 8 tokens    100 + (3 * 8 + 1 * 64) // 2 = 144 ns
    both in a micro-batch                                 258 ns   (they do not attend to each other)

Costs are Python integers, so that every process of a job plans the same whatever machine it runs on. The split into a
linear part (GEMMs, element-wise, collectives) and a quadratic part (attention) is the paper's, section 4.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from math import gcd, lcm

_NANOSECONDS = 1_000_000_000  # in a second


@dataclass(frozen=True, slots=True)
class Workload:
    """Predicted forward and backward time of a document.

    Args:
        constant: nanoseconds of every document.
        linear: nanoseconds x ``denominator`` of every token.
        quadratic: nanoseconds x ``denominator`` of every token squared.
        denominator: what the linear and the quadratic part are divided by, rounding down.

    Raises:
        ValueError: a coefficient is negative or the denominator is not positive.
    """

    constant: int
    linear: int
    quadratic: int
    denominator: int = 1

    def __post_init__(self) -> None:
        if min(self.constant, self.linear, self.quadratic) < 0 or self.denominator < 1:
            raise ValueError(f"cost coefficients must be >= 0 and their denominator >= 1, got {self.to_json()}")

    def cost(self, length: int) -> int:
        """Nanoseconds of a document of ``length`` tokens."""
        return self.constant + (self.linear * length + self.quadratic * length * length) // self.denominator

    def costs(self, lengths: Iterable[int]) -> int:
        """Nanoseconds of documents that share a micro-batch: the sum, since none attends to another."""
        return sum(self.cost(length) for length in lengths)

    @classmethod
    def from_floats(cls, constant: float, linear: float, quadratic: float, *, scale: int = 1_000_000) -> Workload:
        """The exact values of three floats, times ``scale``: by default milliseconds become nanoseconds.

        The constant is rounded down to a whole nanosecond, the others are kept as they are.
        """
        b, c = Fraction(linear) * scale, Fraction(quadratic) * scale
        denominator = lcm(b.denominator, c.denominator)
        return cls(int(Fraction(constant) * scale), int(b * denominator), int(c * denominator), denominator)

    def to_json(self) -> list[int]:
        """[constant, linear, quadratic, denominator]."""
        return [self.constant, self.linear, self.quadratic, self.denominator]

    @classmethod
    def from_json(cls, values: Sequence[int]) -> Workload:
        """What ``to_json`` gave."""
        constant, linear, quadratic, denominator = values
        return cls(constant, linear, quadratic, denominator)


@dataclass(frozen=True, slots=True)
class ModelShape:
    """What of a Llama-like decoder decides its floating-point operations (multiplication and addition count as two).

    Args:
        dim: width of the residual stream.
        n_layers: decoder layers.
        n_heads: query heads.
        n_kv_heads: key and value heads.
        head_dim: width of a head.
        ffn_dim: hidden width of the gated feed-forward network, three matrices of dim x ffn_dim.
        vocab_size: columns of the output projection; looking up an embedding costs nothing.
    """

    dim: int
    n_layers: int
    n_heads: int
    n_kv_heads: int
    head_dim: int
    ffn_dim: int
    vocab_size: int

    @property
    def matmul_params(self) -> int:
        """Weights that every token is multiplied with, output projection included."""
        attention = self.dim * self.head_dim * 2 * (self.n_heads + self.n_kv_heads)
        return self.n_layers * (attention + 3 * self.dim * self.ffn_dim) + self.dim * self.vocab_size

    def forward_flops(self, length: int) -> tuple[int, int]:
        """(GEMM, causal attention) operations of a document's forward pass.

        A query meets the keys up to itself, (d^2 + d) / 2 pairs in all, with two products of head_dim for each.
        """
        pairs = length * (length + 1) // 2
        return 2 * self.matmul_params * length, 4 * self.n_layers * self.n_heads * self.head_dim * pairs

    def flops(self, length: int) -> int:
        """Model operations of a document, forward and backward, for MFU: backward is twice forward, and what a
        kernel computes again is not counted (PaLM, appendix B; but attention is counted causally).
        """
        return 3 * sum(self.forward_flops(length))


def analytic(shape: ModelShape, flops_per_second: int) -> Workload:
    """The workload of a model from its shape (ours; the paper fits a profile).

    GEMMs: backward is twice forward, six operations per weight and token. Attention: a flash kernel computes the
    scores again in backward, five products where forward has two, so backward is 2.5 times forward.

    Args:
        shape: the whole model.
        flops_per_second: what is achieved; it scales all costs alike, so that it decides no plan.
    """
    if flops_per_second < 1:
        raise ValueError(f"flops_per_second {flops_per_second} must be at least 1")
    # Twice everything, so that 3.5 x (d^2 + d) / 2 stays whole: 3.5 x 4 x heads x head_dim for each of d^2 + d.
    attention = 14 * shape.n_layers * shape.n_heads * shape.head_dim
    linear = (12 * shape.matmul_params + attention) * _NANOSECONDS
    quadratic = attention * _NANOSECONDS
    common = gcd(linear, quadratic, 2 * flops_per_second)
    return Workload(0, linear // common, quadratic // common, 2 * flops_per_second // common)
