"""`fast`: closed form, minutes on a processor. Ranges, rotation, ridge behind the quantizers, rounding."""

from __future__ import annotations

from ...configs import Compress, Quantize
from ..quantize_chain import QuantizeInSteps
from ..quantize_method import Quantizer
from ..quantize_steps.ranges import SearchRanges
from ..quantize_steps.ridge import FitWeights
from ..quantize_steps.rotate import Rotate
from ..quantize_steps.rounding import RoundWeights

IMAGES = 192
STEPS = (SearchRanges(), Rotate(), FitWeights(), RoundWeights())


def _make(config: Quantize, images: Compress) -> QuantizeInSteps:
    return QuantizeInSteps.of("fast", config, STEPS, images.calibration_images or IMAGES)


QUANTIZER = Quantizer(_make)
