"""An exported model as a Model, so that it is measured like any other: on the same pixels, beside the same references."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..class_names import names_from_plain
from ..errors import VitfrostError
from ..images.preprocessing import Preprocessing
from ..model import Model
from ..runtime.session import Session, open_export


class ExportedGraph(nn.Module):
    """A loaded export behind the interface of a torch model; it runs on the CPU, whatever its neighbors run on."""

    def __init__(self, session: Session):
        super().__init__()
        self.session = session

    def forward(self, pixels: Float[Tensor, "images 3 height width"]) -> Float[Tensor, images * outputs]:
        """Logits, or features, of normalized pixels."""
        return torch.from_numpy(self.session.run(pixels.cpu().contiguous().numpy()))


@dataclass(repr=False, eq=False)
class ExportedModel(Model):
    """An export. `state_hash` and `weight_tag` are those of the original model; `about` is what its export.json says."""

    about: dict[str, Any] = None  # type: ignore[assignment]
    session: Session = None  # type: ignore[assignment]


def load_exported(path: str | Path) -> ExportedModel:
    """Load an exported model, to run with as many threads as torch has.

    Raises VitfrostError as `open_export` does.
    """
    session = open_export(path, threads=torch.get_num_threads())
    about, model = session.about, session.about["model"]
    try:
        return ExportedModel(
            ExportedGraph(session).eval(), model["name"], tuple(model["image_size"]), model["weight_tag"], model["state_hash"],
            Preprocessing.from_plain(about["preprocessing"]), about["classes"],
            class_names=names_from_plain(about.get("class_names"), about["classes"]), outputs=session.outputs, about=about, session=session,
        )  # fmt: skip
    except (KeyError, TypeError, ValueError) as error:
        raise VitfrostError(f"{path} is damaged: {type(error).__name__} {error}; export again") from error
