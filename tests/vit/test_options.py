"""Only options of the architecture reach timm: files and code never do."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from tests.conftest import write_pictures

from vitfrost.errors import VitfrostError
from vitfrost.model import Model
from vitfrost.vit.options import ARCHITECTURE_OPTIONS, check_options


class Payload:
    """Unpickled, it leaves a file behind."""

    def __init__(self, mark: Path):
        self.mark = mark

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.touch, (self.mark,))


@pytest.fixture
def hostile(tmp_path: Path) -> tuple[Path, Path]:
    """A pickle that leaves a mark where it is read, and the mark."""
    mark = tmp_path / "executed"
    pickle = tmp_path / "payload.pth"
    torch.save({"state_dict": Payload(mark)}, pickle)
    torch.load(pickle, weights_only=False)
    assert mark.is_file()  # the payload works
    mark.unlink()
    return pickle, mark


def test_an_artifact_cannot_name_a_pickle(hostile: tuple[Path, Path], tmp_path: Path) -> None:
    import vitfrost

    pickle, mark = hostile
    images = write_pictures(tmp_path / "images", 4)
    model = vitfrost.Model.open("vitfrost_digits", weights="random")
    statistics = vitfrost.calibrate(model, images, vitfrost.Calibrate(limit=4), progress=False)
    vitfrost.compress(model, vitfrost.plan(statistics), statistics=statistics, images=images, out=tmp_path / "artifact")
    file = tmp_path / "artifact" / "config.json"
    config = json.loads(file.read_text())
    config["model"]["options"] = {"checkpoint_path": str(pickle)}
    file.write_text(json.dumps(config))
    with pytest.raises(VitfrostError, match=r"'checkpoint_path' is not allowed; .*num_classes"):
        vitfrost.evaluate(tmp_path / "artifact", images)
    assert not mark.exists()


NOT_ARCHITECTURE = (
    "checkpoint_path", "pretrained_cfg", "pretrained_cfg_overlay", "cache_dir", "pretrained", "features_only", "block_fn", "attn_layer",
    "device", "scriptable", "pretrained_strict",
)  # fmt: skip


@pytest.mark.parametrize("option", NOT_ARCHITECTURE)
def test_options_that_are_no_architecture_are_refused(option: str) -> None:
    with pytest.raises(VitfrostError, match=f"'{option}' is not allowed"):
        check_options({option: "x"})


@pytest.mark.parametrize(
    ("options", "line"),
    [
        ({"depth": "12"}, r"depth is '12'; give a whole number"),
        ({"depth": True}, r"depth is True; give a whole number"),
        ({"depth": 10**9}, r"depth is 1000000000; give"),
        ({"embed_dim": -1}, r"embed_dim is -1"),
        ({"depths": [2, "2"]}, r"depths is \[2, '2'\]"),
        ({"depths": []}, r"depths is \[\]"),
        ({"drop_rate": float("nan")}, r"drop_rate is nan"),
        ({"qkv_bias": 1}, r"qkv_bias is 1; give true or false"),
        ({"norm_layer": "os.system"}, r"norm_layer is 'os.system'; give a name"),
        ({"norm_layer": torch.nn.LayerNorm}, r"norm_layer is <class"),
        ({"num_class": 3}, r"'num_class' is not allowed; did you mean num_classes\?"),
    ],
)  # fmt: skip
def test_values_of_another_type_are_refused(options: dict[str, Any], line: str) -> None:
    with pytest.raises(VitfrostError, match=line):
        check_options(options)


def test_options_of_the_architecture_pass() -> None:
    loaded = Model.open(
        "vitfrost_digits",
        weights="random",
        options={"num_classes": 4, "depth": 2, "init_values": 0.1, "norm_layer": "layernorm", "qk_norm": None},
    )
    assert (loaded.classes, len(loaded.module.blocks)) == (4, 2)
    assert "checkpoint_path" not in ARCHITECTURE_OPTIONS
