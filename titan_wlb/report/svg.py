"""Pieces of pictures as SVG text. Colours are classes, which the page's style sheet knows in light and dark."""

from __future__ import annotations

import base64
import struct
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape
from math import ceil, floor, isfinite, log10

import numpy as np
import numpy.typing as npt


def svg(width: float, height: float, parts: Sequence[str], label: str) -> str:
    """A picture that is as wide as its place; ``label`` is read to those who do not see it."""
    box = f'viewBox="0 0 {number(width)} {number(height)}"'
    return f'<svg {box} role="img" aria-label="{escape(label)}">{"".join(parts)}</svg>'


def number(value: float) -> str:
    """A coordinate, in as few characters as a tenth of a pixel takes."""
    return f"{value:.1f}".removesuffix(".0")


def rect(x: float, y: float, width: float, height: float, kind: str, title: str = "", **style: str) -> str:
    """A rectangle; ``title`` shows under the pointer."""
    place = f'x="{number(x)}" y="{number(y)}" width="{number(max(width, 0))}" height="{number(max(height, 0))}"'
    inside = f"><title>{escape(title)}</title></rect>" if title else "/>"
    return f'<rect {place} class="{kind}"{_style(style)}{inside}'


def text(x: float, y: float, words: str, kind: str = "", anchor: str = "start") -> str:
    """A line of text at its baseline."""
    return f'<text x="{number(x)}" y="{number(y)}" class="{kind}" text-anchor="{anchor}">{escape(words)}</text>'


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> str:
    """A straight line."""
    ends = f'x1="{number(x1)}" y1="{number(y1)}" x2="{number(x2)}" y2="{number(y2)}"'
    return f'<line {ends} class="{kind}"/>'


def circle(x: float, y: float, radius: float, kind: str) -> str:
    """A dot."""
    return f'<circle cx="{number(x)}" cy="{number(y)}" r="{number(radius)}" class="{kind}"/>'


def polyline(points: Sequence[tuple[float, float] | None], kind: str) -> str:
    """A line through points, interrupted where one is None; a point alone is a dot."""
    parts, stretch = [], list[tuple[float, float]]()
    for point in (*points, None):
        if point is not None:
            stretch.append(point)
            continue
        if len(stretch) == 1:
            parts.append(circle(*stretch[0], 1.5, f"{kind} dot"))
        elif stretch:
            places = " ".join(f"{number(x)},{number(y)}" for x, y in stretch)
            parts.append(f'<polyline points="{places}" class="{kind}"/>')
        stretch = []
    return "".join(parts)


def image(x: float, y: float, width: float, height: float, rgba: npt.NDArray[np.uint8]) -> str:
    """Pixels, uint8 [rows, columns, 4], each stretched to a block."""
    place = f'x="{number(x)}" y="{number(y)}" width="{number(width)}" height="{number(height)}"'
    data = base64.b64encode(png(rgba)).decode()
    return f'<image {place} preserveAspectRatio="none" class="pixels" href="data:image/png;base64,{data}"/>'


def png(rgba: npt.NDArray[np.uint8]) -> bytes:
    """A PNG file of pixels, uint8 [rows, columns, 4]."""
    rows, columns = rgba.shape[:2]
    raw = b"".join(b"\0" + row.tobytes() for row in rgba)  # each row behind the number of its filter: none

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", columns, rows, 8, 6, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(raw, 9)) + chunk(b"IEND", b"")


@dataclass(frozen=True)
class Plot:
    """A rectangle of a picture, in which values have places.

    Args:
        left, top, width, height: of the rectangle.
        x, y: (least, largest) value at its edges; y grows upwards.
    """

    left: float
    top: float
    width: float
    height: float
    x: tuple[float, float]
    y: tuple[float, float]

    def px(self, value: float) -> float:
        """Where a value lies from left to right."""
        return self.left + self.width * (value - self.x[0]) / max(self.x[1] - self.x[0], 1e-9)

    def py(self, value: float) -> float:
        """Where a value lies from top to bottom."""
        return self.top + self.height * (1 - (value - self.y[0]) / max(self.y[1] - self.y[0], 1e-9))

    def y_axis(self, form: Callable[[float], str]) -> list[str]:
        """Lines across at round values, and these."""
        parts = []
        for tick in ticks(*self.y, 4):
            y = self.py(tick)
            parts.append(line(self.left, y, self.left + self.width, y, "grid"))
            parts.append(text(self.left - 6, y + 4, form(tick), "small", "end"))
        return parts

    def x_axis(self, form: Callable[[float], str], most: int = 6) -> list[str]:
        """Round values below."""
        y = self.top + self.height
        parts = [line(self.left, y, self.left + self.width, y, "axis")]
        parts += [text(self.px(tick), y + 15, form(tick), "small", "middle") for tick in ticks(*self.x, most)]
        return parts


def ticks(low: float, high: float, most: int) -> list[float]:
    """Round values between two, at most about so many.

    0 to 10, at most 5    0 2 4 6 8 10          0.03 to 1.47, at most 4    0.5 1
    """
    if not (isfinite(low) and isfinite(high)) or high <= low:
        return [low]
    rough = (high - low) / most
    power = 10.0 ** floor(log10(rough))
    step = next(factor * power for factor in (1, 2, 5, 10) if factor * power >= rough * 0.999)
    first, last = ceil(low / step - 1e-9), floor(high / step + 1e-9)
    return [place * step for place in range(first, last + 1)]


def _style(style: dict[str, str]) -> str:
    return f' style="{";".join(f"{key}:{value}" for key, value in style.items())}"' if style else ""
