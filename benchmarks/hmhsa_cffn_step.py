"""Where the time of a training step of the `cpu` runs goes, and what each way of computing it gains.

    python benchmarks/hmhsa_cffn_step.py --data miniimagenet64.npz --json docs/results/hmhsa_cffn_step.json

CPU time of one thread per picture, so that other work on the machine counts little; ways are interleaved over `--rounds` rounds, the
median of which is kept with the smallest and largest. About ten minutes on one core.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the command line does, before torch is imported

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from vitfrost.evaluation.results import environment
from vitfrost.files import write_json
from vitfrost.training.loop import Trainer
from vitfrost.training.recipe import TrainingRecipe, load_training_recipe
from vitfrost.training.train import _prepared

WAYS: dict[str, dict[str, Any]] = {
    "fp32, torch's products": {"products": "torch"},
    "fp32, oneDNN": {},
    "fp32, oneDNN, batches of 128": {"batch_size": 128},
    "fp32, oneDNN, batches of 256": {"batch_size": 256},
    "bf16, torch's products": {"products": "torch", "precision": "bf16"},
}
MODELS = {"baseline": [], "hMHSA": ["hmhsa"], "cFFN": ["cffn"], "both": ["both"]}
PARTS = ("augmentation", "forward and backward", "optimizer")


def prepared(recipe: Path, data: Path, variants: list[str], way: dict[str, Any], folder: Path) -> Trainer:
    """A trainer of this way on 2000 pictures, warmed up."""
    values = load_training_recipe(recipe, ["cpu", *variants], data).model_dump(mode="json") | way
    values["data"]["train"][0]["limit"], values["data"]["evaluation"] = 2000, None
    trainer, _, _ = _prepared(TrainingRecipe.model_validate(values), folder, torch.device("cpu"), False, False)
    trainer._set_modes()
    return trainer


def timed(owner: Any, name: str, spent: dict[str, float], part: str) -> None:
    """Let a method of one object note its CPU time."""
    method: Callable[..., Any] = getattr(owner, name)

    def noting(*given: Any, **named: Any) -> Any:
        began = time.process_time()
        try:
            return method(*given, **named)
        finally:
            spent[part] += time.process_time() - began

    setattr(owner, name, noting)


def step_times(trainer: Trainer, pictures: int) -> dict[str, float]:
    """Milliseconds of CPU time per picture: of the whole step, and of its parts."""
    spent = dict.fromkeys(PARTS, 0.0)
    timed(trainer, "_batch", spent, "augmentation")
    timed(trainer.optimizer, "step", spent, "optimizer")
    batches = trainer._batches()
    for _ in range(2):
        trainer._one_step(next(batches))
    spent |= dict.fromkeys(PARTS, 0.0)
    steps = max(1, pictures // trainer.recipe.batch_size)
    began = time.process_time()
    for _ in range(steps):
        trainer._one_step(next(batches))
    whole = time.process_time() - began
    spent["forward and backward"] = whole - spent["augmentation"] - spent["optimizer"]
    return {name: 1e3 * value / (steps * trainer.recipe.batch_size) for name, value in (spent | {"step": whole}).items()}


def main() -> None:
    """Measure, print, write JSON."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True, help="the pack miniimagenet64.npz")
    parser.add_argument("--recipe", type=Path, default=Path("recipes/training/miniimagenet64.yaml"))
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--pictures", type=int, default=768, help="per round and way")
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(1)
    asked = [(model, way) for model in MODELS for way in WAYS if model in ("baseline", "both") or not ("batches" in way or "bf16" in way)]
    found: dict[tuple[str, str], list[dict[str, float]]] = {place: [] for place in asked}
    with tempfile.TemporaryDirectory() as folder:
        for _ in range(options.rounds):
            for number, (model, way) in enumerate(asked):
                trainer = prepared(options.recipe, options.data, MODELS[model], WAYS[way], Path(folder) / f"{number}")
                found[model, way].append(step_times(trainer, options.pictures))
                for left in (Path(folder) / f"{number}").iterdir():
                    left.unlink()
    rows = []
    for (model, way), rounds in found.items():
        steps = [one["step"] for one in rounds]
        row: dict[str, Any] = {"model": model, "way": way, "ms_per_picture": round(statistics.median(steps), 3)}
        row |= {"range": [round(min(steps), 3), round(max(steps), 3)]}
        row |= {part: round(statistics.median([one[part] for one in rounds]), 3) for part in PARTS}
        rows.append(row)
        print(row, flush=True)
    write_json(options.json, {"environment": environment(), "threads": 1, "rounds": options.rounds, "rows": rows})


if __name__ == "__main__":
    main()
