"""Losses: parity with torch and timm in float64, and what makes parts of a batch add up to the whole."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.nn import functional as F

from vitfrost.training.objective import distillation_loss, label_loss, objective, soft_labels
from vitfrost.vit.compat import import_timm

import_timm()
from timm.data.mixup import mixup_target  # noqa: E402
from timm.loss import LabelSmoothingCrossEntropy, SoftTargetCrossEntropy  # noqa: E402

SEEDS = st.integers(0, 2**31)


def drawn(seed: int, images: int = 6, classes: int = 5) -> tuple[Tensor, Tensor, Tensor]:
    """Logits, targets and a teacher's logits."""
    generator = torch.Generator().manual_seed(seed)
    logits, teacher, raw = (3 * torch.randn(images, classes, generator=generator) for _ in range(3))
    return logits, raw.softmax(1), teacher


@given(SEEDS)
def test_the_label_loss_is_that_of_torch_and_timm(seed: int) -> None:
    logits, targets, _ = drawn(seed)
    found = label_loss(logits, targets).double()
    torch.testing.assert_close(found, F.cross_entropy(logits.double(), targets.double()), rtol=1e-6, atol=1e-6)
    torch.testing.assert_close(found.float(), SoftTargetCrossEntropy()(logits, targets), rtol=1e-6, atol=1e-6)


@given(SEEDS, st.floats(0, 0.9))
def test_smoothed_labels_are_those_of_timm(seed: int, smoothing: float) -> None:
    logits, targets, _ = drawn(seed)
    labels = targets.argmax(1)
    soft = soft_labels(labels, 5, smoothing)
    torch.testing.assert_close(soft, mixup_target(labels, 5, 1.0, smoothing))
    torch.testing.assert_close(soft.sum(1), torch.ones(6))
    torch.testing.assert_close(label_loss(logits, soft), LabelSmoothingCrossEntropy(smoothing)(logits, labels))


@given(SEEDS, st.floats(0.5, 8))
def test_soft_distillation_is_the_divergence_times_the_temperature_squared(seed: int, temperature: float) -> None:
    logits, _, teacher = drawn(seed)
    p, q = (torch.softmax(values.double() / temperature, 1) for values in (teacher, logits))
    expected = temperature**2 * (p * (p / q).log()).sum(1).mean()
    torch.testing.assert_close(distillation_loss(logits, teacher, "soft", temperature).double(), expected, rtol=1e-4, atol=1e-5)
    assert distillation_loss(teacher, teacher + 7, "soft", temperature).abs() < 1e-4


@given(SEEDS)
def test_hard_distillation_takes_the_teachers_decision_for_the_label(seed: int) -> None:
    logits, _, teacher = drawn(seed)
    torch.testing.assert_close(distillation_loss(logits, teacher, "hard"), label_loss(logits, soft_labels(teacher.argmax(1), 5)))


@given(SEEDS, st.sampled_from(["soft", "hard"]), st.floats(0.1, 1))
def test_the_mean_over_equal_parts_is_the_whole(seed: int, kind: str, weight: float) -> None:
    logits, targets, teacher = drawn(seed)
    options = {"kind": kind, "weight": weight, "temperature": 2.0}
    parts = [objective(logits[i : i + 3], targets[i : i + 3], teacher[i : i + 3], **options) for i in (0, 3)]
    torch.testing.assert_close(sum(parts) / 2, objective(logits, targets, teacher, **options))


@given(SEEDS)
def test_images_without_a_label_add_nothing_to_the_label_loss(seed: int) -> None:
    logits, targets, _ = drawn(seed)
    logits.requires_grad_(True)
    targets[3:] = 0
    loss = label_loss(logits, targets)
    torch.testing.assert_close(loss, label_loss(logits[:3], targets[:3]) / 2)
    loss.backward()
    assert logits.grad is not None
    assert logits.grad[3:].abs().max() == 0 < logits.grad[:3].abs().max()


def test_weights_share_the_loss() -> None:
    logits, targets, teacher = drawn(0)
    alone, taught = label_loss(logits, targets), distillation_loss(logits, teacher, "soft", 3.0)
    torch.testing.assert_close(objective(logits, targets, teacher, weight=0.25, temperature=3.0), 0.75 * alone + 0.25 * taught)
    torch.testing.assert_close(objective(logits, torch.zeros_like(targets), teacher, weight=1.0, temperature=3.0), taught)
    assert objective(logits, targets).item() == pytest.approx(alone.item())
