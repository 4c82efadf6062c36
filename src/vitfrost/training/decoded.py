"""Images decoded once to uint8, from a folder or a pack, kept in memory, in a cache file or on the device."""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import torch
from jaxtyping import Int64, UInt8
from torch import Tensor

from ..class_names import class_space, imagenet_names
from ..errors import VitfrostError
from ..files import atomic_file, read_json, sha256_of_file, write_json
from ..images.batches import decode_in_order
from ..images.classes import ClassSpace
from ..images.decode import Decoded, UnusableFile, read_regular
from ..images.labels import LABELS_FILE
from ..images.preprocess import Preprocess
from ..images.source import ImageSet, open_images
from ..progress import track
from .packs import IMAGENET_CLASSES, Pack, Split

log = logging.getLogger("vitfrost")
SHOWN = 5  # of a list of names in a message

Labels = Literal["local", "imagenet"]
Decoding = Callable[[], Generator[tuple[str, Decoded], None, None]]


@dataclass
class DecodedImages:
    """Square images, decoded, and what is known about them.

    `digest`: SHA-256 over the content of the source and the settings. `classes`: how many classes the labels tell apart (None
    without labels). `skipped`: {image: reason} for files that could not be used. `label_space`: what the labels number ("imagenet",
    the class names of a folder, the classes of a pack), so that only equal ones are joined. `device`: where `batch` puts images.
    """

    pixels: UInt8[Tensor, "images 3 size size"]
    labels: Int64[Tensor, " images"] | None
    digest: str
    classes: int | None
    skipped: dict[str, str] = field(default_factory=dict)
    label_space: str = ""
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    def __len__(self) -> int:
        return len(self.pixels)

    @property
    def size(self) -> int:
        """Side of the images in pixels."""
        return int(self.pixels.shape[-1])

    def to(self, device: str | torch.device, byte_limit: int | None = None) -> DecodedImages:
        """The same images for a device: there altogether where they have at most `byte_limit` bytes, else on the host.

        Without a limit, half of the free memory of a CUDA device counts. Images on the host are gathered into pinned memory
        and copied by `batch` without waiting.
        """
        device = torch.device(device)
        if byte_limit is None and device.type == "cuda":
            byte_limit = torch.cuda.mem_get_info(device)[0] // 2
        fits = byte_limit is None or self.pixels.nbytes <= byte_limit
        pixels = self.pixels.to(device) if fits else self.pixels.cpu()
        return replace(self, pixels=pixels, labels=None if self.labels is None else self.labels.to(device), device=device)

    def batch(
        self, indices: Int64[np.ndarray, " batch"] | Int64[Tensor, " batch"]
    ) -> tuple[UInt8[Tensor, "batch 3 size size"], Int64[Tensor, " batch"] | None]:
        """The images at these positions and their labels (None without), on `device`."""
        chosen = torch.from_numpy(indices) if isinstance(indices, np.ndarray) else indices
        there = chosen.to(self.device, non_blocking=True)
        labels = None if self.labels is None else self.labels[there]
        if self.pixels.device.type == self.device.type:
            return self.pixels[there], labels
        gathered = torch.empty((len(chosen), *self.pixels.shape[1:]), dtype=torch.uint8, pin_memory=self.device.type == "cuda")
        torch.index_select(self.pixels, 0, chosen.cpu(), out=gathered)
        return gathered.to(self.device, non_blocking=True), labels


@dataclass(frozen=True)
class _Source:
    """What is to be decoded: the images with their labels, and what each is called."""

    images: ImageSet
    names: list[str]
    classes: int | None
    label_space: str
    content: str


