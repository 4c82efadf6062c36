"""`python -m vitfrost.runtime EXPORT IMAGE...`: `vitfrost predict` for machines that have only NumPy, Pillow and a runtime."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from ..errors import VitfrostError
from .predict import predict, refuse_unread, text_of


def main(arguments: list[str] | None = None) -> int:
    """Print the classes of pictures; 2 and one line on stderr for bad input."""
    parser = argparse.ArgumentParser(prog="python -m vitfrost.runtime", description="What an exported model says of pictures.")
    parser.add_argument("export", type=Path, help="folder made by vitfrost export")
    parser.add_argument("images", type=Path, nargs="+", metavar="IMAGE", help="picture files")
    parser.add_argument("--top", type=int, default=None, help="how many classes; five, or all where there are fewer, if not given")
    parser.add_argument("--threads", type=int, default=None, help="of a forward pass; OMP_NUM_THREADS or all cores if not given")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args(arguments)
    try:
        found = predict(given.export, given.images, top=given.top, threads=given.threads)
        print(text_of(found, given.json), flush=True)
        refuse_unread(found)
    except VitfrostError as error:
        print(f"vitfrost: {error}", file=sys.stderr)
        return 2
    return 0


if __name__ == "__main__":
    sys.exit(main())
