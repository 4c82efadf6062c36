"""Other bits of single layers and heads: the words that give them, such as head=8/8 and blocks.3.attn:0,2=8, and what they match."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any, NamedTuple

from pydantic_core import PydanticCustomError

from ..errors import VitfrostError, shown

FULL = 32
MOST_BASE_BITS = 4  # up to so many, maps may have log grids of another base (Quantize.map_base)
BITS = (2, 3, 4, 5, 6, 7, 8, FULL)
_LAYER, _HEADS = re.compile(r"([^\s=]+)=(\d+)/(\d+)"), re.compile(r"([^\s=:]+)(?::(\d+(?:,\d+)*))?=(\d+)")


class LayerBits(NamedTuple):
    """Bits of the weights and of the input of layers whose name, or that of a module around them, matches a shell pattern."""

    pattern: str
    weights: int
    activations: int


class HeadBits(NamedTuple):
    """Bits of queries, keys, values and maps of some heads (none named: all) of attention layers that match a shell pattern."""

    pattern: str
    heads: tuple[int, ...]
    bits: int


def layer_of(word: str) -> LayerBits:
    """Out of NAME=W/A. Raises ValueError."""
    match = _LAYER.fullmatch(word)
    if match is None or not {int(match[2]), int(match[3])} <= set(BITS):
        raise ValueError(f"{shown(word)} should be NAME=W/A with bits from 2 to 8, or 32, such as head=8/8")
    return LayerBits(match[1], int(match[2]), int(match[3]))


def heads_of(word: str) -> HeadBits:
    """Out of NAME:HEAD,...=BITS or NAME=BITS. Raises ValueError."""
    match = _HEADS.fullmatch(word)
    if match is None or int(match[3]) not in BITS:
        raise ValueError(f"{shown(word)} should be NAME:HEAD,...=BITS, or NAME=BITS for all heads, with bits from 2 to 8, or 32")
    return HeadBits(match[1], tuple(int(head) for head in (match[2] or "").split(",") if head), int(match[3]))


def layer_words(given: Any) -> Any:
    """Words for pydantic: of a mapping {"head": (8, 8)}, or of words; None for nothing."""
    if isinstance(given, Mapping):
        pairs = ((name, each if isinstance(each, str) else "/".join(map(str, _listed(each)))) for name, each in given.items())
        given = [f"{name}={bits}" for name, bits in pairs]
    return _checked(given, layer_of)


def head_words(given: Any) -> Any:
    """Words for pydantic: of a mapping {"blocks.3.attn": {0: 8, 2: 8}, "blocks.4.attn": 8}, or of words; None for nothing."""
    if isinstance(given, Mapping):
        given = [word for name, each in given.items() for word in _words_of_heads(str(name), each)]
    return _checked(given, heads_of)


def _listed(value: Any) -> Sequence[Any]:
    return value if isinstance(value, list | tuple) else [value]


def _words_of_heads(name: str, given: Any) -> list[str]:
    if not isinstance(given, Mapping):
        return [f"{name}={given}"]
    by_bits: dict[str, list[str]] = {}
    for head, bits in given.items():
        by_bits.setdefault(str(bits), []).append(str(head))
    return [f"{name}:{','.join(heads)}={bits}" for bits, heads in by_bits.items()]


def _checked(given: Any, read: Callable[[str], Any]) -> tuple[str, ...] | None:
    words = tuple(map(str, () if given is None else _listed(given)))
    for word in words:
        try:
            read(word)
        except ValueError as error:
            raise PydanticCustomError("bits", "{what}", {"what": str(error)}) from error
    return words or None


def matches(pattern: str, name: str) -> bool:
    """Whether a shell pattern matches the name of a layer, or of a module around it: blocks.0 and blocks.*.attn match blocks.0.attn.qkv."""
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:end]), pattern) for end in range(len(parts), 0, -1))


def _kinds(names: Iterable[str]) -> str:
    """Names in a line: those that differ in a number are one pattern."""
    return ", ".join(dict.fromkeys(".".join("*" if part.isdigit() else part for part in name.split(".")) for name in names))


@dataclass(frozen=True)
class BitsOfParts:
    """Bits of every layer and head. `weights`, `activations`: of those without bits of their own; later words win."""

    weights: int
    activations: int
    layers: tuple[LayerBits, ...] = ()
    heads: tuple[HeadBits, ...] = ()

    @property
    def any(self) -> bool:
        """Whether anything is quantized."""
        return self.weights != FULL or self.any_activations or any(each.weights != FULL for each in self.layers)

    @property
    def any_activations(self) -> bool:
        """Whether any activations are quantized."""
        return self.any_maps or any(each.activations != FULL for each in self.layers)

    @property
    def any_maps(self) -> bool:
        """Whether queries, keys, values and maps of any head are quantized."""
        return self.activations != FULL or any(each.bits != FULL for each in self.heads)

    @property
    def any_bases(self) -> bool:
        """Whether maps of any head have so few bits that another base of their log grid is tried."""
        return any(bits <= MOST_BASE_BITS for bits in (self.activations, *(each.bits for each in self.heads)))

    @property
    def of_activations(self) -> str:
        """The numbers of bits that activations are quantized to, such as 4 and 8."""
        found = {self.activations, *(each.activations for each in self.layers), *(each.bits for each in self.heads)} - {FULL}
        return " and ".join(map(str, sorted(found)))

    @property
    def label(self) -> str:
        """In few characters, such as W4/A8; that of floating point is W32/A32."""
        return f"W{self.weights}/A{self.activations}" + (" mixed" if self.layers or self.heads else "")

    def of_layer(self, name: str) -> tuple[int, int]:
        """Bits of a layer's weights and of its input."""
        found = (self.weights, self.activations)
        for each in self.layers:
            if matches(each.pattern, name):
                found = (each.weights, each.activations)
        return found

    def of_heads(self, name: str, heads: Sequence[int]) -> tuple[int, ...]:
        """Bits of heads of an attention layer, in the given order. Raises VitfrostError where some are quantized and others are not."""
        found = dict.fromkeys(heads, self.activations)
        for each in self.heads:
            if matches(each.pattern, name):
                found |= {head: each.bits for head in heads if not each.heads or head in each.heads}
        if FULL in found.values() and len(set(found.values())) > 1:
            raise VitfrostError(f"some heads of {name} have 32 bits and others have less; give all heads of a layer 32 bits, or none")
        return tuple(found.values())

    def check(self, model: str, layers: Sequence[str] | None, heads: Mapping[str, int]) -> None:
        """Raise VitfrostError for a word that matches nothing. `layers`: names of the model's linear layers, None where they are not known;
        `heads`: how many each attention layer has."""
        for layer in self.layers:
            if layers is not None and not any(matches(layer.pattern, name) for name in layers):
                raise VitfrostError(f"Quantize.layers names {layer.pattern}, but {model} has no such linear layer; it has {_kinds(layers)}")
        for head in self.heads:
            counts = [count for name, count in heads.items() if matches(head.pattern, name)]
            if not counts:
                raise VitfrostError(f"Quantize.heads names {head.pattern}, but {model} has no such attention layer; it has {_kinds(heads)}")
            if head.heads and max(head.heads) >= max(counts):
                raise VitfrostError(
                    f"Quantize.heads names head {max(head.heads)} of {head.pattern}, whose heads are 0 to {max(counts) - 1}; give these"
                )
        for name, count in heads.items():
            self.of_heads(name, range(count))
