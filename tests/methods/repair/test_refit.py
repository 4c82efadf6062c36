"""Repair on real models of every family: the stream comes closer, what lies before stays, and what cannot be repaired is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vitfrost
from vitfrost.configs import Compact, Hallucinate, Repair
from vitfrost.errors import VitfrostError
from vitfrost.methods.low_rank.projection import CompactProjection
from vitfrost.methods.repair.refit import Refit
from vitfrost.model import Model
from vitfrost.passes.structure import changed_sites, start_from
from vitfrost.vit.families import find_sites, install_map_attention
from vitfrost.vit.stream import ResidualStream

NARROW: dict[str, Any] = {"embed_dim": 96, "num_heads": 3}
MODELS = {
    "vit": lambda: Model.open("deit_tiny_patch16_224", weights="random", image_size=64, options={"depth": 3, **NARROW}),
    "distilled": lambda: Model.open(
        "deit_tiny_distilled_patch16_224", weights="random", image_size=(48, 80), options={"depth": 2, **NARROW}
    ),
    "registers and layer scale": lambda: Model.open(
        "vit_tiny_patch16_224", weights="random", image_size=64, options={"depth": 2, "reg_tokens": 3, "init_values": 0.1, **NARROW}
    ),
    "average pooling": lambda: Model.open(
        "vit_tiny_patch16_224", weights="random", image_size=64, options={"depth": 2, "global_pool": "avg", "class_token": False, **NARROW}
    ),
    "swin": lambda: Model.open(
        "swin_tiny_patch4_window7_224",
        weights="random",
        image_size=40,
        options={"embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4), "strict_img_size": True},
    ),
    "pvt": lambda: Model.open(
        "vitfrost_pvt_tiny", weights="random", image_size=64, options={"depths": (1, 1, 1, 1), "embed_dims": (16, 32, 40, 64)}
    ),
    "pvt_v2": lambda: Model.open(
        "pvt_v2_b0", weights="random", image_size=64, options={"depths": (1, 1, 1, 2), "embed_dims": (16, 32, 40, 64)}
    ),
    "coatnet": lambda: Model.open("test_coatnet", weights="random", image_size=(64, 96)),
    "nextvit": lambda: Model.open("nextvit_small", weights="random", image_size=64, options={"depths": (1, 1, 5, 1)}),
}


def lively(loaded: Model, seed: int = 0) -> Model:
    """Weights large enough that every branch matters (timm starts with small ones)."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in loaded.module.named_parameters():
            if parameter.ndim > 1 and "pos_embed" not in name:
                parameter.copy_(torch.randn(parameter.shape, generator=generator) / parameter[0].numel() ** 0.5)
    return loaded


def batches(loaded: Model, count: int = 24, seed: int = 0) -> list[Tensor]:
    drawn = torch.randn(count, 3, *loaded.image_size, generator=torch.Generator().manual_seed(seed))
    return list(drawn.split(8))


def disturbed(loaded: Model, first: int, strength: float = 0.3) -> nn.Module:
    """Other weights in what reads the stream, from a block on: in the way that frozen or hallucinated maps are other maps."""
    model = copy.deepcopy(loaded.module)
    install_map_attention(model)
    generator = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for name in ResidualStream(loaded.module).names[first:]:
            for key, parameter in model.get_submodule(name).named_parameters():
                if parameter.ndim > 1 and ("qkv" in key or key.endswith(("q.weight", "kv.weight", "v.weight", "fc1.weight"))):
                    parameter.mul_(1 + strength * torch.randn(parameter.shape, generator=generator))
    return model


@torch.no_grad()
def features(model: Any, pictures: Iterable[Tensor]) -> Tensor:
    return torch.cat([model.forward_features(batch) for batch in pictures])


def distance(model: nn.Module, loaded: Model, pictures: list[Tensor]) -> float:
    return float((features(model, pictures) - features(loaded.module, pictures)).square().mean())


def repaired(model: nn.Module, loaded: Model, pictures: list[Tensor], sites: Any = None, **options: Any) -> dict[str, Any]:
    made = Refit(model, loaded.module, sites or find_sites(loaded.module), Repair(**options))
    return made.run(pictures, len(pictures))


@pytest.mark.parametrize("kind", [kind for kind in MODELS if kind != "coatnet"])  # for time
def test_the_stream_comes_closer_and_what_lies_before_stays(kind: str) -> None:
    loaded = lively(MODELS[kind]())
    model, pictures = disturbed(loaded, 1), batches(loaded)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    far = distance(model, loaded, pictures)
    skipped = int(kind == "nextvit")  # whose last block is wide, and slow to fit
    record = repaired(model, loaded, pictures, skip_last=skipped)
    assert distance(model, loaded, pictures) < 0.8 * far
    names = ResidualStream(loaded.module).names
    fitted = tuple(f"{name}." for name in names[1 : len(names) - skipped])
    expected = {site.name for site in find_sites(loaded.module).linears if site.role in ("proj", "fc2") and site.name.startswith(fitted)}
    assert set(record) == expected
    assert all(0 <= layer["after"] < layer["before"] for layer in record.values())
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == {f"{name}.{part}" for name in expected for part in ("weight", "bias") if f"{name}.{part}" in before}
    for module in model.modules():
        assert "forward" not in vars(module)
        assert not module._forward_hooks
        assert not module._forward_pre_hooks


