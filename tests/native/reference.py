"""The native model file run in NumPy, from docs/engine.md alone: codes are integers, what is between them float64.

It shares no code with the writer and none with the engine. Sums of codes are float64 products of integers, which are exact below 2^53.
"""

from __future__ import annotations

from collections.abc import Callable
from math import erf
from pathlib import Path

import numpy as np

TENSOR = np.dtype(
    [("kind", "<u4"), ("bits", "<u4"), ("rank", "<u4"), ("zero", "<u4"), ("shape", "<u8", 4), ("offset", "<u8"), ("bytes", "<u8")]
)
LAYER = np.dtype([("kind", "<u4"), ("zero", "<u4"), ("ints", "<i4", 30), ("floats", "<f4", 32), ("tensors", "<i4", 32)])
LINEAR, NORM, EMBED, ATTENTION, FEED_FORWARD, HEAD, NORM_STEP = 1, 2, 10, 11, 12, 13, 14
DEPTHWISE, WINDOW_ATTENTION, DOWNSAMPLE, OVERLAPPING_EMBED, REDUCED_ATTENTION, CONVOLVED_FEED_FORWARD = 3, 15, 16, 17, 18, 19
TURN_STEP = 20
_erf = np.vectorize(erf, otypes=[float])

Array = np.ndarray


def gelu(x: Array) -> Array:
    """x times the distribution function of a normal variable."""
    return x * 0.5 * (1 + _erf(x / np.sqrt(2)))


def sigmoid(x: Array) -> Array:
    """1 / (1 + exp(-x))."""
    return 1 / (1 + np.exp(-x))


def between_taps(kernels: Array, apart: int) -> Array:
    """Kernels [F, kh, kw] whose taps are so far apart, at every place: straight lines between taps, and to 0 beyond the outer ones."""
    for axis in (1, 2):
        taps = np.arange(1, kernels.shape[axis] + 1) * apart
        places = np.arange(1, (kernels.shape[axis] + 1) * apart)
        weights = np.maximum(1 - abs(places[:, None] - taps) / apart, 0)
        kernels = np.moveaxis(np.tensordot(weights, kernels, (1, axis)), 0, axis)
    return kernels


ACTIVATIONS: list[Callable[[Array], Array]] = [
    gelu,
    lambda x: 0.5 * x * (1 + np.tanh(np.sqrt(2 / np.pi) * (x + 0.044715 * x**3))),
    lambda x: np.maximum(x, 0),
    lambda x: x * sigmoid(1.702 * x),
]


