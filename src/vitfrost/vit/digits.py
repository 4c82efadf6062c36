"""The bundled model of `vitfrost demo`: a small ViT for handwritten digits, registered with timm as `vitfrost_digits`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import nn

from .compat import import_timm

timm = import_timm()
from timm.models import register_model  # noqa: E402  (timm must be imported through the guard)
from timm.models.vision_transformer import VisionTransformer  # noqa: E402

MODEL_NAME = "vitfrost_digits"
WEIGHTS = Path(__file__).parent.parent / "example" / "digits.safetensors"


@register_model
def vitfrost_digits(pretrained: bool = False, **options: Any) -> nn.Module:
    """32x32 px RGB, patches of 4, 64 + 1 tokens of width 64, six layers of four heads, ten classes."""
    defaults = {"img_size": 32, "patch_size": 4, "embed_dim": 64, "depth": 6, "num_heads": 4, "num_classes": 10}
    options.pop("pretrained_cfg", None)
    options.pop("pretrained_cfg_overlay", None)
    options.pop("cache_dir", None)
    model: Any = VisionTransformer(**{**defaults, **options})
    model.pretrained_cfg = model.default_cfg = {
        "architecture": MODEL_NAME, "tag": "digits", "input_size": (3, 32, 32), "mean": (0.5, 0.5, 0.5),
        "std": (0.5, 0.5, 0.5), "crop_pct": 1.0, "crop_mode": "squash", "interpolation": "bicubic", "num_classes": 10,
    }  # fmt: skip
    if pretrained:
        from safetensors.torch import load_file

        from .outputs import without_head
        from .resize import fit_state

        model.load_state_dict(without_head(model, fit_state(model, load_file(WEIGHTS)), "vitfrost_digits"))
    return model
