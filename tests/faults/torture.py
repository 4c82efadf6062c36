"""Verbs that are killed at random moments, that find no room, or that meet each other: `make torture`, or python -m tests.faults.torture.

After every kill the same command is given again (with --resume where a verb has it). It has to end well, with the bits of a run that
nobody disturbed, and to leave nothing beside its output. Prints a table.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from random import Random

import yaml

from ..conftest import write_pictures
from ..processes import Started

Words = list[object]
SMALL = ("--model", "vitfrost_digits", "--weights", "random", "--model-option", "depth=2")


@dataclass(frozen=True)
class Verb:
    """A command line that writes `out`. `kept`: the files below it whose bits may not change; `again`: what it is given the next time."""

    name: str
    words: Callable[[Path], Words]
    kept: tuple[str, ...]
    again: tuple[str, ...] = ()
    out: str = "out"

    def digest(self, folder: Path) -> str:
        """Of the files that are kept; "" where none is there."""
        found = [path for pattern in self.kept for path in sorted(folder.glob(pattern)) if path.is_file()]
        return hashlib.sha256(b"".join(_stable(path) for path in found)).hexdigest() if found else ""


def _stable(path: Path) -> bytes:
    """The bytes of a file, without what a clock says in it."""
    if path.name == "bench.json":
        return json.dumps(sorted(row["name"] for row in json.loads(path.read_text())["rows"])).encode()
    return path.read_bytes()


def make_verbs(folder: Path) -> list[Verb]:
    """Seven verbs on small models, and what they need, in `folder`."""
    pictures = write_pictures(folder / "pictures", 40)
    statistics, plan = folder / "statistics.safetensors", folder / "plan.yaml"
    _run("calibrate", *SMALL, "--images", pictures, "--limit", 12, "--out", statistics)
    _run("plan", "--statistics", statistics, "--freeze", 0.2, "--out", plan)
    drawn = ("--images", pictures, "--calibration-images", 4)
    recipe = {
        "kind": "vitfrost recipe", "version": 1, "plan": {"freeze": 0.2}, "compress": {"calibration_images": 4},
        "model": {"name": "vitfrost_digits", "weights": "random", "options": {"depth": 2}},
        "calibration": {"images": str(pictures), "limit": 12}, "evaluation": {"images": str(pictures), "limit": 12},
    }  # fmt: skip
    training = {
        "kind": "vitfrost training", "version": 1, "model": {"name": "vitfrost_digits", "weights": "random", "options": {"depth": 2}},
        "data": {"train": [{"source": str(pictures)}]}, "schedule": {"epochs": 6}, "optimizer": {"lr": 0.001}, "batch_size": 8,
        "checkpoint_every": {"steps": 3}, "threads": 1,
    }  # fmt: skip
    for name, data in (("recipe.yaml", recipe), ("training.yaml", training)):
        (folder / name).write_text(yaml.safe_dump(data, sort_keys=False))
    budget = ("--target-macs", 0.8, "--search-images", 8, "--search-over", "layers")
    return [
        Verb("calibrate", lambda out: ["calibrate", *SMALL, "--images", pictures, "--out", out / "s.safetensors"], ("s.safetensors",)),
        Verb("search", lambda out: ["search", *SMALL, "--statistics", statistics, "--images", pictures, *budget,
                                  "--out", out / "plan.yaml"],
             ("plan.yaml",), ("--resume",)),
        Verb("compress", lambda out: ["compress", *SMALL, "--plan", plan, "--statistics", statistics, *drawn, "--out", out / "artifact",
                                      "--overwrite"], ("artifact/*",)),
        Verb("export", lambda out: ["export", *SMALL, "--format", "openvino", "--out", out / "graph", "--overwrite"],
             ("graph/model.bin", "graph/model.xml")),
        Verb("bench", lambda out: ["bench", "timm:vitfrost_digits", "--weights", "random", "--runtime",
                                   "torch,openvino", "--precision", "fp32", "--rounds", 2, "--no-memory", "--out", out / "bench"],
             ("bench/bench.json",), ("--resume",)),
        Verb("train", lambda out: ["train", folder / "training.yaml", "--out", out / "train"], ("train/artifact/model.safetensors",),
             ("--resume",)),
        Verb("run", lambda out: ["run", folder / "recipe.yaml", "--out", out / "run"],
             ("run/statistics.safetensors", "run/plan.yaml", "run/artifact/model.safetensors"), ("--resume",)),
    ]  # fmt: skip


def _run(*words: object) -> tuple[int | None, str]:
    process = Started(*words)
    _, said = process.communicate()
    return process.returncode, said


def _again(verb: Verb, out: Path) -> tuple[int | None, str]:
    """The same command once more; what goes on needs something to go on with."""
    status, said = _run(*verb.words(out), *(verb.again if any(out.iterdir()) else ()))
    if status == 2 and verb.again and ("nothing to" in said or "no search" in said or "--resume" in said):
        return _run(*verb.words(out))
    return status, said


def _left(out: Path) -> list[str]:
    """What no process should leave."""
    return sorted(str(path.relative_to(out)) for path in out.rglob(".*") if path.name.endswith((".part", ".old")))


def kill_at_random(verb: Verb, folder: Path, random: Random, whole: str, seconds: float) -> str:
    """Kill the verb once, give the command again: "" where all is well, else what is wrong."""
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    process = Started(*verb.words(out))
    time.sleep(random.random() * seconds * 1.05)
    process.kill()
    process.communicate()
    if verb.digest(out) not in ("", whole) and not verb.again:
        return "a part of the output was taken for the whole"
    status, said = _again(verb, out)
    if status != 0:
        return f"the command given again ended with {status}: {said.strip().splitlines()[-1] if said.strip() else ''}"
    if verb.digest(out) != whole:
        return "other bits"
    return f"left behind: {', '.join(left)}" if (left := _left(out)) else ""


def at_the_same_time(verb: Verb, folder: Path, whole: str) -> str:
    """Two processes write one output: both end in order, and what is there is whole."""
    out = folder / "out"
    shutil.rmtree(out, ignore_errors=True)
    out.mkdir()
    running = [Started(*verb.words(out)) for _ in range(2)]
    ended = [(process.communicate()[1], process.returncode) for process in running]
    for said, status in ended:
        if status not in (0, 2) or "Traceback" in said:
            return f"ended with {status}: {said.strip().splitlines()[-1] if said.strip() else ''}"
    if not any(status == 0 for _, status in ended) and _again(verb, out)[0] != 0:
        return "neither of two could write, nor a third after them"
    if verb.digest(out) != whole:
        return "other bits"
    return f"left behind: {', '.join(left)}" if (left := _left(out)) else ""


def without_room(verb: Verb, place: Path, whole: str, kind: str) -> str:
    """On a disk that is full, or may only be read: one line, and nothing left."""
    status, said = _run(*verb.words(place))
    if status == 0 and kind == "full disk" and (verb.digest(place) == whole or "No space left" in (place / "bench/bench.json").read_text()):
        return ""  # it was enough, or what found no room is left out by name
    lines = [line for line in said.splitlines() if line.startswith("vitfrost: ")]
    if status != 2 or "Traceback" in said or not lines:
        return f"ended with {status}: {said.strip().splitlines()[-1] if said.strip() else ''}"
    return f"left behind: {', '.join(left)}" if (left := _left(place)) else ""


def _mounted(place: Path, *options: str) -> bool:
    place.mkdir(exist_ok=True)
    return subprocess.run(["mount", *options, str(place)], capture_output=True, check=False).returncode == 0


def torture(kills: int, seed: int, folder: Path, only: str | None = None) -> dict[str, dict[str, str]]:
    """Everything, verb by verb. Returns how often all was well, by verb and by kind of trouble, as "31 of 31"."""
    random, found = Random(seed), {}
    verbs = [verb for verb in make_verbs(folder / "given") if only in (None, verb.name)]
    for index, verb in enumerate(verbs):
        out = folder / "out"
        shutil.rmtree(out, ignore_errors=True)
        out.mkdir()
        start = time.monotonic()
        status, said = _run(*verb.words(out))
        seconds, whole = time.monotonic() - start, verb.digest(out)
        assert status == 0, said
        assert whole
        row: dict[str, str] = {"seconds undisturbed": f"{seconds:.1f}"}
        count = kills // len(verbs) + (index < kills % len(verbs))
        row["killed"] = _counted(verb, "killed", [kill_at_random(verb, folder, random, whole, seconds) for _ in range(count)])
        row["two at once"] = _counted(verb, "two at once", [at_the_same_time(verb, folder, whole)])
        for kind, size, later in (("full disk", "2m", ()), ("read-only", "64m", ("-o", "remount,ro"))):
            place = folder / kind.replace(" ", "-")
            if not _mounted(place, "-t", "tmpfs", "-o", f"size={size}", "tmpfs") or (later and not _mounted(place, *later)):
                row[kind] = "cannot be tried here"
                continue
            if kind == "full disk":
                (place / "fill").write_bytes(bytes((2 << 20) - 200_000))
            row[kind] = _counted(verb, kind, [without_room(verb, place, whole, kind)])
            subprocess.run(["umount", str(place)], check=False)
        found[verb.name] = row
        print(f"{verb.name}: {row}", file=sys.stderr, flush=True)
    return found


def _counted(verb: Verb, kind: str, problems: list[str]) -> str:
    for problem in filter(None, problems):
        print(f"{verb.name}, {kind}: {problem}", flush=True)
    return f"{sum(not problem for problem in problems)} of {len(problems)}"


def main() -> int:
    """Exit status 1 where anything was not well."""
    parser = argparse.ArgumentParser(description="Kill, starve and double the verbs, and look at what they leave.")
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--only", help="one verb")
    given = parser.parse_args()
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    with tempfile.TemporaryDirectory(prefix="vitfrost-torture-") as made:
        found = torture(given.kills, given.seed, Path(made), given.only)
    columns = list(next(iter(found.values())))
    print(f"| verb | {' | '.join(columns)} |\n|---|{'---:|' * len(columns)}")
    for name, row in found.items():
        print(f"| {name} | {' | '.join(row.values())} |")
    counted = [text for row in found.values() for text in row.values() if " of " in text]
    return int(any(text.split(" of ")[0] != text.split(" of ")[1] for text in counted))


if __name__ == "__main__":
    sys.exit(main())
