"""The graphs that are measured: made by `vitfrost export` into the run's folder, kept there, and used again by key."""

from __future__ import annotations

from dataclasses import replace
from importlib.metadata import version
from pathlib import Path
from uuid import uuid4

import numpy as np
from PIL import Image

from ..configs import Export
from ..deploy.export import export_graph
from ..deploy.native.eight_bits import needs_images
from ..errors import VitfrostError
from ..files import atomic_folder, sha256_of_file, write_json
from ..images.given import AnyImages, ImagesLike
from ..images.source import ImageSet
from ..keyed import file_key, hash_of
from ..progress import say
from ..records import Format
from ..runtime.folder import EXPORT_FILE, read_export
from ..runtime.runtimes import RUNTIMES, reason_of
from .benchmark import LeftOut
from .cells import Cell, described
from .sessions import EAGER
from .subjects import Subject

# Why a model could not be exported, beside where it would be: a run that goes on does not try for minutes again.
_Failed = Format("a failed export", "vitfrost failed export", mend="remove it to try again")
NOISE_IMAGES = 4
_PROCESS = uuid4().hex
ON_NOISE = f"noise ({NOISE_IMAGES} pictures), for time only"


def with_exports(cells: list[Cell], folder: Path, images: AnyImages | None, seed: int) -> tuple[list[Cell], list[LeftOut]]:
    """The cells with their exported folders; those whose model cannot be exported are left out, with the reason.

    int8 is calibrated on a draw from `images`; without them on seeded noise, which the cell's `calibration` says.
    """
    found: list[Cell] = []
    left_out: list[LeftOut] = []
    failed: dict[Path, str] = {}
    without_attention: set[str] = set()  # subjects whose int8 graphs have no products of attention that could be left out
    for number, cell in enumerate(cells, 1):
        if cell.runtime in EAGER or cell.export is not None:
            found.append(cell)
            continue
        if cell.attention == "float" and cell.subject.label in without_attention:
            left_out.append(LeftOut(name=cell.name, why="it has no products of attention to leave in floating point"))
            continue
        path = folder / "exports" / _key(cell, images, seed)
        if path not in failed:
            known = path.with_name(f"{path.name}.failed.json")
            try:
                if known.is_file():
                    raise VitfrostError(str(_Failed.read(known)["why"]))
                if not path.is_dir():
                    say(f"[{number}/{len(cells)}] export {cell.name}")
                    _export(cell, path, folder, images, seed)
                about = read_export(path)
            except Exception as error:  # exporters raise types of their own; none of them ends the other cells
                failed[path] = reason_of(error)
                # a full disk, or memory, may have room the next time
                if not known.is_file() and not isinstance(error.__cause__ or error, OSError | MemoryError):
                    write_json(known, {"kind": _Failed.kind, "version": _Failed.version, "why": failed[path]})
        if path in failed:
            left_out.append(LeftOut(name=cell.name, why=failed[path]))
            continue
        if cell.subject.unmodified and about.get("graph") != cell.graph:
            left_out.append(LeftOut(name=cell.name, why="its lean graph is the plain one"))
            continue
        if cell.attention is not None and about.get("attention") is None:
            without_attention.add(cell.subject.label)
        calibration = None
        if cell.precision == "int8":
            calibration = "none" if not _is_calibrated(cell) else ON_NOISE if images is None else described(about["calibration"])
        found.append(replace(cell, export=path, calibration=calibration, graph=about.get("graph", "plain")))
    return found, left_out


def _is_calibrated(cell: Cell) -> bool:
    """Whether pictures go into the exported graph."""
    if cell.bits is not None:
        return cell.subject.loaded is not None and needs_images(cell.subject.loaded)
    return cell.precision == "int8" and cell.ranges != "dynamic"


def _key(cell: Cell, images: AnyImages | None, seed: int) -> str:
    """A folder's name that says what is in it and differs where anything differs that it is made from."""
    subject, runtime = cell.subject, RUNTIMES[cell.runtime]
    form = runtime.format
    drawn = [ON_NOISE if images is None else place_of(images), seed] if _is_calibrated(cell) else None
    tools = [version(name) for name in ("torch", *runtime.needs(cell.precision))]
    kind = "-float-attention" if cell.attention == "float" else "-dynamic" if cell.ranges == "dynamic" else ""
    made_of = [identity_of(subject), list(subject.image_size), form, cell.precision, cell.attention, cell.graph, cell.ranges, drawn, tools]
    return f"{subject.original.model.replace('/', '_')}-{form}-{cell.precision}{kind}-{cell.graph}-{hash_of(made_of)[:12]}"


def place_of(images: AnyImages) -> str:
    """Where images are, and which of the folder; of those in memory a name that no other run gives."""
    if isinstance(images, ImageSet):
        return f"{Path(images.root).resolve()} {hash_of(images.files)[:12]}"
    return f"in memory {_PROCESS} {id(images)}"


def identity_of(subject: Subject) -> list[object]:
    """What tells one subject from another, whatever it is called: hashes of an artifact, an exported folder or a timm model."""
    if subject.export is not None:
        return [sha256_of_file(subject.export / EXPORT_FILE)]
    assert subject.source is not None
    if subject.source.artifact:
        return [file_key(Path(subject.source.model))]
    return [subject.original.model, subject.state_hash, subject.original.options]


def _export(cell: Cell, path: Path, folder: Path, images: AnyImages | None, seed: int) -> None:
    assert cell.subject.loaded is not None
    form = RUNTIMES[cell.runtime].format
    # The same graph in fp32 comes first where both are measured; tracing it again would take most of the time.
    floating = path.with_name(_key(replace(cell, precision="fp32", attention=None, ranges=None), images, seed))
    if cell.precision != "int8":
        export_graph(cell.subject.loaded, Export(form, cell.precision, seed=seed, graph=cell.graph), path)  # type: ignore[arg-type]
        return
    drawn: ImagesLike = noise_pictures(folder, cell.subject.image_size, seed) if images is None else images
    if cell.bits is not None:
        config = Export("native", calibration_images=NOISE_IMAGES if images is None else Export.calibration_images, seed=seed)
        export_graph(cell.subject.loaded, config, path, drawn, time_only=images is None or cell.subject.random_weights)
        return
    ranges = cell.ranges or "static"
    config = Export(
        form, "int8", attention=cell.attention or "auto", graph=cell.graph, ranges=ranges, seed=seed,  # type: ignore[arg-type]
        calibration_images=NOISE_IMAGES if images is None and ranges == "static" else Export.calibration_images,
    )  # fmt: skip
    time_only = images is None or cell.subject.random_weights
    export_graph(cell.subject.loaded, config, path, drawn, time_only=time_only, floating=floating if _is_whole(floating) else None)


def _is_whole(folder: Path) -> bool:
    """Whether a graph lies there, in one file."""
    return folder.is_dir() and not list(folder.glob("*.data"))


def noise_pictures(folder: Path, image_size: tuple[int, int], seed: int) -> Path:
    """A folder of `NOISE_IMAGES` pictures of uniform noise in the model's size, made once."""
    path = folder / f"noise-{image_size[0]}x{image_size[1]}-{seed}"
    if not path.is_dir():
        rng = np.random.default_rng(seed)
        with atomic_folder(path) as temporary:
            for number in range(NOISE_IMAGES):
                Image.fromarray(rng.integers(0, 256, (*image_size, 3), dtype=np.uint8)).save(temporary / f"{number:02d}.png")
    return path
