"""The tools that write graphs, kept from filling the terminal with notes of theirs."""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator

LOGGERS = ("nncf", "onnxscript", "onnx_ir", "torch.export", "torch.onnx")
# Where a warning of the tools is raised from: copyreg copies torch's trees.
MODULES = r"(copyreg|nncf|onnx|onnx_ir|onnxruntime|onnxscript|openvino|timm|torch)(\.|$)"


@contextlib.contextmanager
def quiet_tools() -> Iterator[None]:
    """Drop the tools' warnings and what they log below errors, until the block ends; those of others pass.

    ONNX Runtime's quantization logs on the root logger, which would also give it a handler for good where it has none.
    """
    root, loggers = logging.getLogger(), [logging.getLogger(name) for name in LOGGERS]
    levels = [logger.level for logger in loggers]
    bare = logging.NullHandler()
    root.addHandler(bare)
    root.addFilter(_of_others)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", module=MODULES)
        for logger in loggers:
            logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            root.removeFilter(_of_others)
            root.removeHandler(bare)
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)


def _of_others(record: logging.LogRecord) -> bool:
    return record.levelno >= logging.ERROR or "onnxruntime" not in record.pathname
