"""The folder of an exported model: `export.json` says what it is, beside `model.onnx`, `model.xml` and `model.bin`, or `model.vfn`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from ..errors import VitfrostError
from ..files import sha256_of_file
from ..images.geometry import Geometry
from ..records import Format
from .runtimes import FORMATS, PRECISIONS

FORMAT = Format("an exported model", "vitfrost export", mend="export again")
EXPORT_FILE = "export.json"


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
    for name in FORMATS[about["format"]].files:
        if not (path / name).is_file():
            raise VitfrostError(f"{path} has no {name}; export again")
        if sha256_of_file(path / name) != about["sha256"].get(name):
            raise VitfrostError(f"{path / name} is not the file that was exported (truncated or altered); export again")
    return about


def _check_fields(path: Path, about: dict[str, Any]) -> None:
    try:
        Geometry(about["preprocessing"])
        sound = (
            about["format"] in FORMATS
            and about["precision"] in PRECISIONS
            and isinstance(about["sha256"], dict)
            and isinstance(about["model"]["name"], str)
            and isinstance(about["classes"], int)
            and about["classes"] > 0
            and (about.get("class_names") is None or len(about["class_names"]) == about["classes"])
            and isinstance(about["macs"], int)
            and isinstance(about["seeds"], dict)
            and isinstance(about["plan_hash"], str | None)
        )
    except (KeyError, TypeError, ValueError, VitfrostError) as error:
        raise FORMAT.damaged(path / EXPORT_FILE, f"{type(error).__name__} {error}") from error
    if not sound:
        raise FORMAT.damaged(path / EXPORT_FILE, "a field has a value without a meaning")


def model_bytes(path: str | Path, about: dict[str, Any]) -> int:
    """Bytes of the graph's files."""
    return sum((Path(path) / name).stat().st_size for name in FORMATS[about["format"]].files)
