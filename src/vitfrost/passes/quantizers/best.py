"""`best`: what `fast` does, then gradient steps on all blocks at once."""

from __future__ import annotations

from ...configs import Compress, Quantize
from ..quantize_chain import QuantizeInSteps
from ..quantize_method import Quantizer
from ..quantize_steps.polish import Polish
from . import fast

IMAGES = 384
STEPS = (*fast.STEPS, Polish())


def _make(config: Quantize, images: Compress) -> QuantizeInSteps:
    return QuantizeInSteps.of("best", config, STEPS, images.calibration_images or IMAGES)


QUANTIZER = Quantizer(_make)
