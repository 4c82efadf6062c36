"""Quantized layers of a model as records of the native file, each checked for what the engine can do."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from jaxtyping import Float, Int
from numpy import ndarray
from torch import Tensor, nn

from ...errors import VitfrostError
from ...methods.constant_heads.module import ConstantHeads
from ...methods.frozen_entries import FrozenMaps
from ...methods.hallucination.maps import HeadHallucination
from ...methods.quantize.modules import ActivationQuantizer, LogQuantizer, QuantizedLayer, UniformQuantizer
from ...methods.quantize.quantizers import zero_code
from ...vit.compat import import_timm
from .format import LINEAR, NONE, NORM, Layer, ModelFile

import_timm()
from timm.layers import LayerScale  # noqa: E402  (timm must be imported through the guard)

LARGEST_ZERO_POINT = 2**15
MEND = 'export it in floating point with Export(format="onnx")'
STATIC, DYNAMIC = 0, 1
ROW_MAPS, LOG_MAPS, UNIFORM_MAPS = 0, 1, 2
COMPUTED_ENTRY = 255
LARGEST_OWN_BITS, OWN_ZERO = 4, 16
CONSTANT_BITS = 8
# Up to so many tokens a product with whole maps of 8 bits is as fast as a convolution; above the second number they take too much room.
WHOLE_MAPS_TOKENS, LARGEST_WHOLE_MAPS_TOKENS = 400, 1600


class Grid(NamedTuple):
    """A uniform grid: bits, and scale and zero point of the tensor [1] or of every head [heads]. `head_bits`: those of every head where
    they differ, and `bits` is the largest."""

    bits: int
    scale: Float[ndarray, heads]
    zero: Float[ndarray, heads]
    head_bits: tuple[int, ...] | None = None


class MapGrid(NamedTuple):
    """How maps are quantized: the file's map mode, bits, zero code, step or scale [1 or heads], zero point (uniform maps alone),
    `head_bits` as of Grid, and `octave` [heads], the levels of log maps to a factor of two where that is not 2."""

    mode: int
    bits: int = 8
    zero_code: int = 0
    step: ndarray | None = None
    zero: ndarray | None = None
    head_bits: tuple[int, ...] | None = None
    octave: ndarray | None = None


def refuse(where: str, why: str, mend: str) -> VitfrostError:
    """One line: what the engine cannot do, where, and what can."""
    return VitfrostError(f"{where}: {why}, which the native engine does not run; {mend}")


def to_array(tensor: Tensor) -> ndarray:
    """float32 values."""
    values: ndarray = tensor.detach().cpu().float().numpy()
    return values


def integers(values: Tensor, where: str) -> ndarray:
    """Zero points [n]. Raises VitfrostError where one is no integer, or a larger one than the engine reads."""
    found = to_array(values).reshape(-1)
    if not np.array_equal(found, np.round(found)):
        worst = float(found[np.abs(found - np.round(found)).argmax()])
        raise refuse(where, f"the zero point is {worst:.4g} and no integer", 'plan with Quantize(levels="strict") and compress again')
    if np.abs(found).max() > LARGEST_ZERO_POINT:  # of a range that is narrow and far from zero
        raise refuse(where, f"a zero point of {np.abs(found).max():.4g} says that its numbers hardly vary", MEND)
    return found


def head_bits_of(quantizer: ActivationQuantizer) -> tuple[int, ...] | None:
    """Bits of every head; None where all have the same."""
    return None if quantizer.head_bits is None else tuple(map(int, quantizer.head_bits.flatten()))


def grid_of(quantizer: nn.Module | None, heads: int, where: str) -> Grid:
    """The grid of a quantizer, with one scale or one for each of so many heads."""
    if quantizer is None:
        raise refuse(where, "they are in floating point", "plan with bits for all heads")
    if not isinstance(quantizer, UniformQuantizer):
        raise refuse(where, f"it is quantized by {type(quantizer).__name__}", "vitfrost evaluate simulates it")
    scale = to_array(quantizer.scale).reshape(-1)
    zero = integers(quantizer.zero_point, where)
    if len(scale) not in (1, heads) or len(zero) not in (1, len(scale)):
        raise refuse(where, f"its quantizer has {len(scale)} scales", "vitfrost evaluate simulates it")
    check_bits(quantizer.bits, where)
    return Grid(quantizer.bits, scale, np.broadcast_to(zero, scale.shape), head_bits_of(quantizer))


def check_bits(bits: int, where: str) -> None:
    """Raise VitfrostError for codes that the engine has no layout for."""
    if not 2 <= bits <= 8:
        raise refuse(where, f"it has {bits} bits", "plan with 2 to 8")


def quantized(layer: nn.Module, where: str) -> QuantizedLayer:
    """A layer with integer weights. Raises VitfrostError for another, naming what gives a layer of its name such weights."""
    if not isinstance(layer, QuantizedLayer):
        raise refuse(where, "its weights are in floating point", f"quantize weights and activations, or {MEND}")
    if layer.bits == 32:  # other layers are quantized, so other formats do not take the model either
        mend = f'plan with Quantize(..., layers={{"{where}": (8, 8)}}) and compress again'
        raise refuse(where, "its weights are in floating point", mend)
    return layer


def add_classifier(file: ModelFile, layer: nn.Module, where: str) -> int:
    """The layer behind pooling; -1 for a model that gives features as they are."""
    return NONE if isinstance(layer, nn.Identity) else add_linear(file, layer, where)


def add_linear(
    file: ModelFile, layer: nn.Module, where: str, stretch: Tensor | None = None, order: Int[ndarray, inputs] | None = None
) -> int:
    """A linear layer or a patch convolution with integer weights. `stretch` [outputs]: a LayerScale behind it, folded into it. `order`: the
    layer's input at each place of the engine's."""
    layer = quantized(layer, where)
    check_bits(layer.bits, where)
    codes = layer.codes.cpu().numpy().reshape(len(layer.codes), -1)
    codes = codes if order is None else codes[:, order]
    scale = to_array(layer.scale)
    bias = None if layer.bias is None else to_array(layer.bias)
    if stretch is not None:
        scale = scale * to_array(stretch)
        bias = None if bias is None else bias * to_array(stretch)
    if layer.input_quantizer is None:
        bits, mode, floats = 8, DYNAMIC, (1.0, 0.0)
    else:
        grid = grid_of(layer.input_quantizer, 1, f"the input of {where}")
        bits, mode, floats = grid.bits, STATIC, (float(grid.scale[0]), float(grid.zero[0]))
    zero = integers(layer.zero_point, where)
    tensors = (file.add_tensor(codes, layer.bits), *(file.add_tensor(each) for each in (scale, zero, bias)))
    return file.add_layer(Layer(LINEAR, (codes.shape[1], codes.shape[0], bits, mode), floats, tensors))


def add_norm(file: ModelFile, norm: nn.Module, where: str, order: Int[ndarray, channels] | None = None) -> int:
    """A LayerNorm; -1 for an identity. `order`: the norm's channel at each place of the engine's."""
    if isinstance(norm, nn.Identity):
        return NONE
    if not isinstance(norm, nn.LayerNorm) or len(norm.normalized_shape) != 1:
        raise refuse(where, f"it is a {type(norm).__name__}", MEND)
    width = norm.normalized_shape[0]
    gamma = np.ones(width, np.float32) if norm.weight is None else to_array(norm.weight)
    beta = np.zeros(width, np.float32) if norm.bias is None else to_array(norm.bias)
    gamma, beta = (each if order is None else each[order] for each in (gamma, beta))
    return file.add_layer(Layer(NORM, (width,), (norm.eps,), (file.add_tensor(gamma), file.add_tensor(beta))))


class NearHeads(NamedTuple):
    """The last heads with logits, whose patches look at a window: how many, its side, the patch grid."""

    heads: int
    side: int
    grid: tuple[int, int]


def near_heads(module: Any, maps: MapGrid, where: str) -> NearHeads:
    """Windowed heads of a layer. Raises VitfrostError for what the engine does not run beside them."""
    windowed = module.windowed
    if module.frozen is not None:
        raise refuse(where, "it has frozen entries beside windowed heads", "freeze whole heads, or leave the entries")
    if bool(windowed.outside.any()):
        raise refuse(where, "its windowed heads keep a mean of what is outside", 'plan with WindowHeads(outside="none")')
    if maps.zero is not None and maps.zero.any():
        raise refuse(where, "the zero point of its maps is not zero", "export it with --format onnx")
    return NearHeads(module.windowed_heads, windowed.window, windowed.shape.grid)


def layer_scale(module: Any, where: str) -> Tensor | None:
    """gamma of a LayerScale; None where there is none."""
    if isinstance(module, LayerScale):
        return module.gamma
    if not isinstance(module, nn.Identity):
        raise refuse(where, f"it is a {type(module).__name__}", MEND)
    return None


def map_grid(quantizer: nn.Module | None, heads: int, where: str) -> MapGrid:
    """How the maps of so many computed and hallucinated heads are quantized; without a quantizer in 8 bits of each row's largest weight."""
    if quantizer is None or not heads:
        return MapGrid(ROW_MAPS)
    if isinstance(quantizer, UniformQuantizer):
        grid = grid_of(quantizer, heads, f"the maps of {where}")
        return MapGrid(UNIFORM_MAPS, grid.bits, 0, grid.scale, grid.zero, grid.head_bits)
    if not isinstance(quantizer, LogQuantizer):
        raise refuse(f"the maps of {where}", f"they are quantized by {type(quantizer).__name__}", "vitfrost evaluate simulates it")
    check_bits(quantizer.bits, f"the maps of {where}")
    step = to_array(quantizer.step).reshape(-1)
    if len(step) not in (1, heads):
        raise refuse(f"the maps of {where}", f"their quantizer has {len(step)} steps", "vitfrost evaluate simulates it")
    octave = None if quantizer.octave is None else to_array(quantizer.octave).reshape(-1)
    zero = zero_code(quantizer.bits, quantizer.levels)
    return MapGrid(LOG_MAPS, quantizer.bits, zero, step, head_bits=head_bits_of(quantizer), octave=octave)


