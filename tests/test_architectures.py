"""Every architecture of the EAM paper at its published width, DeiT-T and Swin-T at their published depth too, and three more (384 px, two
prefix tokens, padded windows), random weights, through the whole path and real files: calibrate, plan, compress, save, load, evaluate.
What is expected stands in the table or follows from it by arithmetic. Then models with fewer keys than queries, of fewer layers."""

from __future__ import annotations

import copy
from dataclasses import replace
from math import ceil, sqrt
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file

import vitfrost
from vitfrost.artifact import CONFIG_FILE, WEIGHTS_FILE, Artifact
from vitfrost.configs import Compress, FreezeEntries, Quantize
from vitfrost.model import Model
from vitfrost.plans.schema import Plan
from vitfrost.statistics.record import Statistics
from vitfrost.statistics.site import SiteStatistics
from vitfrost.vit.families import find_sites, install_map_attention
from vitfrost.vit.load import hash_state
from vitfrost.vit.stream import ResidualStream

IMAGES, FREEZE = 2, 0.3


class Stage(NamedTuple):
    """Equal attention layers; in a stage with `shifted` pairs every second layer is one of shifted windows."""

    layers: int
    width: int
    heads: int
    windows: int
    tokens: int  # of one window
    frozen: int  # floor(0.3 windows tokens^2), per head
    shifted: int | None = None  # (query, key) pairs of a head that the shift mask leaves
    shifted_frozen: int | None = None  # floor(0.3 shifted)


class Architecture(NamedTuple):
    """A timm model: `options` beside its name, patch size, prefix tokens (None: Swin), window (Swin), stages in order."""

    name: str
    patch: int
    prefix: int | None
    window: int
    stages: tuple[Stage, ...]
    options: dict[str, Any] = {}  # noqa: RUF012  (never changed)
    memory_limit: float = 4e9


def swin(depth: int) -> tuple[Stage, ...]:
    """Swin at 224 px: 8 x 8, 4 x 4, 2 x 2 windows and one, of 7 x 7 tokens; the last window of m per axis is cut into 4 + 3.

    So the shift leaves (49 (m - 1) + 16 + 9)^2 pairs: 368^2, 172^2, 74^2. The one window of the last stage is never shifted.
    """
    return (
        Stage(2, 96, 3, 64, 49, 46_099, 135_424, 40_627),  # 153,664 pairs
        Stage(2, 192, 6, 16, 49, 11_524, 29_584, 8_875),  # 38,416
        Stage(depth, 384, 12, 4, 49, 2_881, 5_476, 1_642),  # 9,604
        Stage(2, 768, 24, 1, 49, 720),  # 2,401
    )


# At 112 px with windows of 4 x 4: grids of 28, 14 and 7 tokens a side, padded to 28, 16 and 8, then one of 4.
# The shift leaves (16 (m - 1) + 4 + 4)^2 pairs for m = 7, 4, 2 windows per axis: 104^2, 56^2, 24^2.
PADDED = (
    Stage(2, 96, 3, 49, 16, 3_763, 10_816, 3_244),  # 12,544 pairs
    Stage(2, 192, 6, 16, 16, 1_228, 3_136, 940),  # 4,096
    Stage(6, 384, 12, 4, 16, 307, 576, 172),  # 1,024
    Stage(2, 768, 24, 1, 16, 76),  # 256
)

# 14 x 14 patches and the class token: 197^2 = 38,809 pairs; two prefix tokens: 198^2 = 39,204; 24 x 24 and one: 577^2 = 332,929.
ARCHITECTURES = [
    # shallow, for time; what a depth adds are layers like these
    Architecture("vit_small_patch16_224", 16, 1, 0, (Stage(3, 384, 6, 1, 197, 11_642),), {"depth": 3}),
    Architecture("vit_base_patch16_224", 16, 1, 0, (Stage(2, 768, 12, 1, 197, 11_642),), {"depth": 2}),
    # shallow: the time goes into the counters, 336 bytes for each of a layer's million entries
    Architecture("vit_tiny_patch16_384", 16, 1, 0, (Stage(2, 192, 3, 1, 577, 99_878),), {"depth": 2}, 5e8),  # two passes
    Architecture("deit_tiny_patch16_224", 16, 1, 0, (Stage(12, 192, 3, 1, 197, 11_642),)),
    Architecture("deit_small_patch16_224", 16, 1, 0, (Stage(3, 384, 6, 1, 197, 11_642),), {"depth": 3}),
    Architecture("deit_base_patch16_224", 16, 1, 0, (Stage(2, 768, 12, 1, 197, 11_642),), {"depth": 2}),  # its sizes: tests/measure
    Architecture("deit_tiny_distilled_patch16_224", 16, 2, 0, (Stage(12, 192, 3, 1, 198, 11_761),)),
    Architecture("swin_tiny_patch4_window7_224", 4, None, 7, swin(6)),
    Architecture("swin_small_patch4_window7_224", 4, None, 7, swin(2), {"depths": (2, 2, 2, 2)}),  # Swin-T but for its depth
    Architecture("swin_tiny_patch4_window7_224", 4, None, 4, PADDED, {"image_size": 112, "window_size": 4}),
]


