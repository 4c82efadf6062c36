"""Every instruction set against the portable form, in all shapes: tails, one token, 4,097 tokens; and how much memory a file may take."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st

from vitfrost.deploy.native.families import to_native
from vitfrost.deploy.native.format import (
    ATTENTION,
    EMBED,
    FEED_FORWARD,
    HEAD,
    LINEAR,
    NONE,
    NORM,
    Layer,
    ModelFile,
    to_bytes,
)

from .simulation import noise, quantized

PORTABLE = "portable"


def run(engine: Any, isa: str, data: bytes, pixels: np.ndarray) -> np.ndarray:
    """Logits on an instruction set."""
    with engine.instructions(isa), engine.Model(data) as model:
        found: np.ndarray = model.run(pixels)
    return found


@given(
    grid=st.tuples(st.integers(1, 9), st.integers(1, 9)),
    heads=st.integers(1, 4),
    width=st.integers(4, 40),  # norms of two channels leave nothing to quantize
    hidden=st.integers(1, 150),
    bits=st.sampled_from([(4, 4), (4, 8), (8, 8), (3, 5), (8, 4)]),
    token=st.booleans(),
)
@example(grid=(1, 1), heads=1, width=7, hidden=5, bits=(4, 4), token=False)  # one token
@settings(max_examples=25, deadline=None)
def test_tails_of_tokens_channels_and_heads(
    engine: Any, grid: tuple[int, int], heads: int, width: int, hidden: int, bits: tuple[int, int], token: bool
) -> None:
    """Numbers on an edge between two codes may fall to either side, in a few pictures; a tail that is wrong is wrong in all of them."""
    channels = heads * width
    options = {"patch_size": 4, "embed_dim": channels, "num_heads": heads, "mlp_ratio": hidden / channels}
    size = (4 * grid[0], 4 * grid[1])
    module = quantized(*bits, size=size, class_token=token, global_pool="token" if token else "avg", **options)
    data, pixels = to_bytes(to_native(module, "the model")), noise(module, 9).numpy()
    wanted = run(engine, PORTABLE, data, pixels)
    for isa in engine.isas():
        difference = np.abs(run(engine, isa, data, pixels) - wanted).max(1)
        assert np.median(difference) <= 1e-4 * np.ptp(wanted) + 1e-6, isa


@pytest.mark.parametrize("bits", [(4, 4), (8, 8)], ids=str)
def test_4097_tokens(engine: Any, bits: tuple[int, int]) -> None:
    """The weights of a small model over a picture of 256 pixels, in patches of four."""
    module = quantized(*bits, size=16, patch_size=4, depth=1, num_classes=0, global_pool="")
    file = to_native(module, "the model")
    layers = []
    for layer in file.layers:
        ints = list(layer.ints)
        if layer.kind == EMBED:
            ints[1:3], layer = [256, 256], replace(layer, tensors=(layer.tensors[0], NONE))
        elif layer.kind in (ATTENTION, FEED_FORWARD):
            ints[6 if layer.kind == ATTENTION else 5] = 4097
        layers.append(replace(layer, ints=tuple(ints)))
    file.layers = layers
    data = to_bytes(file)
    pixels = np.random.default_rng(0).standard_normal((1, 3, 256, 256), dtype=np.float32)
    wanted = run(engine, PORTABLE, data, pixels).reshape(4097, -1)
    assert np.isfinite(wanted).all()
    for isa in engine.isas():
        apart = np.abs(run(engine, isa, data, pixels).reshape(wanted.shape) - wanted).max(1) > 1e-4 * np.ptp(wanted)
        assert apart.mean() < 0.1, isa


def linear(file: ModelFile, inputs: int, outputs: int) -> int:
    """A layer of zeros, of one bit."""
    tensors = [file.add_tensor(np.zeros((outputs, inputs)), 1), file.add_tensor(np.ones(outputs)), file.add_tensor(np.zeros(outputs))]
    return file.add_layer(Layer(LINEAR, (inputs, outputs, 8, 0), (1.0, 0.0), tuple(tensors)))


def wide_stream(side: int, channels: int) -> bytes:
    """A file of some kilobytes with side x side tokens of so many channels."""
    file = ModelFile()
    patch, head = linear(file, 1, channels), linear(file, channels, 2)
    file.add_layer(Layer(EMBED, (1, side, side, 1, 1, patch, 0, channels)))
    file.add_layer(Layer(HEAD, (NONE, head, 1, NONE, 0, 0)))
    return to_bytes(file)


def attention(heads: int, side: int, value_zero: float) -> bytes:
    """Attention over side x side tokens of one channel, in heads of one."""
    file = ModelFile()
    patch, qkv, proj, head = linear(file, 1, 1), linear(file, 1, 3 * heads), linear(file, heads, 1), linear(file, 1, 2)
    norm = file.add_layer(Layer(NORM, (1,), (1e-6,), (file.add_tensor([1.0]), file.add_tensor([0.0]))))
    file.add_layer(Layer(EMBED, (1, side, side, 1, 1, patch, 0, 1)))
    one, zero = file.add_tensor([1.0]), file.add_tensor([0.0])
    tensors = (one, zero, one, zero, one, file.add_tensor([value_zero]))
    file.add_layer(Layer(ATTENTION, (norm, qkv, proj, heads, 1, heads, side * side, 0, 8, 0, 8), (1.0,), tensors))
    file.add_layer(Layer(HEAD, (NONE, head, 1, NONE, 0, 0)))
    return to_bytes(file)


def test_a_small_file_does_not_take_all_memory(engine: Any) -> None:
    data = wide_stream(256, 8192)
    assert len(data) < 100_000
    with pytest.raises(engine.VitfrostError, match=r"it takes more than 10[0-9][0-9] MB of memory"):
        engine.Model(data)


def test_sums_over_many_keys_that_do_not_fit_are_refused(engine: Any) -> None:
    engine.Model(attention(2, 16, 255.0)).close()
    with pytest.raises(engine.VitfrostError, match="sums over the 289 keys of layer 6 do not fit 32 bits"):
        engine.Model(attention(2, 17, 32768.0))
    with pytest.raises(engine.VitfrostError, match="sums over the 65536 keys"):
        engine.Model(attention(2, 256, 0.0))


def test_without_memory_there_is_one_line(engine: Any, tmp_path: Path) -> None:
    if not Path("/proc/self/statm").is_file():
        pytest.skip("no /proc on this system")
    (tmp_path / "model.vfn").write_bytes(wide_stream(256, 2048))
    script = (
        "import resource, sys, vitfrost_native as engine; engine.isas()\n"
        "used = int(open('/proc/self/statm').read().split()[0]) * resource.getpagesize()\n"
        "resource.setrlimit(resource.RLIMIT_AS, (used + 2**28, used + 2**28))\n"
        "try:\n    engine.Model(sys.argv[1])\nexcept engine.VitfrostError as error:\n    print(error)"
    )
    ended = subprocess.run([sys.executable, "-c", script, tmp_path / "model.vfn"], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "there is not enough memory for the model\n", "")