class BitsOfHeads(NamedTuple):
    """Bits of maps, their zero code and bits of queries, keys and values, as the numbers of a layer; where heads have different bits these
    are 0, what zero codes have beyond 2^bits - 1, and 0, and `each` has the bits of every head."""

    ints: tuple[int, int, int]
    each: ndarray | None = None


def bits_of_heads(values: Grid, others: Sequence[Grid], maps: MapGrid, counts: tuple[int, int, int], where: str) -> BitsOfHeads:
    """The bits of a layer whose values have the grid `values`, queries and keys `others`. `counts`: heads, those with logits, with maps."""
    heads, computed, moving = counts
    whole = values.head_bits or (values.bits,) * heads
    mixed = len(set(whole)) > 1
    near = [grid.head_bits or (grid.bits,) * computed for grid in others]
    if mixed and maps.mode != ROW_MAPS:
        near.append(maps.head_bits or (maps.bits,) * moving)
    if any(own != whole[: len(own)] for own in near) or (maps.head_bits is not None and not mixed):
        raise refuse(where, "queries, keys, values or maps have different bits", "vitfrost evaluate simulates it")
    if not mixed:
        return BitsOfHeads((maps.bits, maps.zero_code, values.bits))
    return BitsOfHeads((0, maps.zero_code + 1 - 2**maps.bits if maps.mode == LOG_MAPS else 0, 0), np.array(whole, np.float32))