def layers_of(stages: tuple[Stage, ...]) -> list[tuple[tuple[int, int, int, int], int, int]]:
    """Per attention layer: maps [windows, heads, queries, keys], unmasked pairs of a head, frozen ones among them."""
    layers = []
    for stage in stages:
        for index in range(stage.layers):
            pairs, frozen = stage.windows * stage.tokens**2, stage.frozen
            if stage.shifted is not None and index % 2:
                pairs, frozen = stage.shifted, stage.shifted_frozen
            layers.append(((stage.windows, stage.heads, stage.tokens, stage.tokens), pairs, frozen))
    return layers


def linear_bytes(outputs: int, inputs: int) -> int:
    """4-bit codes, two per byte; per output scale (float32), zero point (int16), bias (float32); scale and zero point of the input."""
    return ceil(outputs * inputs / 2) + outputs * (4 + 2 + 4) + 4 + 4


def model_bytes(architecture: Architecture) -> int:
    """Tensor bytes of a W4/A4 artifact before anything is frozen."""
    _, patch, prefix, window, stages, *_ = architecture
    first, last = stages[0].width, stages[-1].width
    total = linear_bytes(first, 3 * patch**2) + 4 * 2 * last  # stem, final norm
    if prefix is None:  # norm of the patches; relative biases of each layer; 2 x 2 tokens of `width` merged into one of 2 * width
        total += 4 * 2 * first + linear_bytes(1000, last)
        side = 2 * window - 1
        total += sum(4 * side**2 * stage.heads * stage.layers for stage in stages)
        total += sum(4 * 2 * 4 * stage.width + linear_bytes(2 * stage.width, 4 * stage.width) for stage in stages[:-1])
    else:  # prefix tokens, positions of all tokens; one classifier per prefix token
        total += 4 * first * (prefix + stages[0].tokens) + prefix * linear_bytes(1000, last)
    for stage in stages:
        width = stage.width
        linears = [linear_bytes(*shape) for shape in ((3 * width, width), (width, width), (4 * width, width), (width, 4 * width))]
        total += stage.layers * (sum(linears) + 4 * 2 * 2 * width + 3 * (4 + 4) + 4)  # two norms; quantizers of q, k, v; step of the maps
    return total


def frozen_bytes(maps: tuple[int, int, int, int], frozen: int, zeros: int) -> int:
    """One bit per entry; of the `frozen` constants of a layer one bit each, and 4-bit codes of those but `zeros`; a step per head."""
    return ceil(int(np.prod(maps)) / 8) + ceil(frozen / 8) + ceil((frozen - zeros) / 2) + 4 * maps[1]


def load_sharp(name: str, image_size: int | None = None, **options: Any) -> Model:
    """Random weights with logits that vary by about 4: timm's own give maps so even that all entropies tie and no constant is zero."""
    loaded = Model.open(name, weights="random", image_size=image_size, options=options)
    for site in find_sites(loaded.module).attention:
        rows = loaded.module.get_submodule(site.name).qkv.weight.data[: 2 * site.width]
        rows *= 2 / (float(rows.std()) * sqrt(site.width))
    return replace(loaded, state_hash=hash_state(loaded.module))


def per_head(mask: np.ndarray) -> list[int]:
    """How many entries of [windows, heads, queries, keys] are set in each head."""
    return mask.sum((0, 2, 3)).tolist()


