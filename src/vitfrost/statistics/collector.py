"""Watches the attention maps of a running model and counts them."""

from __future__ import annotations

from collections.abc import Sequence
from types import TracebackType
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from ..errors import VitfrostError
from ..vit.attention import LogitObserver, MapAttention
from ..vit.families import allowed_pairs, install_map_attention
from ..vit.sites import AttentionSite
from .histogram import BYTES_PER_ENTRY, Counters
from .sensitivity import SENSITIVITY_BYTES, SensitivitySums
from .similarity import SimilaritySums
from .site import VALUE_SCALE, SiteStatistics


class Collector:
    """What collectors have in common: attention layers that are observed inside a `with` block, and what is collected of each site."""

    def __init__(self, model: nn.Module, sites: Sequence[AttentionSite], observe_quantized: bool, sensitivity: bool):
        self._model, self._sites = model, sites
        self._observe_quantized, self._sensitivity = observe_quantized, sensitivity
        self._modules: dict[str, MapAttention] = {}
        self._collected: dict[str, Any] = {}

    def __exit__(self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None) -> None:
        for module in self._modules.values():
            module.observe()

    @property
    def nbytes(self) -> int:
        """Bytes held."""
        return sum(collected.nbytes for collected in self._collected.values())

    def finish(self) -> dict[str, Any]:
        """Statistics by site name; what was collected is given up one after the other, so memory does not rise."""
        return {name: self._collected.pop(name).finish() for name in list(self._collected)}


class MapCollector(Collector):
    """Observe the attention maps of some sites of a model inside a `with` block, then `finish`.

    Replaces the model's attention layers by MapAttention (outputs stay equal) and leaves no observer behind. Every layer
    computes explicit maps inside the block, so that no bit depends on which sites are observed together.
    `observe_quantized`: see maps after the map quantizer (and frozen entries) instead of before.
    `similarity`: sums that are also given the logits of all its sites.
    `sensitivity`: also sum what comes back to the maps when `drawn_log_likelihood` of the outputs is differentiated, which has
    to follow every forward pass; the graph begins at the first observed map where no parameter requires a gradient.
    Running the model raises VitfrostError when a map holds anything but numbers between 0 and 1.
    """

    def __init__(
        self,
        model: nn.Module,
        sites: Sequence[AttentionSite],
        observe_quantized: bool = False,
        sensitivity: bool = False,
        similarity: SimilaritySums | None = None,
    ):
        super().__init__(model, sites, observe_quantized, sensitivity)
        self._similarity = similarity

    def __enter__(self) -> MapCollector:
        self._modules = install_map_attention(self._model)
        for site in self._sites:
            roots, allowed = head_roots(self._modules[site.name]), allowed_pairs(self._model, site.name)
            self._collected[site.name] = _SiteCounters(site, roots, allowed, self._sensitivity)
        logits: dict[str, LogitObserver] = {}
        if self._similarity is not None:
            for number, site in enumerate(self._similarity.sites):
                logits[site.name] = self._similarity.observer(number, allowed_pairs(self._model, site.name))
        for name, module in self._modules.items():
            observer = self._collected[name].observe if name in self._collected else _look_away
            module.observe(observer, logits.get(name), self._observe_quantized)
        return self


def _look_away(maps: Tensor, values: Tensor) -> None:
    """Observer of the sites that are not asked for."""


