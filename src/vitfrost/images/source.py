"""Which images and labels there are: class folders, a folder with a labels CSV, or any folder of pictures."""

from __future__ import annotations

import logging
import os
import re
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from PIL import features

from ..errors import VitfrostError
from .classes import ClassSpace, classes_of_folders
from .decode import LINKS_VARIABLE, Decoded, decode_file, follows_links
from .geometry import Geometry
from .labels import LABELS_FILE, listed, read_labels

log = logging.getLogger("vitfrost")
EXTENSIONS = frozenset(
    {".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".bmp", ".dib", ".webp", ".tif", ".tiff", ".ppm", ".pgm", ".pbm", ".pnm", ".gif"}
    | ({".avif", ".avifs"} if "avif" in features.modules and features.check("avif") else set())
)
# Pictures of phones, cameras and drawing programs that Pillow does not read as they are.
NOT_TAKEN = (
    frozenset(
        {".heic", ".heif", ".hif", ".avif", ".jxl", ".jp2", ".j2k", ".jpx", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".orf", ".raf", ".rw2"}
        | {".raw", ".svg", ".psd", ".xcf", ".tga", ".ico", ".exr", ".hdr", ".dcm", ".eps", ".mpo"}
    )
    - EXTENSIONS
)


@dataclass(frozen=True)
class ImageSet:
    """Images under one folder, in a fixed order; a position is an index into `files`.

    `files` are posix paths relative to `root`; `labels` are 0-based class indices, one per file, or None.
    """

    root: Path
    files: tuple[str, ...]
    labels: tuple[int, ...] | None

    def __len__(self) -> int:
        return len(self.files)

    @property
    def size(self) -> int:
        """How many images there are."""
        return len(self.files)

    @property
    def expected(self) -> int:
        """The same, as of images that are given."""
        return len(self.files)

    def shuffled(self, seed: int) -> ImageSet:
        """All images in a drawn order."""
        return self.subset(len(self), seed)

    def name_of(self, position: int) -> str:
        """What messages and hashes call an image."""
        return self.files[position]

    def subset(self, limit: int | None, seed: int) -> ImageSet:
        """Draw `limit` images by a seeded permutation that does not depend on `limit`, so that draws nest.

        None keeps everything in its order; a limit beyond the size gives the whole permutation.
        Raises VitfrostError for a limit below 1 or a negative seed.
        """
        drawn = draw(len(self.files), limit, seed)
        if drawn is None:
            return self
        labels = None if self.labels is None else tuple(self.labels[index] for index in drawn)
        return replace(self, files=tuple(self.files[index] for index in drawn), labels=labels)

    def decode(self, position: int, preprocess: Geometry) -> Decoded:
        """One image as the model reads it; never raises for a bad file."""
        return decode_file(self.root / self.files[position], preprocess)


def draw(size: int | None, limit: int | None, seed: int) -> list[int] | None:
    """`limit` of `size` numbers by a seeded permutation; None for all of them, or where their number is not known.

    Raises VitfrostError for a limit below 1 or a negative seed.
    """
    if seed < 0:
        raise VitfrostError(f"the seed {seed} is negative; give 0 or more")
    if limit is not None and limit < 1:
        raise VitfrostError(f"cannot draw {limit} images; the limit must be at least 1")
    if limit is None or size is None:
        return None
    drawn: list[int] = np.random.default_rng(seed).permutation(size)[:limit].tolist()
    return drawn


def open_images(
    folder: str | Path, labels: str | Path | None = None, *, need_labels: bool = False, classes: int | ClassSpace | None = None
) -> ImageSet:
    """Find the images of a folder (recursively, in natural order) and, where asked for, their labels.

    Labels are read when `labels` names a CSV or `need_labels` is set: from that CSV, else from `labels.csv` in the folder,
    else from class folders. As many of these as the model has classes are the classes 0, 1, ... in timm's natural order, unless their
    names say more; where they are fewer, each says which class it is (see `classes_of_folders`). Otherwise `labels` is None.
    CSV paths are relative to `folder`. `classes`: the model's, or their number alone; a label must be one of them. Files whose name says
    that they are pictures of a kind that is not read are counted in a warning.

    Raises VitfrostError for a folder that is missing or holds no image, for labels that are needed and absent, and for a CSV
    that disagrees with the folder (see `read_labels`).
    """
    root = Path(folder)
    if not root.is_dir():
        raise VitfrostError(f"no image folder {root}; name an existing folder")
    search = _PictureSearch(root)
    found = sorted(search, key=natural_key)
    search.warn()
    if not found:
        others = f", but {_counted_links(search.links)}" if search.links else ""
        kinds = f"files ending in {', '.join(sorted(EXTENSIONS))} are taken as images"
        raise VitfrostError(f"the folder {root} holds no images{others}; {_FOLLOW if search.links else kinds}")
    if labels is None and not need_labels:
        return ImageSet(root, tuple(found), None)
    table = Path(labels) if labels is not None else root / LABELS_FILE
    space = ClassSpace(classes) if isinstance(classes, int) else classes
    if labels is None and table.is_symlink() and not follows_links():
        raise VitfrostError(f"{table} is a symbolic link, which is not followed; {_FOLLOW}, or name the file with --labels")
    if labels is not None or table.is_file():
        label_of = read_labels(table, root, found, space, search.links)
        files = sorted(label_of, key=natural_key)
    else:
        label_of = _class_folder_labels(root, found, space)
        files = found
    return ImageSet(root, tuple(files), tuple(label_of[file] for file in files))


def class_folders(root: str | Path) -> tuple[str, ...]:
    """The folders with images below `root`, in timm's natural order; none where images or a table of labels lie beside them."""
    if (Path(root) / LABELS_FILE).is_file():
        return ()
    names = {file.partition("/")[0] if "/" in file else "" for file in _PictureSearch(Path(root))}
    return () if "" in names else tuple(sorted(names, key=natural_key))


def natural_key(text: str) -> tuple[list[str | int], str]:
    """timm's natural order (digits compare as numbers, letters without case); the text itself breaks ties."""
    parts = re.split(r"(\d+)", text.lower())
    return [int(part) if index % 2 else part for index, part in enumerate(parts)], text


class _PictureSearch:
    """Pictures below a folder, which may itself be a link. `others`: how many pictures are of a kind that is not read, by extension;
    `links`: symbolic links to pictures and to folders that were not followed."""

    def __init__(self, root: Path):
        self.root, self.others, self.links = root, Counter[str](), list[str]()

    def __iter__(self) -> Iterator[str]:
        follow = follows_links()

        def refuse(error: OSError) -> None:
            raise VitfrostError(f"cannot read the folder {error.filename}: {error.strerror}") from error

        for place, folders, names in os.walk(self.root, followlinks=follow, onerror=refuse):
            here = Path(place)
            folders[:] = [name for name in folders if not name.startswith(".")]
            linked = [name for name in folders if (here / name).is_symlink()]
            if follow:
                folders[:] = [name for name in folders if not here.resolve().is_relative_to((here / name).resolve())]
            else:
                self.links += [self._relative(here / name) for name in linked]
            for name in names:
                extension = os.path.splitext(name)[1].lower()
                if name.startswith("."):
                    continue
                if extension in EXTENSIONS and not follow and (here / name).is_symlink():
                    self.links.append(self._relative(here / name))
                elif extension in EXTENSIONS:
                    yield self._relative(here / name)
                elif extension in NOT_TAKEN:
                    self.others[extension] += 1

    def _relative(self, path: Path) -> str:
        return path.relative_to(self.root).as_posix()

    def warn(self) -> None:
        """Say how many were left out."""
        if self.others:
            kinds = ", ".join(f"{number} {extension}" for extension, number in sorted(self.others.items()))
            log.warning("%s: pictures of kinds that are not read were left out (%s); convert them to JPEG or PNG", self.root, kinds)
        if self.links:
            log.warning("%s: %s were left out; %s", self.root, _counted_links(self.links), _FOLLOW)


_FOLLOW = f"set {LINKS_VARIABLE}=1 to follow links to regular files and folders"


def _counted_links(links: list[str]) -> str:
    """ "1 symbolic link (a.png)", or "12 symbolic links (a.png, b.png, c.png, ...)"."""
    names = ", ".join(sorted(links, key=natural_key)[:3]) + (", ..." if len(links) > 3 else "")
    return f"{len(links)} symbolic {'link' if len(links) == 1 else 'links'} ({names})"


def _class_folder_labels(root: Path, files: list[str], space: ClassSpace | None) -> dict[str, int]:
    mend = f"add {LABELS_FILE} with the header file,label, name a labels CSV, or use one sub-folder per class"
    outside = [file for file in files if "/" not in file]
    names = sorted({file.split("/", 1)[0] for file in files if "/" in file}, key=natural_key)
    if len(names) < 2:
        raise VitfrostError(f"the folder {root} has no labels: neither {LABELS_FILE} nor class folders (at least two); {mend}")
    if outside:
        raise VitfrostError(f"the folder {root} has images outside its class folders: {listed(outside)}; {mend}")
    index = classes_of_folders(names, space, root, mend)
    if space is not None and len(names) < space.count:
        log.info("%s: %d of the model's %d classes have a folder", root, len(names), space.count)
    return {file: index[file.split("/", 1)[0]] for file in files}
