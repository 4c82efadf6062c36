"""The features that a model gives for a batch: the pooled vector, the class token, the patches; and how like two models' are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Float
from torch import Tensor

from ..deploy.exported import ExportedModel
from ..errors import VitfrostError
from ..model import Model
from ..vit.families import final_grid, forward_pass, has_class_token
from ..vit.outputs import has_classifier

Part = Literal["pooled", "class_token", "patches"]
PARTS: tuple[Part, ...] = ("pooled", "class_token", "patches")


@dataclass(frozen=True)
class Features:
    """Of a batch of images, on the CPU; None for what a model does not give.

    `tokens` are all of them, prefix tokens first; `patches` those of the patch `grid` (rows, columns).
    """

    pooled: Float[Tensor, "images channels"] | None = None
    tokens: Float[Tensor, "images tokens channels"] | None = None
    class_token: Float[Tensor, "images channels"] | None = None
    patches: Float[Tensor, "images patches channels"] | None = None
    grid: tuple[int, int] | None = None

    @classmethod
    def of_tokens(
        cls, tokens: Tensor, prefix: int, class_token: bool, grid: tuple[int, int] | None, pooled: Tensor | None = None
    ) -> Features:
        """Cut tokens [B, N, C] at the prefix."""
        return cls(pooled, tokens, tokens[:, 0] if class_token and prefix else None, tokens[:, prefix:], grid)

    @property
    def vector(self) -> tuple[str, Float[Tensor, "images channels"]]:
        """What images are compared by, and its name: the pooled vector, else the class token, else the mean patch."""
        for part in PARTS[:2]:
            if (found := getattr(self, part)) is not None:
                return part, found
        assert self.patches is not None
        return "mean patch", self.patches.mean(1)

    def cpu(self) -> Features:
        """In float32 on the CPU."""
        moved = {name: None if part is None else part.float().cpu() for name, part in vars(self).items() if name != "grid"}
        return Features(**moved, grid=self.grid)


def features_of(model: Model, pixels: Float[Tensor, "images 3 height width"]) -> Features:
    """One forward pass. Of a model with a projection after pooling, such as CLIP's, the embedding alone; of others all tokens, too.

    Raises VitfrostError for an export whose file does not say what its tokens are.
    """
    module: Any = model.module
    if isinstance(model, ExportedModel) or has_classifier(module) or not hasattr(module, "forward_features"):
        outputs = model(pixels)
        return Features(pooled=outputs) if outputs.ndim == 2 else _cut(model, outputs)
    maps = module.forward_features(pixels.to(model.device))
    pooled = module.forward_head(maps) if model.outputs == "embedding" and hasattr(module, "forward_head") else None
    return _cut(model, maps, pooled)


def _cut(model: Model, maps: Tensor, pooled: Tensor | None = None) -> Features:
    """Tokens out of [B, N, C], [B, H, W, C] or, where the model gives channels first, [B, C, H, W]."""
    if isinstance(model, ExportedModel):
        about = model.about.get("tokens")
        if about is None:
            raise VitfrostError(f"{model.name}'s export.json does not say what its tokens are; export again")
        maps = maps.movedim(1, -1) if about["channels_first"] else maps
        return Features.of_tokens(maps.flatten(1, -2), about["prefix"], about["class_token"], _grid(about["grid"]), pooled)
    if maps.ndim == 4:
        maps = maps.movedim(1, -1) if forward_pass(model.module).gives_maps else maps
        return Features.of_tokens(maps.flatten(1, 2), 0, False, (maps.shape[1], maps.shape[2]), pooled)
    module: Any = model.module
    class_token, grid = has_class_token(module), final_grid(module)
    prefix = int(getattr(module, "num_prefix_tokens", int(class_token)))
    whole = grid is not None and grid[0] * grid[1] == maps.shape[1] - prefix
    return Features.of_tokens(maps, prefix, class_token, grid if whole else None, pooled)


@torch.inference_mode()
def about_tokens(model: Model) -> dict[str, Any]:
    """What a model's tokens are, for export.json: their `shape` for one image, how many come before the patches (`prefix`), whether the
    first of them is a class token, whether channels come first, and the patch `grid` (rows, columns), None where it is not known."""
    tokens = model(torch.zeros(1, 3, *model.image_size))
    found = _cut(model, tokens)
    assert found.tokens is not None
    assert found.patches is not None
    return {
        "shape": list(tokens.shape[1:]),
        "prefix": found.tokens.shape[1] - found.patches.shape[1],
        "class_token": found.class_token is not None,
        "channels_first": tokens.ndim == 4 and forward_pass(model.module).gives_maps,
        "grid": None if found.grid is None else list(found.grid),
    }


def _grid(sides: Any) -> tuple[int, int] | None:
    return None if sides is None else (int(sides[0]), int(sides[1]))


def cosines(original: Float[Tensor, "images *rows channels"], changed: Float[Tensor, "images *rows channels"]) -> Float[Tensor, " images"]:
    """The cosine of every image's vectors; of several, such as patches, the mean."""
    found = torch.nn.functional.cosine_similarity(original.double(), changed.double(), dim=-1, eps=1e-12)
    return found.flatten(1).mean(1) if found.ndim > 1 else found
