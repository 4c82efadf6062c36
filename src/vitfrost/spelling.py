"""The words that earlier versions spelled the British way: their files and command lines are still read, and hashes stay what they were.

Only keys, and the values of the few keys that name such a word, are changed: a folder may be called anything.
"""

from __future__ import annotations

from typing import Any

_KEYS = {"renormalise": "renormalize", "optimiser": "optimizer", "artefact": "artifact", "quantised": "quantized"}
_VALUES = {
    "quantised": "quantized", "quantise-merge": "quantize-merge", "merge-quantise": "merge-quantize",
    "vitfrost artefact": "vitfrost artifact",
}  # fmt: skip
_VALUES_OF = ("precision", "statistics", "order", "kind")
_OLD_KEYS = {new: old for old, new in _KEYS.items()}
_OLD_VALUES = {new: old for old, new in _VALUES.items()}


def american(data: Any) -> Any:
    """Plain data of a file, whichever version wrote it, with today's words."""
    return _respelled(data, _KEYS, _VALUES)


def hashed(data: Any) -> Any:
    """Plain data with the words of the first version, so that the same plan or statistics have the same hash in every version."""
    return _respelled(data, _OLD_KEYS, _OLD_VALUES)


def american_words(arguments: list[str]) -> list[str]:
    """A command line with today's words."""
    words = {f"--{old}": f"--{new}" for old, new in _KEYS.items()} | _VALUES
    return [words.get(word, word) for word in arguments]


def _respelled(data: Any, keys: dict[str, str], values: dict[str, str], key: Any = None) -> Any:
    if isinstance(data, dict):
        return {keys.get(name, name): _respelled(value, keys, values, name) for name, value in data.items()}
    if isinstance(data, list | tuple):
        return type(data)(_respelled(item, keys, values, key) for item in data)
    return values.get(data, data) if isinstance(data, str) and key in _VALUES_OF else data
