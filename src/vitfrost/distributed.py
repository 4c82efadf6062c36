"""Several processes started by torchrun share one job; without torchrun everything here is a job of one process."""

from __future__ import annotations

import atexit
import os
from datetime import timedelta
from typing import Any

from .errors import VitfrostError


def world() -> int:
    """Number of processes (torchrun's WORLD_SIZE)."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Number of this process (torchrun's RANK), 0 when it is alone."""
    return int(os.environ.get("RANK", "0")) if world() > 1 else 0


def start() -> None:
    """Join the other processes over gloo; does nothing when alone or already joined."""
    import torch.distributed as dist

    if world() > 1 and not dist.is_initialized():
        dist.init_process_group("gloo", timeout=timedelta(days=1))
        atexit.register(dist.destroy_process_group)


def gather_objects(value: Any) -> list[Any]:
    """The values of all processes in the order of their ranks, on every process."""
    if world() == 1:
        return [value]
    import torch.distributed as dist

    start()
    values: list[Any] = [None] * world()
    dist.all_gather_object(values, value)
    return values


def barrier() -> None:
    """Wait for all processes."""
    if world() > 1:
        import torch.distributed as dist

        start()
        dist.barrier()


def raise_together(error: VitfrostError | None) -> None:
    """Raise the first error of any process in all of them, so that none waits for one that has given up."""
    if error is not None and world() == 1:
        raise error
    for message in gather_objects(None if error is None else str(error)):
        if message is not None:
            raise VitfrostError(message) from error