class FrozenEntries(NamedTuple):
    """Codes [windows heads, N, N] of the entries that are constants, 255 elsewhere; each head's step where they are not on the maps'."""

    codes: ndarray
    step: ndarray | None


def frozen_entries(frozen: FrozenMaps, grid: MapGrid, heads: int, where: str) -> FrozenEntries | None:
    """The entries of so many heads that are constants; None where these heads have none.

    On the maps' own grid a constant that is exactly zero has the map's zero code. With 8 bits that code would be 255 or more; 254 then
    stands for 2^-127 of a step, which adds nothing in float32. On a grid of their own codes are at most 15, and 16 is zero.
    """
    mask = frozen.mask.cpu().numpy()[:, :heads]
    if not mask.any():
        return None
    options = (
        (frozen.renormalize == "none", f"rows are renormalized ({frozen.renormalize})", 'plan with FreezeEntries(renormalize="none")'),
        (
            grid.step is None or frozen.order == "quantize-merge",
            "constants are merged before maps are quantized",
            'plan with FreezeEntries(order="quantize-merge")',
        ),
        (frozen.bits != 32, "frozen entries are in floating point", "plan with FreezeEntries(bits=4), or freeze whole heads"),
    )
    for sound, why, mend in options:
        if not sound:
            raise refuse(where, why, mend)
    steps, used = to_array(frozen.step)[:heads], mask.any(axis=(0, 2, 3))
    shared = grid.mode == LOG_MAPS and grid.step is not None and grid.octave is None
    shared = shared and bool((np.broadcast_to(grid.head_bits or grid.bits, heads)[used] == frozen.bits).all())
    shared = shared and np.array_equal(steps[used], np.broadcast_to(grid.step, heads)[used])  # type: ignore[arg-type]
    if not shared and frozen.bits > LARGEST_OWN_BITS:
        raise refuse(where, f"frozen entries have {frozen.bits} bits and a grid of their own", "plan with FreezeEntries(bits=4)")
    stored = frozen.codes.cpu().numpy()
    if not shared:
        stored = np.where(stored >= zero_code(frozen.bits, frozen.levels), OWN_ZERO, stored)
    dense = np.full(frozen.mask.shape, COMPUTED_ENTRY, np.int16)
    dense[frozen.mask.cpu().numpy()] = np.minimum(stored, COMPUTED_ENTRY - 1)
    return FrozenEntries(dense[:, :heads].reshape(-1, *dense.shape[2:]).astype(np.uint8), None if shared else steps)


