"""Trains the `cpu` runs of recipes/training/miniimagenet64.yaml one after another, and gathers those that are finished.

    nice -n 19 python benchmarks/hmhsa_cffn_runs.py --data miniimagenet64.npz --runs DIR
    python benchmarks/hmhsa_cffn_runs.py --data miniimagenet64.npz --runs DIR --gather --json docs/results/hmhsa_cffn_cpu.json

One process, one thread, a folder per run. Stop it at any time and start it again with the same line: finished runs are left alone, the
one that was stopped goes on from its checkpoint and ends in the same bits. What matters most comes first, so a part of it is of use.
`--source` trains with the vitfrost of another folder, such as a copy that nobody edits while the runs last.

Results hold which pictures every run gets right, so runs of several machines come together: `--known FILE` reads results of before. What
is in them is not trained again (but for the baseline that a run is taught by, whose weights are needed).
"""

from __future__ import annotations

import argparse
import base64
import fcntl
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from vitfrost.artifact import Artifact

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the command line does, before torch is imported

RECIPE = Path("recipes/training/miniimagenet64.yaml")
TITLES = {
    "baseline": "baseline",
    "hmhsa": "hMHSA",
    "cffn": "cFFN",
    "both": "both",
    "quick_width": "control: width 88 of 96",
    "quick_heads": "control: 2 of 4 heads, of the same width",
    "head_copies": "control: head copies",
    "rank75": "both, rank 0.75 d",
    "conv5": "both, residual convolution 5 x 5",
    "branch_rates": "both, second branch at 0.3 of the rate",
    "taught": "both, taught by the baseline",
}
REFERENCES = ("baseline", "quick_width")  # what every run is compared with, picture by picture
KNOBS = ("rank75", "conv5", "branch_rates", "taught")
# Large products live for one step: kept memory saves the system from handing out and clearing the same pages thousands of times.
KEEP_MEMORY = {"MALLOC_MMAP_THRESHOLD_": "4000000000", "MALLOC_TRIM_THRESHOLD_": "8000000000"}


class Run(NamedTuple):
    """One training: what it is and its seed."""

    name: str
    seed: int

    @property
    def folder(self) -> str:
        """Name of its folder."""
        return f"{self.name}-s{self.seed}"

    @property
    def variants(self) -> list[str]:
        """Variants of the recipe, in order."""
        if self.name == "baseline":
            return ["cpu"]
        return ["cpu", "both", self.name] if self.name in KNOBS else ["cpu", self.name]


def runs() -> list[Run]:
    """All of them: the comparison that matters at the first seed, the rest of that seed, further seeds, then the knobs."""
    first, others = ["baseline", "both", "quick_width"], ["hmhsa", "cffn", "quick_heads", "head_copies"]
    planned = [Run(name, seed) for seed in (0, 1) for name in first + others]
    return planned + [Run(name, 2) for name in first] + [Run(name, 0) for name in KNOBS]


def weights_of(folder: Path) -> Path:
    """The weights that a finished run keeps."""
    return next(folder.glob("*/model.safetensors"))


def train(run: Run, options: argparse.Namespace, lock: int) -> int:
    """Start or go on with one run, which holds the lock, too, should this process end first; returns the exit status."""
    folder = options.runs / run.folder
    command = [sys.executable, "-m", "vitfrost", "train", str(options.recipe), "--variant", *run.variants]
    command += ["--seed", str(run.seed), "--data", str(options.data), "--out", str(folder), "--resume"]
    if run.name == "taught":
        command += ["--teacher-weights", str(weights_of(options.runs / Run("baseline", 0).folder))]
    surroundings = os.environ | KEEP_MEMORY | {"OMP_NUM_THREADS": "1"}
    if options.source is not None:
        surroundings["PYTHONPATH"] = str(options.source.resolve())
    with open(options.runs / f"{run.folder}.log", "ab") as log:
        return subprocess.run(command, env=surroundings, stdout=log, stderr=log, pass_fds=[lock]).returncode


