"""Whole files of every kind, how each is damaged, and how each is read: what the fuzzers work on."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from random import Random
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image

import vitfrost
from vitfrost.errors import VitfrostError
from vitfrost.files import sha256_of_file

from .damage import (
    Damage,
    damage_bytes,
    damage_csv,
    damage_json,
    damage_native,
    damage_safetensors,
    damage_xml,
    damage_yaml,
    damage_zip,
)

ENGINE = find_spec("vitfrost_native") is not None


@dataclass(frozen=True)
class Kind:
    """A kind of file. `whole`: a file, or a folder of which one of `files` is damaged. `read` gives a digest of what was found.

    `agree`: makes the hashes beside a changed file agree with it again, so that what is behind them is reached.
    """

    name: str
    whole: Path
    files: dict[str, Damage]
    read: Callable[[Path], str]
    agree: Callable[[Path], None] | None = None


def damaged_copy(kind: Kind, scratch: Path, random: Random) -> tuple[Path, bool]:
    """A damaged file or folder in `scratch`, and whether hashes would tell (they were left as they are, and numbers were changed)."""
    target = scratch / kind.whole.name
    if kind.whole.is_dir():
        shutil.rmtree(target, ignore_errors=True)
        shutil.copytree(kind.whole, target)
    else:
        shutil.copyfile(kind.whole, target)
    name = random.choice(list(kind.files))
    path = target / name if kind.whole.is_dir() else target
    before = path.read_bytes()
    path.write_bytes(_damaged(kind.files[name], before, random))
    agrees = kind.agree is not None and random.random() < 0.7
    if agrees:
        try:
            kind.agree(target)  # type: ignore[misc]
        except (VitfrostError, OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError):
            agrees = False
    weights = not name.endswith(".json") and kind.whole.is_dir()
    return target, weights and not agrees and path.read_bytes() != before


def _damaged(damage: Damage, content: bytes, random: Random) -> bytes:
    """Not every damage can be written, such as lists too deep for the writer: another is drawn then."""
    for _ in range(100):
        try:
            return damage(content, random)
        except (ValueError, RecursionError, TypeError, IndexError, KeyError, yaml.YAMLError):
            continue
    return b""


def pixels_of(size: int = 32) -> np.ndarray:
    """The same normalized pixels in every process."""
    return np.random.default_rng(0).standard_normal((1, 3, size, size), dtype=np.float32)


def _digest(logits: np.ndarray) -> str:
    if not np.isfinite(logits).all():
        raise AssertionError("the logits are not finite")
    return hashlib.sha256(np.ascontiguousarray(logits).tobytes()).hexdigest()


def _read_artifact(path: Path, pictures: Path) -> str:
    model = vitfrost.Model.open(path)
    vitfrost.evaluate(model, pictures, config=vitfrost.Evaluate(limit=2), progress=False)
    with torch.inference_mode():
        return _digest(model(torch.zeros(1, 3, *model.image_size) + torch.from_numpy(pixels_of()).mean()).numpy())


def _read_export(path: Path, picture: Path) -> str:
    from vitfrost.runtime import open_export

    session = open_export(path, threads=1)
    session.predict(picture)
    return _digest(session.run(np.zeros((1, 3, *session.geometry.input_size), np.float32)))


def _read_native(path: Path) -> str:
    """As NumPy reads the engine's file, for this and other programs."""
    from vitfrost.deploy.native.format import read_model, to_bytes

    return hashlib.sha256(to_bytes(read_model(path))).hexdigest()


def _agree_artifact(path: Path) -> None:
    from vitfrost.plans.schema import Plan

    config = json.loads((path / "config.json").read_text())
    config["weights_sha256"] = sha256_of_file(path / "model.safetensors")
    config["plan_hash"] = Plan.parse(config["plan"], "").content_hash
    (path / "config.json").write_text(json.dumps(config))


def _agree_export(path: Path) -> None:
    about = json.loads((path / "export.json").read_text())
    about["sha256"] = {name: sha256_of_file(path / name) for name in about["sha256"]}
    (path / "export.json").write_text(json.dumps(about))


def _read_weights(path: Path) -> str:
    return vitfrost.Model.open("vitfrost_digits", weights=path, options={"depth": 1}).state_hash


def _read_pack(path: Path) -> str:
    from vitfrost.images.preprocess import Preprocess
    from vitfrost.training.packs import Pack

    pack = Pack.open(path)
    reading = {
        "input_size": (3, 32, 32),
        "mean": (0,) * 3,
        "std": (1,) * 3,
        "crop_pct": 1,
        "crop_mode": "center",
        "interpolation": "bicubic",
    }
    return str([pack.decode(int(position), Preprocess(reading)).reason for position in pack.positions("all")])


