"""`python -m vitfrost_native DEPLOY PICTURE...`: the classes of pictures, with NumPy and Pillow alone."""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import asdict
from pathlib import Path

from .errors import VitfrostError
from .predict import predict


def main(arguments: list[str] | None = None) -> int:
    """Print the classes; 2 and one line on stderr for bad input."""
    parser = argparse.ArgumentParser(prog="python -m vitfrost_native", description="What a native export says of pictures.")
    parser.add_argument("deploy", type=Path, help="folder made by vitfrost export --format native")
    parser.add_argument("pictures", type=Path, nargs="+", metavar="PICTURE", help="picture files")
    parser.add_argument("--top", type=int, help="how many classes; five, or all where there are fewer, if not given")
    parser.add_argument("--threads", type=int, default=1, help="of a forward pass")
    parser.add_argument("--json", action="store_true", help="print JSON")
    given = parser.parse_args(arguments)
    try:
        found = predict(given.deploy, given.pictures, given.top, given.threads)
    except VitfrostError as error:
        print(f"vitfrost: {error}", file=sys.stderr)
        return 2
    if given.json:
        print(json.dumps([asdict(each) for each in found], indent=2))
    for each in found if not given.json else ():
        if each.problem is not None:
            continue
        shown = ", ".join(f"{name} {100 * share:.2f} %" for name, share in zip(each.names, each.probabilities, strict=True))
        print(f"{each.file}: {shown}")
    unread = [f"{each.file}: {each.problem}" for each in found if each.problem is not None]
    if unread:
        print(f"vitfrost: {len(unread)} of {len(found)} pictures cannot be read ({'; '.join(unread[:5])})", file=sys.stderr)
    return 2 if unread else 0


if __name__ == "__main__":
    sys.exit(main())