def finished(folder: Path) -> bool:
    """Whether a run has been measured here."""
    return (folder / "result.json").is_file()


def known(options: argparse.Namespace) -> dict[Run, dict[str, Any]]:
    """The rows of results of before, by run."""
    rows = [] if options.known is None else json.loads(options.known.read_text())["runs"]
    return {Run(row["name"], row["seed"]): row for row in rows}


def to_train(options: argparse.Namespace) -> list[Run]:
    """What is not finished, here or before, in order; a run that needs the baseline's weights has that before it."""
    before = known(options)
    wanted = [run for run in runs() if options.seeds is None or run.seed in options.seeds]
    missing = [run for run in wanted if run not in before and not finished(options.runs / run.folder)]
    teacher = Run("baseline", 0)
    if any(run.name == "taught" for run in missing) and teacher not in missing and not finished(options.runs / teacher.folder):
        missing.insert([run.name for run in missing].index("taught"), teacher)
    return missing


def curve(folder: Path) -> Iterator[dict[str, Any]]:
    """Per epoch the mean training loss and the top-1 after it."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    losses = [(line["epoch"], line["loss"]) for line in lines if "loss" in line]
    for line in (line for line in lines if "top1" in line):
        end = line["epoch"]
        within = [loss for epoch, loss in losses if end - 1 < epoch <= end]
        yield {"epoch": end, "loss": round(sum(within) / len(within), 4) if within else None, "top1": line["top1"]}


def stacked(name: str, seeds: list[int], options: argparse.Namespace) -> Any:
    """The right answers of a variant's seeds [seeds, images]."""
    import numpy as np

    return np.stack([right_answers(Run(name, seed), options) for seed in seeds])


def right_answers(run: Run, options: argparse.Namespace) -> Any:
    """Which pictures the kept weights get right: from results of before, or measured once and kept beside the run's folder."""
    import numpy as np
    import torch

    if not finished(options.runs / run.folder):
        row = known(options)[run]
        bits = np.frombuffer(base64.b64decode(row["right"]), np.uint8)
        return np.unpackbits(bits, count=row["images"]).astype(bool)

    from vitfrost.images.classes import ClassSpace
    from vitfrost.training.evaluation import open_evaluation, outcomes_of
    from vitfrost.training.recipe import load_training_recipe

    kept = options.runs / f"{run.folder}.right.npy"
    if not kept.is_file():
        torch.set_num_threads(1)
        recipe = load_training_recipe(options.recipe, run.variants[:1], options.data)
        loaded = Artifact.load(weights_of(options.runs / run.folder).parent)
        assert recipe.data.evaluation is not None
        images = open_evaluation(recipe.data.evaluation, loaded.preprocessing, ClassSpace(loaded.classes), 1, False)
        np.save(kept, outcomes_of(loaded.module, images).correct1)
    return np.load(kept)


def gather(options: argparse.Namespace) -> dict[str, Any]:
    """What the finished runs gave, differences to references of the same seed on the same pictures, and what is still to come."""
    import numpy as np

    from vitfrost.evaluation.results import load_results
    from vitfrost.files import sha256_of_file

    rows, waiting, before = [], [], known(options)
    there = {run for run in runs() if finished(options.runs / run.folder)} | set(before)
    for run in runs():
        folder = options.runs / run.folder
        if not finished(folder):
            if run in before:
                rows.append(before[run] | {"differences": differences(run, there, options)})
                continue
            waiting.append({"name": run.name, "title": TITLES[run.name], "seed": run.seed})
            continue
        (row,) = load_results(folder / "result.json").rows
        points = list(curve(folder))
        seconds = json.loads((folder / "metrics.jsonl").read_text().splitlines()[-1])["elapsed"]
        found: dict[str, Any] = {"name": run.name, "title": TITLES[run.name], "seed": run.seed, "variants": run.variants}
        found |= row.model_dump(
            mode="json",
            include={
                "kind", "runtime", "threads", "precision", "images", "top1", "interval", "macs", "weight_tag", "state_hash", "plan_hash",
                "images_hash", "environment",
            },
        )  # fmt: skip
        right = base64.b64encode(np.packbits(np.asarray(right_answers(run, options), bool)).tobytes()).decode()
        found |= {"differences": differences(run, there, options), "weights_sha256": sha256_of_file(weights_of(folder))}
        rows.append(found | {"seconds": seconds, "curve": points, "right": right})
    return {"recipe": RECIPE.as_posix(), "runs": rows, "means": means(rows, options), "waiting": waiting}


