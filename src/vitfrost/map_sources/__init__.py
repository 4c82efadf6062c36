"""Where a head's maps come from: one file for each source, and what they have in common in source.py."""

from .computed import Computed
from .frozen import Frozen
from .hallucinated import Hallucinated
from .source import SOURCES, MapSource, register
from .windowed import Windowed

__all__ = ["SOURCES", "MapSource", "register"]

for _source in (Computed(), Frozen(), Hallucinated(), Windowed()):
    register(_source)