def _read_picture(path: Path) -> str:
    from vitfrost.images.decode import decode_file
    from vitfrost.images.geometry import Geometry

    model = vitfrost.Model.open("vitfrost_digits", weights="random", options={"depth": 1})
    decoded = decode_file(path, Geometry(model.preprocessing))
    if decoded.pixels is None:
        raise VitfrostError(decoded.reason)
    return decoded.digest


def _read_labels(path: Path, pictures: Path) -> str:
    from vitfrost.class_names import class_space
    from vitfrost.images.source import open_images

    return str(open_images(pictures, path, classes=class_space(10, None)).labels)


def _said(read: Callable[[Path], Any]) -> Callable[[Path], str]:
    return lambda path: str(type(read(path)))


def _statistics(path: Path) -> str:
    found = vitfrost.Statistics.load(path)
    vitfrost.plan(found, vitfrost.FreezeEntries(0.2), vitfrost.Quantize(32, 32))
    return found.header.images_hash


def _report(path: Path) -> str:
    """A run's page, from a folder in which one file is damaged."""
    vitfrost.report(path, path / "page.html")
    return (path / "page.html").name


def make_corpus(folder: Path) -> list[Kind]:
    """Write whole files of every kind into `folder`; what reads them. Takes some seconds."""
    from vitfrost.budget.history import load_search
    from vitfrost.class_names import read_class_names
    from vitfrost.evaluation.results import load_results
    from vitfrost.plans.schema import Plan
    from vitfrost.runs.recipe import Recipe, load_recipe, save_recipe
    from vitfrost.studies.recipe import load_study
    from vitfrost.timing.benchmark import load_benchmark
    from vitfrost.training.checkpoint import load_checkpoint, save_checkpoint
    from vitfrost.training.recipe import load_training_recipe

    folder.mkdir(parents=True, exist_ok=True)
    pictures = _write_pictures(folder)
    model = vitfrost.Model.open("vitfrost_digits", weights="random", options={"depth": 1})
    statistics = vitfrost.calibrate(model, pictures, vitfrost.Calibrate(limit=4), out=folder / "statistics.safetensors", progress=False)
    made = vitfrost.plan(statistics, vitfrost.FreezeEntries(0.2), vitfrost.Quantize(4, 32), out=folder / "plan.yaml")
    compress = {"statistics": statistics, "images": pictures}
    vitfrost.compress(model, made, **compress, out=folder / "run" / "artifact")
    for form in ("onnx", "openvino"):
        vitfrost.export(model, vitfrost.Export(form), out=folder / form)
    if ENGINE:
        vitfrost.export(model, vitfrost.Export("native", calibration_images=4), images=pictures, out=folder / "native")
        shutil.copy(folder / "native" / "model.vfn", folder / "model.vfn")
    budget = vitfrost.Search(target_macs=0.9, images=4, over=("layers",))
    vitfrost.search(model, pictures, budget, statistics=statistics, out=folder / "searched.yaml", progress=False)
    row = vitfrost.evaluate(folder / "run" / "artifact", pictures, progress=False, json=folder / "row.json")
    _write_run(folder, row)
    state = model.module.state_dict()
    torch.save({"model": state, "epoch": 3}, folder / "weights.pth")
    save_checkpoint(folder / "checkpoint.pt", {"step": 3, "model": state}, {"recipe": "a"})
    _write_pack(folder, pictures)
    (folder / "names.txt").write_text("\n".join(f"class {index}" for index in range(10)))
    save_recipe(
        Recipe.model_validate({"model": {"name": "vitfrost_digits"}, "calibration": {"images": str(pictures)}, "plan": {"freeze": 0.1}}),
        folder / "recipe.yaml",
    )
    shutil.copy(folder / "recipe.yaml", folder / "run" / "recipe.yaml")
    shutil.copy(folder / "plan.yaml", folder / "run" / "plan.yaml")
    shutil.copy(folder / "statistics.safetensors", folder / "run" / "statistics.safetensors")
    training = {
        "kind": "vitfrost training",
        "version": 1,
        "model": {"name": "vitfrost_digits"},
        "data": {"train": [{"source": str(pictures)}]},
    }
    (folder / "training.yaml").write_text(json.dumps(training | {"schedule": {"epochs": 2}, "optimizer": {"lr": 0.1}}))
    study = {"kind": "vitfrost recipe", "version": 1, "model": {"name": "vitfrost_digits"}, "calibration": {"images": str(pictures)}}
    grid = {"seeds": [0, 1], "blocks": [{"name": "a", "freeze": [0.1, 0.2], "statistics": ["fp32", "quantized"]}]}
    (folder / "study.yaml").write_text(json.dumps(study | {"evaluation": {"images": str(pictures)}, "grid": grid}))
    run = folder / "run"
    read_export, read_labels = partial(_read_export, picture=folder / "picture.png"), partial(_read_labels, pictures=pictures)
    return [
        Kind("plan", folder / "plan.yaml", {"": damage_yaml}, _said(Plan.load)),
        Kind("statistics", folder / "statistics.safetensors", {"": damage_safetensors}, _statistics),
        Kind("artifact", run / "artifact", {"config.json": damage_json, "model.safetensors": damage_safetensors},
             partial(_read_artifact, pictures=pictures), _agree_artifact),
        Kind("onnx export", folder / "onnx", {"export.json": damage_json, "model.onnx": damage_bytes}, read_export, _agree_export),
        Kind("openvino export", folder / "openvino",
             {"export.json": damage_json, "model.xml": damage_xml, "model.bin": damage_bytes}, read_export, _agree_export),
        *(
            (
                Kind("native export", folder / "native", {"export.json": damage_json, "model.vfn": damage_native}, read_export,
                     _agree_export),
                Kind("native model file", folder / "model.vfn", {"": damage_native}, _read_native),
            ) if ENGINE else ()
        ),
        Kind("recipe", folder / "recipe.yaml", {"": damage_yaml}, _said(load_recipe)),
        Kind("grid recipe", folder / "study.yaml", {"": damage_yaml}, _said(load_study)),
        Kind("training recipe", folder / "training.yaml", {"": damage_yaml}, _said(load_training_recipe)),
        Kind("results", run / "results.json", {"": damage_json}, _said(load_results)),
        Kind("search", folder / "searched.search.json", {"": damage_json}, _said(load_search)),
        Kind("bench", folder / "bench.json", {"": damage_json}, _said(load_benchmark)),
        Kind("pack", folder / "pack.npz", {"": damage_zip}, _read_pack),
        Kind("checkpoint", folder / "checkpoint.pt", {"": damage_zip}, _said(lambda path: load_checkpoint(path, {"recipe": "a"}))),
        Kind("weights (torch)", folder / "weights.pth", {"": damage_zip}, _read_weights),
        Kind("weights (safetensors)", folder / "weights.safetensors", {"": damage_safetensors}, _read_weights),
        Kind("labels", folder / "pictures" / "labels.csv", {"": damage_csv}, read_labels),
        Kind("class names", folder / "names.txt", {"": damage_bytes}, lambda path: str(read_class_names(path, 10))),
        *(Kind(f"picture ({form})", folder / f"picture.{form}", {"": damage_bytes}, _read_picture)
          for form in ("png", "jpg", "webp", "tiff", "gif", "bmp")),
        Kind("run folder", run, {"recipe.yaml": damage_yaml, "plan.yaml": damage_yaml, "results.json": damage_json,
                                 "statistics.safetensors": damage_safetensors}, _report),
    ]  # fmt: skip