def differences(run: Run, there: set[Run], options: argparse.Namespace) -> dict[str, Any]:
    """To references of the same seed that are there, on the same pictures."""
    from vitfrost.evaluation.intervals import paired_difference

    found = {}
    for reference in (Run(name, run.seed) for name in REFERENCES if name != run.name):
        if reference in there:
            value, interval = paired_difference(right_answers(run, options), right_answers(reference, options))
            assert interval is not None
            found[reference.name] = {"value": round(value, 4), "interval": [round(end, 4) for end in interval]}
    return found


def means(rows: list[dict[str, Any]], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Of what has several seeds, means over them; their intervals are over pictures and seeds."""

    from vitfrost.evaluation.intervals import bootstrap_over_seeds

    seeds = {name: [row["seed"] for row in rows if row["name"] == name] for name in TITLES}
    found = []
    for name in (name for name in TITLES if len(seeds[name]) > 1):
        of = {other: [seed for seed in seeds[name] if seed in seeds[other]] for other in REFERENCES if other != name}
        mean: dict[str, Any] = {"name": name, "seeds": seeds[name]}
        for other, common in [(None, seeds[name]), *((other, common) for other, common in of.items() if len(common) > 1)]:
            right = stacked(name, common, options)
            reference = None if other is None else stacked(other, common, options)
            value, interval = bootstrap_over_seeds(right, reference)
            assert interval is not None
            estimate = {"value": round(value, 4), "interval": [round(end, 4) for end in interval]}
            mean |= {"top1": estimate} if other is None else {}
            mean.setdefault("differences", {}).update({} if other is None else {other: estimate})
        found.append(mean)
    return found


def main() -> None:
    """Train what is missing, and write what there is after every run."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the pack miniimagenet64.npz")
    parser.add_argument("--runs", type=Path, required=True, help="folder for the runs")
    parser.add_argument("--recipe", type=Path, default=RECIPE)
    parser.add_argument("--source", type=Path, help="folder to import vitfrost from while training")
    parser.add_argument("--known", type=Path, metavar="FILE", help="results of before, whose runs are not trained again")
    parser.add_argument("--seeds", type=int, nargs="+", metavar="SEED", help="train these seeds alone (all), as one of several processes")
    parser.add_argument("--json", type=Path, help="where the results go (results.json among the runs)")
    parser.add_argument("--gather", action="store_true", help="train nothing, write the results")
    options = parser.parse_args()
    from vitfrost.files import write_json

    options.runs.mkdir(parents=True, exist_ok=True)
    result = options.json or options.runs / "results.json"
    if options.gather:
        write_json(result, gather(options))
        return
    with open(options.runs / "lock", "w") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            sys.exit(f"{options.runs} is being worked on by another process; wait for it, or name another folder")
        failed = []
        for run in to_train(options):
            status = train(run, options, lock.fileno())
            if status < 0:
                sys.exit(f"{run.folder} was ended by signal {-status}; the same line goes on with it")
            if status:
                failed.append(run.folder)
                print(f"{run.folder} failed, see {run.folder}.log", file=sys.stderr, flush=True)
            write_json(result, gather(options))
    if failed:
        sys.exit(f"not finished: {', '.join(failed)}")


if __name__ == "__main__":
    main()
