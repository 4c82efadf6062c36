"""Which file of a run's folder is which part: by the names that `vitfrost run` gives, else by what the file is."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from ..artifact import CONFIG_FILE, FORMAT
from ..plans.file import KIND
from ..runtime.folder import is_export

RECIPE, PLAN, RESULTS, ARTIFACT = "recipe.yaml", "plan.yaml", "results.json", "artifact"
ROW, BENCH, DEPLOY = "result.json", "bench/bench.json", "deploy"
STATISTICS, QUANTIZED = "statistics.safetensors", "statistics.quantized.safetensors"
OLDER = {ARTIFACT: "artefact", QUANTIZED: "statistics.quantised.safetensors"}  # what earlier versions called them
OF_STAGES = ("quantized", "quantised")  # artifacts of a run that are not what it ends with
MOST_BYTES = 4 << 20
log = logging.getLogger("vitfrost")


def find_places(folder: Path) -> dict[str, Path]:
    """Where the parts of a folder lie, by their usual names; a part that is not there has the place where it would be.

    A part without its usual name is looked for by what files are, in a folder without a recipe: one that is the only one of its kind is
    taken; of several none is, and a warning names them.
    """
    places = {name: folder / name for name in (RECIPE, PLAN, RESULTS, ROW, ARTIFACT, BENCH, DEPLOY, STATISTICS, QUANTIZED)}
    for name, older in OLDER.items():
        if (folder / older).exists() and not places[name].exists():
            places[name] = folder / older
    if places[RECIPE].exists():
        return places
    inside = sorted(path for path in folder.iterdir() if not path.name.startswith(".") and path.name not in OF_STAGES)
    files, folders = [path for path in inside if path.is_file()], [path for path in inside if path.is_dir()]
    looked: list[tuple[str, str, Iterable[Path], Callable[[Path], bool]]] = [
        (PLAN, "plans", files, _is_plan),
        (ROW, "results", files, _is_row),
        (ARTIFACT, "artifacts", folders, _is_artifact),
        (DEPLOY, "exports", folders, is_export),
        (BENCH, "benches", folders, lambda path: (path / Path(BENCH).name).is_file()),
    ]
    for name, what, among, fits in looked:
        if places[name].exists() or (name == ROW and places[RESULTS].exists()):
            continue
        found = [path for path in among if fits(path)]
        if len(found) == 1:
            places[name] = found[0] / Path(BENCH).name if name == BENCH else found[0]
        elif found:
            names = ", ".join(path.name for path in found)
            log.warning("%s holds several %s (%s); the page shows none of them, name the run's %s", folder, what, names, name)
    return places


def _is_plan(path: Path) -> bool:
    if path.suffix not in (".yaml", ".yml"):
        return False
    with path.open(encoding="utf-8", errors="replace") as file:
        return re.search(rf"^kind: ['\"]?{KIND}['\"]?\s*$", file.read(4096), re.MULTILINE) is not None


def _is_row(path: Path) -> bool:
    """What `vitfrost evaluate --json` writes, or a results file."""
    if path.suffix != ".json" or path.stat().st_size > MOST_BYTES:
        return False
    data = _json(path)
    return isinstance(data, dict) and (data.get("kind") == "vitfrost results" or {"state_hash", "images_hash", "plan_hash"} <= data.keys())


def _is_artifact(path: Path) -> bool:
    config = path / CONFIG_FILE
    data = _json(config) if config.is_file() else None
    return isinstance(data, dict) and data.get("kind") == FORMAT.kind


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError):
        return None
