"""The processes of one training run under torchrun, and the device of each; one process without torchrun."""

from __future__ import annotations

import os
from typing import Any

import torch
from torch import nn

from ..distributed import start, world
from ..errors import VitfrostError
from ..vit.load import find_device


def join_processes(name: str) -> torch.device:
    """Join the other processes (gloo on the CPU, NCCL on CUDA); returns this one's device: `name` is "cpu" or "cuda".

    Raises VitfrostError for a device that is not there, or that another process of this machine has.
    """
    device = find_device(name)
    if device.type == "cuda":
        if world() > 1 and int(os.environ.get("LOCAL_RANK", "0")) >= torch.cuda.device_count():
            raise VitfrostError("there are more processes than CUDA devices; start as many as there are devices")
        torch.cuda.set_device(device)
    start("cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo")
    return device


def share_of_batch(batch_size: int) -> int:
    """Images of a batch that this process takes. Raises VitfrostError where the processes cannot share it equally."""
    if batch_size % world():
        raise VitfrostError(f"batch_size {batch_size} cannot be shared by {world()} processes; give a multiple of {world()}")
    return batch_size // world()


def check_norms(model: nn.Module, images: int, device: torch.device) -> nn.Module:
    """See to it that BatchNorm has statistics of the whole batch; returns the model to train.

    timm's BatchNorm layers are replaced by SyncBatchNorm, which only CUDA has; vitfrost's own synchronize themselves.
    Raises VitfrostError where a process has too few images for BatchNorm, and where the layers cannot be synchronized.
    """
    norms = [module for module in model.modules() if isinstance(module, nn.modules.batchnorm._BatchNorm)]
    if norms and images < 2:
        raise VitfrostError(f"a batch of {images} per process is too small for BatchNorm; give batch_size at least {2 * world()}")
    foreign = [module for module in norms if not type(module).__module__.startswith("vitfrost.")]
    if world() == 1 or not foreign:
        return model
    if device.type != "cuda":
        raise VitfrostError("the model has BatchNorm layers, which cannot be synchronized on the CPU; train it in one process, or on CUDA")
    return nn.SyncBatchNorm.convert_sync_batchnorm(model)


def distributed(model: nn.Module, device: torch.device) -> nn.Module:
    """The model whose gradients are averaged over the processes; the model itself when alone."""
    if world() == 1:
        return model
    from torch.nn.parallel import DistributedDataParallel

    options: dict[str, Any] = {"device_ids": [device.index]} if device.type == "cuda" else {}
    return DistributedDataParallel(model, broadcast_buffers=False, **options)


def first_process(value: float, device: torch.device) -> float:
    """The value that process 0 has, on all of them."""
    if world() == 1:
        return value
    import torch.distributed as dist

    shared = torch.tensor(value, dtype=torch.float64, device=device)
    dist.broadcast(shared, 0)
    return float(shared)


def mean_of_processes(value: torch.Tensor) -> torch.Tensor:
    """The mean over the processes."""
    if world() == 1:
        return value
    import torch.distributed as dist

    total = value.clone()
    dist.all_reduce(total)
    return total / world()
