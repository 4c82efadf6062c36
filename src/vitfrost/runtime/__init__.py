"""Running an exported model with ONNX Runtime, OpenVINO or our own engine: NumPy, Pillow and that runtime are all it needs, no torch."""

from __future__ import annotations

from .runtimes import Runtime
from .session import Prediction, Session, open_export

__all__ = ["Prediction", "Runtime", "Session", "open_export"]