def check_statistics(site: SiteStatistics, maps: tuple[int, int, int, int], pairs: int) -> np.ndarray:
    """Shapes, every unmasked entry counted once per image, nothing known of masked ones. Returns the unmasked entries."""
    assert site.maps_shape == site.mean.shape == site.variance.shape == site.entropy.shape == maps
    assert site.value_norm.shape == (maps[0], maps[1], maps[3])
    unmasked = np.ones(maps, bool) if site.allowed is None else np.repeat(site.allowed[:, None], maps[1], 1)
    assert (site.allowed is None) == (pairs == maps[0] * maps[2] * maps[3])
    assert per_head(unmasked) == [pairs] * maps[1]
    assert int(site.counts.sum(dtype=np.int64)) == IMAGES * maps[1] * pairs
    for known in (site.widths, site.sums, site.squares, site.mean, site.variance, site.entropy):
        assert not known.reshape(maps)[~unmasked].any()
    assert np.allclose(site.mean.sum(-1), 1, atol=1e-4)
    return unmasked


def check_blocks(model: torch.nn.Module, pixels: torch.Tensor, expected: torch.Tensor) -> None:
    """Block after block the model computes the bits that it computes as a whole."""
    stream = ResidualStream(model)
    assert stream.names == [site.name.rpartition(".")[0] for site in find_sites(model).feed_forward]
    assert torch.equal(stream.leave(stream.run(stream.enter(pixels))), expected)


@pytest.mark.parametrize("architecture", ARCHITECTURES, ids=lambda row: "-".join([row.name, *map(str, row.options.values())]))
@torch.no_grad()
def test_whole_path(architecture: Architecture, pictures: Path, tmp_path: Path) -> None:
    layers = layers_of(architecture.stages)
    loaded = load_sharp(architecture.name, **architecture.options)
    pixels = torch.randn(2, 3, *loaded.image_size, generator=torch.Generator().manual_seed(0))
    expected = loaded.module(pixels)
    check_blocks(loaded.module, pixels, expected)
    tolerance = 1e-5 * max(1.0, float(expected.abs().max()))

    measured = tmp_path / "statistics.safetensors"
    vitfrost.calibrate(
        loaded, pictures, vitfrost.Calibrate(limit=IMAGES, memory_limit=architecture.memory_limit), out=measured, progress=False
    )
    statistics = Statistics.load(measured)
    assert len(statistics.sites) == len(layers)
    unmasked = {
        name: check_statistics(site, maps, pairs) for (name, site), (maps, pairs, _) in zip(statistics.sites.items(), layers, strict=True)
    }

    # nothing quantized, nothing frozen: timm's outputs, with explicit maps, and with fused ones after a file
    explicit = copy.deepcopy(loaded.module)
    for module in install_map_attention(explicit).values():
        module.observe(lambda maps, values: None)
    assert float((explicit(pixels) - expected).abs().max()) < tolerance
    del explicit, module  # models are given up as soon as they are done with: the process stays at about 3 GB
    unchanged = vitfrost.plan(statistics, Quantize(32, 32))
    vitfrost.compress(loaded, unchanged, out=tmp_path / "unchanged")
    assert float((Artifact.load(tmp_path / "unchanged").module(pixels) - expected).abs().max()) < tolerance

    # everything frozen: every unmasked entry, no masked one
    everything = vitfrost.plan(statistics, FreezeEntries(1.0, bits=32), Quantize(32, 32))
    whole = vitfrost.compress(loaded, everything, statistics=statistics)
    for name, entries in unmasked.items():
        frozen = whole.module.get_submodule(f"{name}.frozen")
        assert np.array_equal(frozen.mask.numpy(), entries)
        assert frozen.constant_heads == list(range(entries.shape[1]))
    del whole, frozen

    # the main path: the same counts in the plan, in the file's bits, and in the loaded model
    vitfrost.plan(measured, FreezeEntries(FREEZE), out=tmp_path / "plan.yaml")
    chosen, out = Plan.load(tmp_path / "plan.yaml"), tmp_path / "artifact"
    made = vitfrost.compress(
        loaded, tmp_path / "plan.yaml", statistics=measured, images=pictures, out=out, config=Compress(calibration_images=2)
    )
    logits = made.module(pixels[:1])
    del made
    again = Artifact.load(out)
    assert torch.equal(again.module(pixels[:1]), logits)
    tensors = load_file(out / WEIGHTS_FILE)
    size = model_bytes(architecture)
    for layer, (maps, _, count) in zip(chosen.layers, layers, strict=True):
        assert [head.entries for head in layer.heads] == [count] * maps[1]
        bits = np.unpackbits(tensors[f"{layer.site}.frozen.mask"], bitorder="little")
        mask = bits[: np.prod(maps)].reshape(maps).astype(bool)
        assert not bits[np.prod(maps) :].any()
        assert per_head(mask) == [count] * maps[1]
        assert not (mask & ~unmasked[layer.site]).any()
        frozen = again.module.get_submodule(f"{layer.site}.frozen")
        assert np.array_equal(frozen.mask.numpy(), mask)
        size += frozen_bytes(maps, count * maps[1], int((frozen.constants[frozen.mask] == 0).sum()))
    assert sum(tensor.nbytes for tensor in tensors.values()) == size
    content = (out / WEIGHTS_FILE).read_bytes()
    assert len(content) == 8 + int.from_bytes(content[:8], "little") + size

    row = vitfrost.evaluate(again, pictures, config=vitfrost.Evaluate(limit=IMAGES), reference=loaded, progress=False)
    assert (row.kind, row.precision, row.images, row.skipped) == ("simulated", "W4/A4", IMAGES, 0)
    assert (row.plan_hash, row.size_bytes) == (chosen.content_hash, len(content) + (out / CONFIG_FILE).stat().st_size)
    assert row.reference == architecture.name
    assert 0 <= row.agreement <= 100
    assert np.isfinite(row.kl)
    assert row.kl > 0


