"""The folder of an exported model: `export.json` says what it is, beside `model.onnx`, `model.xml` and `model.bin`, or `model.vfn`."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..errors import VitfrostError, shown
from ..files import sha256_of_file
from ..images.geometry import Geometry
from ..records import Format
from ..regular import is_file
from .runtimes import FORMATS, PRECISIONS

FORMAT = Format("an exported model", "vitfrost export", mend="export again")
EXPORT_FILE = "export.json"
MOST_CLASSES = 2**20  # or channels, where there are no classes


def is_export(path: str | Path) -> bool:
    """True for a folder that holds (or was meant to hold) an exported model."""
    return (Path(path) / EXPORT_FILE).is_file()


def read_export(path: str | Path) -> dict[str, Any]:
    """What `export.json` says, after every file has been compared with its hash.

    Raises VitfrostError for a folder that is no exported model, is damaged or altered, or comes from a newer version.
    """
    path = Path(path)
    if not path.is_dir():
        raise VitfrostError(f"no folder {path}; name one made by vitfrost export")
    if not is_export(path):
        raise VitfrostError(f"{path} is no exported model: it has no {EXPORT_FILE}; make one with vitfrost export")
    about = FORMAT.read(path / EXPORT_FILE)
    _check_fields(path, about)
    for name in dict.fromkeys((*FORMATS[about["format"]].files, *about["sha256"])):
        if not is_file(path / name):
            raise VitfrostError(f"{path} has no {name}; export again")
        if sha256_of_file(path / name) != about["sha256"].get(name):
            raise VitfrostError(f"{path / name} is not the file that was exported (truncated or altered); export again")
    return about


def _is_count(value: Any) -> bool:
    return type(value) is int and 0 <= value < 2**63


def _is_hash(value: Any) -> bool:
    return isinstance(value, str) and re.fullmatch("[0-9a-f]{64}", value) is not None


def _is_name(value: Any) -> bool:
    """A file in this very folder."""
    return isinstance(value, str) and re.fullmatch(r"\w[\w.-]{0,99}", value) is not None


def _is_size(value: Any) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(_is_count(side) and 0 < side <= 2**16 for side in value)


def _are_tokens(value: dict[str, Any]) -> bool:
    """What export.json says of the tokens that a model gives."""
    shape, grid = value.get("shape"), value.get("grid")
    sides = isinstance(shape, list) and 2 <= len(shape) <= 3 and all(_is_count(side) and 0 < side <= MOST_CLASSES for side in shape)
    flags = all(isinstance(value.get(name), bool) for name in ("class_token", "channels_first"))
    return sides and flags and _is_count(value.get("prefix")) and (grid is None or _is_size(grid))


def _is_record(value: Any) -> bool:
    return value is None or isinstance(value, dict)


_MODEL: dict[str, Callable[[Any], bool]] = {
    "name": lambda value: isinstance(value, str),
    "image_size": _is_size,
    "weight_tag": lambda value: isinstance(value, str),
    "state_hash": lambda value: isinstance(value, str),
}
_FIELDS: dict[str, Callable[[Any], bool]] = {
    "format": lambda value: isinstance(value, str) and value in FORMATS,
    "precision": lambda value: value in PRECISIONS,
    "model": lambda value: isinstance(value, dict),
    "classes": lambda value: _is_count(value) and value <= MOST_CLASSES,
    "preprocessing": lambda value: isinstance(value, dict),
    "macs": _is_count,
    "seeds": lambda value: isinstance(value, dict) and all(_is_count(seed) for seed in value.values()),
    "sha256": lambda value: isinstance(value, dict) and all(_is_name(name) and _is_hash(digest) for name, digest in value.items()),
}
_OPTIONAL: dict[str, Callable[[Any], bool]] = {
    "class_names": lambda value: isinstance(value, list) and all(isinstance(name, str) for name in value),
    "plan_hash": lambda value: isinstance(value, str),
    "outputs": lambda value: value in ("classes", "embedding", "tokens"),
    "tokens": lambda value: isinstance(value, dict) and _are_tokens(value),
    "needs": lambda value: isinstance(value, dict) and all(isinstance(least, str) for least in value.values()),
    "graph": lambda value: isinstance(value, str),
    "attention": lambda value: isinstance(value, str),
    "bits": lambda value: isinstance(value, str) and re.fullmatch("W[2-8]/A[2-8]( mixed)?", value) is not None,
    "ranges": lambda value: isinstance(value, str),
    "weight_range": lambda value: isinstance(value, str),
    **dict.fromkeys(("calibration", "plan", "versions", "parity", "checked"), _is_record),
}


def _check_fields(path: Path, about: dict[str, Any]) -> None:
    """Raise VitfrostError for the first field that is missing, or has a value of another type or out of range."""
    where = path / EXPORT_FILE
    model = about.get("model")
    for fields, checks, prefix in ((about, _FIELDS, ""), (model if isinstance(model, dict) else {}, _MODEL, "model.")):
        for name, check in checks.items():
            if name not in fields:
                raise FORMAT.damaged(where, f"{prefix}{name} is missing")
            if not check(fields[name]):
                raise FORMAT.damaged(where, f"{prefix}{name} is {shown(fields[name])}")
    for name, check in _OPTIONAL.items():
        if about.get(name) is not None and not check(about[name]):
            raise FORMAT.damaged(where, f"{name} is {shown(about[name])}")
    if (about.get("outputs") == "tokens") != (about.get("tokens") is not None):
        raise FORMAT.damaged(where, "outputs are tokens without tokens, or the other way round")
    names = about.get("class_names")
    if names is not None and len(names) != about["classes"]:
        raise FORMAT.damaged(where, f"it has {len(names)} class_names for {about['classes']} classes")
    try:
        reading = Geometry(about["preprocessing"])
    except KeyError as error:
        raise FORMAT.damaged(where, f"preprocessing.{error.args[0]} is missing") from error
    except (TypeError, ValueError, VitfrostError) as error:
        raise FORMAT.damaged(where, f"preprocessing: {error}") from error
    if list(reading.input_size) != about["model"]["image_size"]:
        raise FORMAT.damaged(where, f"pictures are read at {reading.input_size}, the model is for {about['model']['image_size']}")


def model_bytes(path: str | Path, about: dict[str, Any]) -> int:
    """Bytes of the graph's files."""
    return sum((Path(path) / name).stat().st_size for name in about["sha256"])
