"""What training is made of: quantizers whose gradients are those of LSQ, and maps on the log grid."""

from __future__ import annotations

import pytest
import torch

from vitfrost.methods.quantize.modules import LogQuantizer, UniformQuantizer
from vitfrost.methods.quantize.quantizers import fake_log, fake_uniform
from vitfrost.methods.quantize.trainable import TrainableMaps, TrainableQuantizer


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("heads", [1, 3])
def test_gradients_are_those_of_learned_step_sizes(heads: int) -> None:
    quantizer = UniformQuantizer(3)
    scale, zero = (0.2 + 0.1 * drawn(heads, 1, 1).abs(), torch.tensor([1.0, 3.0, 5.0])[:heads].view(-1, 1, 1))
    quantizer.scale, quantizer.zero_point = (scale, zero) if heads > 1 else (scale.view(()), zero.view(()))
    twin, x, gradient = TrainableQuantizer(quantizer), drawn(2, heads, 5, 4, seed=1).requires_grad_(), drawn(2, heads, 5, 4, seed=2)
    made = twin(x)
    assert torch.allclose(made, fake_uniform(x.detach(), scale, zero, 3), atol=1e-6)
    made.backward(gradient)
    codes = (x.detach() / scale).round()
    inside = (codes >= -zero) & (codes <= 7 - zero)
    assert 0 < inside.float().mean() < 1
    assert x.grad is not None
    assert twin.log_scale.grad is not None
    assert torch.equal(x.grad, gradient * inside)
    wanted = (gradient * (made.detach() - x.detach() * inside)).sum(dim=(0, 2, 3))
    assert torch.allclose(twin.log_scale.grad.flatten(), wanted, atol=1e-5)


@pytest.mark.parametrize("levels", ["strict", "published"])
def test_maps_without_a_logarithm(levels: str) -> None:
    quantizer = LogQuantizer(4, levels)  # type: ignore[arg-type]
    quantizer.step = torch.tensor([0.9, 0.3]).view(2, 1, 1)
    maps = drawn(3, 2, 6, 50).mul(4).softmax(-1)
    assert torch.allclose(TrainableMaps(quantizer)(maps), fake_log(maps, quantizer.step, 4, levels), rtol=1e-6)  # type: ignore[arg-type]
