"""The verb `predict`: what an exported model says of pictures; also without the command line, as `python -m vitfrost.runtime`."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from .session import Prediction, open_export


def predict(folder: str | Path, images: Sequence[str | Path] | str | Path, *, top: int = 5, threads: int | None = None) -> list[Prediction]:
    """The `top` classes of every picture with their probabilities. Raises VitfrostError as `open_export` and `Session.predict` do."""
    return open_export(folder, threads).predict(images, top)


def text_of(predictions: Sequence[Prediction], as_json: bool) -> str:
    """Lines of "file: class probability, ...", or a JSON list."""
    if as_json:
        rows = [
            {"file": found.file, "classes": list(found.classes), "probabilities": [round(share, 6) for share in found.probabilities]}
            for found in predictions
        ]
        return json.dumps(rows, indent=2)
    return "\n".join(
        f"{found.file}: "
        + ", ".join(f"{index} {100 * share:.2f} %" for index, share in zip(found.classes, found.probabilities, strict=True))
        for found in predictions
    )
