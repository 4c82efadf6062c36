"""Which points of a grid are which figure of the paper: decided from their options, never from the names of blocks."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from ..plans.criteria import CRITERIA
from .summary import Point
from .variants import UNFROZEN, Variant

PAPER_BITS = (4, 4)
FULL = (32, 32)
REST = ("scope", "unit", "ties", "protect", "renormalize", "frozen_grid", "order", "levels", "statistics_images")
MOST_LINES = 8

OPTIONS = {
    "by": "criterion", "statistics": "statistics", "frozen_bits": "bits of the constants", "renormalize": "sum of a row",
    "protect": "what stays computed", "order": "order of merging", "frozen_grid": "grid of the constants",
}  # fmt: skip
WORDS: dict[str, dict[Any, str]] = {
    "by": {name: criterion.label for name, criterion in CRITERIA.items()},
    "scope": {"head": "per head", "layer": "per layer", "model": "whole model"},
    "statistics": {"fp32": "statistics of the original", "quantized": "statistics of the quantized model"},
    "renormalize": {"none": "rows as they are", "mass": "computed weights rescaled", "renorm": "rows rescaled"},
    "ties": {"rank": "ties by rank", "strict": "ties to zero", "le": "ties frozen"},
    "order": {"quantize-merge": "quantized, then merged", "merge-quantize": "merged, then quantized"},
    "frozen_grid": {"layer": "grid of the layer", "head": "grid per head"},
    "levels": {"published": "levels as published", "strict": "strict levels"},
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Line:
    """One plan over its shares. `options` are all but share and seed, with `statistics` and `statistics_images`.

    `expected` says how many seeds the grid asks for at each share; `points` are those that are measured, by share.
    """

    options: dict[str, Any]
    expected: dict[float, int]
    points: dict[float, Point] = field(default_factory=dict)

    @property
    def bits(self) -> tuple[int, int]:
        """Bits of weights and activations."""
        return (self.options["weight_bits"], self.options["activation_bits"])

    @property
    def by(self) -> str:
        """The criterion."""
        return str(self.options["by"])

    @property
    def cell(self) -> tuple[str, int]:
        """Whose statistics, and the bits of the constants: EAM_FP32 is ("fp32", 32), EAM_4bits ("quantized", 4)."""
        return (self.options["statistics"], self.options["frozen_bits"])

    @property
    def rest(self) -> tuple[Any, ...]:
        """The options that the paper does not vary."""
        return tuple(self.options[name] for name in REST)

    def differs(self, other: Line) -> tuple[str, ...]:
        """Names of the options in which two lines differ."""
        return tuple(name for name in _order(self.options) if self.options[name] != other.options[name])


@dataclass(frozen=True)
class Panel:
    """Lines of the same bits to compare with each other; the first is what the others are held against, the first `front` are known
    from the paper's figures."""

    bits: tuple[int, int]
    lines: list[Line]
    front: int = 1

    @property
    def shares(self) -> list[float]:
        """The shares at which there is something to compare."""
        return sorted({share for line in self.lines[self.front :] for share in line.expected})

    @property
    def title(self) -> str:
        """Bits, and the options that are compared."""
        varied = dict.fromkeys(name for line in self.lines for name in line.differs(self.lines[0]))
        return f"{bits_word(self.bits)}: {', '.join(OPTIONS.get(name, name.replace('_', ' ')) for name in varied) or 'criterion'}"


@dataclass(frozen=True)
class Ranking:
    """All lines of the same bits that have a share, where some have no other; the first is what the others are held against."""

    bits: tuple[int, int]
    share: float
    lines: list[Line]


@dataclass(frozen=True)
class Roles:
    """`paper`: cells of figure 5. `control`: entropy and random of figure 6. `alone`: freezing without quantization. `panels` and
    `rankings`: all other comparisons. `images`: families of lines that differ in the images of their statistics only."""

    bits: tuple[int, int] | None = None
    paper: list[Line] = field(default_factory=list)
    control: tuple[Line, Line] | None = None
    alone: list[Line] = field(default_factory=list)
    panels: list[Panel] = field(default_factory=list)
    rankings: list[Ranking] = field(default_factory=list)
    images: list[list[Line]] = field(default_factory=list)

    @property
    def main(self) -> Line | None:
        """EAM_4bits, or the first cell that there is."""
        return next((line for line in self.paper if line.cell == ("quantized", 4)), self.paper[0] if self.paper else None)


def lines_of(variants: Iterable[Variant], points: Iterable[Point]) -> list[Line]:
    """The plans of a grid in their order, each with its measured points."""
    options: dict[Any, dict[str, Any]] = {}
    expected: dict[Any, Counter[float]] = {}
    measured: dict[Any, dict[float, Point]] = {}
    for variant in variants:
        if variant.block != UNFROZEN:
            own = _options(variant.plan, variant.source.statistics, variant.source.images)
            options.setdefault(_key(own), own)
            expected.setdefault(_key(own), Counter())[variant.freeze] += 1
    for point in points:
        if point.block != UNFROZEN:
            measured.setdefault(_key(_options(point.options, point.statistics, point.statistics_images)), {})[point.freeze] = point
    return [Line(own, dict(sorted(expected[key].items())), dict(sorted(measured.get(key, {}).items()))) for key, own in options.items()]


def _options(plan: dict[str, Any], statistics: str, images: int) -> dict[str, Any]:
    own = {name: value for name, value in plan.items() if name not in ("freeze", "seed")}
    return own | {"statistics": statistics, "statistics_images": images}