class Reduced(NamedTuple):
    """A timm model with fewer keys than queries: `options` beside its name; heads, queries, keys and floor(0.3 queries keys) by layer."""

    name: str
    image_size: int | tuple[int, int]
    options: dict[str, Any]
    layers: tuple[tuple[int, int, int, int], ...]


# Patches of 4, 8, 16, 32 px. PVT: keys of 32 x 32 px, or 7 x 7 of them; in version 1 a class token in the last stage.
# Next-ViT: three stages attend, with means of 16, 4 and 1 consecutive tokens as keys; heads of 32 in 3/4 of 256, 512, 1024 channels.
REDUCED = [
    Reduced("vitfrost_pvt_tiny", 96, {"depths": (1, 1, 1, 1)}, ((1, 576, 9, 1_555), (2, 144, 9, 388), (5, 36, 9, 97), (8, 10, 10, 30))),
    Reduced("pvt_v2_b0", (64, 96), {"depths": (1, 2, 1, 1)},
            ((1, 384, 6, 691), (2, 96, 6, 172), (2, 96, 6, 172), (5, 24, 6, 43), (8, 6, 6, 10))),
    Reduced("pvt_v2_b2_li", 64, {"depths": (1, 1, 1, 1)}, ((1, 256, 49, 3_763), (2, 64, 49, 940), (5, 16, 49, 235), (8, 4, 49, 58))),
    Reduced("nextvit_small", 64, {"depths": (1, 1, 5, 1)}, ((6, 64, 4, 76), (12, 16, 4, 19), (24, 4, 4, 4))),
]  # fmt: skip


def load_uneven(architecture: Reduced) -> Model:
    """Random weights with logits that vary, and BatchNorms that know what they read."""
    loaded = Model.open(
        architecture.name, weights="random", image_size=architecture.image_size, options={"num_classes": 10, **architecture.options}
    )
    for site in find_sites(loaded.module).attention:
        attention = loaded.module.get_submodule(site.name)
        keys = attention.kv if hasattr(attention, "kv") else attention.k
        for rows in (attention.q.weight.data, keys.weight.data[: site.width]):
            rows *= 2 / (float(rows.std()) * sqrt(site.width))
    for module in loaded.module.modules():
        if isinstance(module, torch.nn.modules.batchnorm._BatchNorm):
            module.momentum = 1.0
    loaded.module.train()(torch.randn(8, 3, *loaded.image_size, generator=torch.Generator().manual_seed(1)))
    return replace(loaded, module=loaded.module.eval(), state_hash=hash_state(loaded.module))


def bytes_by_shape(model: torch.nn.Module) -> int:
    """Tensor bytes of a W4/A4 artifact before anything is frozen: every linear layer and convolution packed, the rest as it is."""
    sites = find_sites(model)
    total = sum(tensor.nbytes for tensor in model.state_dict().values()) + len(sites.attention) * (3 * (4 + 4) + 4)
    for site in sites.linears:
        layer = model.get_submodule(site.name)
        bias = 0 if layer.bias is None and site.norm is None else 4
        total += ceil(layer.weight.numel() / 2) + len(layer.weight) * (4 + 2 + bias) + 4 + 4
        total -= layer.weight.nbytes + (0 if layer.bias is None else layer.bias.nbytes)
    return total