def convolved(kernels: Array, pictures: Array) -> Array:
    """Pictures [n, height, width, channels], each with its own kernel [n, kh, kw] of odd sides, zeros around it."""
    (high, wide), (height, width) = kernels.shape[1:], pictures.shape[1:3]
    padded = np.pad(pictures, ((0, 0), (high // 2, high // 2), (wide // 2, wide // 2), (0, 0)))
    return sum(
        kernels[:, down, right, None, None, None] * padded[:, down : down + height, right : right + width]
        for down in range(high)
        for right in range(wide)
    )


class Reference:
    """An opened file; `run` gives logits.

    `disturbance`: normal noise on what is rounded to codes, relative to the largest number beside it, as another order of sums would make.
    """

    def __init__(self, path: Path, disturbance: float = 0.0, seed: int = 0):
        self._disturbance, self._generator = disturbance, np.random.default_rng(seed)
        data = path.read_bytes()
        assert data[:8] == b"VFNATIVE"
        version, tensors, layers = np.frombuffer(data, "<u4", 3, 8)
        assert version == 1
        assert int(np.frombuffer(data, "<u8", 1, 24)[0]) == len(data)
        assert (TENSOR.itemsize, LAYER.itemsize) == (64, 384)
        self.tensors = [self._tensor(data, record) for record in np.frombuffer(data, TENSOR, tensors, 64)]
        self.layers = np.frombuffer(data, LAYER, layers, 64 + 64 * int(tensors))

    @staticmethod
    def _tensor(data: bytes, record: np.void) -> Array:
        shape = tuple(int(side) for side in record["shape"][: int(record["rank"])])
        count, start = int(np.prod(shape)), int(record["offset"])
        if record["kind"] == 1:
            return np.frombuffer(data, "<f4", count, start).astype(np.float64).reshape(shape)
        bits = int(record["bits"])
        stream = np.unpackbits(np.frombuffer(data, np.uint8, int(record["bytes"]), start), bitorder="little")[: count * bits]
        return (stream.reshape(count, bits).astype(np.int64) << np.arange(bits)).sum(1).reshape(shape)

    def named(self, layer: np.void, place: int) -> Array | None:
        """A tensor of a layer, None where it has none there."""
        index = int(layer["tensors"][place])
        return None if index < 0 else self.tensors[index]

    def _disturbed(self, x: Array) -> Array:
        if not self._disturbance:
            return x
        return x + self._disturbance * np.abs(x).max() * self._generator.standard_normal(x.shape)

    def linear_codes(self, layer: np.void, x: Array) -> tuple[Array, Array, Array]:
        """Input codes of x [..., K], and their scale and zero point (for every row where they are dynamic)."""
        largest = 2 ** int(layer["ints"][2]) - 1
        if layer["ints"][3] == 1:
            low, high = np.minimum(x.min(-1, keepdims=True), 0), np.maximum(x.max(-1, keepdims=True), 0)
            scale = np.where(high > low, (high - low) / largest, 1.0)
            zero = np.round(-low / scale)
        else:
            scale, zero = np.asarray(np.float64(layer["floats"][0])), np.asarray(np.float64(layer["floats"][1]))
        # Pixels are float32 numbers, and so are their quotients: with a range of a whole number of their steps all of them are ties.
        quotients = x / np.float32(scale) if x.dtype == np.float32 else self._disturbed(x) / scale
        return np.clip(np.round(quotients.astype(np.float64)) + zero, 0, largest), scale, zero

    def linear(self, index: int, x: Array) -> Array:
        """[..., K] -> [..., J]."""
        layer = self.layers[index]
        assert layer["kind"] == LINEAR
        codes, scale, zero = self.linear_codes(layer, x)
        weights, w_scale, w_zero = (self.named(layer, place) for place in range(3))
        sums = (codes - zero) @ (weights - w_zero[:, None]).T
        bias = self.named(layer, 3)
        return sums * scale * w_scale + (0 if bias is None else bias)

    def norm(self, index: int, x: Array) -> Array:
        """LayerNorm over the last axis."""
        layer = self.layers[index]
        assert layer["kind"] == NORM
        gamma, beta = self.named(layer, 0), self.named(layer, 1)
        centered = x - x.mean(-1, keepdims=True)
        return centered / np.sqrt((centered**2).mean(-1, keepdims=True) + np.float64(layer["floats"][0])) * gamma + beta

    def run(self, pixels: Array) -> Array:
        """Normalized pixels [B, channels, H, W] -> logits [B, classes]."""
        return np.stack([self._run(picture.astype(np.float32)) for picture in pixels])

    def _run(self, picture: Array) -> Array:
        stream = picture
        for layer in self.layers:
            kind = int(layer["kind"])
            if kind >= EMBED:
                stream = self.step(layer, stream)
        return stream

    def step(self, layer: np.void, stream: Array) -> Array:
        """What one layer of the table makes of the residual stream."""
        kind, ints = int(layer["kind"]), [int(each) for each in layer["ints"]]
        if kind == WINDOW_ATTENTION:
            return stream + self._window_attention(layer, self.norm(ints[0], stream))
        if kind == DOWNSAMPLE:
            return self._downsample(ints, stream)
        if kind == OVERLAPPING_EMBED:
            self._grid = (ints[12], ints[13])
            padded = np.pad(stream, ((0, 0), (ints[10], ints[3]), (ints[11], ints[4])))
            starts = [(y * ints[8], x * ints[9]) for y in range(ints[12]) for x in range(ints[13])]
            return self.linear(ints[5], np.stack([padded[:, y : y + ints[3], x : x + ints[4]].reshape(-1) for y, x in starts]))
        if kind == REDUCED_ATTENTION:
            return stream + self.attention(layer, self.norm(ints[0], stream))
        if kind == CONVOLVED_FEED_FORWARD:
            x = self._depthwise(ints[6], self.linear(ints[1], self.norm(ints[0], stream)))
            x = self.linear(ints[2], ACTIVATIONS[ints[4]](x))
            return stream + (x if ints[3] < 0 else self.linear(ints[3], x))
        if kind == EMBED:
            return self._embed(layer, stream)
        if kind == NORM_STEP:
            return self.norm(ints[0], stream)
        if kind == TURN_STEP:
            return self._turn(layer, stream)
        if kind == HEAD:
            return self._head(layer, stream)
        read = int(ints[6] if kind == ATTENTION else ints[5])
        changed = stream.copy()
        x = self.norm(ints[0], stream)
        changed[:read] += self.attention(layer, x)[:read] if kind == ATTENTION else self._feed_forward(layer, x[:read])
        return changed

    def _turn(self, layer: np.void, stream: Array) -> Array:
        """x -> z H^T / C with z_j = sign_j (x H)_place_j, H made of the small matrix by doubling."""
        matrix, places, signs = (self.named(layer, place) for place in range(3))
        while len(matrix) < stream.shape[1]:
            matrix = np.block([[matrix, matrix], [matrix, -matrix]])
        return (stream @ matrix)[:, places.astype(int)] * signs @ matrix.T / len(matrix)

    def _embed(self, layer: np.void, picture: Array) -> Array:
        channels, height, width, ph, pw, linear, prefix, _ = (int(each) for each in layer["ints"][:8])
        self._grid = (height // ph, width // pw)
        cut = picture.reshape(channels, height // ph, ph, width // pw, pw).transpose(1, 3, 0, 2, 4)
        tokens = self.linear(linear, cut.reshape(-1, channels * ph * pw))
        positions, first = self.named(layer, 1), self.named(layer, 0)
        tokens = tokens if positions is None else tokens + positions
        assert (prefix > 0) == (first is not None)
        return tokens if first is None else np.concatenate([first, tokens])

    def quantized(self, layer: np.void, place: int, x: Array) -> Array:
        """Codes less zero points, times the scale, of heads [heads, N, D]."""
        scale, zero = (self.named(layer, each).reshape(-1, 1, 1) for each in (place, place + 1))
        bits = self._bits(layer, 10, len(x))
        return (np.clip(np.round(self._disturbed(x) / scale) + zero, 0, 2**bits - 1) - zero) * scale

    def _bits(self, layer: np.void, place: int, heads: int) -> Array:
        """Bits [heads or 1, 1, 1] of the first heads."""
        each = self.named(layer, 22)
        return np.array(int(layer["ints"][place])).reshape(1, 1, 1) if each is None else each[:heads].reshape(-1, 1, 1)

    def _downsample(self, ints: list[int], stream: Array) -> Array:
        """Patches of tokens, row by row, zeros outside of the grid."""
        before, linear, after, high, wide, down, right, top, left = ints[:9]
        (height, width), self._grid = self._grid, (ints[9], ints[10])
        padded = np.zeros((height + high + top, width + wide + left, stream.shape[1]))
        padded[top : top + height, left : left + width] = stream.reshape(height, width, -1)
        starts = [(row * down, column * right) for row in range(ints[9]) for column in range(ints[10])]
        x = np.stack([padded[y : y + high, x : x + wide].reshape(-1) for y, x in starts])
        x = self.linear(linear, x if before < 0 else self.norm(before, x))
        return x if after < 0 else self.norm(after, x)

    def _depthwise(self, index: int, x: Array) -> Array:
        layer = self.layers[index]
        assert layer["kind"] == DEPTHWISE
        channels, high, wide, bits = (int(each) for each in layer["ints"][:4])
        scale, zero = (np.float64(each) for each in layer["floats"][:2])
        codes = np.clip(np.round(self._disturbed(x) / scale) + zero, 0, 2**bits - 1) - zero
        weights, w_scale, w_zero, bias = (self.named(layer, place) for place in range(4))
        kernels = (weights - w_zero[:, None]).reshape(channels, high, wide)
        sums = convolved(kernels, codes.T.reshape(channels, *self._grid, 1)).reshape(channels, -1).T
        return sums * scale * w_scale + (0 if bias is None else bias)

    def _projections(self, layer: np.void, x: Array, computed: int) -> list[Array]:
        """Queries, keys and values [heads, N, D] from one product, or keys and values of patches of tokens from another."""
        ints, width = [int(each) for each in layer["ints"]], int(layer["ints"][4])

        def split(y: Array) -> list[Array]:
            return list(y.reshape(len(y), -1, width).transpose(1, 0, 2))

        if layer["kind"] != REDUCED_ATTENTION:
            return split(self.linear(ints[1], x))
        tokens = x
        if ints[20] >= 0:
            (height, across), (high, wide) = self._grid, ints[22:24]
            rows, columns = height // high, across // wide
            grid = x.reshape(height, across, -1)[: rows * high, : columns * wide]
            patches = grid.reshape(rows, high, columns, wide, -1).transpose(0, 2, 1, 3, 4).reshape(rows * columns, -1)
            tokens = self.norm(ints[21], self.linear(ints[20], patches))
        return (split(self.linear(ints[1], x)) if computed else []) + split(self.linear(ints[19], tokens))

    def _window_attention(self, layer: np.void, x: Array) -> Array:
        """What is added to the stream: the grid, shifted round its edges and filled up with zeros, goes through window by window."""
        high, wide, down, right, own_entries, own_maps = (int(each) for each in layer["ints"][19:25])
        (height, width), channels = self._grid, x.shape[1]
        rows, columns = -(-height // high), -(-width // wide)
        padded = np.zeros((rows * high, columns * wide, channels))
        padded[:height, :width] = np.roll(x.reshape(height, width, channels), (-down, -right), (0, 1))
        regions = np.zeros(padded.shape[:2], int)
        for axis, (shift, side) in enumerate(((down, high), (right, wide))):
            places = np.arange(padded.shape[axis])
            number = (places >= len(places) - side).astype(int) + (places >= len(places) - shift)
            regions += 3**axis * (np.expand_dims(number, 1 - axis) if shift else 0)

        def cut(grid: Array) -> Array:
            return grid.reshape(rows, high, columns, wide, -1).transpose(0, 2, 1, 3, 4).reshape(rows * columns, high * wide, -1)

        bias = self.named(layer, 21)
        made = []
        for window, (tokens, region) in enumerate(zip(cut(padded), cut(regions)[..., 0], strict=True)):
            mask = np.where(region[:, None] != region, np.float64(layer["floats"][1]), 0.0) if down or right else 0.0
            places = (window if own_entries else 0, window if own_maps else 0)
            made.append(self.attention(layer, tokens, mask if bias is None else bias + mask, places))
        grid = np.stack(made).reshape(rows, columns, high, wide, -1).transpose(0, 2, 1, 3, 4).reshape(rows * high, columns * wide, -1)
        return np.roll(grid[:height, :width], (down, right), (0, 1)).reshape(height * width, -1)

    def attention(self, layer: np.void, x: Array, bias: Array | float = 0.0, places: tuple[int, int] = (0, 0)) -> Array:
        """What is added to the stream, for all tokens. `bias` of logits; `places`: which window's frozen entries and constant maps."""
        _, _, proj, heads, width, computed = (int(each) for each in layer["ints"][:6])
        frozen, hallucinated = int(layer["ints"][11]), int(layer["ints"][12])
        assert computed + hallucinated + frozen == heads
        parts = self._projections(layer, x, computed)
        values = self.quantized(layer, 4, np.stack(parts[2 * computed :]))
        outputs = np.zeros((heads, len(x), width))
        moving = computed + hallucinated
        if moving:
            q, k = self.quantized(layer, 0, np.stack(parts[:computed])), self.quantized(layer, 2, np.stack(parts[computed : 2 * computed]))
            logits = q @ k.transpose(0, 2, 1) * np.float64(layer["floats"][0])
            if hallucinated:
                logits = np.concatenate([logits, self._hallucinate(layer, logits)])
            outputs[:moving] = self.maps(layer, logits + bias, places[0]) @ values[:moving]
        if frozen and layer["tensors"][15] >= 0:
            outputs[moving:] = self._local(layer, values[moving:])
        elif frozen:
            codes, scale, zero = (self.named(layer, place)[places[1] * frozen : (places[1] + 1) * frozen] for place in (9, 10, 11))
            outputs[moving:] = ((codes - zero[..., None]) * scale[..., None]) @ values[moving:]
        return self.linear(proj, outputs.transpose(1, 0, 2).reshape(len(x), -1))

    @staticmethod
    def _leave_far(layer: np.void, logits: Array) -> None:
        """No logits between patches of windowed heads that are further apart than half of the window's side."""
        height, width, near, side = (int(each) for each in layer["ints"][17:21])
        if int(layer["kind"]) != 11 or not near:
            return
        y, x = np.divmod(np.arange(height * width), width)
        far = np.maximum(abs(y[:, None] - y), abs(x[:, None] - x)) > side // 2
        first = logits.shape[1] - height * width
        logits[len(logits) - near :, first:, first:][:, far] = -np.inf

    def _local(self, layer: np.void, values: Array) -> Array:
        """Kernels over the patch grid, of values [heads, N, D]."""
        kernels, scale, shared, rows, columns = (self.named(layer, place) for place in range(15, 20))
        grid = tuple(int(each) for each in layer["ints"][17:19])
        prefix = values.shape[1] - grid[0] * grid[1]
        patches, apart = values[:, prefix:], int(layer["ints"][21])
        if apart > 1:
            kernels = between_taps(kernels, apart)
        near = convolved(kernels, patches.reshape(len(patches), *grid, -1)).reshape(patches.shape)
        made = scale[..., None] * near + shared[..., None] * patches.sum(1, keepdims=True)
        if not prefix:
            return made
        return np.concatenate([rows @ values, made + columns @ values[:, :prefix]], axis=1)

    def _hallucinate(self, layer: np.void, logits: Array) -> Array:
        mix, bias, kernels = (self.named(layer, place) for place in (12, 13, 14))
        made = np.einsum("qg,gnm->qnm", mix, logits) + (0 if bias is None else bias[:, None, None])
        if kernels is None:
            return made
        first = int(layer["ints"][14])
        assert kernels.shape[1:] == (int(layer["ints"][13]),) * 2
        inner = made[:, first:, first:]
        made[:, first:, first:] = inner + convolved(kernels, inner[..., None])[..., 0]
        return made

    def maps(self, layer: np.void, logits: Array, window: int = 0) -> Array:
        """Quantized maps with frozen entries, of logits [heads, N, N]."""
        logits = self._disturbed(logits)
        self._leave_far(layer, logits)
        mode, bits, zero_code = int(layer["ints"][7]), self._bits(layer, 8, len(logits)), int(layer["ints"][9])
        zero_code = zero_code if self.named(layer, 22) is None else 2**bits - 1 + zero_code
        weights = np.exp(logits - logits.max(-1, keepdims=True))
        total = weights.sum(-1, keepdims=True)
        constants, own = self.named(layer, 8), self.named(layer, 20)
        constants = None if constants is None else constants[window * len(logits) : (window + 1) * len(logits)]
        if own is not None:
            own = np.where(constants < 16, np.exp2(-constants / 2), 0.0) * own.reshape(-1, 1, 1)
        if mode == 0:
            made = np.round(255 * weights) / (255 * total)
            return made if own is None else np.where(constants == 255, made, own)
        maps, step = weights / total, self.named(layer, 6).reshape(-1, 1, 1)
        if mode == 2:
            zero = self.named(layer, 7).reshape(-1, 1, 1)
            made = (np.clip(np.round(maps / step) + zero, 0, 2**bits - 1) - zero) * step
            return made if own is None else np.where(constants == 255, made, own)
        octave = self.named(layer, 23)
        octave = None if octave is None else octave.reshape(-1, 1, 1)
        with np.errstate(divide="ignore"):
            levels = np.minimum(-(2 if octave is None else octave) * np.log2(maps / step), 2 * zero_code)
        codes = np.clip(np.round(self._disturbed(levels)), 0, zero_code)
        if constants is not None and own is None:
            codes = np.where(constants == 255, codes, constants)
            zero_code = np.where(bits == 8, np.minimum(zero_code, 254), zero_code)
        made = np.exp2(-codes / 2) if octave is None else np.round(2**14 * np.exp2(-codes / octave)) / 2**14
        made = np.where(codes >= zero_code, 0.0, made * step)
        return made if own is None else np.where(constants == 255, made, own)

    def _feed_forward(self, layer: np.void, x: Array) -> Array:
        _, first, second, third, activation = (int(each) for each in layer["ints"][:5])
        x = self.linear(second, ACTIVATIONS[activation](self.linear(first, x)))
        return x if third < 0 else self.linear(third, x)

    def _head(self, layer: np.void, stream: Array) -> Array:
        norm, linear, pooling, second, prefix, after = (int(each) for each in layer["ints"][:6])

        def said(layer: int, x: Array) -> Array:
            return x if layer < 0 else self.linear(layer, x)

        def normed(x: Array) -> Array:
            return x if norm < 0 else self.norm(norm, x)

        if pooling == 2:
            both = normed(stream[:2])
            return (self.linear(linear, both[0]) + self.linear(second, both[1])) / 2
        if pooling == 3:
            return normed(stream)
        if pooling == 0:
            return said(linear, normed(stream[:1])[0])
        patches = stream[prefix:]
        return said(linear, normed(patches.mean(0)) if after else normed(patches).mean(0))
