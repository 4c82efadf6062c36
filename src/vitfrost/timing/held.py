"""Models in memory where other processes can open them: artifacts as folders, timm models as files of weights."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from safetensors.torch import save_file
from torch import nn

from ..artifact import Artifact
from ..deploy.exported import ExportedModel
from ..errors import VitfrostError
from ..model import Model, as_model
from .sessions import ModelSource

Named = str | Path | ModelSource


@contextmanager
def on_disk(what: str | Path | Model | nn.Module | Sequence[str | Path | Model | nn.Module]) -> Iterator[list[Named]]:
    """What is measured, models in memory written to a folder that is there until the block ends.

    Raises VitfrostError for a model that timm cannot make again.
    """
    items = [what] if isinstance(what, str | Path | Model | nn.Module) else list(what)
    with tempfile.TemporaryDirectory(prefix="vitfrost-models-") as folder:
        yield [
            item if isinstance(item, str | Path) else _written(as_model(item), Path(folder), number) for number, item in enumerate(items, 1)
        ]


def _written(model: Model, folder: Path, number: int) -> Named:
    """Artifacts are called after their place among what is given, as in "model 2"."""
    if isinstance(model, ExportedModel):
        return model.session.folder
    if not model.registered:
        raise VitfrostError(
            f"timm cannot make this {model.name} again, beside whose unmodified form it is measured; export it and time that"
        )
    if isinstance(model, Artifact):
        return model.save(folder / f"model {number}")
    weights = folder / f"{number}.safetensors"
    save_file({name: tensor.cpu().contiguous() for name, tensor in model.module.state_dict().items()}, weights)
    return ModelSource(model.name, False, str(weights), model.image_size, model.options)
