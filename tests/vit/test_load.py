"""Loading: identity, misfits named, resolution carried over, and both branches of the torchvision guard."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from vitfrost.errors import VitfrostError
from vitfrost.model import Model
from vitfrost.vit.checkpoint import read_weights
from vitfrost.vit.families import find_sites, install_map_attention
from vitfrost.vit.load import create_model, hash_state


@pytest.fixture
def weights(tmp_path: Path) -> Path:
    path = tmp_path / "weights.safetensors"
    save_file(Model.open("test_vit", weights="random", seed=5).module.state_dict(), path)
    return path


def test_weights_make_the_identity(weights: Path) -> None:
    loaded = Model.open("test_vit", weights=weights)
    assert loaded.state_hash == Model.open("test_vit", weights="random", seed=5).state_hash
    assert loaded.state_hash != Model.open("test_vit", weights="random", seed=6).state_hash
    assert loaded.weight_tag == "file:weights.safetensors"
    assert not loaded.module.training


def test_plain_state_dicts_are_read_and_code_is_not_run(tmp_path: Path, weights: Path) -> None:
    state = read_weights(weights)
    for name, content in (("plain.pth", state), ("nested.pth", {"model": state})):
        torch.save(content, tmp_path / name)
        assert Model.open("test_vit", weights=tmp_path / name).state_hash == Model.open("test_vit", weights=weights).state_hash
    torch.save(create_model("test_vit"), tmp_path / "pickled_module.pth")
    with pytest.raises(VitfrostError, match="not a readable weights file"):
        read_weights(tmp_path / "pickled_module.pth")


def test_misfits_name_the_keys(tmp_path: Path, weights: Path) -> None:
    state = read_weights(weights)
    state["head.weight"] = torch.zeros(3, 3)
    state["extra.weight"] = torch.zeros(1)
    del state["blocks.0.norm1.bias"]
    save_file(state, tmp_path / "bad.safetensors")
    with pytest.raises(
        VitfrostError, match=r"missing blocks\.0\.norm1\.bias; unexpected extra\.weight; other shapes at head\.weight"
    ) as caught:
        Model.open("test_vit", weights=tmp_path / "bad.safetensors")
    assert "\n" not in str(caught.value)
    with pytest.raises(VitfrostError, match="do not fit the model"):
        Model.open("test_vit2", weights=weights)


@pytest.mark.parametrize("content", [b"", b"not a file of tensors", b"\x00" * 100])
def test_damaged_weights(tmp_path: Path, content: bytes) -> None:
    for suffix in ("safetensors", "pth"):
        path = tmp_path / f"damaged.{suffix}"
        path.write_bytes(content)
        with pytest.raises(VitfrostError, match="not a readable weights file"):
            read_weights(path)


def test_missing_weights_and_unknown_names() -> None:
    with pytest.raises(VitfrostError, match="no weights file"):
        Model.open("test_vit", weights="nowhere.safetensors")
    with pytest.raises(VitfrostError, match="did you mean deit_tiny_patch16_224"):
        Model.open("deit_tiny_patch16_225", weights="random")


@torch.no_grad()
def test_heads_keep_their_width_where_there_are_fewer_of_them() -> None:
    """Half of the heads halve queries, keys, values and projection; timm alone would make the heads twice as wide."""
    loaded = Model.open("test_vit", weights="random", options={"num_heads": 1, "attn_head_dim": 32})
    assert loaded.options == {"num_heads": 1, "attn_head_dim": 32}
    sites = find_sites(loaded.module)
    assert [(site.heads, site.head_dim, site.width) for site in sites.attention] == [(1, 32, 64)] * len(sites.attention)
    assert tuple(loaded.module.blocks[0].attn.qkv.weight.shape) == (96, 64)
    assert tuple(loaded.module.blocks[0].attn.proj.weight.shape) == (64, 32)
    pixels = torch.randn(2, 3, 160, 160)
    before = loaded.module(pixels)
    install_map_attention(loaded.module)
    torch.testing.assert_close(loaded.module(pixels), before, atol=1e-5, rtol=0)


def test_a_width_of_heads_that_cannot_be_is_refused() -> None:
    for width in (0, -3, 2.5, "32", True):
        with pytest.raises(VitfrostError, match=r"attn_head_dim .* is out of range; give the channels of a head"):
            create_model("test_vit", attn_head_dim=width)
    with pytest.raises(VitfrostError, match="timm cannot create the model swin_tiny"):
        create_model("swin_tiny_patch4_window7_224", attn_head_dim=32)


@torch.no_grad()
def test_weights_are_carried_to_another_resolution(weights: Path) -> None:
    loaded = Model.open("test_vit", weights=weights, image_size=192)
    assert loaded.image_size == (192, 192)
    assert loaded.preprocessing.input_size == (3, 192, 192)
    assert bool(torch.isfinite(loaded.module(torch.randn(1, 3, 192, 192))).all())


def test_the_hash_does_not_depend_on_key_order() -> None:
    model = create_model("test_vit")
    before = hash_state(model)
    model._modules = dict(reversed(model._modules.items()))
    assert hash_state(model) == before


GUARD = """
import sys
from vitfrost.vit import compat
if "{branch}" == "extension":
    compat.torchvision_extension_loads = lambda: True   # as where the real extension is there
    declared = compat.declare_torchvision_schemas
    try:
        compat.import_timm()
    except RuntimeError as error:
        assert "nms" in str(error), error               # nothing was declared, so torchvision met its own absence
    assert compat._declared is None
