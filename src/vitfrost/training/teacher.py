"""The teacher of a distillation: it sees the student's augmented pictures, in its own size and normalisation."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from ..vit.load import LoadedModel


class Teacher:
    """A loaded model in evaluation mode on the student's pictures: resized and normalised anew where it takes them differently."""

    def __init__(self, teacher: LoadedModel, student: LoadedModel, device: torch.device):
        self.model = teacher.model.to(device)
        self.size = None if teacher.image_size == student.image_size else teacher.image_size

        def constant(loaded: LoadedModel, key: str) -> Tensor:
            return torch.tensor(loaded.preprocessing[key], device=device).view(3, 1, 1)

        own, given = ({key: constant(loaded, key) for key in ("mean", "std")} for loaded in (teacher, student))
        self.scale = given["std"] / own["std"]
        self.shift = (given["mean"] - own["mean"]) / own["std"]
        self.same = bool((self.scale == 1).all() and (self.shift == 0).all())

    @torch.no_grad()
    def __call__(self, pixels: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b classes"]:
        """Logits, without gradients, of pictures normalised for the student."""
        if not self.same:
            pixels = pixels * self.scale + self.shift
        if self.size is not None:
            pixels = F.interpolate(pixels, self.size, mode="bicubic", antialias=True, align_corners=False)
        return self.model(pixels)
