"""The verb `train`: from a recipe to a trained, merged and measured artifact, with a checkpoint to resume from."""

from __future__ import annotations

import copy
from dataclasses import replace
from pathlib import Path

import torch
from pydantic import ValidationError

from ..artifact import Artifact
from ..configs import Train
from ..distributed import barrier, rank, shared_errors
from ..errors import VitfrostError
from ..evaluation.evaluate import result_row
from ..evaluation.outcomes import Measured
from ..evaluation.results import Results, Row, save_results
from ..files import refuse_existing_run
from ..passes.structure import merge_structure
from ..regular import is_file
from ..strict import describe
from ..torch_state import torch_threads, usual_torch
from ..vit.load import hash_state
from .evaluation import EvaluationImages, open_evaluation, outcomes_of
from .loop import Trainer
from .prepare import DECODING_THREADS, Start, evaluated_classes, input_hashes, load_start, load_teacher, open_training
from .processes import join_processes
from .recipe import NAMED_WEIGHTS, TrainingRecipe, load_training_recipe, save_training_recipe

RECIPE_FILE, ARTIFACT, RESULT = "recipe.yaml", "artifact", "result.json"


@usual_torch()
def train(
    recipe: str | Path | TrainingRecipe,
    out: str | Path,
    config: Train = Train(),
    *,
    resume: bool = False,
    device: str = "cpu",
    progress: bool = True,
) -> Path:
    """Train what a recipe says into the folder `out`, which is returned.

    `config`: what takes the place of the recipe's variant, seed and paths.
    `data` is a folder that its pictures' paths are relative to, or one pack or folder for all of them where it is a file. With
    `resume` a run that was stopped goes on from its last checkpoint, to the same bits on the same machine and number of threads.
    The folder then holds recipe.yaml, metrics.jsonl, checkpoint.pt, artifact and, where there are evaluation pictures, result.json.
    Under torchrun the processes share every batch; process 0 writes.
    Raises VitfrostError for anything unreadable or that does not fit, and for a loss that is not finite.
    """
    folder = Path(out)
    chosen = recipe if isinstance(recipe, TrainingRecipe) else load_training_recipe(recipe, config.variants, config.data)
    chosen = _with_paths(chosen, config)
    refuse_existing_run(folder, resume, RECIPE_FILE, "training run")
    place = join_processes(device)
    devices = [place] if place.type == "cuda" else []
    with torch_threads(chosen.threads), torch.random.fork_rng(devices):
        with shared_errors():
            trainer, start, evaluation = _prepared(chosen, folder, place, resume, progress)
        trainer.train()
        _finish(trainer, start, evaluation)
        barrier()
    return folder


def _with_paths(recipe: TrainingRecipe, config: Train) -> TrainingRecipe:
    weights, artifact, teacher_weights = config.weights, config.artifact, config.teacher_weights
    values = recipe.model_dump(mode="json")
    if artifact is not None:
        values["start"]["artifact"], values["plan"] = str(Path(artifact).resolve()), None
        recipe = recipe.model_copy(update={"start": recipe.start.model_copy(update={"artifact": str(artifact)})})
    if teacher_weights is not None:
        if recipe.teacher is None or recipe.teacher.original:
            raise VitfrostError("the recipe names no teacher of its own whose weights could be replaced; leave out Train.teacher_weights")
        named = str(teacher_weights) in NAMED_WEIGHTS
        values["teacher"]["weights"] = str(teacher_weights) if named else str(Path(teacher_weights).resolve())
    if weights is not None:
        if recipe.start.artifact is not None:
            raise VitfrostError("the recipe starts from an artifact, which brings its own weights; leave out Train.weights")
        values["model"]["weights"] = str(weights) if str(weights) in NAMED_WEIGHTS else str(Path(weights).resolve())
    if config.seed is not None:
        values["seed"] = config.seed
    if config.statistics is not None:
        values["start"]["statistics"] = str(Path(config.statistics).resolve())
    try:
        return TrainingRecipe.model_validate(values)
    except ValidationError as error:
        raise VitfrostError(f"the recipe with these weights: {describe(error)}") from error


def _prepared(
    recipe: TrainingRecipe, folder: Path, device: torch.device, resume: bool, progress: bool
) -> tuple[Trainer, Start, EvaluationImages | None]:
    held = resume and is_file(folder / "checkpoint.pt")
    start = load_start(recipe, fill=not held)
    teacher = load_teacher(recipe, start)
    images = open_training(recipe, start, progress)
    evaluation = None
    if recipe.data.evaluation is not None:
        threads = recipe.threads or DECODING_THREADS
        evaluation = open_evaluation(
            recipe.data.evaluation, start.loaded.preprocessing, evaluated_classes(recipe, start), threads, progress
        )
    hashes = input_hashes(recipe, start, images, None if evaluation is None else evaluation.digest, teacher)
    trainer = Trainer(
        recipe, folder, start, images, device, inputs=hashes, evaluation=evaluation, teacher=teacher, progress=progress,
    )  # fmt: skip
    if held:
        trainer.resume()
    if rank() == 0:
        save_training_recipe(recipe, folder / RECIPE_FILE)
    return trainer, start, evaluation


def _finish(trainer: Trainer, start: Start, evaluation: EvaluationImages | None) -> None:
    """Merge, save, load what was saved, and measure that."""
    recipe, folder = trainer.recipe, trainer.folder
    if rank() == 0:
        model = copy.deepcopy(trainer.result).cpu().eval()
        merge_structure(model)
        model.requires_grad_(False)
        loaded = start.loaded
        record = {
            "recipe": recipe.hash(),
            "inputs": trainer.inputs,
            "steps": trainer.step,
            "epochs": round(trainer.step / trainer.steps_per_epoch, 4),
            "seconds": round(trainer.elapsed, 1),
            "start": {"weight_tag": loaded.weight_tag, "state_hash": loaded.state_hash},
        }
        trained = replace(loaded, weight_tag=f"trained:{recipe.hash()[:12]}", state_hash=hash_state(model))
        artifact = Artifact.made_from(trained, model, plan=start.plan, training=record, recipe=recipe.without_paths(), **trainer.notes)
        artifact.save(folder / ARTIFACT, overwrite=True)
    barrier()
    if evaluation is None:
        return
    saved = Artifact.load(folder / ARTIFACT)
    saved.module.to(trainer.device)
    outcomes = outcomes_of(saved.module, evaluation)
    if rank() == 0:
        trainer.note_result(outcomes)
        measured = Measured([outcomes], None, evaluation.digest, evaluation.skipped)
        save_results(Results(rows=[result_row(saved.name, saved, outcomes, measured, None)]), folder / RESULT)


def result_of(folder: str | Path) -> Row | None:
    """The row of a finished run; None where nothing was evaluated."""
    from ..evaluation.results import load_results

    path = Path(folder) / RESULT
    return load_results(path).rows[0] if path.is_file() else None
