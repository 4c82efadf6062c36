"""The engine against the reference in NumPy: same codes, same sums, on every instruction set of this machine."""

from __future__ import annotations

import threading
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from vitfrost.configs import Compact, FreezeEntries, FreezeHeads, Hallucinate, Quantize, WindowHeads
from vitfrost.deploy.native import parts
from vitfrost.deploy.native.eight_bits import in_integers
from vitfrost.deploy.native.format import ATTENTION, read_model, to_bytes
from vitfrost.methods.quantize.modules import UniformQuantizer
from vitfrost.passes.resize import resize

from .reference import Reference
from .simulation import noise, quantized, with_scales_of_heads, write

STRICT = Quantize(4, 4, "strict")


def close(engine: Any, path: Path, pixels: np.ndarray) -> None:
    """On every instruction set the logits are the reference's but for the order of sums.

    A number on the edge between two codes may fall to either side, and everything behind it changes. So a picture's logits may differ from
    the reference's as far as those of references do whose sums are disturbed by as much as float32 rounds.
    """
    wanted = Reference(path).run(pixels).reshape(len(pixels), -1)
    disturbed = [np.abs(Reference(path, 5e-7, seed).run(pixels).reshape(wanted.shape) - wanted).max(1) for seed in range(6)]
    allowed = np.maximum(1e-4 * np.ptp(wanted), 3 * np.max(disturbed, axis=0))
    assert allowed.min() < 0.1 * np.ptp(wanted)
    for isa in engine.isas():
        with engine.instructions(isa), engine.Model(path) as model:
            assert model.info.isa == isa
            difference = np.abs(model.run(pixels) - wanted).max(1)
        assert (difference <= allowed).all(), (isa, difference / allowed)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"name": "deit_tiny_distilled_patch16_224", "depth": 1},
        {"reg_tokens": 3, "init_values": 0.1, "size": (32, 80)},
        {"global_pool": "avg", "fc_norm": True, "class_token": False, "num_heads": 1, "num_classes": 0},
        {"global_pool": "avg", "fc_norm": False, "qkv_bias": False},
        {"pre_norm": True, "no_embed_class": True, "embed_dim": 36, "num_heads": 3},
        {"act_layer": "gelu_tanh", "mlp_ratio": 2.5, "num_classes": 0, "global_pool": ""},
        {"act_layer": "quick_gelu", "size": 16},
        {"act_layer": "relu", "embed_dim": 200, "num_heads": 2, "patch_size": 8},
    ],
    ids=str,
)
@pytest.mark.parametrize("bits", [(4, 4), (8, 8), (4, 8), (2, 3)], ids=str)
def test_every_kind_of_plain_vit(engine: Any, options: dict[str, Any], bits: tuple[int, int], tmp_path: Path) -> None:
    module = quantized(*bits, **options)
    close(engine, write(module, tmp_path / "model.vfn"), noise(module, 8).numpy())


@pytest.mark.parametrize(
    "methods",
    [
        [FreezeEntries(0.3), STRICT],
        [FreezeEntries(0.6, scope="layer", bits=8), Quantize(8, 8, "strict")],
        [FreezeEntries(0.3, grid="head"), STRICT],
        [FreezeEntries(0.4, bits=3), Quantize(8, 8, "strict")],
        [FreezeEntries(0.3), Quantize(4, 32)],
        [FreezeHeads(0.5, kind="dense"), STRICT],
        [FreezeHeads(0.5, kind="local", window=3), Quantize(8, 8, "strict")],
        [FreezeHeads(0.5, unit="layer"), STRICT],
        [WindowHeads(0.5, window=3), STRICT],
        [WindowHeads(0.5, window=5), FreezeHeads(0.25, kind="local", window=3), Quantize(4, 8, "strict")],
        [WindowHeads(1.0, window=3), Quantize(32, 32)],
        [Hallucinate(0.5, by="first", mix="copy"), STRICT],
        [Hallucinate(0.5, by="first", mix="copy", intra_map="5x5", prefix="include"), STRICT],
        [Hallucinate(0.5, by="first", inter_map="copy", intra_map="none"), STRICT],
        [Compact(0.5), STRICT],
        [Hallucinate(0.25, by="first", mix="copy"), FreezeHeads(0.25, kind="dense"), Compact(0.5), Quantize(4, 8, "strict")],
        [Quantize(4, 32)],
        [FreezeHeads(0.25, kind="dense"), Quantize(32, 32)],
    ],
    ids=lambda methods: ", ".join(type(method).__name__ for method in methods),
)
def test_every_map_source(engine: Any, shallow: Any, methods: list[Any], tmp_path: Path) -> None:
    made = shallow.compress(tmp_path / "made", *methods)
    disturb(made.module)
    close(engine, write(in_integers(made, noise(made.module, 8)), tmp_path / "model.vfn"), noise(made.module, 8).numpy())


