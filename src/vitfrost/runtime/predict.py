"""The verb `predict`: what an exported model says of pictures; also without the command line, as `python -m vitfrost.runtime`."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

from ..errors import VitfrostError
from .session import Prediction, open_export


def predict(
    folder: str | Path, images: Sequence[str | Path] | str | Path, *, top: int | None = None, threads: int | None = None
) -> list[Prediction]:
    """The `top` classes of every picture with their probabilities, or its embedding; a picture that cannot be read has a `problem`.

    Raises VitfrostError as `open_export` and `Session.predict` do.
    """
    return open_export(folder, threads).predict(images, top)


def text_of(predictions: Sequence[Prediction], as_json: bool) -> str:
    """Lines of "file: class probability, ...", or a JSON list."""
    if as_json:
        rows = [
            {"file": found.file, "classes": list(found.classes), "probabilities": [round(share, 6) for share in found.probabilities]}
            | ({} if found.names is None else {"names": list(found.names)})
            | ({} if found.problem is None else {"problem": found.problem})
            | ({} if found.embedding is None else {"embedding": list(found.embedding)})
            for found in predictions
        ]
        return json.dumps(rows, indent=2)
    return "\n".join(
        f"{found.file}: "
        + (embedding_text(found.embedding) if found.embedding is not None else "")
        + ", ".join(f"{label} {100 * share:.2f} %" for label, share in zip(labels_of(found), found.probabilities, strict=True))
        for found in predictions
        if found.problem is None
    )


def embedding_text(embedding: Sequence[float]) -> str:
    """ "an embedding of 384 numbers, length 12.31: 0.113 -1.022 0.348 ... (--json prints all)"."""
    length, shown = math.hypot(*embedding), " ".join(f"{value:.3f}" for value in embedding[:3])
    return f"an embedding of {len(embedding)} numbers, length {length:.4g}: {shown} ... (--json prints all)"


def refuse_unread(predictions: Sequence[Prediction]) -> None:
    """Raise VitfrostError naming the pictures that could not be read; the others have been answered by then."""
    unread = [f"{found.file}: {found.problem}" for found in predictions if found.problem is not None]
    if unread:
        more = f"; and {len(unread) - 5} more" if len(unread) > 5 else ""
        raise VitfrostError(f"{len(unread)} of {len(predictions)} pictures cannot be read ({'; '.join(unread[:5])}{more})")


def labels_of(found: Prediction) -> list[str]:
    """What the classes are called: index and name, or the index alone."""
    if found.names is None:
        return [str(index) for index in found.classes]
    return [f"{index} {name}" for index, name in zip(found.classes, found.names, strict=True)]
