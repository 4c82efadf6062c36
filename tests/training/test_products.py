"""The products of a training step: the same as torch's to rounding, forward and backward, and used where they should be."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from vitfrost.artifact import Artifact
from vitfrost.errors import VitfrostError
from vitfrost.training import products
from vitfrost.training.loop import Trainer
from vitfrost.training.products import depthwise, fast_products, linear
from vitfrost.training.recipe import load_training_recipe
from vitfrost.training.train import train

CPU = torch.device("cpu")


def drawn(*shape: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(sum(shape))).requires_grad_(True)


def gradients(result: Tensor, *inputs: Tensor) -> list[Tensor]:
    return list(torch.autograd.grad((result * drawn(*result.shape).detach()).sum(), inputs))


@pytest.mark.parametrize("shape", [(3, 33, 24, 40), (2, 50, 40, 24), (1, 8, 5, 3), (2, 64, 1, 1)])
@pytest.mark.parametrize("biased", [True, False])
def test_linear_and_its_gradients_are_torchs(shape: tuple[int, int, int, int], biased: bool) -> None:
    images, tokens, inputs, outputs = shape
    given = [drawn(images, tokens, inputs), drawn(outputs, inputs)] + ([drawn(outputs)] if biased else [])
    exact = [one.detach().double().requires_grad_(True) for one in given]
    expected, found = F.linear(*exact), linear(*given)
    torch.testing.assert_close(found.double(), expected, atol=1e-4, rtol=1e-5)
    probe = drawn(*found.shape).detach()
    ours = torch.autograd.grad((found * probe).sum(), given)
    theirs = torch.autograd.grad((expected * probe.double()).sum(), exact)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.double(), other, atol=1e-4, rtol=1e-5)


def test_linear_takes_strided_rows() -> None:
    x, weight = drawn(24, 130), drawn(8, 24)
    torch.testing.assert_close(linear(x.t(), weight), F.linear(x.t(), weight), atol=1e-5, rtol=1e-5)
    for one, other in zip(gradients(linear(x.t(), weight), x, weight), gradients(F.linear(x.t(), weight), x, weight), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize(("sizes", "side"), [((3, 2, 7, 5), 3), ((2, 3, 6, 9), 5), ((1, 1, 1, 1), 3), ((2, 2, 2, 3), 5)])
def test_depthwise_and_its_gradients_are_torchs(sizes: tuple[int, int, int, int], side: int) -> None:
    maps, weight = drawn(*sizes), drawn(sizes[1], 1, side, side)
    found, expected = depthwise(maps, weight), F.conv2d(maps, weight, padding=side // 2, groups=sizes[1])
    torch.testing.assert_close(found, expected, atol=1e-5, rtol=1e-5)
    for one, other in zip(gradients(found, maps, weight), gradients(expected, maps, weight), strict=True):
        torch.testing.assert_close(one, other, atol=1e-4, rtol=1e-5)


def test_only_what_is_meant_goes_the_other_way(monkeypatch: pytest.MonkeyPatch) -> None:
    taken: list[str] = []
    for name in ("linear", "depthwise"):
        original: Callable[..., Tensor] = getattr(products, name)
        monkeypatch.setattr(products, name, lambda *args, name=name, original=original: (taken.append(name), original(*args))[1])
    maps, kernel = drawn(2, 4, 6, 6), drawn(4, 1, 3, 3)
    with fast_products(True, CPU):
        F.linear(drawn(2, 3), drawn(4, 3))
        F.conv2d(maps, kernel, padding=1, groups=4)
        assert taken == ["linear", "depthwise"]
        F.linear(drawn(2, 3).double(), drawn(4, 3).double())
        F.linear(drawn(2, 3).bfloat16(), drawn(4, 3).bfloat16())
        F.conv2d(maps, kernel, groups=4)
        F.conv2d(maps, kernel, drawn(4), padding=1, groups=4)
        F.conv2d(maps, drawn(4, 4, 3, 3), padding=1)
        F.conv2d(maps, kernel, padding=1, groups=4, stride=2)
    with fast_products(False, CPU), fast_products(True, torch.device("cuda")):
        F.linear(drawn(2, 3), drawn(4, 3))
    assert taken == ["linear", "depthwise"]


def test_a_torch_without_onednn_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    with pytest.raises(VitfrostError, match="built without oneDNN; set products to torch"):
        fast_products(True, CPU)


def test_bf16_and_onednn_are_refused(written: Callable[..., Path]) -> None:
    with pytest.raises(VitfrostError, match="products onednn computes in fp32"):
        load_training_recipe(written(products="onednn", precision="bf16"))


def test_a_recipe_without_products_keeps_its_hash(written: Callable[..., Path]) -> None:
    plain, same, other = (load_training_recipe(written(**changes)) for changes in ({}, {"products": "torch"}, {"products": "onednn"}))
    assert plain.hash() == same.hash() != other.hash()


def test_a_run_has_the_same_bits_again_and_torchs_numbers_to_rounding(written: Callable[..., Path], tmp_path: Path) -> None:
    plan = {"hallucinate": {"share": 0.5, "by": "first"}, "compact": {"ratio": 0.5}}
    recipes = {"a": "onednn", "b": "onednn", "c": "torch"}
    states = {}
    for name, chosen in recipes.items():
        path = written(f"{name}.yaml", plan=plan, products=chosen, optimizer={"name": "sgd", "lr": 1e-2})
        states[name] = Artifact.load(train(path, tmp_path / name, progress=False) / "artifact").module.state_dict()
    assert all(torch.equal(states["a"][key], states["b"][key]) for key in states["a"])
    assert not all(torch.equal(states["a"][key], states["c"][key]) for key in states["a"])
    torch.testing.assert_close(states["a"], states["c"], atol=1e-4, rtol=1e-3)


def test_a_run_that_was_stopped_goes_on_to_the_same_bits(
    written: Callable[..., Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = {"hallucinate": {"share": 0.5, "by": "first", "intra_map": "5x5"}, "compact": {"ratio": 0.5}}
    recipe = written(plan=plan, products="onednn", checkpoint_every={"steps": 3})
    whole, run = train(recipe, tmp_path / "whole", progress=False), tmp_path / "run"
    step = Trainer._one_step

    def stopped(self: Trainer, chosen: tuple[int, Any]) -> None:
        if self.step == 8:
            raise KeyboardInterrupt
        step(self, chosen)

    monkeypatch.setattr(Trainer, "_one_step", stopped)
    with pytest.raises(KeyboardInterrupt):
        train(recipe, run, progress=False)
    monkeypatch.setattr(Trainer, "_one_step", step)
    train(recipe, run, resume=True, progress=False)
    weights = [(folder / "artifact" / "model.safetensors").read_bytes() for folder in (whole, run)]
    assert weights[0] == weights[1]
