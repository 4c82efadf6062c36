"""The teacher of a distillation: it sees the student's augmented pictures, in its own size and normalization. And models that give
their last tokens beside their logits, for a student that imitates both."""

from __future__ import annotations

from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import VitfrostError
from ..model import Model


class WithTokens(nn.Module):
    """A timm model that returns logits and the tokens before pooling and classifier. Raises VitfrostError for one without that cut."""

    def __init__(self, model: nn.Module):
        super().__init__()
        self.model: Any = model
        if not hasattr(model, "forward_features") or not hasattr(model, "forward_head"):
            raise VitfrostError(f"{type(model).__name__} does not give its last tokens; leave teacher.tokens out")

    def forward(self, pixels: Float[Tensor, "b 3 h w"]) -> tuple[Float[Tensor, "b classes"], Float[Tensor, b * tokens]]:
        tokens = self.model.forward_features(pixels)
        return self.model.forward_head(tokens), tokens


class Teacher:
    """A loaded model in evaluation mode on the student's pictures: resized and normalized anew where it takes them differently."""

    def __init__(self, teacher: Model, student: Model, device: torch.device, tokens: bool = False):
        self.model: nn.Module = teacher.module.to(device)
        if tokens:
            self.model = WithTokens(self.model)
        self.size = None if teacher.image_size == student.image_size else teacher.image_size

        def constant(loaded: Model, key: str) -> Tensor:
            return torch.tensor(getattr(loaded.preprocessing, key), device=device).view(3, 1, 1)

        own, given = ({key: constant(loaded, key) for key in ("mean", "std")} for loaded in (teacher, student))
        self.scale = given["std"] / own["std"]
        self.shift = (given["mean"] - own["mean"]) / own["std"]
        self.same = bool((self.scale == 1).all() and (self.shift == 0).all())

    @torch.no_grad()
    def __call__(self, pixels: Float[Tensor, "b 3 h w"]) -> Any:
        """Logits, or logits and last tokens, without gradients, of pictures normalized for the student."""
        if not self.same:
            pixels = pixels * self.scale + self.shift
        if self.size is not None:
            pixels = F.interpolate(pixels, self.size, mode="bicubic", antialias=True, align_corners=False)
        return self.model(pixels)
