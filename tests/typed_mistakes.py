"""Mistakes that a type checker finds in a user's code; test_typed.py knows their lines."""

from vitfrost import FreezeEntries, Hallucinate, Quantize

ratio: float = FreezeEntries(0.2, "fisher").ratio
FreezeEntries(ratio="much")
Quantize(4, 4, "strict", 7)
Hallucinate(0.5, by="nothing")


def untyped(x): ...  # which a strict checker refuses
