"""The run-time module: one grouped operation equals explicit maps times values, in both forms, and follows its parameters."""

from __future__ import annotations

from importlib.util import find_spec

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vitfrost.errors import VitfrostError
from vitfrost.methods.constant_heads.constants import Shape, StructuredMap, dense_of
from vitfrost.methods.constant_heads.module import ConstantHeads

WIDTH = 4


def made(shape: Shape, kinds: list[tuple[str, int | None]], form: str | None, seed: int) -> ConstantHeads:
    """Heads with random constants, in float64."""
    heads = ConstantHeads(kinds, shape, (1, shape.tokens, shape.tokens), WIDTH, form=form)  # type: ignore[arg-type]
    generator = torch.Generator().manual_seed(seed)
    heads.double()
    for parameter in heads.parameters():
        parameter.data = torch.rand(parameter.shape, generator=generator, dtype=torch.float64)
    return heads.eval()


def explicit(heads: ConstantHeads, values: torch.Tensor) -> torch.Tensor:
    """Every head's whole map times its values, one by one, in numpy."""
    outputs = []
    for place, head in enumerate(heads.constants()):
        constant = head.constant()
        assert heads.shape is not None
        whole = constant if isinstance(constant, np.ndarray) else dense_of(constant, heads.shape)
        outputs.append(np.einsum("qk,bkd->bqd", whole[0], values[:, place].numpy()))
    return torch.from_numpy(np.stack(outputs, axis=1))


@given(
    st.tuples(st.integers(2, 5), st.integers(2, 6)), st.integers(0, 2), st.integers(1, 3),
    st.lists(st.sampled_from([3, 5, 7]), min_size=1, max_size=3), st.integers(0, 1000),
)  # fmt: skip
def test_both_forms_equal_explicit_maps(grid: tuple[int, int], prefix: int, images: int, windows: list[int], seed: int) -> None:
    shape = Shape(grid, prefix)
    kinds: list[tuple[str, int | None]] = [("local", window) for window in windows]
    values = torch.rand(images, len(kinds), shape.tokens, WIDTH, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))
    wanted = explicit(made(shape, kinds, "matmul", seed), values)
    for form in ("matmul", "convolution"):
        torch.testing.assert_close(made(shape, kinds, form, seed)(values), wanted, atol=1e-10, rtol=1e-10)


@pytest.mark.parametrize("images", [1, 3])
def test_kinds_mix_in_one_layer(images: int) -> None:
    heads = made(Shape((3, 4), 1), [("dense", None), ("toeplitz", None), ("local", 3)], None, 5)
    assert heads.form == "matmul"
    values = torch.rand(images, 3, 13, WIDTH, dtype=torch.float64)
    torch.testing.assert_close(heads(values), explicit(heads, values))


def test_large_grids_take_a_convolution_and_small_ones_a_product() -> None:
    def form(grid: int) -> str:
        shape = Shape((grid, grid), 1)
        return ConstantHeads([("local", 7)], shape, (1, shape.tokens, shape.tokens), WIDTH).form

    assert (form(14), form(64)) == ("matmul", "convolution")


def test_masked_windows_have_maps_of_their_own() -> None:
    shape = Shape((2, 2))
    allowed = torch.ones(2, 4, 4, dtype=torch.bool)
    allowed[1, :2, 2:] = allowed[1, 2:, :2] = False
    heads = ConstantHeads([("toeplitz", None), ("dense", None)], shape, (2, 4, 4), WIDTH, allowed).eval()
    maps = heads.maps()
    assert maps.shape == (2, 2, 4, 4)
    assert (maps[1, :, :2, 2:] == 0).all()
    values = torch.rand(6, 2, 4, WIDTH)  # three images of two windows each
    wanted = torch.stack([maps[row % 2] @ values[row] for row in range(6)])
    torch.testing.assert_close(heads(values), wanted)


def test_a_change_of_the_numbers_is_followed() -> None:
    heads = made(Shape((3, 3), 1), [("local", 3)], "convolution", 0)
    values = torch.rand(2, 1, 10, WIDTH, dtype=torch.float64)
    before = heads(values)
    with torch.no_grad():
        heads.constants()[0].kernel.mul_(2)  # as an optimizer or an average of weights does
    after = heads(values)
    assert not torch.equal(before, after)
    torch.testing.assert_close(after, explicit(heads, values))
    heads.load_state_dict(made(Shape((3, 3), 1), [("local", 3)], "convolution", 0).state_dict())
    assert torch.equal(heads(values), before)


