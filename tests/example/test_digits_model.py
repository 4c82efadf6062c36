"""The bundled weights: they load, are small, and recognize held-out digits; the script that made them is deterministic."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image
from safetensors.torch import load_file

from vitfrost.example.data import load_split
from vitfrost.images.preprocess import Preprocess
from vitfrost.model import Model
from vitfrost.vit.digits import WEIGHTS
from vitfrost.vit.families import find_sites

from ..processes import Started

SCRIPT = Path(__file__).parents[2] / "scripts" / "train_digits.py"


def test_bundled_weights_are_small_single_precision_and_known_by_name() -> None:
    assert WEIGHTS.stat().st_size < 3_000_000
    state = load_file(WEIGHTS)
    assert {tensor.dtype for tensor in state.values()} == {torch.float32}
    loaded = Model.open("vitfrost_digits")
    assert loaded.weight_tag == "vitfrost_digits.digits"
    assert all(torch.equal(tensor, state[name]) for name, tensor in loaded.module.state_dict().items())


def test_it_has_sites_worth_showing() -> None:
    sites = find_sites(Model.open("vitfrost_digits").module).attention
    assert len(sites) >= 4
    assert all(site.heads >= 4 and site.keys == 65 and site.prefix_tokens == 1 for site in sites)


def test_it_recognizes_98_percent_of_the_held_out_digits() -> None:
    loaded = Model.open("vitfrost_digits")
    preprocess = Preprocess(loaded.preprocessing)
    images, labels = load_split("test")
    pixels = torch.stack([preprocess(Image.fromarray(image).convert("RGB")) for image in images])
    with torch.inference_mode():
        predicted = torch.cat([loaded.module(part).argmax(1) for part in pixels.split(71)])
    assert (predicted == torch.from_numpy(labels)).double().mean() >= 0.98


def test_training_gives_the_same_file_every_time(tmp_path: Path) -> None:
    options = ["--variant", "quick", "--threads", "1"]
    outs = [tmp_path / "first.safetensors", tmp_path / "second.safetensors"]
    running = [Started(*options, "--out", out, script=SCRIPT) for out in outs]
    for process in running:
        printed, complaint = process.communicate()
        assert process.returncode == 0, complaint
        assert "held-out accuracy" in printed
    assert outs[0].read_bytes() == outs[1].read_bytes()
    trained, bundled = load_file(outs[0]), load_file(WEIGHTS)
    assert {name: value.shape for name, value in trained.items()} == {name: value.shape for name, value in bundled.items()}
