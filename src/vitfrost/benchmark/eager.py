"""PyTorch as a runtime: a model as it is, or compiled, on the CPU or a GPU."""

from __future__ import annotations

import copy

import torch
from jaxtyping import Float32
from numpy import ndarray
from torch import nn

from ..errors import VitfrostError
from ..vit.load import LoadedModel, find_device


class TorchSession:
    """A model that PyTorch runs (fused attention where the model has it). bf16 turns weights and activations into bfloat16."""

    def __init__(self, loaded: LoadedModel, threads: int, precision: str, compiled: bool, device: str):
        self.precision = precision
        self._device = find_device(device)
        self._kind = torch.bfloat16 if precision == "bf16" else torch.float32
        moved = precision == "bf16" or self._device.type != "cpu"
        model: nn.Module = (copy.deepcopy(loaded.model) if moved else loaded.model).to(self._device, self._kind).eval()
        torch.set_num_threads(threads)  # of the process; all sessions of a group have the same
        self._run = torch.compile(model, dynamic=False) if compiled else model

    @torch.inference_mode()
    def run(self, pixels: Float32[ndarray, "batch 3 height width"]) -> ndarray:
        """The logits, float32 [batch, classes]. Raises VitfrostError where PyTorch cannot compile the model."""
        try:
            logits = self._run(torch.from_numpy(pixels).to(self._device, self._kind))
        except torch._dynamo.exc.TorchDynamoException as error:
            reason = str(error).strip().splitlines()[0]
            raise VitfrostError(f"PyTorch cannot compile the model: {reason}") from error
        if self._device.type == "cuda":
            torch.cuda.synchronize(self._device)
        found: ndarray = logits.to("cpu", torch.float32).numpy()
        return found
