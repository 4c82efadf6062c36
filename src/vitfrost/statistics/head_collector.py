"""Watches the attention maps of a running model by whole heads: one map at a time, nothing of its size is kept."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..errors import VitfrostError
from ..map_sources.frozen import shape_of_site
from ..vit.families import allowed_pairs, install_map_attention
from ..vit.sites import AttentionSite
from . import sample
from .collector import Collector, head_roots
from .head_sums import HeadSums, sums_shapes
from .heads import SAMPLED, HeadStatistics, made_of
from .histogram import BYTES_PER_ENTRY, Counters
from .sensitivity import SENSITIVITY_BYTES, Sensitivity

TOKENS_AT_A_TIME = 4096


def images_at_a_time(sites: Sequence[AttentionSite], batch_size: int) -> int:
    """How many images pass together: fewer where they are long, since more of them only take more memory."""
    longest = max(site.windows * site.queries for site in sites)
    return max(min(batch_size, TOKENS_AT_A_TIME // longest), 1)


def bytes_needed(sites: Sequence[AttentionSite], sensitivity: bool) -> int:
    """What the sums and the sample of all sites take."""
    size = sample.sample_size(sum(site.heads for site in sites))
    needed = 0
    for site in sites:
        sampled = site.heads * min(size, site.windows * site.queries * site.keys)
        needed += sampled * (BYTES_PER_ENTRY + (SENSITIVITY_BYTES + 8 if sensitivity else 0))
        needed += sum(8 * int(np.prod(shape)) for shape in sums_shapes(site.maps_shape, shape_of_site(site)).values())
    return needed


class HeadCollector(Collector):
    """Observe the maps of all sites of a model inside a `with` block, head by head, then `finish`.

    Replaces the model's attention layers by MapAttention (outputs stay equal up to rounding) and leaves no observer behind. Arguments as
    those of MapCollector; running the model raises VitfrostError when a map holds anything but numbers between 0 and 1.
    """

    def __init__(self, model: nn.Module, sites: Sequence[AttentionSite], observe_quantized: bool = False, sensitivity: bool = False):
        super().__init__(model, sites, observe_quantized, sensitivity)

    def __enter__(self) -> HeadCollector:
        self._modules = install_map_attention(self._model)
        size = sample.sample_size(sum(site.heads for site in self._sites))
        for site in self._sites:
            module = self._modules[site.name]
            watched = _SiteSums(site, head_roots(module), allowed_pairs(self._model, site.name), size, self._sensitivity)
            self._collected[site.name] = watched
            module.observe(quantized=self._observe_quantized, heads=watched.observe)
        return self


class _SiteSums:
    """Sums and sampled weights of one site and the observer that fills them, head by head of one image after the other."""

    def __init__(
        self, site: AttentionSite, roots: Tensor, allowed: Bool[Tensor, "windows queries keys"] | None, size: int, sensitivity: bool
    ):
        self.site, self.roots = site, roots
        self.allowed = None if allowed is None else allowed.cpu().numpy()
        self.shape = shape_of_site(site)
        self.sums = HeadSums(site.name, site.maps_shape, self.shape)
        self.sampled = sample.draw((site.windows, site.queries, site.keys), self.shape, size, self.allowed)
        self.picked = torch.from_numpy(self.sampled)
        self.counters = Counters(site.heads * len(self.sampled))
        self.row = np.zeros((1, site.heads, len(self.sampled)), np.float32)
        self.seen = 0
        self.images = 0
        self.gradients = np.zeros((6, site.heads, len(self.sampled))) if sensitivity else None

    @property
    def nbytes(self) -> int:
        return self.counters.nbytes + self.sums.nbytes + (0 if self.gradients is None else self.gradients.nbytes)

    def observe(self, head: int, maps: Float[Tensor, "windows queries keys"], values: Float[Tensor, "windows keys width"]) -> None:
        """Count the maps of one head in one image."""
        norms = torch.linalg.vector_norm(values.detach() @ self.roots[head], dim=-1).square_().to("cpu", torch.float32).numpy()
        flat = maps.detach().to("cpu", torch.float32).contiguous()
        picked = flat.view(-1)[self.picked]
        self.row[0, head] = picked.numpy()
        self.sums.add(head, flat.numpy(), norms)
        if self.gradients is not None:
            self._watch(head, maps, picked.double().numpy(), norms)
        self.seen += 1
        if self.seen == self.site.heads:
            self.seen = 0
            self.images += 1
            try:
                self.counters.accumulate(self.row.reshape(1, -1))
            except ValueError as error:
                raise VitfrostError(f"cannot calibrate: site {self.site.name} has {error}") from error

    def _watch(self, head: int, maps: Tensor, picked: np.ndarray, norms: np.ndarray) -> None:
        """Add g^2 A^p and ||W_O v||^2 A^p of the sampled weights as soon as the gradient g comes back."""
        assert self.gradients is not None
        sums, queries, keys = self.gradients, self.site.queries, self.site.keys
        valued = norms[self.sampled // (queries * keys), self.sampled % keys].astype(np.float64)

        def add(gradients: Tensor) -> None:
            found = gradients.detach().to("cpu", torch.float32).reshape(-1)[self.picked].double().numpy()
            if not np.isfinite(found).all():
                raise VitfrostError(f"cannot calibrate: site {self.site.name} has gradients that are not finite")
            for power in range(3):
                sums[power, head] += found**2 * picked**power
                sums[3 + power, head] += valued * picked**power

        if not maps.requires_grad:
            maps.requires_grad_()
        maps.register_hook(add)

    def finish(self) -> HeadStatistics:
        """The statistics so far."""
        widths, bins, counts = self.counters.sparse()
        arrays = self.sums.sums | {
            "widths": widths, "bins": bins, "counts": counts, "sums": self.counters.sums, "squares": self.counters.squares,
            SAMPLED: self.sampled,
        }  # fmt: skip
        if self.allowed is not None:
            arrays["allowed"] = self.allowed
        sensitivity = None
        if self.gradients is not None:
            parts = self.gradients[:, None, :, None, :]
            sensitivity = Sensitivity(self.images, parts[0], parts[1], parts[2], parts[3, :, :, 0], parts[4], parts[5])
        return made_of(self.site.name, self.site.maps_shape, self.images, self.shape, arrays, sensitivity)
