"""Laws of the quantizers, and parity with the formulas written out in float64."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from vitfrost.methods.quantize.quantizers import (
    fake_log,
    fake_uniform,
    log_codes,
    log_values,
    uniform_codes,
    uniform_parameters,
    uniform_values,
    zero_code,
)

BITS = st.integers(2, 8)
SEEDS = st.integers(0, 10_000)


def uniform_reference(x: np.ndarray, low: float, high: float, bits: int) -> np.ndarray:
    """RepQ-ViT's uniform quantizer as its paper writes it, in float64."""
    scale = (high - low) / (2**bits - 1)
    zero = np.round(-low / scale)
    return (np.clip(np.round(x / scale) + zero, 0, 2**bits - 1) - zero) * scale


def log_reference(x: np.ndarray, step: float, bits: int, strict: bool) -> np.ndarray:
    """RepQ-ViT's log-sqrt2 quantizer with its two-valued scale, in float64."""
    with np.errstate(divide="ignore"):
        code = np.round(-2 * np.log2(x / step))
    last = 2**bits - (2 if strict else 1)
    dropped = code > last
    code = np.clip(code, 0, last)
    value = 2.0 ** -np.ceil(code / 2) * (1 + (code % 2 == 1) * (np.sqrt(2) - 1)) * step
    return np.where(dropped, 0.0, value)


@given(SEEDS, BITS)
def test_uniform_matches_the_reference(seed: int, bits: int) -> None:
    x = torch.randn(500, generator=torch.Generator().manual_seed(seed)) * 3 + 0.3
    low, high = x.quantile(0.02), x.quantile(0.97)
    scale, zero = uniform_parameters(low, high, bits)
    ours = fake_uniform(x, scale, zero, bits).double().numpy()
    assert np.isclose(ours, uniform_reference(x.double().numpy(), float(low), float(high), bits), atol=1e-5).mean() > 0.99


@given(SEEDS, BITS)
def test_uniform_is_idempotent_and_has_at_most_two_to_the_bits_values(seed: int, bits: int) -> None:
    x = torch.randn(2000, generator=torch.Generator().manual_seed(seed))
    scale, zero = uniform_parameters(x.min(), x.max(), bits)
    once = fake_uniform(x, scale, zero, bits)
    assert len(once.unique()) <= 2**bits
    assert torch.equal(once, fake_uniform(once, scale, zero, bits))
    assert float((once - x).abs().max()) <= float(scale) * 1.01
    assert torch.allclose(once, uniform_values(uniform_codes(x, scale, zero, bits), scale, zero), atol=1e-6)


def test_a_non_integer_zero_point_gives_one_value_more() -> None:
    x = torch.linspace(-2, 2, 5000)
    assert len(fake_uniform(x, torch.tensor(0.2), torch.tensor(7.43), 4).unique()) == 17
    assert len(fake_uniform(x, torch.tensor(0.2), torch.tensor(7.0), 4).unique()) == 16


@pytest.mark.parametrize("value", [0.0, 1.75, -3.5])
def test_a_constant_group_is_met_exactly(value: float) -> None:
    x = torch.full((10,), value)
    scale, zero = uniform_parameters(x.min(), x.max(), 4)
    assert float(scale) > 0
    assert torch.allclose(fake_uniform(x, scale, zero, 4), x)


@given(SEEDS, st.integers(2, 6), st.booleans(), st.floats(0.05, 1.0))
def test_log_matches_the_reference(seed: int, bits: int, strict: bool, step: float) -> None:
    x = torch.rand(2000, generator=torch.Generator().manual_seed(seed)).pow(6)
    ours = fake_log(x, torch.tensor(step), bits, "strict" if strict else "published").double().numpy()
    reference = log_reference(x.double().numpy(), step, bits, strict)
    assert np.isclose(ours, reference, rtol=1e-5, atol=1e-12).mean() > 0.998  # float32 may round a tie the other way


@given(SEEDS, BITS, st.booleans())
def test_log_codes_and_values_are_the_fake_quantizer(seed: int, bits: int, strict: bool) -> None:
    levels = "strict" if strict else "published"
    x = torch.rand(3000, generator=torch.Generator().manual_seed(seed)).pow(8)
    step = torch.tensor(0.7)
    codes = log_codes(x, step, bits, levels)
    assert int(codes.min()) >= 0
    assert int(codes.max()) <= zero_code(bits, levels)
    assert torch.allclose(log_values(codes, step, bits, levels), fake_log(x, step, bits, levels), rtol=1e-6)


def test_levels_of_the_map_quantizer() -> None:
    x = torch.cat([torch.zeros(1), torch.logspace(-6, 0, 20_000)])
    published, strict = (fake_log(x, torch.tensor(1.0), 4, levels).unique() for levels in ("published", "strict"))
    assert (len(published), len(strict)) == (17, 16)
    assert float(published[1]) == pytest.approx(2**-7.5)  # 0.00552 d, the smallest value of the published code
    assert float(strict[1]) == pytest.approx(2**-7)
    assert float(published[0]) == float(strict[0]) == 0.0
    assert float(fake_log(torch.tensor([0.00464]), torch.tensor(1.0), 4, "published")) == 0.0
    assert float(fake_log(torch.tensor([0.00466]), torch.tensor(1.0), 4, "published")) > 0.0


@given(SEEDS, BITS)
def test_log_is_monotone_and_within_a_quarter_octave(seed: int, bits: int) -> None:
    x = torch.rand(500, generator=torch.Generator().manual_seed(seed)).sort().values
    y = fake_log(x, torch.tensor(1.0), bits, "published")
    assert bool((y.diff() >= -1e-7).all())
    kept = y > 0
    assert float((torch.log2(y[kept]) - torch.log2(x[kept])).abs().max()) <= 0.25 + 1e-4


@given(SEEDS, st.integers(2, 4), st.sampled_from([2.0, 4 / 3, 1.0]), st.floats(0.05, 1.0))
def test_log_grids_of_other_bases(seed: int, bits: int, octave: float, step: float) -> None:
    x = torch.rand(3, 50, 50, generator=torch.Generator().manual_seed(seed)).pow(6)
    x[0, 0, 0] = 0.0
    ours = fake_log(x, torch.full((3, 1, 1), step), bits, "strict", torch.full((3, 1, 1), octave)).double()
    with np.errstate(divide="ignore"):
        codes = np.maximum(np.round(-octave * np.log2(x.double().numpy() / step)), 0)
    reference = np.where(codes >= 2**bits - 1, 0.0, np.round(2**14 * 2 ** (-codes / octave)) / 2**14 * step)
    assert np.isclose(ours.numpy(), reference, rtol=1e-5).mean() > 0.998  # float32 may round a tie the other way
    assert len(ours.unique()) <= 2**bits
    assert float(ours[0, 0, 0]) == 0.0


def test_each_head_has_a_base_of_its_own() -> None:
    maps = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0)).pow(4)
    step, octave = torch.tensor([1.0, 0.5, 0.7]).view(3, 1, 1), torch.tensor([2.0, 4 / 3, 1.0]).view(3, 1, 1)
    together = fake_log(maps, step, 3, "strict", octave)
    for head in range(3):
        assert torch.equal(together[:, head], fake_log(maps[:, head], step[head], 3, "strict", octave[head]))