def _write_pictures(folder: Path) -> Path:
    from ..conftest import write_pictures

    pictures = write_pictures(folder / "pictures", 8)
    values = np.random.default_rng(1).integers(0, 255, (40, 30, 3), dtype=np.uint8)
    for form in ("png", "jpg", "webp", "tiff", "gif", "bmp"):
        Image.fromarray(values).save(folder / f"picture.{form}")
    return pictures


def _write_run(folder: Path, row: Any) -> None:
    from safetensors.torch import save_file

    from vitfrost.evaluation.results import Results, save_results
    from vitfrost.timing.benchmark import Benchmark, BenchRow, save_benchmark

    save_results(Results(rows=[row]), folder / "run" / "results.json")
    state = vitfrost.Model.open("vitfrost_digits", weights="random", options={"depth": 1}).module.state_dict()
    save_file(state, folder / "weights.safetensors")
    timed = BenchRow(
        name="a", subject="a", original="a", unmodified=True, kind="executed", runtime="torch", runtime_version="2", precision="fp32",
        effective_precision="fp32", device="cpu", batch=1, threads=1, image_size=(32, 32), weights="random", random_weights=True,
        state_hash="0" * 64, macs=10**6, file_bytes=10**6, p50_ms=1.0, p90_ms=1.5, images_per_second=1000.0, round_ms=[1.0], repetitions=3,
        cpu="some",
    )  # fmt: skip
    save_benchmark(Benchmark(seed=0, rounds=1, environment={"cpu": "some"}, rates=[], rows=[timed]), folder / "bench.json")
    shutil.copy(folder / "bench.json", folder / "run" / "bench.json")


def _write_pack(folder: Path, pictures: Path) -> None:
    files = [path.read_bytes() for path in sorted(pictures.glob("*.png"))]
    np.savez(
        folder / "pack.npz", buf=np.frombuffer(b"".join(files), np.uint8), off=np.cumsum([0, *map(len, files)]).astype(np.int64),
        y=np.zeros(len(files), np.int16), in1k=np.zeros(1, np.int16), train=np.ones(len(files), bool),
    )  # fmt: skip