@pytest.mark.parametrize("form", ["matmul", "convolution"])
@pytest.mark.parametrize("folded_before", [True, False])
def test_bfloat16_is_near_float64_over_many_tokens(form: str, folded_before: bool) -> None:
    """Sums over 1024 tokens are added in float32: in bfloat16 itself they would stop growing at 256 times a term."""
    heads = made(Shape((32, 32), 1), [("local", 3), ("local", 5)], form, 0).float()
    with torch.no_grad():
        for head in heads.constants():
            for part in (head.rest, head.prefix_rows, head.prefix_columns):
                part.div_(1025)
    values = (1 + torch.randn(1, 2, 1025, WIDTH, generator=torch.Generator().manual_seed(1))).bfloat16()
    wanted = explicit(heads, values.double())
    if folded_before:
        heads.folded()
    heads.bfloat16()
    found = heads(values)
    assert found.dtype == torch.bfloat16
    assert {part.dtype for part in heads.folded().values()} == {torch.bfloat16}
    torch.testing.assert_close(found.double(), wanted, atol=0.01 * float(wanted.abs().max()), rtol=0.01)


def test_what_was_folded_goes_along_and_is_not_kept_when_numbers_changed() -> None:
    heads = made(Shape((3, 3), 1), [("local", 3)], "convolution", 0)
    exact = heads.folded()["kernel"].clone()
    heads.float()
    assert torch.equal(heads.folded()["kernel"], exact.float())  # folded before it was rounded
    with torch.no_grad():
        heads.constants()[0].kernel.mul_(2)
    heads.double()
    torch.testing.assert_close(heads.folded()["kernel"], heads._fold("convolution")["kernel"])


def test_forms_need_what_they_are_made_of() -> None:
    assert made(Shape((3, 3), 1), [("local", 3)], None, 0).forms() == ["matmul", "convolution"]
    mixed = made(Shape((3, 3), 1), [("local", 3), ("dense", None)], None, 0)
    assert mixed.forms() == ["matmul"]
    for form in ("convolution", "triton"):
        with pytest.raises(ValueError, match="local kernels"):
            mixed.use(form)  # type: ignore[arg-type]


@pytest.mark.skipif(find_spec("triton") is not None, reason="triton is installed")
def test_the_kernel_needs_triton() -> None:
    with pytest.raises(VitfrostError, match=r"vitfrost\[gpu\]"):
        made(Shape((3, 3), 1), [("local", 3)], "triton", 0)


@pytest.mark.skipif(find_spec("triton") is None, reason="triton is not installed")
def test_without_a_gpu_the_convolution_runs_for_the_kernel() -> None:
    heads, values = made(Shape((3, 3), 1), [("local", 3)], "triton", 0), torch.rand(2, 1, 10, WIDTH, dtype=torch.float64)
    torch.testing.assert_close(heads(values), explicit(heads, values))
    torch.testing.assert_close(heads.float()(values.float()).double(), explicit(heads, values), atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("form", ["matmul", "convolution"])
def test_constants_are_trained(form: str) -> None:
    heads = made(Shape((3, 3), 1), [("local", 3)], form, 0).train()
    heads(torch.rand(2, 1, 10, WIDTH, dtype=torch.float64)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.abs().sum() > 0 for parameter in heads.parameters())


def test_numbers_of_another_shape_are_refused() -> None:
    heads = ConstantHeads([("local", 3)], Shape((3, 3)), (1, 9, 9), WIDTH)
    wrong = StructuredMap(np.ones((5, 5)), 0.0, np.ones((1, 9)), np.ones((0, 9)), np.ones((9, 0)))
    with pytest.raises(ValueError, match="kernel"):
        heads.constants()[0].set(wrong)


def test_kinds_by_position_need_one_grid() -> None:
    with pytest.raises(ValueError, match="patch grid"):
        ConstantHeads([("toeplitz", None)], None, (1, 16, 4), WIDTH)
    assert ConstantHeads([("dense", None)], None, (1, 16, 4), WIDTH)(torch.rand(2, 1, 4, WIDTH)).shape == (2, 1, 16, WIDTH)