def constant_maps(constants: ConstantHeads) -> tuple[ndarray, ndarray, ndarray]:
    """The maps of frozen heads in 8 bits of every row's range: codes [windows F, N, N], scale and zero point [windows F, N], of one window
    where all share them; map = scale (code - zero)."""
    whole = constants.maps().detach().cpu().double().flatten(0, 1).numpy()
    low, high = np.minimum(whole.min(-1), 0), np.maximum(whole.max(-1), 0)
    scale = np.where(high > low, (high - low) / (2**CONSTANT_BITS - 1), 1.0).astype(np.float32)
    zero = np.round(-low / scale)
    codes = np.clip(np.round(whole / scale[..., None]) + zero[..., None], 0, 2**CONSTANT_BITS - 1)
    return codes.astype(np.uint8), scale, zero.astype(np.float32)


class LocalMaps(NamedTuple):
    """Frozen heads as kernels over the patch grid: taps of the kernel [F, kh, kw] less its rest, scale and share of the sum over patches
    [F, patches], rows [F, P, N] and columns [F, patches, P] of prefix tokens (None without any), the grid, and how many patches taps are
    apart.

    A patch takes scale (kernel * values) + shared (sum of patches' values) + columns (prefix tokens' values).
    """

    kernel: ndarray
    scale: ndarray
    shared: ndarray
    rows: ndarray | None
    columns: ndarray | None
    grid: tuple[int, int]
    apart: int


def local_maps(constants: ConstantHeads, tokens: int) -> LocalMaps | None:
    """The frozen heads of a layer as kernels, where whole maps are slower, or would not fit into a file; None where they stay whole."""
    if "convolution" not in constants.forms() or tokens <= WHOLE_MAPS_TOKENS:
        return None
    if constants.form == "matmul" and tokens <= LARGEST_WHOLE_MAPS_TOKENS:
        return None
    assert constants.shape is not None
    local = {name: to_array(part) for name, part in constants.taps().items()}
    prefixed = constants.shape.prefix_tokens > 0
    rows, columns = (local[name] if prefixed else None for name in ("rows", "columns"))
    return LocalMaps(local["kernel"], local["scale"], local["shared"], rows, columns, constants.shape.grid, constants.shape.dilation)


class HallucinatedLogits(NamedTuple):
    """What makes hallucinated logits: mix [q, g], bias [q], convolution [q, side, side], first token that the latter covers."""

    mix: ndarray
    bias: ndarray | None
    convolution: ndarray | None
    first: int


def hallucinated(module: nn.Module, where: str) -> HallucinatedLogits:
    """Mix and convolution of a layer's hallucinated heads, in the space of logits."""
    if not isinstance(module, HeadHallucination):
        raise refuse(where, f"its maps are made by {type(module).__name__}", MEND)
    if module.options.space != "logits":
        raise refuse(where, "maps are hallucinated after the softmax", f'plan with Hallucinate(space="logits"), or {MEND}')
    convolution = module.convolution
    if convolution is not None and convolution.on_grid:
        raise refuse(
            where,
            "the convolution slides over the grid of keys",
            f'plan with Hallucinate(intra_map="3x3"), or {MEND}',
        )
    with torch.no_grad():
        mix = to_array(module.mix.matrix())
    bias = None if module.mix.bias is None else to_array(module.mix.bias)
    if convolution is None:
        return HallucinatedLogits(mix, bias, None, 0)
    return HallucinatedLogits(mix, bias, to_array(convolution.weight)[:, 0], convolution.first_row)
