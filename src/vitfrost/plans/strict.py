"""The strict base, under the name that it had here."""

from ..records import describe
from ..strict import Count, Positive, Strict

__all__ = ["Count", "Positive", "Strict", "describe"]
