"""`best`: what `fast` does, then gradient steps on all blocks at once."""

from __future__ import annotations

from ...configs import Compress, Quantize
from ..quantize_chain import QuantizeInSteps
from ..quantize_method import Quantizer
from ..quantize_steps.polish import Polish
from . import fast

IMAGES = 1000
FITTED = 96  # by the closed form, which the gradient steps then make up for
STEPS = (*fast.STEPS, Polish())


def _make(config: Quantize, images: Compress) -> QuantizeInSteps:
    return QuantizeInSteps.of("best", config, STEPS, images.calibration_images or IMAGES, FITTED)


QUANTIZER = Quantizer(_make)
