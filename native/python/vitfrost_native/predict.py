"""What a model in a folder of `vitfrost export --format native` says of pictures."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .errors import VitfrostError
from .images.decode import decode_file
from .images.geometry import Geometry
from .model import Model
from .regular import open_regular

ABOUT_FILE, MODEL_FILE = "export.json", "model.vfn"
LARGEST_ABOUT = 16 * 2**20
TOP = 5


@dataclass(frozen=True)
class Prediction:
    """Classes of one file, most probable first, with their probabilities and what they are called (their number, if nothing); of a file
    that cannot be read nothing but the `problem`."""

    file: str
    classes: tuple[int, ...]
    probabilities: tuple[float, ...]
    names: tuple[str, ...]
    problem: str | None = None


def read_about(folder: Path) -> dict[str, Any]:
    """What export.json says, after the model file was compared with its hash. Raises VitfrostError for any other folder."""
    try:
        with open_regular(folder / ABOUT_FILE) as file:
            text = file.read(LARGEST_ABOUT + 1)
        about = json.loads(text) if len(text) <= LARGEST_ABOUT else None
        with open_regular(folder / MODEL_FILE) as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except FileNotFoundError as error:
        raise VitfrostError(f"{folder} is no native export: there is no {error.filename}; vitfrost export --format native") from error
    except (OSError, ValueError, RecursionError) as error:
        raise VitfrostError(f"{folder} cannot be read: {error}; export again") from error
    if not isinstance(about, dict) or about.get("kind") != "vitfrost export" or about.get("format") != "native":
        raise VitfrostError(f"{folder} is no native export; vitfrost export --format native")
    if about.get("sha256") != {MODEL_FILE: digest}:
        raise VitfrostError(f"{folder / MODEL_FILE} is not the file that was exported (truncated or altered); export again")
    return about


def predict(folder: str | Path, pictures: Sequence[str | Path], top: int | None = None, threads: int = 1) -> list[Prediction]:
    """The `top` classes of every picture: five, or all where there are fewer, if not given. One that cannot be read has a `problem`.

    Raises VitfrostError for a folder that cannot be read, and where no picture can.
    """
    about = read_about(Path(folder))
    try:
        geometry = Geometry(about["preprocessing"])
    except (KeyError, TypeError, ValueError) as error:
        raise VitfrostError(f"{Path(folder) / ABOUT_FILE} is damaged: {type(error).__name__} {error}; export again") from error
    with Model(Path(folder) / MODEL_FILE, threads) as model:
        names = about.get("class_names") or [str(number) for number in range(model.info.classes)]
        top = min(TOP, model.info.classes) if top is None else top
        if len(names) != model.info.classes or not 1 <= top <= model.info.classes:
            raise VitfrostError(f"top is {top}, and the model has {model.info.classes} classes and {len(names)} names; give fewer")
        found = [_predicted(model, geometry, names, Path(picture), top) for picture in pictures]
    if found and all(each.problem is not None for each in found):
        raise VitfrostError(f"cannot read {found[0].file}: {found[0].problem}{f'; and {len(found) - 1} more' if len(found) > 1 else ''}")
    return found


def _predicted(model: Model, geometry: Geometry, names: Sequence[str], picture: Path, top: int) -> Prediction:
    decoded = decode_file(picture, geometry)
    if decoded.pixels is None:
        return Prediction(str(picture), (), (), (), decoded.reason)
    logits = model.run(geometry.normalized(decoded.pixels[None]))[0].astype(np.float64)
    if not np.isfinite(logits).all():
        raise VitfrostError(f"the outputs are not finite for {picture}; export again")
    chosen = np.argsort(-logits, kind="stable")[:top]
    shares = shares_of(logits)
    return Prediction(str(picture), tuple(chosen.tolist()), tuple(shares[chosen].tolist()), tuple(str(names[one]) for one in chosen))


def shares_of(logits: np.ndarray) -> np.ndarray:
    """Probabilities of the classes; of a single output its sigmoid."""
    if len(logits) == 1:
        return 1 / (1 + np.exp(-logits.clip(-700)))
    shares = np.exp(logits - logits.max())
    return np.asarray(shares / shares.sum())
