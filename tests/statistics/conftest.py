"""What several tests of statistics need."""

from __future__ import annotations

from pathlib import Path

import pytest

from vitfrost.configs import Compress, Quantize
from vitfrost.model import Model
from vitfrost.passes.compress import compress
from vitfrost.plans.choose import unfrozen_plan
from vitfrost.vit.families import find_sites


@pytest.fixture(scope="session")
def quantized(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The digits model at W4/A4, nothing frozen."""
    loaded = Model.open("vitfrost_digits")
    unfrozen = unfrozen_plan(loaded.identity, find_sites(loaded.module).signature(), Quantize())
    out = tmp_path_factory.mktemp("quantized") / "artifact"
    compress(loaded, unfrozen, images=pictures, out=out, config=Compress(calibration_images=8))
    return out
