"""PyTorch as a runtime: a model as it is, or compiled, on the CPU or a GPU."""

from __future__ import annotations

import torch
from jaxtyping import Float32
from numpy import ndarray

from ..exporting.graph import inference_form
from ..vit.load import LoadedModel, find_device


class TorchSession:
    """A model that PyTorch runs (merged, and with fused attention where it has that). bf16 turns weights and activations into bfloat16."""

    def __init__(self, loaded: LoadedModel, threads: int, precision: str, compiled: bool, device: str):
        self.precision = precision
        self._device = find_device(device)
        self._kind = torch.bfloat16 if precision == "bf16" else torch.float32
        model = inference_form(loaded).to(self._device, self._kind)
        torch.set_num_threads(threads)  # of the process; all sessions of a group have the same
        self._run = torch.compile(model, dynamic=False) if compiled else model

    @torch.inference_mode()
    def run(self, pixels: Float32[ndarray, "batch 3 height width"]) -> ndarray:
        """The logits, float32 [batch, classes]."""
        logits = self._run(torch.from_numpy(pixels).to(self._device, self._kind))
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        found: ndarray = logits.to("cpu", torch.float32).numpy()
        return found
