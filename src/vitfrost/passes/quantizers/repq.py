"""`repq`: RepQ-ViT as published, the baseline. Frozen entries lie on the grids of its map quantizers."""

from __future__ import annotations

from dataclasses import dataclass

from ...configs import Compress, Quantize
from ...errors import VitfrostError
from ...methods.quantize.repq import QuantizationSettings, quantize_model
from ..quantize_method import Quantizer
from ..work import Record, Work

IMAGES = 32  # as the authors take


@dataclass(frozen=True)
class QuantizeRepQ:
    """`images`: how many are drawn to calibrate activations. See `methods.quantize.repq`.

    The record: the method, bits and levels, and the draw where there was one.
    """

    settings: QuantizationSettings
    images: int
    name = "quantization"

    def check(self, work: Work) -> None:
        """Activations need images."""
        if self.settings.activations and not work.draws.given:
            raise VitfrostError("quantizing activations needs calibration images; give --images DIR or set the activation bits to 32")

    def apply(self, work: Work) -> Record:
        """All images pass in one batch."""
        settings = self.settings
        pixels, drawn = work.draws.batch("calibration", self.images) if settings.activations else (None, {})
        quantize_model(work.model, work.sites, settings, pixels)
        about = {"weight_bits": settings.weight_bits, "activation_bits": settings.activation_bits, "levels": settings.levels}
        return {"method": "RepQ-ViT"} | about | drawn


def _make(config: Quantize, images: Compress) -> QuantizeRepQ:
    return QuantizeRepQ(QuantizationSettings.of(config), images.calibration_images or IMAGES)


QUANTIZER = Quantizer(_make, freezes_first=False)