@pytest.mark.parametrize("architecture", REDUCED, ids=lambda row: row.name)
@torch.no_grad()
def test_whole_path_with_fewer_keys(architecture: Reduced, pictures: Path, tmp_path: Path) -> None:
    loaded = load_uneven(architecture)
    pixels = torch.randn(2, 3, *loaded.image_size, generator=torch.Generator().manual_seed(0))
    expected = loaded.module(pixels)
    check_blocks(loaded.module, pixels, expected)
    tolerance = 1e-5 * float(expected.abs().max())

    measured, out = tmp_path / "statistics.safetensors", tmp_path / "artifact"
    vitfrost.calibrate(loaded, pictures, vitfrost.Calibrate(limit=IMAGES), out=measured, progress=False)
    statistics = Statistics.load(measured)
    assert len(statistics.sites) == len(architecture.layers)
    for site, (heads, queries, keys, _) in zip(statistics.sites.values(), architecture.layers, strict=True):
        check_statistics(site, (1, heads, queries, keys), queries * keys)
        assert queries < 5 or float(site.mean.std(-1).mean()) > 0.1 / keys

    # nothing quantized, nothing frozen: timm's outputs, with explicit maps, and with fused ones after a file
    explicit = copy.deepcopy(loaded.module)
    for module in install_map_attention(explicit).values():
        module.observe(lambda maps, values: None)
    assert float((explicit(pixels) - expected).abs().max()) < tolerance
    unchanged = vitfrost.plan(statistics, Quantize(32, 32))
    vitfrost.compress(loaded, unchanged, out=tmp_path / "unchanged")
    assert float((Artifact.load(tmp_path / "unchanged").module(pixels) - expected).abs().max()) < tolerance

    # everything frozen: no image changes a map, so that only values and feed-forward blocks tell images apart
    everything = vitfrost.plan(statistics, FreezeEntries(1.0, bits=32), Quantize(32, 32))
    whole = vitfrost.compress(loaded, everything, statistics=statistics)
    for name, site in statistics.sites.items():
        frozen = whole.module.get_submodule(f"{name}.frozen")
        assert frozen.constant_heads == list(range(site.maps_shape[1]))
        assert np.allclose(frozen.constants.numpy(), site.mean, atol=1e-6)
    assert bool(torch.isfinite(whole.module(pixels)).all())

    # the main path: the same counts in the plan, in the file's bits, and in the loaded model
    vitfrost.plan(measured, FreezeEntries(FREEZE), out=tmp_path / "plan.yaml")
    chosen = Plan.load(tmp_path / "plan.yaml")
    made = vitfrost.compress(
        loaded, tmp_path / "plan.yaml", statistics=measured, images=pictures, out=out, config=Compress(calibration_images=2)
    )
    again = Artifact.load(out)
    assert torch.equal(again.module(pixels), made.module(pixels))
    tensors = load_file(out / WEIGHTS_FILE)
    size = bytes_by_shape(loaded.module)
    for layer, (heads, queries, keys, count) in zip(chosen.layers, architecture.layers, strict=True):
        maps = (1, heads, queries, keys)
        assert [head.entries for head in layer.heads] == [count] * heads
        mask = np.unpackbits(tensors[f"{layer.site}.frozen.mask"], bitorder="little")[: np.prod(maps)].reshape(maps).astype(bool)
        assert per_head(mask) == [count] * heads
        frozen = again.module.get_submodule(f"{layer.site}.frozen")
        assert np.array_equal(frozen.mask.numpy(), mask)
        size += frozen_bytes(maps, count * heads, int((frozen.constants[frozen.mask] == 0).sum()))
    assert sum(tensor.nbytes for tensor in tensors.values()) == size

    row = vitfrost.evaluate(again, pictures, config=vitfrost.Evaluate(limit=IMAGES), reference=loaded, progress=False)
    assert (row.kind, row.precision, row.images, row.skipped) == ("simulated", "W4/A4", IMAGES, 0)
    assert (row.plan_hash, row.size_bytes) == (chosen.content_hash, sum(file.stat().st_size for file in out.iterdir()))
    assert np.isfinite(row.kl)
    assert row.kl > 0