def open_decoded(
    source: str | Path,
    *,
    size: int,
    split: Split = "all",
    labels: Labels = "local",
    limit: int | None = None,
    seed: int = 0,
    cache: Path | None = None,
    classes: ClassSpace | None = None,
    threads: int,
    progress: bool,
) -> DecodedImages:
    """Decode a folder of images or a pack (.npz) to squares of `size`.

    An image is resized (bicubic, antialiased, by Pillow) so that its short side is `size`, and the center is cut out; one that is
    size x size already stays as it is. `limit` images are drawn from the split with `seed`, so that draws nest; None keeps all in
    their order. With `cache` the pixels are written to `<cache>/<digest>.npy` once and mapped from there afterwards.

    Labels: of a folder, `labels.csv` or class folders; None where it has neither. A folder has no split of its own. With
    `labels="imagenet"` a pack's classes are mapped to ImageNet-1k indices; a `labels.csv` and class folders must name such classes.
    `classes`: of the model that is trained; fewer class folders than these must say which they are.

    Raises VitfrostError for sizes out of range, a source that is missing, damaged or disagrees with the options, and where
    no image is usable.
    """
    for name, value in (("size of the images", size), ("number of threads", threads)):
        if value < 1:
            raise VitfrostError(f"the {name} must be at least 1, not {value}")
    path = Path(source)
    preprocess = Preprocess(
        {"input_size": (3, size, size), "mean": (0,) * 3, "std": (1,) * 3, "crop_pct": 1, "crop_mode": "center", "interpolation": "bicubic"}
    )
    found = (
        _of_pack(path, split, labels, limit, seed)
        if path.suffix == ".npz"
        else _of_folder(path, split, labels, limit, seed, threads, classes)
    )
    settings = {"version": 1, "size": size, "split": split, "labels": labels, "limit": limit, "seed": seed if limit else 0}
    digest = hashlib.sha256(json.dumps({**settings, "content": found.content}).encode()).hexdigest()

    def decoded() -> Generator[tuple[str, Decoded], None, None]:
        count = len(found.names)
        with closing(decode_in_order(found.images, preprocess, range(count), threads, 8 * threads)) as images:
            for position, image in track(images, count, f"decoding {path.name}", progress):
                yield found.names[position], image

    if cache is None:
        pixels, skipped = _in_memory(decoded, len(found.names), size)
    else:
        pixels, skipped = _through_cache(Path(cache) / f"{digest}.npy", decoded, len(found.names), size)
    if skipped:
        shown = "; ".join(f"{name}: {reason}" for name, reason in list(skipped.items())[:SHOWN])
        more = f"; and {len(skipped) - SHOWN} more" if len(skipped) > SHOWN else ""
        log.warning("%d of %d images were skipped (%s%s)", len(skipped), len(found.names), shown, more)
    kept = None
    if found.images.labels is not None:
        kept = torch.tensor([label for name, label in zip(found.names, found.images.labels, strict=True) if name not in skipped])
    return DecodedImages(pixels, kept, digest, found.classes, skipped, found.label_space)


def join(parts: Sequence[DecodedImages]) -> DecodedImages:
    """Several sources as one, in this order; mapped pixels are read into memory.

    Raises VitfrostError for no part, different image sizes, and labels that number different classes.
    """
    if not parts:
        raise VitfrostError("there are no images to join; give at least one source")
    first = parts[0]
    if len(parts) == 1:
        return first
    for part in parts[1:]:
        if part.size != first.size:
            raise VitfrostError(f"cannot join images of {first.size} and {part.size} pixels; decode them to one size")
        if (part.label_space, part.classes) != (first.label_space, first.classes):
            raise VitfrostError("cannot join sources whose labels number different classes; map all to imagenet labels, or leave one out")
    known = [part.labels for part in parts if part.labels is not None]
    digest = hashlib.sha256("\n".join(part.digest for part in parts).encode()).hexdigest()
    skipped = {name: reason for part in parts for name, reason in part.skipped.items()}
    pixels = torch.cat([part.pixels for part in parts])
    return replace(first, pixels=pixels, labels=torch.cat(known) if known else None, digest=digest, skipped=skipped)


def _of_pack(path: Path, split: Split, labels: Labels, limit: int | None, seed: int) -> _Source:
    pack, own = Pack.open(path), labels == "local"
    drawn = pack.images(split, imagenet=not own).subset(limit, seed)
    names, classes = [f"{path}[{position}]" for position in drawn.files], pack.classes if own else IMAGENET_CLASSES
    space = f"pack {hashlib.sha256(pack.in1k.tobytes()).hexdigest()}" if own else "imagenet"
    return _Source(drawn, names, classes, space, sha256_of_file(path))


