"""PyTorch as a runtime: a model as it is, or compiled, on the CPU or a GPU."""

from __future__ import annotations

import logging
from collections.abc import Callable

import torch
from jaxtyping import Float32
from numpy import ndarray
from torch import Tensor

from ..deploy.graph import inference_form
from ..model import Model
from ..runtime import Runtime
from ..torch_state import torch_threads
from ..vit.load import find_device
from .constant_forms import choose_forms, constant_forms

_LOG = logging.getLogger(__name__)


class Torch(Runtime):
    """A model that PyTorch runs (merged, and with fused attention where it has that). bf16 turns weights and activations into bfloat16.

    A run uses `threads` threads; whoever times runs has them set beforehand, so that a run need not.
    On a GPU constant heads take the form that is fastest for the batch of the first run, which finds it (see `constant_forms`).
    """

    name = package = "torch"

    def __init__(self, loaded: Model, threads: int, precision: str, compiled: bool, device: str):
        self.precision, self.threads = precision, threads
        self.label = f"torch {torch.__version__.partition('+')[0]} {torch.device(device).type}"
        self._device = find_device(device)
        self._kind = torch.bfloat16 if precision == "bf16" else torch.float32
        self._model = inference_form(loaded).to(self._device, self._kind)
        self._compiled = compiled
        self._run: Callable[[Tensor], Tensor] | None = None

    @property
    def constant_forms(self) -> str | None:
        """In which forms the model's constant heads run, in words; None where it has none."""
        return constant_forms(self._model)

    def run(self, pixels: Float32[ndarray, "batch 3 height width"]) -> ndarray:
        """The logits, float32 [batch, classes]."""
        if self._run is None:
            self._run = self._prepared(len(pixels))
        with torch_threads(self.threads), torch.inference_mode():
            logits = self._run(torch.from_numpy(pixels).to(self._device, self._kind))
            if self._device.type == "cuda":
                torch.cuda.synchronize(self._device)
            found: ndarray = logits.to("cpu", torch.float32).numpy()
        return found

    def _prepared(self, images: int) -> Callable[[Tensor], Tensor]:
        if self._device.type == "cuda":
            for name, choice in choose_forms(self._model, images, self._compiled).items():
                for form, why in choice.failed.items():
                    _LOG.warning(f"{name}: constant heads cannot be applied as {form}: {why}")
        return torch.compile(self._model, dynamic=False) if self._compiled else self._model