def test_heads_with_scales_of_their_own(engine: Any, tmp_path: Path) -> None:
    module = with_scales_of_heads(quantized(4, 4))
    close(engine, write(module, tmp_path / "model.vfn"), noise(module, 8).numpy())


def with_bases_of_heads(module: Any, *octaves: float) -> Any:
    """The model with maps on log grids of other bases, so many levels to a factor of two by head."""
    for block in module.blocks:
        quantizer = block.attn.map_quantizer
        quantizer.octave = torch.tensor(octaves).view(-1, 1, 1)
        quantizer.step = quantizer.step * torch.ones(len(octaves), 1, 1)
    return module


@pytest.mark.parametrize("bits", [(4, 4), (4, 3), (8, 2)], ids=str)
def test_maps_on_log_grids_of_other_bases(engine: Any, bits: tuple[int, int], tmp_path: Path) -> None:
    module = with_bases_of_heads(quantized(*bits), 4 / 3, 1.0)
    close(engine, write(module, tmp_path / "model.vfn"), noise(module, 8).numpy())


def test_frozen_entries_and_windows_on_log_grids_of_other_bases(engine: Any, shallow: Any, tmp_path: Path) -> None:
    for plan in (FreezeEntries(0.4, grid="head"), WindowHeads(0.5, 3), Hallucinate(0.5, by="first", mix="copy")):
        made = shallow.compress(tmp_path / type(plan).__name__, plan, STRICT)
        with_bases_of_heads(made.module, 4 / 3, 1.0, 2.0, 4 / 3)
        close(engine, write(in_integers(made, None), tmp_path / "model.vfn"), noise(made.module, 8).numpy())


def test_frozen_entries_among_uniform_maps(engine: Any, shallow: Any, tmp_path: Path) -> None:
    made = shallow.compress(tmp_path / "made", FreezeEntries(0.4, grid="head"), STRICT)
    generator = torch.Generator().manual_seed(0)
    for layer in made.module.blocks:
        maps = UniformQuantizer(4)
        scale = torch.rand(len(layer.attn.frozen.step), 1, 1, generator=generator)
        maps.scale, maps.zero_point = scale * 0.02 + 0.01, torch.full((1, 1, 1), 2.0)
        layer.attn.map_quantizer = maps
    close(engine, write(in_integers(made, None), tmp_path / "model.vfn"), noise(made.module, 8).numpy())


