"""BatchNorm over tokens: alone it is torch's, and two processes compute what one does with the joined batch."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from vitfrost.errors import VitfrostError
from vitfrost.methods.low_rank.batch_norm import TokenBatchNorm

from ...processes import Started

WORKER = Path(__file__).with_name("gloo_worker.py")
spec = importlib.util.spec_from_file_location("gloo_worker", WORKER)
assert spec is not None
assert spec.loader is not None
worker = importlib.util.module_from_spec(spec)
spec.loader.exec_module(worker)


@pytest.fixture(scope="module")
def processes(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each of two processes found."""
    folder = tmp_path_factory.mktemp("gloo")
    outs = [folder / f"{rank}.pt" for rank in range(2)]
    started = [Started(rank, folder / "store", out, script=WORKER) for rank, out in enumerate(outs)]
    ended = [process.communicate()[1] for process in started]
    assert [process.returncode for process in started] == [0, 0], "\n".join(ended)
    return [torch.load(out) for out in outs]


def close(found: Tensor, expected: Tensor, tolerance: float = 1e-10) -> bool:
    return torch.allclose(found.double(), expected.detach().double(), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("split", worker.SPLITS)
def test_two_processes_are_one_with_the_joined_batch(processes: list[dict[str, Any]], split: str) -> None:
    alone = nn.BatchNorm1d(worker.CHANNELS).double()
    alone.load_state_dict(worker.norm().state_dict())
    expected = worker.two_steps(alone, *worker.tokens(split))
    for name, value in expected.items():
        parts = [process[split][name] for process in processes]
        if name in ("first", "second", "gradient of x"):
            assert close(torch.cat(parts), value), name
        elif name.startswith("gradient"):
            assert close(parts[0] + parts[1], value), name
        else:
            assert close(parts[0], value), name
            assert torch.equal(*parts), name
    assert expected["num_batches_tracked"] == 2


def test_the_average_of_gradients_is_that_of_the_mean_loss(processes: list[dict[str, Any]]) -> None:
    expected = worker.one_step_of_projection(worker.projection(), worker.drawn(4, 4, 7, worker.CHANNELS))
    parts = [process["projection"] for process in processes]
    assert close(torch.cat([part.pop("y") for part in parts]), expected.pop("y"))
    for name, value in expected.items():
        assert close(parts[0][name], value), name
        assert close(parts[1][name], value), name
    assert sum(name.startswith("gradient") for name in expected) == len(list(worker.projection().parameters()))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_statistics_do_not_cancel_and_are_float32(processes: list[dict[str, Any]], dtype: torch.dtype) -> None:
    x = worker.far_from_zero(dtype).double()
    alone = TokenBatchNorm(worker.CHANNELS)
    alone(worker.far_from_zero(dtype))
    for state in (processes[0][str(dtype)], processes[1][str(dtype)], alone.state_dict()):
        assert state["running_mean"].dtype == state["running_var"].dtype == torch.float32
        assert torch.allclose(state["running_mean"].double(), 0.1 * x.mean(0), rtol=1e-6)
        assert torch.allclose((state["running_var"].double() - 0.9) / 0.1, x.var(0), rtol=1e-3)
    y = torch.cat([process[str(dtype)]["y"] for process in processes])
    assert y.dtype == dtype
    expected = (x - x.mean(0)) / x.var(0, correction=0).sqrt()
    assert close(y, expected, 2e-3 if dtype == torch.float32 else 1e-2)


def test_evaluation_uses_the_running_statistics(processes: list[dict[str, Any]]) -> None:
    expected = worker.norm().eval()(worker.tokens("unequal")[0])
    assert close(torch.cat([process["evaluated"] for process in processes]), expected)


def test_one_token_in_all_processes_is_refused_in_each(processes: list[dict[str, Any]]) -> None:
    for process in processes:
        one, none = process["refused"]
        assert one == "a training batch of one token has no variance for BatchNorm; give more tokens, or set norm to none"
        assert none.startswith("a training batch of no tokens has no variance")


@given(st.integers(2, 30), st.integers(1, 9), st.sampled_from([torch.float32, torch.float64]), st.booleans(), st.integers(0, 99))
def test_alone_it_is_torchs(tokens: int, channels: int, dtype: torch.dtype, training: bool, seed: int) -> None:
    ours, torchs = TokenBatchNorm(channels).to(dtype), nn.BatchNorm1d(channels).to(dtype)
    ours.load_state_dict(torchs.state_dict())
    inputs = [worker.drawn(seed, tokens, channels).to(dtype).requires_grad_() for _ in range(2)]
    for layer, x in zip((ours, torchs), inputs, strict=True):
        layer.train(training)(x).pow(3).sum().backward()
    assert torch.equal(inputs[0].grad, inputs[1].grad)
    assert ours.state_dict().keys() == torchs.state_dict().keys()
    assert all(torch.equal(value, torchs.state_dict()[name]) for name, value in ours.state_dict().items())


def test_alone_one_token_is_refused() -> None:
    for count, given_tokens in ((1, "one token"), (0, "no tokens")):
        with pytest.raises(VitfrostError, match=f"training batch of {given_tokens} has no variance .* set norm to none"):
            TokenBatchNorm(3)(torch.zeros(count, 3))
    assert TokenBatchNorm(3).eval()(torch.zeros(1, 3)).shape == (1, 3)
