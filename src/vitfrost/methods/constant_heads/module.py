"""The run-time module of a layer's frozen heads: constant maps times values, as one grouped operation.

Shapes: B images, W windows per image, rows = B W, F frozen heads, N queries, M keys, D head width, P prefix tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from importlib.util import find_spec
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import VitfrostError
from .constants import Shape, carried, stretched_window, triangles
from .cost import Form, best_form, kernels_together
from .elsewhere import Elsewhere
from .kinds import KINDS


class HeadConstant(nn.Module):
    """The numbers of one head's constant, as parameters of the names that its kind gives them.

    Dense maps are per window position; structured ones are shared by all windows, with row scales per window where a shift mask
    tells them apart.
    """

    def __init__(self, kind: str, shape: Shape | None, maps: tuple[int, int, int], window: int | None = None, masked: bool = False):
        super().__init__()
        self.kind, self.shape, self.window = kind, shape, window
        if KINDS[kind].needs_grid and (shape is None or maps[1:] != (shape.tokens, shape.tokens)):
            raise ValueError(f"a {kind} constant needs queries and keys on one patch grid")
        self.set(KINDS[kind].uniform(maps, shape, window, masked))

    def set(self, constant: Any) -> None:
        """Take the numbers of a fitted constant. Raises ValueError for one of another shape."""
        for name, value in KINDS[self.kind].parts(constant).items():
            tensor = torch.as_tensor(np.asarray(value), dtype=torch.float32)
            known = getattr(self, name, None)
            if known is not None and known.shape != tensor.shape:
                raise ValueError(f"the constant's {name} is {list(tensor.shape)}, and should be {list(known.shape)}")
            setattr(self, name, nn.Parameter(tensor.clone()))

    def constant(self) -> Any:
        """The constant with these numbers, as an object of its kind (float64)."""
        return KINDS[self.kind].of_parts({name: part.detach().cpu().double().numpy() for name, part in self.named_parameters()})

    def maps(self, allowed: Bool[Tensor, "windows queries keys"] | None) -> Float[Tensor, "windows queries keys"]:
        """The whole map; differentiable by the parameters."""
        return KINDS[self.kind].maps(dict(self.named_parameters()), self.shape, allowed)


class ConstantHeads(nn.Module):
    """All frozen heads of a layer: outputs [rows, F, N, D] of values [rows, F, M, D], without queries, keys, logits or softmax.

    `form`: one product with the whole maps, or one grouped convolution over the patch grid, whichever the kernels make cheaper; or the
    kernel of triton_kernels.py, which runs on a GPU without gradients, and as the convolution anywhere else (see `use`).
    In training the constants' parameters get gradients; in evaluation what they fold to is computed once and kept.
    """

    allowed: Tensor | None

    def __init__(
        self,
        kinds: Sequence[tuple[str, int | None]],
        shape: Shape | None,
        maps: tuple[int, int, int],
        head_dim: int,
        allowed: Bool[Tensor, "windows queries keys"] | None = None,
        form: Form | None = None,
    ):
        super().__init__()
        self.shape, self.head_dim = shape, head_dim
        self.heads = nn.ModuleList(HeadConstant(kind, shape, maps, window, allowed is not None) for kind, window in kinds)
        self.register_buffer("allowed", allowed, persistent=False)
        kernels = [] if allowed is not None else kernels_together(shape, maps[0], kinds)
        self._together = bool(kernels)
        self._kernel: Callable[..., Tensor] | None = None
        self._interpreted = False
        self._folded: dict[Form, dict[str, Tensor]] = {}
        self._folded_from: tuple[Any, ...] = ()
        self._elsewhere: Elsewhere[ConstantHeads] = Elsewhere()
        self.use(form or best_form(shape, head_dim, kernels))

    def forms(self) -> list[Form]:
        """The forms that these constants can take where the module is: the kernel only on a GPU, where triton is installed."""
        on_gpu = next(self.parameters()).device.type == "cuda" and find_spec("triton") is not None
        forms: list[Form] = ["matmul", "convolution", "triton"]
        apart = self.shape is not None and self.shape.dilation > 1
        return forms[: 3 if on_gpu and not apart else 2] if self._together else forms[:1]

    def use(self, form: Form) -> None:
        """Apply the heads in this form from now on. "triton" runs on a GPU, in evaluation, in float32, bfloat16 and float16; where it
        cannot, the convolution runs.

        Raises ValueError for a form that the constants cannot take, VitfrostError where triton is not installed.
        """
        if form != "matmul" and not self._together:
            raise ValueError(f"the form {form} needs local kernels that all windows share")
        if form == "triton" and form not in self.forms() and self.shape is not None and self.shape.dilation > 1:
            raise ValueError("the form triton needs kernels whose taps do not stand apart")
        if form == "triton" and self._kernel is None:
            try:
                from . import triton_kernels
            except ImportError as error:
                raise VitfrostError("the form triton needs triton; pip install 'vitfrost[gpu]'") from error
            self._kernel, self._interpreted = triton_kernels.local_heads, triton_kernels.INTERPRETED
        self.form: Form = form

    def at(self, grid: tuple[int, int]) -> ConstantHeads:
        """The heads on another patch grid; those of the last few grids are kept.

        Raises ValueError for constants without a patch grid, and of masked windows; VitfrostError in training, which would not reach them.
        """
        if self.training:
            raise VitfrostError("frozen heads are trained at their own image size; give images of that size, or call eval() first")
        return self._elsewhere.get(grid, self._state(), lambda: self._carried(grid))

    @torch.no_grad()
    def _carried(self, grid: tuple[int, int]) -> ConstantHeads:
        if self.shape is None or self.allowed is not None:
            raise ValueError("constants without a patch grid, or of masked windows, belong to their image size")
        target, heads = carried(self.shape, Shape(grid, self.shape.prefix_tokens)), self.constants()
        windows = [None if head.window is None else stretched_window(head.window, self.shape, target) for head in heads]
        kinds = [(head.kind, window) for head, window in zip(heads, windows, strict=True)]
        made = ConstantHeads(kinds, target, (1, target.tokens, target.tokens), self.head_dim)
        for head, window, before in zip(made.constants(), windows, heads, strict=True):
            head.set(KINDS[before.kind].resized(before.constant(), self.shape, target, window))
        like = next(self.parameters())
        return made.to(like.device, like.dtype).requires_grad_(False).eval()

    def constants(self) -> list[HeadConstant]:
        """The heads' constants, in order."""
        return [head for head in self.heads if isinstance(head, HeadConstant)]

    def maps(self) -> Float[Tensor, "windows heads queries keys"]:
        """The whole maps; one window where all share them. Differentiable."""
        maps = [head.maps(self.allowed) for head in self.constants()]
        windows = max(len(each) for each in maps)
        return torch.stack([each.expand(windows, *each.shape[1:]) for each in maps], dim=1)

    def _local(self, dilated: bool = False) -> dict[str, Tensor]:
        """By head: `kernel` [F, kh, kw] less its rest, all of one size (only its taps if `dilated`, else at every position);
        `scale` [F, patches]; `shared` [F, patches], what a patch takes of the sum over patches; `rows` [F, P, M] and `columns`
        [F, patches, P] of prefix tokens."""
        heads: list[Any] = self.constants()
        height, width = (max(head.kernel.shape[axis] for head in heads) for axis in (0, 1))
        kernels = []
        for head in heads:
            down, right = (height - head.kernel.shape[0]) // 2, (width - head.kernel.shape[1]) // 2
            kernel = F.pad(head.kernel - head.rest, (right, right, down, down))
            kernels.append(kernel if dilated else self._at_every_position(kernel))
        scale = torch.stack([head.row_scale[0] for head in heads])
        return {
            "kernel": torch.stack(kernels),
            "scale": scale,
            "shared": scale * torch.stack([head.rest for head in heads])[:, None],
            "rows": torch.stack([head.prefix_rows for head in heads]),
            "columns": torch.stack([head.prefix_columns for head in heads]),
        }

    @torch.no_grad()
    def taps(self) -> dict[str, Tensor]:
        """What the heads are as kernels, for an engine of ours: see `_local`, taps alone."""
        return self._local(dilated=True)

    def _at_every_position(self, kernel: Float[Tensor, "kernel_height kernel_width"]) -> Float[Tensor, "height width"]:
        """A kernel less its rest, with straight lines between taps that stand apart."""
        if self.shape is None or self.shape.dilation == 1:
            return kernel
        down, right = (torch.from_numpy(triangles(side, self.shape.dilation)).to(kernel) for side in kernel.shape)
        return down @ kernel @ right.T

    def _convolution(self) -> dict[str, Tensor]:
        """For one grouped convolution: kernels [F D, 1, kh, kw] less their rest, row scales [patches, F, 1]; and for what is the same for
        all channels of a head, `smooth` [F D, 1, 2 d - 1, 1] where taps are d > 1 apart; `gather` [1 + P F, M], rows that sum values up:
        over patches, then by each prefix token's row of each head; and `spread` [patches, (1 + P) F], what a patch takes of its
        head's sum over patches and of prefix tokens."""
        local = self._local(dilated=True)
        patches = F.pad(torch.ones_like(local["scale"][0]), (local["rows"].shape[1], 0))
        smooth: dict[str, Tensor] = {}
        if self.shape is not None and self.shape.dilation > 1:
            triangle = torch.from_numpy(triangles(1, self.shape.dilation)).to(local["kernel"])
            smooth["smooth"] = triangle.expand(len(local["kernel"]) * self.head_dim, 1, -1, 1).contiguous()
        return smooth | {
            "kernel": local["kernel"][:, None].repeat_interleave(self.head_dim, dim=0),
            "scale": local["scale"].T[..., None],
            "gather": torch.cat([patches[None], local["rows"].transpose(0, 1).flatten(0, 1)]),
            "spread": torch.cat([local["shared"].T[:, None], local["columns"].permute(1, 2, 0)], dim=1).flatten(1),
        }

    def _form_on(self, where: Tensor) -> Form:
        """The form that runs on a tensor's device in its dtype. Graphs that are exported keep to operators that every runtime has."""
        if self.form != "triton":
            return self.form
        known = where.dtype in (torch.float32, torch.bfloat16, torch.float16)
        runs = known and (where.is_cuda or self._interpreted) and not torch.compiler.is_exporting()
        return "triton" if runs else "convolution"

    def folded(self, form: Form | None = None) -> dict[str, Tensor]:
        """What the parameters come to in a form (if not given, the one that runs where they are); in evaluation computed once and again
        whenever they changed."""
        form = form or self._form_on(next(self.parameters()))
        if self.training:
            return self._fold(form)
        if torch.compiler.is_compiling():  # what a trace makes does not live on after it
            return self._folded.get(form) or self._fold(form)
        state = self._state()
        if state != self._folded_from:
            self._folded, self._folded_from = {}, state
        if form not in self._folded:
            # What is kept has to be of use to a later pass with gradients as well.
            with torch.inference_mode(False) if torch.is_inference_mode_enabled() else nullcontext(), torch.no_grad():
                self._folded[form] = self._fold(form)
        return self._folded[form]

    def _fold(self, form: Form) -> dict[str, Tensor]:
        if form == "matmul":
            return {"maps": self.maps()}
        return self._local() if form == "triton" else self._convolution()

    def _state(self) -> tuple[Any, ...]:
        def version(parameter: Tensor) -> int | None:
            return None if parameter.is_inference() else parameter._version

        return tuple((id(parameter), version(parameter), parameter.device, parameter.dtype) for parameter in self.parameters())

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> ConstantHeads:
        """To another device or dtype, with what was folded: it is there for a trace, and it was computed before parameters were rounded."""
        kept = self._folded if self._state() == self._folded_from else {}
        super()._apply(fn, recurse)
        with torch.no_grad():
            self._folded = {form: {name: fn(part) for name, part in parts.items()} for form, parts in kept.items()}
        self._folded_from = self._state()
        return self

    def forward(self, values: Float[Tensor, "rows heads keys width"]) -> Float[Tensor, "rows heads queries width"]:
        """Constant maps times values."""
        form = self._form_on(values)
        if form == "triton" and (self.training or (values.requires_grad and torch.is_grad_enabled())):
            form = "convolution"
        parts = self.folded(form)
        if form == "matmul":
            return self._multiply(values, parts["maps"])
        return self._in_one_pass(values, parts) if form == "triton" else self._convolve(values, parts)

    def _multiply(self, values: Tensor, maps: Tensor) -> Tensor:
        if len(maps) > 1:
            return (maps @ values.unflatten(0, (-1, len(maps)))).flatten(0, 1)
        # Compiled and exported graphs for CPUs broadcast; anything else would copy the maps for every image.
        if torch.compiler.is_compiling() and not values.is_cuda:
            return maps @ values
        rows, heads, keys, width = values.shape
        columns = values.permute(1, 2, 0, 3).reshape(heads, keys, rows * width)
        return torch.bmm(maps[0], columns).reshape(heads, -1, rows, width).permute(2, 0, 1, 3)

    def _convolve(self, values: Tensor, parts: dict[str, Tensor]) -> Tensor:
        # Tokens first, as the projections before and after have them: transposes of heads cancel out. Sums over tokens and their way back
        # are two thin products of all heads (with zeros between heads), which runtimes do faster than reductions and broadcasts.
        assert self.shape is not None
        prefix, grid = self.shape.prefix_tokens, self.shape.grid
        heads, width = values.shape[1], values.shape[3]
        own = torch.eye(heads, dtype=values.dtype, device=values.device)[..., None]
        tokens = values.transpose(1, 2).flatten(2)
        picture = tokens[:, prefix:].transpose(1, 2).unflatten(2, grid)
        apart, channels = self.shape.dilation, heads * width
        padding = tuple(apart * (side // 2) - (apart - 1) for side in parts["kernel"].shape[2:])
        if apart > 1:  # smoothed by triangles first, also around the picture, as far as they spread
            around = 2 * (apart - 1)
            picture = F.conv2d(picture, parts["smooth"], padding=(around, 0), groups=channels)
            picture = F.conv2d(picture, parts["smooth"].transpose(2, 3), padding=(0, around), groups=channels)
        near = F.conv2d(picture, parts["kernel"], padding=padding, dilation=apart, groups=channels).flatten(2).transpose(1, 2)
        sums = (parts["gather"] @ tokens).unflatten(2, (heads, width))
        shared = torch.cat([sums[:, :1], tokens[:, :prefix].unflatten(2, (heads, width))], dim=1)
        by_head = (shared[:, :, None] * own).flatten(3).flatten(1, 2)
        mixed = (parts["scale"] * near.unflatten(2, (heads, width))).flatten(2) + parts["spread"] @ by_head
        looking = (sums[:, 1:].unflatten(1, (prefix, heads)) * own).sum(2).flatten(2) if prefix else tokens[:, :0]
        return torch.cat([looking, mixed], dim=1).unflatten(2, (heads, width)).transpose(1, 2)

    def _in_one_pass(self, values: Tensor, parts: dict[str, Tensor]) -> Tensor:
        assert self.shape is not None
        assert self._kernel is not None
        made = self._kernel(values.transpose(1, 2).flatten(2), **parts, grid=self.shape.grid)
        return made.unflatten(2, values.shape[1::2]).transpose(1, 2)