def test_local_maps_of_many_tokens(engine: Any, shallow: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = shallow.compress(tmp_path / "made", FreezeHeads(0.5, kind="local", window=3), STRICT)
    monkeypatch.setattr(parts, "WHOLE_MAPS_TOKENS", 64)
    monkeypatch.setattr(parts, "LARGEST_WHOLE_MAPS_TOKENS", 64)
    close(engine, write(in_integers(made, None), tmp_path / "model.vfn"), noise(made.module, 8).numpy())


@pytest.mark.parametrize("size", [(64, 80), (96, 96)], ids=str)
def test_local_maps_whose_taps_stand_apart(
    engine: Any, shallow: Any, size: tuple[int, int], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Kernels carried over to a larger grid: a smoothing, and then as many taps as before."""
    small = shallow.compress(tmp_path / "small", FreezeHeads(0.5, kind="local", window=3))
    made = resize(small, size)
    monkeypatch.setattr(parts, "WHOLE_MAPS_TOKENS", 64)
    monkeypatch.setattr(parts, "LARGEST_WHOLE_MAPS_TOKENS", 64)
    apart = {head.dilation for layer in made.plan.layers for head in layer.heads if head.constant}
    path = write(in_integers(made, noise(made.module, 2)), tmp_path / "model.vfn")
    assert apart == {layer.ints[21] for layer in read_model(path).layers if layer.kind == ATTENTION}
    close(engine, path, noise(made.module, 3).numpy())
    file = read_model(path)  # taps further apart than the grid is wide would ask for any amount of memory
    file.layers = [replace(layer, ints=(*layer.ints[:21], max(size), *layer.ints[22:])) for layer in file.layers]
    with pytest.raises(engine.VitfrostError, match="distance of taps"):
        engine.Model(to_bytes(file))


def disturb(module: nn.Module) -> None:
    """Convolutions and biases of hallucinated heads are zero before training."""
    generator = np.random.default_rng(0)
    for name, parameter in module.named_parameters():
        if "hallucination" in name:
            parameter.data += parameter.data.new_tensor(0.2 * generator.standard_normal(parameter.shape))


def test_pictures_whose_pixels_are_all_ties(engine: Any, tmp_path: Path) -> None:
    """With a mean and deviation of 0.5 and pictures from black to white, every pixel lies between two codes."""
    module: Any = quantized(4, 4)
    stem = module.patch_embed.proj.input_quantizer
    stem.set_range(torch.tensor(-1.0), torch.tensor(1.0))
    pictures = np.random.default_rng(0).integers(0, 256, (8, 3, 48, 48), dtype=np.uint8)
    close(
        engine, write(module, tmp_path / "model.vfn"), (pictures.astype(np.float32) / np.float32(255) - np.float32(0.5)) / np.float32(0.5)
    )


def test_the_logits_are_the_same_bits_for_any_number_of_threads_and_any_batch(engine: Any, tmp_path: Path) -> None:
    module = quantized(4, 4, depth=3)
    path, pixels = write(module, tmp_path / "model.vfn"), noise(module, 7).numpy()
    with engine.Model(path, threads=1) as one, engine.Model(path, threads=3) as three, engine.Model(path.read_bytes()) as of_memory:
        wanted = one.run(pixels)
        assert three.info.threads == 3
        assert three.run(pixels).tobytes() == of_memory.run(pixels).tobytes() == wanted.tobytes()
        assert np.concatenate([three.run(pixels[index : index + 1]) for index in range(7)]).tobytes() == wanted.tobytes()


def test_a_model_runs_in_several_threads_at_once(engine: Any, tmp_path: Path) -> None:
    module = quantized(4, 8)
    pixels = noise(module, 12).numpy()
    with engine.Model(write(module, tmp_path / "model.vfn"), threads=2) as model:
        wanted, found = model.run(pixels), {}

        def run(number: int) -> None:
            for _ in range(5):
                found[number] = model.run(pixels[number : number + 3])

        workers = [threading.Thread(target=run, args=(number,)) for number in range(6)]
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    assert all(found[number].tobytes() == wanted[number : number + 3].tobytes() for number in range(6))


def test_a_model_says_what_it_is_and_where_its_time_goes(engine: Any, tmp_path: Path) -> None:
    module = quantized(4, 4)
    pixels = noise(module, 2).numpy()
    with engine.Model(write(module, tmp_path / "model.vfn")) as model:
        info = model.info
        assert (info.channels, info.height, info.width, info.classes, info.tokens, info.threads) == (3, 48, 48, 7, 10, 1)
        assert info.isa in engine.isas()
        assert info.memory_bytes > 0
        model.profile()
        for _ in range(3):
            model.run(pixels)
        rows = model.profile_rows()
        assert len(rows) > 2
        assert sum(row.seconds for row in rows) > 0
        assert all(row.seconds >= 0 and row.macs >= 0 for row in rows)
        model.profile()
        model.run(pixels)
        once = {row.name: row.macs for row in model.profile_rows()}
        assert {row.name: row.macs for row in rows} == {name: 3 * macs for name, macs in once.items()}


@pytest.mark.parametrize(
    "pixels",
    [np.zeros((1, 3, 48, 47), np.float32), np.zeros((3, 48, 48), np.float32), np.zeros((1, 3, 48, 48))],
    ids=lambda pixels: f"{pixels.dtype} {pixels.shape}",
)
def test_other_pixels_are_refused(engine: Any, pixels: np.ndarray, tmp_path: Path) -> None:
    with (
        engine.Model(write(quantized(4, 4), tmp_path / "model.vfn")) as model,
        pytest.raises(engine.VitfrostError, match=r"this model reads normalized pixels, float32 \[B, 3, 48, 48\]"),
    ):
        model.run(pixels)


def test_pixels_in_another_order_of_memory_are_the_same(engine: Any, tmp_path: Path) -> None:
    module = quantized(4, 4)
    pixels = noise(module, 2).numpy()
    with engine.Model(write(module, tmp_path / "model.vfn")) as model:
        assert np.array_equal(model.run(np.asfortranarray(pixels)), model.run(pixels))
        assert model.run(pixels[:0]).shape == (0, 7)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf, 3e38])
def test_pixels_that_are_no_numbers_end_in_logits_or_in_one_line(engine: Any, value: float, tmp_path: Path) -> None:
    module = quantized(4, 4)
    pixels = noise(module, 2).numpy()
    with engine.Model(write(module, tmp_path / "model.vfn")) as model:
        wanted = model.run(pixels)[1:]
        pixels[0, :, 5:9, 7] = value
        with suppress(engine.VitfrostError):
            assert np.array_equal(model.run(pixels)[1:], wanted)


def test_a_closed_model_and_unknown_instructions_are_named(engine: Any, tmp_path: Path) -> None:
    path = write(quantized(4, 4), tmp_path / "model.vfn")
    model = engine.Model(path)
    model.close()
    model.close()
    with pytest.raises(engine.VitfrostError, match="this model is closed"):
        model.run(np.zeros((1, 3, 48, 48), np.float32))
    with engine.instructions("mmx"), pytest.raises(engine.VitfrostError, match="mmx"):
        engine.Model(path)
    for threads in (0, -5, 257, 2**32 + 1):
        with pytest.raises(engine.VitfrostError, match=r"the number of threads is .*; give 1 to 256"):
            engine.Model(path, threads=threads)
    engine.Model(path).close()
