"""The command `predict`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg


def predict(
    export: Annotated[Positional[Path], arg(metavar="EXPORT")],
    images: Annotated[Positional[tuple[Path, ...]], arg(metavar="IMAGE...")],
    /,
    *,
    top: int | None = None,
    threads: int | None = None,
    json: bool = False,
) -> None:
    """Say which classes an exported model sees in pictures, with their probabilities, or their embeddings. Needs no torch.

    Args:
        export: folder made by `vitfrost export`.
        images: picture files.
        top: how many classes; five, or all where there are fewer, if not given.
        threads: of a forward pass; OMP_NUM_THREADS or all cores if not given.
        json: print JSON; of embeddings, all numbers.
    """
    from .. import predict as verb
    from ..runtime.predict import refuse_unread, text_of

    found = verb(export, images, top=top, threads=threads)
    print(text_of(found, json), flush=True)
    refuse_unread(found)
