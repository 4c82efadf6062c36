"""Stages of a run: each makes one file or folder, and is skipped when that is there and was made from the same inputs.

`stages.json` keeps for every stage the hash of its settings and of the files it read. Outputs appear by atomic rename, so a
run that is killed can be resumed and ends with the same bits as one that was not.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..distributed import contained
from ..errors import VitfrostError
from ..files import read_json, write_json
from ..keyed import file_key, hash_of
from ..progress import TimeLeft, say
from ..runtime.runtimes import reason_of

STAGES_FILE = "stages.json"


@dataclass(frozen=True)
class Stage:
    """One arrow: a name, the file it makes, the files it reads, its part of the recipe, and what makes it.

    `optional`: files that it reads as far as they are there, at least one where it has no other inputs; a stage that fails to make one does
    not end it.
    `work` is how much it does, in forward passes of one image, where that is worth telling how long is left.
    """

    name: str
    output: str
    inputs: tuple[str, ...]
    settings: Any
    make: Callable[[Path], object]
    work: int | float = 0
    optional: tuple[str, ...] = ()


def run_stages(stages: Sequence[Stage], folder: Path, clock: TimeLeft | None = None) -> None:
    """Do the stages that are not done. A `clock` that the stages' own work is told to says how long is left.

    A stage that fails does not end those that do not need what it makes. Raises VitfrostError at the end, which names what failed.
    """
    done = _stages_done(folder / STAGES_FILE)
    failed: dict[str, Exception] = {}
    missing: set[str] = set()
    for number, stage in enumerate(stages, 1):
        read = _inputs(stage, missing, folder)
        if read is None:
            missing.add(stage.output)
            continue
        key, target = hash_of(stage.settings, {name: file_key(folder / name) for name in read}), folder / stage.output
        if target.exists() and done.get(stage.name) == key:
            say(f"[{number}/{len(stages)}] {stage.name}: already there")
            if clock is not None:
                clock.skipped(stage.work)
            continue
        left = "" if clock is None else clock.text()
        say(f"[{number}/{len(stages)}] {stage.name} -> {target}{left}")
        before = 0.0 if clock is None else clock.left
        try:
            stage.make(target)
        except contained() as error:
            failed[stage.name] = error
            missing.add(stage.output)
            continue
        if clock is not None:
            clock.done(stage.work - (before - clock.left))  # what the stage has not told itself
        done[stage.name] = key
        write_json(folder / STAGES_FILE, done)
    if failed:
        raise _told(failed)


def _inputs(stage: Stage, missing: set[str], folder: Path) -> list[str] | None:
    """The files that a stage reads; None where it cannot be done. What an earlier run left of a file that could not be made counts as
    neither there nor missing."""
    absent = missing.intersection(stage.optional)
    there = [name for name in stage.optional if name not in absent]
    left = any((folder / name).exists() for name in absent)
    if missing.intersection(stage.inputs) or left or (absent and not there and not stage.inputs):
        return None
    return [*stage.inputs, *there]


def _told(failed: dict[str, Exception]) -> VitfrostError:
    """What ends a run of which something failed; one reason is told as it is where it was written to be read."""
    (first, error), others = next(iter(failed.items())), list(failed)[1:]
    reasons = [reason_of(each) for each in failed.values()]
    if len(set(reasons)) == 1 and isinstance(error, VitfrostError):
        return error
    told = f"{first} failed, and so did {', '.join(others)}; the first: {reasons[0]}" if others else f"{first} failed: {reasons[0]}"
    made = VitfrostError(f"{told}; mend it and go on with --resume")
    made.__cause__ = error
    return made


def _stages_done(path: Path) -> dict[str, str]:
    done = read_json(path) if path.is_file() else {}
    if not isinstance(done, dict):
        raise VitfrostError(f"{path} is damaged; remove it, and all stages are done again")
    return done
