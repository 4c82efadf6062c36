"""What PyTorch keeps for the whole process, set for a while and set back."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

import torch


@contextmanager
def torch_threads(count: int | None) -> Iterator[None]:
    """Let torch's operators use `count` threads until the block ends; None, and the number they use already, change nothing."""
    before = torch.get_num_threads()
    if count is None or count == before:
        yield
        return
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def usual_torch() -> Iterator[None]:
    """Let PyTorch be as in a fresh process until the block ends: it takes gradients, makes float32 tensors on the CPU, and casts nothing.

    A caller may stand in `torch.inference_mode()` or `torch.autocast(...)`, or have called `torch.set_default_dtype(...)`.
    """
    dtype, device = torch.get_default_dtype(), torch.get_default_device()
    with ExitStack() as stack:
        stack.enter_context(torch.inference_mode(False))  # ends `no_grad` too
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        if device.type != "cpu":
            stack.enter_context(torch.device("cpu"))
        if dtype != torch.float32:
            stack.callback(torch.set_default_dtype, dtype)
            torch.set_default_dtype(torch.float32)
        yield
