"""Make the tables of options in a file of the documentation anew: python -m vitfrost.configs FILE..."""

from __future__ import annotations

import sys
from pathlib import Path

from ..files import write_text
from .tables import rewritten


def main(paths: list[str]) -> None:
    """Rewrite the marked parts of the files."""
    for path in map(Path, paths):
        write_text(path, rewritten(path.read_text(encoding="utf-8")))


if __name__ == "__main__":
    main(sys.argv[1:])
