"""No telemetry: the runtimes and their tools would send usage data, and leave files in the home folder, unless told not to."""

from __future__ import annotations

import os
import sys
from types import ModuleType


def forbid_telemetry() -> None:
    """Call before ONNX Runtime, OpenVINO or NNCF is imported.

    ONNX Runtime obeys an environment variable, which is left as it is where the user has set it. OpenVINO and NNCF do without where
    their package `openvino_telemetry` cannot be imported: an answer in its consent file would have to be written into the home
    folder, and NNCF's own variables (NNCF_CI) act only after the first file has been left there.
    """
    os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")
    blocked: dict[str, ModuleType | None] = sys.modules  # type: ignore[assignment]
    blocked.setdefault("openvino_telemetry", None)