else:
    compat.torchvision_extension_loads = lambda: False
    timm = compat.import_timm()
    assert compat._declared is not None
    assert timm.create_model("test_vit")(__import__("torch").randn(1, 3, 160, 160)).shape == (1, 1000)
    compat.import_timm()                                # a second time declares nothing anew
"""


COMPILER = """
import sys
sys.argv = ["vitfrost", "inspect", "vitfrost_digits"]
from vitfrost.cli import main
main()
assert "timm" in sys.modules and "torch._dynamo" not in sys.modules    # which takes as long to load as everything else
import timm, torch
from torchvision.ops.roi_align import is_compile_supported
assert is_compile_supported("cpu") in (True, False)
assert hasattr(sys.modules["torch._dynamo.utils"], "counters")           # torch's own
assert torch.compiler.disable.__module__.startswith("torch")
from timm.models.naflexvit import NaFlexRopeIterator
assert NaFlexRopeIterator.__next__.__name__ == "__next__"
compiled = torch.compile(timm.create_model("test_vit"), backend="eager")
assert compiled(torch.zeros(1, 3, 160, 160)).shape == (1, 1000)
"""


def test_a_command_does_without_the_compiler_which_is_there_when_it_is_used() -> None:
    done = subprocess.run([sys.executable, "-c", COMPILER], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


def test_the_library_imports_timm_as_it_is() -> None:
    from vitfrost.vit import compat

    before = torch.compiler.disable
    assert not compat.own_process
    with compat.without_compiler():
        assert torch.compiler.disable is before


def test_a_name_of_the_module_that_waits_is_that_of_the_module_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    from vitfrost.vit.compat import _Later

    monkeypatch.delitem(sys.modules, "colorsys", raising=False)
    later = _Later("colorsys")
    monkeypatch.setitem(sys.modules, "colorsys", later)
    import colorsys

    assert colorsys is later
    assert colorsys.rgb_to_hls(0.5, 0.5, 0.5) == (0.0, 0.5, 0.0)
    assert sys.modules["colorsys"] is not later
    with pytest.raises(AttributeError):
        _ = later.nothing


@pytest.mark.parametrize("branch", ["extension", "schemas"])
def test_both_branches_of_the_torchvision_guard(branch: str) -> None:
    done = subprocess.run([sys.executable, "-c", GUARD.format(branch=branch)], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
