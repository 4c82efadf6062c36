"""Several processes started by torchrun share one job; without torchrun everything here is a job of one process."""

from __future__ import annotations

import atexit
import os
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from .errors import VitfrostError


def world() -> int:
    """Number of processes (torchrun's WORLD_SIZE)."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def rank() -> int:
    """Number of this process (torchrun's RANK), 0 when it is alone."""
    return int(os.environ.get("RANK", "0")) if world() > 1 else 0


def start(backend: str = "gloo") -> None:
    """Join the other processes; does nothing when alone or already joined."""
    import torch.distributed as dist

    if world() > 1 and not dist.is_initialized():
        dist.init_process_group(backend, timeout=timedelta(days=1))
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


def contained() -> type[Exception]:
    """What a part of a run may raise without ending the other parts: anything; where several processes work together, what all of them
    raise alike (see `shared_errors`), since none may wait for one that gave up."""
    return Exception if world() == 1 else VitfrostError


@contextmanager
def shared_errors() -> Iterator[None]:
    """Raise a VitfrostError of any process in all of them at the end of the block, so that none waits for one that gave up.

    The end of the block is a barrier; every process must pass it.
    """
    error = None
    try:
        yield
    except VitfrostError as problem:
        error = problem
    if error is not None and world() == 1:
        raise error
    for message in gather_objects(None if error is None else str(error)):
        if message is not None:
            raise VitfrostError(message) from error
