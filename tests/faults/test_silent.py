"""What used to give numbers that looked fine: weights that are not finite, one output, ranges of a handful of images."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

import vitfrost
from vitfrost.configs import Quantize
from vitfrost.errors import VitfrostError
from vitfrost.model import Model


def test_an_infinite_weight_never_reaches_a_file(shallow, tmp_path: Path) -> None:
    """Set in memory, after the model was opened and checked."""
    model = Model.of(shallow.model.module)
    with torch.no_grad():
        model.module.blocks[0].mlp.fc1.weight[0, 0] = float("inf")
    artifact = shallow.compress(tmp_path / "fine")
    artifact.module = model.module
    with pytest.raises(VitfrostError, match=r"not finite at blocks\.0\.mlp\.fc1\.weight"):
        artifact.save(tmp_path / "artifact")
    assert [path.name for path in tmp_path.iterdir()] == ["fine"]


def test_ranges_of_few_images_are_warned_of(shallow, tmp_path: Path, messages) -> None:
    shallow.compress(tmp_path / "a", Quantize(8, 8))
    assert "ranges are calibrated on 4 images, which fit those and little else" in messages()


def test_one_output_is_no_classifier(pictures: Path) -> None:
    model = Model.open("vitfrost_digits", weights="random", classes=1, options={"depth": 1})
    with pytest.raises(VitfrostError, match="has one output, whose class is always the best"):
        vitfrost.evaluate(model, pictures, progress=False)


def test_a_small_file_asks_for_no_huge_model(prepared, tmp_path: Path) -> None:
    """The size is told from the layers, before they have weights."""
    import json
    import shutil
    import time

    folder = Path(shutil.copytree(prepared.artifact, tmp_path / "artifact"))
    config = json.loads((folder / "config.json").read_text())
    for change in ({"name": "vit_giant_patch14_224"}, {"options": {"embed_dim": 2**16, "num_heads": 2, "depth": 200}}):
        changed = config | {"model": config["model"] | {"preprocessing": config["model"]["preprocessing"]} | change}
        (folder / "config.json").write_text(json.dumps(changed))
        start = time.process_time()
        with pytest.raises(VitfrostError, match=r"million numbers, far more than .* holds"):
            Model.open(folder)
        assert time.process_time() - start < 10
    (folder / "config.json").write_text(json.dumps(config | {"model": config["model"] | {"options": {"depth": 100_000}}}))
    with pytest.raises(VitfrostError, match="depth is 100000; give a whole number from 0 to 256"):
        Model.open(folder)
