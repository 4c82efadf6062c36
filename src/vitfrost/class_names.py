"""What a classifier's outputs are called: from a file, a list, or ImageNet-1k's own names."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

from .errors import VitfrostError
from .images.classes import ClassSpace
from .regular import open_regular

IMAGENET = "imagenet-1k"
MOST_BYTES = 16 << 20


@cache
def imagenet_names() -> tuple[str, ...]:
    """The first word of the thousand classes of ImageNet-1k, in their order, as timm has them."""
    from .vit.compat import import_timm

    import_timm()
    from timm.data import ImageNetInfo

    info = ImageNetInfo(IMAGENET)
    return tuple(info.index_to_description(index).split(",")[0] for index in range(info.num_classes()))


def read_class_names(given: Sequence[str] | str | Path, classes: int) -> tuple[str, ...]:
    """The names in a text file, one a line in the order of the classes, or those of a list.

    Raises VitfrostError for a file that cannot be read, and where there are not as many names as classes.
    """
    where = "the class names"
    if isinstance(given, str | Path):
        where = f"the class names file {given}"
        try:
            with open_regular(given) as file:
                content = file.read(MOST_BYTES + 1)
            if len(content) > MOST_BYTES:
                raise VitfrostError(f"{where} cannot be read: it is larger than {MOST_BYTES >> 20} MB; give one name a line")
            given = [line.strip() for line in content.decode("utf-8-sig").splitlines() if line.strip()]
        except (OSError, UnicodeDecodeError) as error:
            raise VitfrostError(f"{where} cannot be read ({error}); give a text file with one name a line") from error
    if len(given) != classes:
        raise VitfrostError(f"{where} has {len(given)} names, but the model has {classes} classes; give one name for each, in order")
    return tuple(str(name) for name in given)


def plain_names(names: tuple[str, ...] | None) -> str | list[str] | None:
    """As a file has them: ImageNet's by their own name, which saves their space."""
    if names is None:
        return None
    return IMAGENET if len(names) == 1000 and names == imagenet_names() else list(names)


def names_from_plain(plain: Any, classes: int) -> tuple[str, ...] | None:
    """The inverse of `plain_names`. Raises ValueError for anything else."""
    if plain is None:
        return None
    names = imagenet_names() if plain == IMAGENET else tuple(plain) if isinstance(plain, list) else ()
    if len(names) != classes or not all(isinstance(name, str) for name in names):
        raise ValueError("class_names are not a name for every class")
    return names


def class_space(classes: int, names: Sequence[str] | None) -> ClassSpace:
    """What folders and labels may say of a model's classes. Synsets are known for as many classes as timm's sets of ImageNet have; where
    `names` are ImageNet-1k's, every word of WordNet's for a class counts."""
    from .vit.compat import import_timm

    import_timm()
    from timm.data import ImageNetInfo, infer_imagenet_subset

    subset = infer_imagenet_subset({"num_classes": classes})
    if subset is None:
        return ClassSpace.of(classes, None if names is None else [[name] for name in names])
    info = ImageNetInfo(subset)
    words = None if names is None else [[name] for name in names]
    if names is not None and subset == IMAGENET and tuple(names) == imagenet_names():
        words = [[part.strip() for part in info.index_to_description(index).split(",")] for index in range(classes)]
    return ClassSpace.of(classes, words, [info.index_to_label_name(index) for index in range(classes)])
