"""The one error a user is meant to read: what is wrong, where, and how to mend it, in a single line."""

from __future__ import annotations

from typing import Any

_SHOWN = 60
LONGEST = 1000  # characters of a message: what it quotes of a file may have no end


class VitfrostError(Exception):
    """Bad input or an accident outside the program. The command line prints it as one line and exits with 2."""

    def __init__(self, message: str):
        line = " ".join(str(message).split())
        line = line if len(line) <= LONGEST else f"{line[: LONGEST - 3]}..."
        # What is quoted of a file must not steer the terminal.
        super().__init__(line if line.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line))


class UnsupportedModel(VitfrostError):
    """A model with something in its attention that vitfrost does not know how to see."""


def shown(value: Any) -> str:
    """A value in few characters."""
    text = repr(value)
    return text if len(text) <= _SHOWN else f"{text[: _SHOWN - 3]}..."


def field_path(location: tuple[Any, ...]) -> str:
    """ "layers[0].heads[2].source"."""
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in location).lstrip(".")