class _SiteCounters:
    """Counters of one site and the observer that fills them."""

    def __init__(self, site: AttentionSite, roots: Tensor, allowed: Bool[Tensor, "windows queries keys"] | None, sensitivity: bool):
        self.site = site
        self.roots = roots
        self.allowed = None if allowed is None else allowed.cpu().numpy()
        self.counters = Counters(site.entries)
        self.value_sums = np.zeros((site.windows, site.heads, site.keys), np.int64)
        self.sensitivity = SensitivitySums(site.name, site.maps_shape) if sensitivity else None

    @property
    def nbytes(self) -> int:
        return self.counters.nbytes + (0 if self.sensitivity is None else self.sensitivity.nbytes)

    def observe(self, maps: Float[Tensor, "rows heads queries keys"], values: Float[Tensor, "rows heads keys width"]) -> None:
        """Count the maps and value norms of rows = images * windows maps."""
        norms = projected_norms(values.detach(), self.roots)
        flat = maps.detach().to("cpu", torch.float32).reshape(-1, self.site.entries).contiguous().numpy()
        try:
            if not bool(torch.isfinite(norms).all()):
                raise ValueError("values that are not finite")
            self.counters.accumulate(flat, torch.get_num_threads())
        except ValueError as error:
            raise VitfrostError(f"cannot calibrate: site {self.site.name} has {error}") from error
        fixed = (norms.double() * VALUE_SCALE).round().to("cpu", torch.int64)
        self.value_sums += fixed.reshape(-1, *self.value_sums.shape).sum(0).numpy()
        if self.sensitivity is not None:
            self.sensitivity.watch(maps, norms)

    def finish(self) -> SiteStatistics:
        """The statistics so far; masked pairs are cleared first."""
        site = self.site
        if self.allowed is not None:
            masked = np.broadcast_to(~self.allowed[:, None], site.maps_shape)
            self.counters.forget(masked.reshape(-1))
        return SiteStatistics(
            site.name, site.maps_shape, self.counters.images, *self.counters.sparse(),
            self.counters.sums, self.counters.squares, self.value_sums, self.allowed,
            None if self.sensitivity is None else self.sensitivity.finish(self.allowed),
        )  # fmt: skip


def head_roots(module: MapAttention) -> Float[Tensor, "heads width width"]:
    """R with R R^T = W_O^T W_O for every head's slice of the output projection, so that ||v R|| = ||W_O^h v||."""
    projection: Any = module.proj
    weight = getattr(projection, "float_weight", None)
    weight = projection.weight if weight is None else weight
    slices = weight.detach().double().reshape(-1, module.site.heads, module.site.head_dim)
    values, vectors = torch.linalg.eigh(torch.einsum("ohd,ohe->hde", slices, slices))
    return (vectors * values.clamp(min=0).sqrt().unsqueeze(-2)).float()


def projected_norms(
    values: Float[Tensor, "rows heads keys width"], roots: Float[Tensor, "heads width width"]
) -> Float[Tensor, "rows heads keys"]:
    """||v R||^2 of every value vector, one matrix product per head."""
    rows, heads, keys, width = values.shape
    projected = torch.bmm(values.transpose(0, 1).reshape(heads, rows * keys, width), roots)
    return torch.linalg.vector_norm(projected, dim=-1).square_().view(heads, rows, keys).transpose(0, 1)


def group_sites(
    sites: Sequence[AttentionSite], memory_limit: float | int, sensitivity: bool = False, kept: int = 0
) -> list[list[AttentionSite]]:
    """Split the sites into consecutive groups whose counters (and sums of `sensitivity`) each fit into `memory_limit` bytes.

    `kept`: bytes of logits that lie beside them, for the similarity of heads.
    Raises VitfrostError naming a site that is too large alone, and where the logits leave no room.
    """
    if kept > memory_limit:
        raise VitfrostError(
            f"comparing heads keeps {kept / 1e9:.1f} GB of logits of a batch, more than the memory limit of {memory_limit / 1e9:.1f} GB; "
            "raise it or use a smaller batch size"
        )
    groups: list[list[AttentionSite]] = []
    used = memory_limit
    beside = f" beside {kept / 1e9:.1f} GB of logits" if kept else ""
    per_entry = BYTES_PER_ENTRY + (SENSITIVITY_BYTES if sensitivity else 0)
    for site in sites:
        need = site.entries * per_entry
        if kept + need > memory_limit:
            raise VitfrostError(
                f"the maps of {site.name} alone need {need / 1e9:.1f} GB of counters{beside}, more than the memory limit of "
                f"{memory_limit / 1e9:.1f} GB; raise it or use a smaller image size"
            )
        if used + need > memory_limit:
            groups.append([])
            used = kept
        groups[-1].append(site)
        used += need
    return groups
