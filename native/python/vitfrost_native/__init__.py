"""vitfrost's native engine: a compressed Vision Transformer out of one file, run on the CPU in integers. NumPy alone; Pillow for pictures.

with vitfrost_native.Model("deploy/model.vfn", threads=1) as model:
    logits = model.run(pixels)  # float32 [B, 3, H, W] -> float32 [B, classes]
"""

from __future__ import annotations

from .errors import VitfrostError
from .library import isas, version
from .model import Info, Model, ProfileRow, instructions, multiply

__version__ = "0.1.0"
__all__ = ["Info", "Model", "ProfileRow", "VitfrostError", "instructions", "isas", "multiply", "version"]
