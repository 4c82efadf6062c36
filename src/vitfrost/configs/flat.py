"""The methods of a plan as flat names and values, as the command line and recipes write them: freeze, unit, by, frozen-bits, ...

One freezing method is meant by `freeze`: `unit` says whether it is that of single weights or of whole heads.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from ..errors import VitfrostError
from .base import Flag, Option, idle_fields, options_of, parsed
from .methods import FULL_PRECISION, Compact, FreezeEntries, FreezeHeads, Hallucinate, Quantize, WindowHeads

Method = FreezeEntries | FreezeHeads | WindowHeads | Hallucinate | Compact | Quantize
Spelling = Callable[[str], str]
UNQUANTIZED = Quantize(FULL_PRECISION, FULL_PRECISION)
NONE = "none"

UNIT = Option(
    FreezeHeads, "unit", Literal["entry", "head", "layer"], "entry",
    "What is frozen: single attention weights, or whole heads or layers, which lose their queries, keys and logits.", Flag(),
)  # fmt: skip
FREEZE = Option(
    FreezeEntries, "ratio", float | Literal["none"], FreezeEntries.ratio,
    "Share of attention weights (tau of EAM equation 15), heads or layers to freeze, 0 to 1, or none.",
    Flag("freeze", "SHARE", default="0.2, or none where heads are hallucinated or blocks compacted"),
)  # fmt: skip
BY = replace(
    next(option for option in options_of(FreezeEntries) if option.field == "by"),
    help="Criterion; the lowest are frozen. If not given: `entropy`, but for whole heads `fisher` where the statistics have sensitivity.",
)


@dataclass(frozen=True)
class MethodOptions:
    """The options of a method by flat name, and the one that turns it on (None: always on)."""

    method: type
    options: dict[str, Option]
    switch: str | None

    @classmethod
    def of(cls, method: type) -> MethodOptions:
        """Those of a configuration class."""
        options = {option.name: option for option in options_of(method) if option.flag.form != "none"}
        field = getattr(method, "SWITCH", None)
        return cls(method, options, next((name for name, option in options.items() if option.field == field), None))


ALL = {method: MethodOptions.of(method) for method in (FreezeEntries, FreezeHeads, WindowHeads, Hallucinate, Compact, Quantize)}


def flat_options() -> dict[str, Option]:
    """All options of a plan's methods by flat name, in the order of the methods; `freeze`, `by` and `unit` stand for both freezing ones."""
    found: dict[str, Option] = {"freeze": FREEZE, "by": BY, "unit": UNIT}
    for each in ALL.values():
        found = found | {name: option for name, option in each.options.items() if name not in found}
    return found


def methods_of(given: Mapping[str, Any], spell: Spelling, freezes: bool = True) -> tuple[Method, ...]:
    """The methods that flat values ask for.

    `spell` writes a flat name as its user does, such as "--frozen-bits". `freezes`: whether single weights or heads are frozen where
    neither `freeze` nor another method is given. Raises VitfrostError in that spelling: for values that are not allowed, and for options
    without effect.
    """
    structure = any(name in given for name in ("windowed", "hallucinate", "compact"))
    ratio = given.get("freeze", None if structure or not freezes else FREEZE.default)
    whole = given.get("unit", UNIT.default) != UNIT.default
    active = ALL[FreezeHeads if whole else FreezeEntries]
    _refuse_other_freezing(given, whole, spell)
    made: list[Method] = []
    if ratio is not None and ratio != NONE:
        made.append(build(active, {**given, "freeze": ratio}, spell))
    else:
        _refuse_without_switch(given, active, spell, also=("unit",))
    for method in (WindowHeads, Hallucinate, Compact):
        if ALL[method].switch in given:
            made.append(build(ALL[method], given, spell))
        else:
            _refuse_without_switch(given, ALL[method], spell)
    base = Quantize() if made and isinstance(made[0], FreezeEntries) else UNQUANTIZED
    bits = {"weight-bits": base.weights, "activation-bits": base.activations}
    made.append(build(ALL[Quantize], bits | dict(given), spell, given))
    return tuple(made)


def build(about: MethodOptions, values: Mapping[str, Any], spell: Spelling, given: Mapping[str, Any] | None = None) -> Any:
    """One configuration out of flat values, checked in the user's spelling; of `given` values none may be without effect."""
    own = {option.field: values[name] for name, option in about.options.items() if name in values}
    made: Any = parsed(about.method, own, {option.field: spell(name) for name, option in about.options.items()})
    names = {option.field: name for name, option in about.options.items()}
    for field, other in idle_fields(made).items():
        if names.get(field) in (values if given is None else given):
            value = getattr(made, other)
            why = f"without {spell(names[other])}" if value is None else f"with {spell(names[other])} {value}"
            raise VitfrostError(f"{spell(names[field])} has no effect {why}; leave it out")
    return made


def _refuse_other_freezing(given: Mapping[str, Any], whole: bool, spell: Spelling) -> None:
    other = ALL[FreezeEntries if whole else FreezeHeads].options.keys() - ALL[FreezeHeads if whole else FreezeEntries].options.keys()
    for name in other - {"unit"}:
        if name in given:
            unit = spell("unit")
            advice = f"of single weights; leave it out, or {unit}" if whole else f"of whole heads; give {unit} head or layer as well"
            raise VitfrostError(f"{spell(name)} is {advice}")


def _refuse_without_switch(given: Mapping[str, Any], about: MethodOptions, spell: Spelling, also: tuple[str, ...] = ()) -> None:
    for name in (*about.options, *also):
        if name in given and name != about.switch:
            raise VitfrostError(f"{spell(name)} goes with {spell(str(about.switch))}; give that too, or leave {spell(name)} out")


def flat_of(methods: tuple[Method, ...]) -> dict[str, Any]:
    """The flat values that make these methods again: what differs from defaults, and what has none."""
    found: dict[str, Any] = {}
    freezing = [method for method in methods if isinstance(method, FreezeEntries | FreezeHeads)]
    if not freezing and not any(isinstance(method, WindowHeads | Hallucinate | Compact) for method in methods):
        found["freeze"] = NONE
    for method in methods:
        about = ALL[type(method)]
        idle = idle_fields(method)
        for name, option in about.options.items():
            value = getattr(method, option.field)
            always = name == about.switch or option.name in ("unit", "by", "weight-bits", "activation-bits")
            if option.field not in idle and value is not None and (always or value != option.default):
                found[name] = value
    if found.get("by") == "first":
        del found["by"]
    return found
