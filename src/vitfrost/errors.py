"""The one error a user is meant to read: what is wrong, where, and how to mend it, in a single line."""

from __future__ import annotations


class VitfrostError(Exception):
    """Bad input or an accident outside the program. The command line prints it as one line and exits with 2."""

    def __init__(self, message: str):
        line = " ".join(str(message).split())
        # What is quoted of a file must not steer the terminal.
        super().__init__(line if line.isprintable() else "".join(c if c.isprintable() else ascii(c)[1:-1] for c in line))


class UnsupportedModel(VitfrostError):
    """A model with something in its attention that vitfrost does not know how to see."""
