"""What a model gives for an image, and what its distance from the original is called. Needs no torch."""

from __future__ import annotations

from typing import Literal

OutputKind = Literal["classes", "embedding", "tokens"]
"""`classes`: a score for every class [B, classes]. `embedding`: one vector [B, C], whose channels mean nothing by themselves.
`tokens`: the tokens of the last layer [B, N, C] (or a map of them)."""


def distance_name(kind: OutputKind) -> str:
    """How the distance between outputs is called: "KL" or "relative error"."""
    return "KL" if kind == "classes" else "relative error"


def distance_unit(kind: OutputKind) -> str:
    """With a space before it: " nats", or nothing."""
    return " nats" if kind == "classes" else ""


def distance_text(kind: OutputKind, value: float, form: str = ".3g") -> str:
    """Such as "KL 0.0021 nats" or "relative error 0.0021"."""
    return f"{distance_name(kind)} {value:{form}}{distance_unit(kind)}"


def described(kind: OutputKind, classes: int) -> str:
    """What a model gives, in words."""
    if kind == "classes":
        return f"{classes} classes"
    return "tokens" if kind == "tokens" else f"an embedding of {classes} numbers" if classes else "an embedding"
