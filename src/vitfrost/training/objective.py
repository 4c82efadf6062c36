"""What training minimizes: cross-entropy with soft labels, and distillation from a teacher. Formulas only.

Shapes: B images, C classes. Every term is a mean over all B images, so that the mean over equal parts of a batch is the whole's.
"""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float, Int64
from torch import Tensor
from torch.nn import functional as F


def soft_labels(labels: Int64[Tensor, " images"], classes: int, smoothing: float = 0.0) -> Float[Tensor, "images classes"]:
    """Targets of labels: 1 - s + s / C at the label and s / C elsewhere (Szegedy et al. 2016)."""
    return F.one_hot(labels, classes).float().mul_(1 - smoothing).add_(smoothing / classes)


def label_loss(logits: Float[Tensor, "images classes"], targets: Float[Tensor, "images classes"]) -> Float[Tensor, ""]:
    """- mean over images of sum_c t_c log p_c; an image without a label has targets of zero and adds nothing."""
    return -(targets * F.log_softmax(logits.float(), dim=1)).sum(1).mean()


def distillation_loss(
    logits: Float[Tensor, "images classes"],
    teacher: Float[Tensor, "images classes"],
    kind: Literal["soft", "hard"],
    temperature: float = 1.0,
) -> Float[Tensor, ""]:
    """soft: T^2 KL(softmax(teacher / T) || softmax(logits / T)) (Hinton et al. 2015); hard: cross-entropy with the teacher's
    decision (Touvron et al. 2021)."""
    logits, teacher = logits.float(), teacher.float()
    if kind == "hard":
        return F.cross_entropy(logits, teacher.argmax(1))
    student = F.log_softmax(logits / temperature, dim=1)
    return temperature**2 * F.kl_div(student, F.log_softmax(teacher / temperature, dim=1), reduction="batchmean", log_target=True)


def token_loss(tokens: Float[Tensor, images * rest], teacher: Float[Tensor, images * rest]) -> Float[Tensor, ""]:
    """Mean squared difference between the last tokens of model and teacher (FitNets, Romero et al. 2015, at the last layer)."""
    return F.mse_loss(tokens.float(), teacher.float())


def objective(
    logits: Float[Tensor, "images classes"],
    targets: Float[Tensor, "images classes"],
    teacher: Float[Tensor, "images classes"] | None = None,
    *,
    weight: float = 0.0,
    kind: Literal["soft", "hard"] = "soft",
    temperature: float = 1.0,
) -> Float[Tensor, ""]:
    """(1 - w) label loss + w distillation; the label loss alone without a teacher."""
    if teacher is None:
        return label_loss(logits, targets)
    distilled = weight * distillation_loss(logits, teacher, kind, temperature)
    return distilled if weight == 1 else (1 - weight) * label_loss(logits, targets) + distilled
