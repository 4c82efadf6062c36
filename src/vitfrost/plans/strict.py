"""The strict base, under the name that it had here."""

from ..strict import Count, Positive, Strict, describe

__all__ = ["Count", "Positive", "Strict", "describe"]
