"""How much a model's outputs depend on every attention weight: gradient and value sums beside the counters.

With g = d log p(y) / d A, where the class y is drawn from the model's own prediction p, E[g^2] is the diagonal of the Fisher
information; no labels are needed. Of features, which predict nothing, g is the gradient of a random projection whose square is on average
the curvature of their relative error (see methods.output_distance). The sums are float64, so sums of parts agree with those of the whole
to rounding (1e-12 relative), not to the bit as counters do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Float64
from torch import Tensor
from torch.nn import functional as F

from ..errors import VitfrostError
from ..methods.output_distance import curvature_factor
from ..outputs import OutputKind
from .histogram import jit

SENSITIVITY_ARRAYS = ("gradient_zeroth", "gradient_first", "gradient_second", "value_zeroth", "value_first", "value_second")
SENSITIVITY_BYTES = 5 * 8  # per entry; value_zeroth has no axis of queries

Maps = Float64[np.ndarray, "windows heads queries keys"]


@dataclass(frozen=True, eq=False)
class Sensitivity:
    """Sums over `images` images, [windows, heads, queries, keys]; 0 at masked pairs.

    `gradient_*` are sums of g^2, g^2 A and g^2 A^2, with g the gradient of the log-likelihood of a drawn class by the
    weight A; `value_*` are those of ||W_O^h v_j||^2 instead of g^2 (`value_zeroth` [windows, heads, keys]).
    """

    images: int
    gradient_zeroth: Maps
    gradient_first: Maps
    gradient_second: Maps
    value_zeroth: Float64[np.ndarray, "windows heads keys"]
    value_first: Maps
    value_second: Maps

    def fisher_error(self, constant: Float[np.ndarray, "windows heads queries keys"]) -> Maps:
        """E[g^2 (A - constant)^2]."""
        return self._error(constant, self.gradient_zeroth, self.gradient_first, self.gradient_second)

    def output_error(self, constant: Float[np.ndarray, "windows heads queries keys"]) -> Maps:
        """E[||W_O v||^2 (A - constant)^2], the squared error at the layer's output, maps and values taken together."""
        return self._error(constant, self.value_zeroth[:, :, None, :], self.value_first, self.value_second)

    def _error(self, constant: np.ndarray, zeroth: np.ndarray, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """From the sums to E[w (A - m)^2] = (S2 - 2 m S1 + m^2 S0) / images; rounding may leave it below 0, where it is cut."""
        error = second + constant * (constant * zeroth - 2 * first)
        return np.maximum(error, 0) / max(self.images, 1)

    def arrays(self) -> dict[str, np.ndarray]:
        """The arrays that are stored, by name."""
        return {name: getattr(self, name) for name in SENSITIVITY_ARRAYS}

    def plus(self, other: Sensitivity) -> Sensitivity:
        """The sums over the images of both."""
        return Sensitivity(self.images + other.images, **{name: getattr(self, name) + getattr(other, name) for name in SENSITIVITY_ARRAYS})


@jit
def _add(gradients: Any, maps: Any, norms: Any, by_gradient: Any, by_value: Any) -> Any:
    """Add g^2 A^p [3, rows, keys] and ||W_O v||^2 A^p [2, rows, keys] (p = 1, 2), one image after the other.

    gradients, maps [images, rows, keys]; norms [images, heads, keys], where head h has the rows from h * rows / heads on.
    Returns True when some gradient is not finite.
    """
    images, rows, keys = maps.shape
    queries = rows // norms.shape[1]
    bad = False
    for row in range(rows):
        head = row // queries
        for image in range(images):
            for key in range(keys):
                weight = np.float64(maps[image, row, key])
                square = np.float64(gradients[image, row, key]) ** 2
                norm = np.float64(norms[image, head, key])
                bad |= not square < np.inf
                by_gradient[0, row, key] += square
                by_gradient[1, row, key] += square * weight
                by_gradient[2, row, key] += square * weight * weight
                by_value[0, row, key] += norm * weight
                by_value[1, row, key] += norm * weight * weight
    return bad


class SensitivitySums:
    """The sums of one site, filled while the gradient comes back through the model; memory does not grow with the images.

    `maps_shape` is [windows, heads, queries, keys]; `name` is the site's, for messages.
    """

    def __init__(self, name: str, maps_shape: tuple[int, int, int, int]):
        self.name = name
        self.maps_shape = maps_shape
        self.images = 0
        windows, heads, queries, keys = maps_shape
        self._by_gradient = np.zeros((3, windows * heads * queries, keys))
        self._by_value = np.zeros((2, windows * heads * queries, keys))
        self._norms = np.zeros((windows * heads, keys))

    @property
    def nbytes(self) -> int:
        """Bytes held, but for the sums of value norms, which have no axis of queries."""
        return self._by_gradient.nbytes + self._by_value.nbytes

    def watch(self, maps: Float[Tensor, "rows heads queries keys"], norms: Float[Tensor, "rows heads keys"]) -> None:
        """Add a batch (rows = images * windows) as soon as its gradient is there.

        Maps that need no gradient yet become the place where the graph begins. Raises VitfrostError, in the backward pass,
        for gradients that are not finite.
        """
        seen = maps.detach()  # the hook must not hold what holds the hook

        def add(gradients: Tensor) -> None:
            self._add(gradients, seen, norms)

        if not maps.requires_grad:
            maps.requires_grad_()
        maps.register_hook(add)

    def _add(self, gradients: Tensor, maps: Tensor, norms: Tensor) -> None:
        rows, keys = self._by_gradient.shape[1:]
        flat_gradients, flat_maps = (_array(tensor).reshape(-1, rows, keys) for tensor in (gradients, maps))
        flat_norms = _array(norms).reshape(-1, *self._norms.shape)
        if _add(flat_gradients, flat_maps, flat_norms, self._by_gradient, self._by_value):
            raise VitfrostError(f"cannot calibrate: site {self.name} has gradients that are not finite")
        self._norms += flat_norms.sum(0, dtype=np.float64)
        self.images += len(flat_maps)

    def finish(self, allowed: Bool[np.ndarray, "windows queries keys"] | None) -> Sensitivity:
        """The sums so far, those of masked pairs set to zero. They are handed over, not copied."""
        shape = self.maps_shape
        by_gradient, by_value = self._by_gradient.reshape(3, *shape), self._by_value.reshape(2, *shape)
        if allowed is not None:
            masked = np.broadcast_to(~allowed[:, None], shape)
            by_gradient[:, masked] = 0
            by_value[:, masked] = 0
        norms = self._norms.reshape(shape[0], shape[1], shape[3])
        return Sensitivity(self.images, by_gradient[0], by_gradient[1], by_gradient[2], norms, by_value[0], by_value[1])


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().to("cpu", torch.float32).contiguous().numpy()


def drawn_log_likelihood(logits: Float[Tensor, "images classes"], positions: Sequence[int], seed: int) -> Float[Tensor, ""]:
    """Sum over the images of log p(y), with y drawn from each image's own prediction p = softmax(logits).

    The draw depends on `seed` and the image's position alone, not on its neighbors. Computed in float64: where the model is
    nearly certain, 1 - p(y) would be lost. Raises VitfrostError for logits that are not finite.
    """
    precise = logits.double()
    if not bool(torch.isfinite(precise).all()):
        raise VitfrostError("cannot calibrate: the model's outputs are not all finite")
    levels = precise.detach().softmax(-1).cumsum(-1)
    draws = torch.tensor([[np.random.default_rng((seed, position)).random()] for position in positions], dtype=torch.float64)
    above = torch.searchsorted(levels, draws.to(levels.device) * levels[:, -1:], right=True)
    return -F.cross_entropy(precise, above[:, 0].clamp_(max=logits.shape[1] - 1), reduction="sum")


def drawn_score(kind: OutputKind, outputs: Float[Tensor, images * outputs], positions: Sequence[int], seed: int) -> Float[Tensor, ""]:
    """What sensitivity is the squared gradient of: `drawn_log_likelihood` of classes, and of features their random projection.

    The draw depends on `seed` and the image's position alone. Raises VitfrostError for outputs that are not finite.
    """
    if kind == "classes":
        return drawn_log_likelihood(outputs, positions, seed)
    precise = outputs.double()
    if not bool(torch.isfinite(precise).all()):
        raise VitfrostError("cannot calibrate: the model's outputs are not all finite")
    size = outputs[0].numel()
    drawn = np.stack([np.random.default_rng((seed, position)).integers(0, 2, size) for position in positions])
    signs = torch.from_numpy(drawn * 2.0 - 1.0).view(precise.shape).to(precise.device)
    return (curvature_factor(kind, precise.detach(), signs) * precise).sum()