def _key(options: dict[str, Any]) -> tuple[Any, ...]:
    return tuple(sorted((name, tuple(value) if isinstance(value, list) else value) for name, value in options.items()))


def _usual(lines: Sequence[Line]) -> tuple[Any, ...]:
    """What most variants have for the options that the paper does not vary."""
    counts: Counter[Any] = Counter()
    for line in lines:
        counts[line.rest] += sum(line.expected.values())
    return counts.most_common(1)[0][0] if counts else ()


def assign(lines: Sequence[Line]) -> Roles:
    """Give every line its part of the page."""
    quantized = [line for line in lines if line.bits != FULL]
    chosen = [line for line in quantized if line.by == "entropy"]
    known = sorted({line.bits for line in chosen} or {line.bits for line in quantized})
    bits = PAPER_BITS if PAPER_BITS in known else (known[0] if known else None)
    usual = _usual([line for line in chosen if line.bits == bits])
    paper = [line for line in chosen if line.bits == bits and line.rest == usual]
    paper.sort(key=lambda line: {("quantized", 4): 0, ("fp32", 32): 1}.get(line.cell, 2))
    control = _control(paper, [line for line in quantized if line.bits == bits and line.by == "random" and line.rest == usual])
    full = [line for line in lines if line.bits == FULL and line.by in ("entropy", "random")]
    alone = [line for line in full if line.rest == _usual(full)]
    roles = Roles(bits, paper, control, alone, images=_families(lines))
    aside = [line for family in roles.images for line in _unusual(family)]
    left = [line for line in lines if not any(line is one for one in (*paper, *(control or ()), *alone, *aside))]
    for group in sorted({line.bits for line in left}, key=lambda pair: (pair != bits, pair)):
        others = [line for line in left if line.bits == group]
        present = [line for line in (*paper, *(control or ()), *alone, *others) if line.bits == group]
        front = _front(present)
        roles.panels.extend(_panels(group, front, [line for line in others if len(line.expected) > 1]))
        for share in sorted({share for line in others if len(line.expected) == 1 for share in line.expected}):
            ranked = [line for line in dict.fromkeys([*front, *present]) if share in line.expected]
            roles.rankings.append(Ranking(group, share, ranked))
    return roles


def _control(paper: Sequence[Line], random: Sequence[Line]) -> tuple[Line, Line] | None:
    for line in paper:
        for other in random:
            if other.cell == line.cell:
                return (line, other)
    return None


def _families(lines: Sequence[Line]) -> list[list[Line]]:
    found: dict[Any, list[Line]] = {}
    for line in lines:
        found.setdefault(_key({name: value for name, value in line.options.items() if name != "statistics_images"}), []).append(line)
    return [sorted(family, key=lambda line: int(line.options["statistics_images"])) for family in found.values() if len(family) > 1]


def _unusual(family: Sequence[Line]) -> list[Line]:
    """Members that are there for the curve over images only: all but the one with the most shares."""
    most = max(family, key=lambda line: (len(line.expected), line.options["statistics_images"]))
    return [line for line in family if line is not most]


def _front(known: Sequence[Line]) -> list[Line]:
    """What lines of the same bits are held against: the paper's entropy, and random where it differs in nothing else."""
    reference = max(known, key=lambda line: line.by == "entropy")  # the first of them
    return [reference, *[line for line in known if line.by == "random" and reference.differs(line) == ("by",)][:1]]


def _panels(bits: tuple[int, int], front: list[Line], lines: Sequence[Line]) -> list[Panel]:
    """One panel, with the paper's choice in front; where it would hold too many lines, one for each kind of difference."""
    others = [line for line in lines if line not in front]
    kinds: dict[tuple[str, ...], list[Line]] = {}
    for line in others:
        kinds.setdefault(front[0].differs(line), []).append(line)
    if len(front) + len(others) <= MOST_LINES:
        kinds = {("by",) if ("by",) in kinds else (): others} if others else {}
    panels = []
    for kind, members in kinds.items():
        before = front if kind == ("by",) else front[:1]
        room = MOST_LINES - len(before)
        panels += [Panel(bits, [*before, *members[start : start + room]], len(before)) for start in range(0, len(members), room)]
    return panels or ([Panel(bits, front, 0)] if any(line in front for line in lines) else [])


def names(lines: Sequence[Line]) -> list[str]:
    """What tells lines apart: their criterion where they have several, and every other option in which they differ."""
    varied = [name for name in _order(lines[0].options) if any(line.options[name] != lines[0].options[name] for line in lines)]
    return [", ".join(word(name, line.options[name]) for name in varied) or word("by", line.by) for line in lines]


def _order(options: dict[str, Any]) -> list[str]:
    first = ["by", "scope", "statistics", "frozen_bits"]
    return first + [name for name in options if name not in first]


def line_title(line: Line, reference: Line) -> str:
    """A line's criterion, and in what else it differs from the reference."""
    return ", ".join([word("by", line.by), *(word(name, line.options[name]) for name in line.differs(reference) if name != "by")])


def word(name: str, value: Any) -> str:
    """An option's value as a person would say it."""
    if name == "frozen_bits":
        return f"{value}-bit constants"
    if name == "statistics_images":
        return f"{value:,} images"
    if name == "protect":
        return f"{' and '.join(value)} computed" if value else "nothing protected"
    known = WORDS.get(name, {})
    return known[value] if value in known else f"{name.replace('_', ' ')} {value}"


def bits_word(bits: tuple[int, int]) -> str:
    """ "W4/A4", or what there is instead of quantization."""
    return "not quantized" if bits == FULL else f"W{bits[0]}/A{bits[1]}"
