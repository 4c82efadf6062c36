"""The verb `inspect`: what it lists, what it refuses, and the table."""

from __future__ import annotations

import io
import json
from pathlib import Path

import pytest
from safetensors.torch import save_file

from vitfrost.errors import UnsupportedModel, VitfrostError
from vitfrost.evaluation.inspect import format_inspection, inspect
from vitfrost.model import Model
from vitfrost.vit.families import install_map_attention


def test_plain_vit() -> None:
    found = inspect("vitfrost_digits")
    assert (found["family"], found["image_size"], found["tokens"], found["layers"]) == ("vit", [32, 32], 65, 6)
    assert found["attention"][0]["maps"] == [1, 4, 65, 65]
    assert found["attention"][0]["head_width"] * 4 == found["attention"][0]["width"]
    assert found["parameters_total"] == sum(p.numel() for p in Model.open("vitfrost_digits", weights="random").module.parameters())
    assert json.loads(json.dumps(found)) == found


def test_swin_has_windows() -> None:
    found = inspect(Model.open("swin_tiny_patch4_window7_224", weights="random", image_size=112))
    assert [site["windows"] for site in found["attention"]] == [16, 16, 4, 4, *[1] * 8]
    assert found["attention"][1]["shift"] == [3, 3]
    assert found["macs"]["patch_merging"] > 0


def test_next_vit_has_reduced_keys_and_feed_forward_blocks_of_two_kinds() -> None:
    from rich.console import Console

    found = inspect(Model.open("nextvit_small", weights="random", image_size=(64, 96)))
    assert (found["family"], found["image_size"], found["tokens"]) == ("nextvit", [64, 96], 8 * 12)
    assert found["attention"][0]["maps"] == [1, 6, 96, 6]
    assert [block["block"] for block in found["feed_forward"]].count("transformer") == len(found["attention"])
    assert json.loads(json.dumps(found)) == found
    console = Console(width=120, file=io.StringIO())
    console.print(format_inspection(found))
    for part in ("stages.1.blocks.3.e_mhsa", "stages.0.blocks.0.mlp", "convolution", f"{found['macs_total']:,}"):
        assert part in console.file.getvalue()


def test_a_compressed_model_is_described_like_its_original() -> None:
    loaded = Model.open("vitfrost_digits", weights="random", options={"num_classes": 7})
    before = inspect(loaded)
    install_map_attention(loaded.module)
    assert inspect(loaded) == before


def test_weights_are_checked(tmp_path: Path) -> None:
    state = Model.open("vitfrost_digits", weights="random").module.state_dict()
    save_file(state, tmp_path / "whole.safetensors")
    assert inspect(Model.open("vitfrost_digits", weights=tmp_path / "whole.safetensors")) == inspect("vitfrost_digits")
    del state["norm.bias"]
    save_file(state, tmp_path / "part.safetensors")
    with pytest.raises(VitfrostError, match=r"missing norm\.bias"):
        inspect(Model.open("vitfrost_digits", weights=tmp_path / "part.safetensors"))


@pytest.mark.parametrize(("name", "reason"), [("resnet10t", "no attention"), ("xcit_nano_12_p16_224", "cross-covariance")])
def test_unsupported_models_are_refused_in_one_line(name: str, reason: str) -> None:
    with pytest.raises(UnsupportedModel, match=reason) as caught:
        inspect(name)
    assert "\n" not in str(caught.value)


def test_table_adds_up() -> None:
    from rich.console import Console

    console = Console(width=120, file=io.StringIO())
    found = inspect(Model.open("swin_tiny_patch4_window7_224", weights="random", image_size=56))
    console.print(format_inspection(found))
    text = console.file.getvalue()
    assert f"{found['parameters_total']:,}" in text
    assert f"{found['macs_total']:,}" in text
    for part in ("query key projection", "patch merging", "layers.2.blocks.0.attn"):
        assert part in text


def test_a_plan_of_frozen_weights_and_bits_is_told_and_one_for_the_original_is_refused(pictures: Path, tmp_path: Path) -> None:
    from rich.console import Console

    import vitfrost
    from vitfrost.configs import Calibrate, FreezeEntries, FreezeHeads, Quantize

    model, statistics = Model.open("vitfrost_digits", weights="random"), tmp_path / "statistics.safetensors"
    vitfrost.calibrate(model, pictures, Calibrate(limit=2), progress=False, out=statistics)
    found = inspect(model, plan=vitfrost.plan(statistics, FreezeEntries(0.2), Quantize(4, 4)))
    assert (found["planned"]["frozen_entries"], found["planned"]["bits"]) == (24 * 845, "W4/A4")
    console = Console(width=200, file=io.StringIO())
    console.print(format_inspection(found))
    assert "20,280 frozen attention weights (20.00 %); bits: W4/A4" in console.file.getvalue()
    heads = vitfrost.plan(statistics, FreezeHeads(0.5))
    made = vitfrost.compress(model, heads, statistics=statistics)
    with pytest.raises(VitfrostError, match="the plan is for the original vitfrost_digits, and the artifact's layers are changed already"):
        inspect(made, plan=heads)