def _of_folder(path: Path, split: Split, labels: Labels, limit: int | None, seed: int, threads: int, known: ClassSpace | None) -> _Source:
    if split != "all":
        raise VitfrostError(f"the folder {path} has no split {split} of its own; name the folder of that split and leave the split out")
    every = open_images(path)
    top = {file.split("/", 1)[0] if "/" in file else "" for file in every.files}
    space, classes = "", None
    if labels == "imagenet":
        known = class_space(IMAGENET_CLASSES, imagenet_names())
    if (path / LABELS_FILE).is_file():
        every = open_images(path, need_labels=True, classes=known)
        space = "imagenet" if labels == "imagenet" else "numbers of a CSV"
    elif len(top) > 1 and "" not in top:
        every = open_images(path, need_labels=True, classes=known)
        if labels == "imagenet":
            space = "imagenet"
        else:
            space = "folders " + "/".join(sorted(top)) if known is None or len(top) == known.count else "classes of the model"
    if every.labels is not None:
        classes = IMAGENET_CLASSES if labels == "imagenet" else max(every.labels) + 1 if known is None else known.count
    drawn = every.subset(limit, seed)
    with ThreadPoolExecutor(threads, thread_name_prefix="vitfrost-hash") as pool:
        hashes = list(pool.map(_content, [path / file for file in drawn.files]))
    content = hashlib.sha256()
    for place, file in enumerate(drawn.files):
        label = "" if drawn.labels is None else drawn.labels[place]
        content.update(f"{file}\0{hashes[place]}\0{label}\n".encode("utf-8", "surrogateescape"))
    return _Source(drawn, [str(path / file) for file in drawn.files], classes, space, content.hexdigest())


def _content(path: Path) -> str:
    try:
        return hashlib.sha256(read_regular(path)).hexdigest()
    except UnusableFile as error:
        return str(error)
    except OSError:
        return "unreadable"


def _in_memory(decoded: Decoding, count: int, size: int) -> tuple[Tensor, dict[str, str]]:
    pixels = torch.empty((count, 3, size, size), dtype=torch.uint8)
    skipped: dict[str, str] = {}
    used = 0
    with closing(decoded()) as images:
        for name, image in images:
            if image.pixels is None:
                skipped[name] = image.reason
            else:
                pixels[used] = torch.from_numpy(image.pixels)
                used += 1
    _refuse_empty(used, skipped)
    return pixels[:used], skipped


def _through_cache(path: Path, decoded: Decoding, count: int, size: int) -> tuple[Tensor, dict[str, str]]:
    """Map the pixels of an earlier call, or decode into that file first; `skipped` lies beside it as JSON, written before it."""
    record = path.with_suffix(".json")
    known = _cached(path, record, count, size)
    if known is not None:
        return known
    skipped: dict[str, str] = {}
    used = 0
    with atomic_file(path) as temporary:
        with open(temporary, "wb") as file, closing(decoded()) as images:
            _write_header(file, count, size)
            begin = file.tell()
            for name, image in images:
                if image.pixels is None:
                    skipped[name] = image.reason
                else:
                    file.write(image.pixels.tobytes())
                    used += 1
            _refuse_empty(used, skipped)
            file.seek(0)
            _write_header(file, used, size)
            if file.tell() != begin:  # NumPy pads the header so that the first axis can change
                raise VitfrostError(f"cannot write {path}: the header of {used} images is longer than that of {count}")
        write_json(record, {"skipped": skipped})
    return _mapped(path), skipped


def _cached(path: Path, record: Path, count: int, size: int) -> tuple[Tensor, dict[str, str]] | None:
    """The pixels and skipped images of an earlier call; None where there is none, or its files are damaged."""
    if not (path.is_file() and record.is_file()):
        return None
    try:
        skipped = dict(read_json(record)["skipped"])
        pixels = _mapped(path)
    except (VitfrostError, OSError, EOFError, ValueError, TypeError, KeyError):
        return None
    whole = pixels.shape == (count - len(skipped), 3, size, size) and pixels.dtype == torch.uint8
    return (pixels, skipped) if whole else None


def _write_header(file: BinaryIO, images: int, size: int) -> None:
    header = {"descr": "|u1", "fortran_order": False, "shape": (images, 3, size, size)}
    np.lib.format.write_array_header_1_0(file, header)


def _mapped(path: Path) -> Tensor:
    """Copy on write: torch knows no read-only tensors, and the file stays as it is."""
    return torch.from_numpy(np.load(path, mmap_mode="c", allow_pickle=False))


def _refuse_empty(used: int, skipped: Mapping[str, str]) -> None:
    if not used:
        first, reason = next(iter(skipped.items()))
        raise VitfrostError(f"none of the {len(skipped)} images is usable; {first}: {reason}; give a folder or pack of readable images")