@pytest.mark.parametrize("kind", [kind for kind in MODELS if kind != "nextvit"])  # whose last stage has fewer rows than weights here
@torch.no_grad()
def test_layers_that_were_spoilt_themselves_are_found_again(kind: str) -> None:
    """Only output projections were changed, so an unpenalized fit of enough rows can undo it. This fails where rows are matched with
    the wrong positions of the stream, or LayerScale is forgotten."""
    loaded = lively(MODELS[kind]())
    model, pictures = copy.deepcopy(loaded.module), batches(loaded, 160)
    install_map_attention(model)
    generator = torch.Generator().manual_seed(2)
    spoilt = [site.name for site in find_sites(loaded.module).linears if site.role in ("proj", "fc2")]
    for name in spoilt:
        model.get_submodule(name).weight.add_(0.1 * torch.randn(model.get_submodule(name).weight.shape, generator=generator))
    far = distance(model, loaded, pictures[:2])
    record = repaired(model, loaded, pictures, penalty=1e-9, skip_last=0)
    few = {name for name, layer in record.items() if layer["after"] > 1e-4 * layer["before"]}
    assert not few
    assert distance(model, loaded, pictures[:2]) < 1e-3 * far


def test_compact_blocks_are_repaired_in_their_last_factor() -> None:
    loaded = lively(MODELS["vit"]())
    plan = vitfrost.plan(loaded, Hallucinate(0.5), Compact(0.3))
    model, pictures = copy.deepcopy(loaded.module), batches(loaded)
    start_from(model, plan, torch.cat(pictures))
    far = distance(model, loaded, pictures)
    sites = changed_sites(find_sites(loaded.module), plan)
    record = repaired(model, loaded, pictures, sites, skip_last=0)
    assert {name for name in record if "mlp" in name} == {f"blocks.{index}.mlp.fc2.up" for index in range(3)}
    assert isinstance(model.get_submodule("blocks.0.mlp.fc2"), CompactProjection)
    assert distance(model, loaded, pictures) < 0.8 * far


def test_biases_alone() -> None:
    loaded = lively(MODELS["vit"]())
    model, pictures = disturbed(loaded, 0), batches(loaded)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    far = distance(model, loaded, pictures)
    repaired(model, loaded, pictures, method="bias")
    assert distance(model, loaded, pictures) < far
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert changed
    assert all(name.endswith(("proj.bias", "fc2.bias")) for name in changed)


def test_twice_the_same_and_in_other_batches_nearly_so() -> None:
    loaded = lively(MODELS["vit"]())
    pictures = batches(loaded)
    models = [disturbed(loaded, 0) for _ in range(3)]
    for model, given in zip(models, (pictures, pictures, list(torch.cat(pictures).split(5))), strict=True):
        repaired(model, loaded, given)
    first, second, other = (model.state_dict() for model in models)
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    assert all(torch.allclose(value, other[name], atol=1e-3) for name, value in first.items())


def test_prefix_tokens_come_closer_the_more_they_weigh() -> None:
    """With nearly all weight on prefix tokens, it is their rows that come closest."""
    loaded = lively(MODELS["distilled"]())
    pictures = batches(loaded)
    left = {}
    for weight in (1e-3, 1e3):
        model = disturbed(loaded, 0)
        repaired(model, loaded, pictures, prefix_weight=weight, skip_last=0, penalty=0.1)
        apart = (features(model, pictures) - features(loaded.module, pictures)).square().mean((0, 2))
        left[weight] = float(apart[:2].mean())
    assert left[1e3] < left[1e-3]


@pytest.mark.parametrize(("kind", "left"), [("vit", True), ("distilled", True), ("average pooling", False), ("swin", False)])
def test_the_last_block_is_left_where_only_prefix_tokens_are_read(kind: str, left: bool, messages: Callable[[], str]) -> None:
    loaded = lively(MODELS[kind]())
    model = disturbed(loaded, 0)
    record = repaired(model, loaded, batches(loaded, 8))
    last = ResidualStream(loaded.module).names[-1]
    assert any(name.startswith(f"{last}.") for name in record) != left
    if left:
        only_last = disturbed(loaded, len(ResidualStream(loaded.module).names) - 1)
        assert repaired(only_last, loaded, batches(loaded, 8)) == {}
        assert "nothing is repaired" in messages()


def test_equal_models_have_nothing_to_repair() -> None:
    loaded = MODELS["vit"]()
    model = copy.deepcopy(loaded.module)
    install_map_attention(model)
    with pytest.raises(VitfrostError, match="nothing to repair"):
        repaired(model, loaded, batches(loaded))
