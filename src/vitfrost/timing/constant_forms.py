"""In which form a layer's constant heads run fastest on a device: found by running them, interleaved, in every form they can take.

On a CPU the rule of `constant_heads.cost.best_form` does; a GPU has its own library of convolutions and the kernel of
`constant_heads.triton_kernels`, and which of them wins depends on the GPU, the batch and the grid.
"""

from __future__ import annotations

import copy
import statistics
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn

from ..errors import VitfrostError
from ..methods.constant_heads.cost import Form
from ..methods.constant_heads.module import ConstantHeads
from .rounds import Slot, interleaved

ROUNDS, REPETITIONS = 10, 5
# So many layers in a row are one run: what a call costs once (the guards of a compiled graph, waiting for the GPU) is then a small part.
CHAIN = 8


@dataclass(frozen=True)
class Choice:
    """The form of one layer's constant heads; the median seconds of one application in each form that was timed (none where there is no
    choice); and why a form could not be run."""

    form: Form
    seconds: dict[Form, float] = field(default_factory=dict)
    failed: dict[Form, str] = field(default_factory=dict)


class _Chain(nn.Module):
    """The heads applied again and again, tokens first in between, as the projections of a model have them."""

    def __init__(self, heads: ConstantHeads):
        super().__init__()
        self.heads, self.width = heads, heads.head_dim

    def forward(self, tokens: Float[Tensor, "images tokens channels"]) -> Float[Tensor, "images tokens channels"]:
        for _ in range(CHAIN):
            tokens = self.heads(tokens.unflatten(2, (-1, self.width)).transpose(1, 2)).transpose(1, 2).flatten(2)
        return tokens


def choose_forms(model: nn.Module, images: int, compiled: bool = False, rounds: int = ROUNDS, seed: int = 0) -> dict[str, Choice]:
    """Set every ConstantHeads of a model in evaluation to the form that is fastest for `images` at once, on the device and in the dtype
    that it has; returns what was found by the layer's name. `compiled`: as torch.compile runs them.

    Layers that are alike but for their numbers are timed once. Raises VitfrostError where no form of a layer can be run.
    """
    known: dict[Any, Choice] = {}
    chosen: dict[str, Choice] = {}
    for name, module in model.named_modules():
        if not isinstance(module, ConstantHeads):
            continue
        parameter = next(module.parameters())
        like = (
            module.shape, module.head_dim, tuple((head.kind, head.window) for head in module.constants()), parameter.device, parameter.dtype
        )  # fmt: skip
        if like not in known:
            known[like] = _choice(name, module, images, compiled, rounds, seed)
        chosen[name] = known[like]
        module.use(chosen[name].form)
        module.folded()
    return chosen


def constant_forms(model: nn.Module) -> str | None:
    """The forms of a model's constant heads in words, such as "triton" or "10 triton, 2 matmul"; None where it has none."""
    forms = Counter(module.form for module in model.modules() if isinstance(module, ConstantHeads))
    if len(forms) < 2:
        return next(iter(forms), None)
    return ", ".join(f"{count} {form}" for form, count in forms.most_common())


def _choice(name: str, heads: ConstantHeads, images: int, compiled: bool, rounds: int, seed: int) -> Choice:
    forms = heads.forms()
    if len(forms) == 1 or heads.shape is None:
        return Choice(forms[0])
    like = next(heads.parameters())
    tokens = torch.randn(images, heads.shape.tokens, len(heads.constants()) * heads.head_dim, device=like.device, dtype=like.dtype)
    runs: dict[str, Callable[[], object]] = {}
    failed: dict[Form, str] = {}
    # The forms are one piece of code to torch.compile, which would otherwise stop compiling it after a few.
    with torch._dynamo.config.patch(recompile_limit=1 << 16, accumulated_recompile_limit=1 << 16):
        for form in forms:
            try:
                runs[form] = _run(heads, form, tokens, compiled)
                runs[form]()
            except Exception as error:  # compilers and drivers raise types of their own, and memory may not suffice
                failed[form] = next((line for line in f"{type(error).__name__}: {error}".splitlines() if line.strip()), "")
                runs.pop(form, None)
        if not runs:
            raise VitfrostError(f"no form of the constant heads of {name} can be run: {failed}")
        slots = {form: Slot(run, REPETITIONS, lead_in=True) for form, run in runs.items()}
        timed = interleaved(slots, rounds, seed).seconds
    seconds = {form: statistics.median(taken for one in timed[form] for taken in one) / CHAIN for form in forms if form in runs}
    return Choice(min(seconds, key=lambda form: seconds[form]), seconds, failed)


def _run(heads: ConstantHeads, form: Form, tokens: Tensor, compiled: bool) -> Callable[[], object]:
    """What applies a copy of the heads in a form, and waits for it."""
    own = copy.deepcopy(heads)
    own.use(form)
    own.folded()
    chain: Any = _Chain(own).eval()
    call = partial(torch.compile(chain, dynamic=False) if compiled else chain, tokens)

    def run() -> None:
        with torch.inference_mode():
            call()
        if tokens.device.type == "cuda":
            torch.cuda.synchronize(tokens.device)

    return run
