"""What belongs to the process stays as it is: generators, threads, logging, warnings."""

from __future__ import annotations

import logging
import os
import random
import subprocess
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vitfrost

TOOLS = ("nncf", "onnxscript", "onnx_ir", "torch.export", "torch.onnx")


def state() -> dict[str, Any]:
    """Everything global that a library is tempted to switch."""
    root = logging.getLogger()
    return {
        "torch generator": torch.get_rng_state().tolist(),
        "numpy generator": str(np.random.get_state()),
        "random": random.getstate(),
        "threads": torch.get_num_threads(),
        "gradients": torch.is_grad_enabled(),
        "dtype": torch.get_default_dtype(),
        "logging": (root.level, list(root.handlers), list(root.filters), root.manager.disable),
        "tools": [logging.getLogger(name).level for name in TOOLS],
        "vitfrost": (logging.getLogger("vitfrost").level, logging.getLogger("vitfrost").propagate),
        "warnings": list(warnings.filters),
        "stdout": (sys.stdout, sys.stderr),
        "hooks": (sys.excepthook, sys.displayhook),
        "folder": os.getcwd(),
    }


@pytest.fixture
def root_without_handlers() -> Any:
    """As in a script: where root has no handler, `logging.warning` would give it one for good."""
    root = logging.getLogger()
    before = list(root.handlers)
    root.handlers.clear()
    yield
    root.handlers[:] = before


def changed(before: dict[str, Any]) -> list[str]:
    """Names of what is not as it was."""
    after = state()
    return [name for name in before if before[name] != after[name]]


@pytest.mark.usefixtures("root_without_handlers", "unchecked")  # beartype checks items that it draws with `random`
def test_the_verbs_leave_the_process_as_it_was(pictures: Path, tmp_path: Path) -> None:
    vitfrost.export("vitfrost_digits", format="openvino", precision="fp32", out=tmp_path / "first")  # imports what is imported late
    torch.manual_seed(5)
    random.seed(5)
    np.random.seed(5)
    before, images = state(), {"images": pictures}
    statistics = vitfrost.calibrate("vitfrost_digits", pictures, limit=12, progress=False)
    plan = vitfrost.plan(statistics, unit="head", freeze=0.25, weight_bits=32, activation_bits=32)
    small = vitfrost.compress("vitfrost_digits", plan, statistics=statistics, images=pictures, repair="ridge", repair_images=12)
    quantized = vitfrost.compress("vitfrost_digits", vitfrost.plan(statistics), statistics=statistics, images=pictures)
    assert changed(before) == []
    int8 = {"precision": "int8", "calibration_images": 8, "time_only": True}
    vitfrost.export(small, format="onnx", out=tmp_path / "onnx", **images, **int8)
    vitfrost.export(small, format="openvino", out=tmp_path / "openvino", **images, **int8)
    assert changed(before) == []
    vitfrost.evaluate(quantized, pictures, progress=False)
    assert changed(before) == []


def test_threads_are_those_of_before_after_a_run_and_an_error() -> None:
    from vitfrost.threads import torch_threads

    before = torch.get_num_threads()
    with torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    with pytest.raises(ZeroDivisionError), torch_threads(before + 1):
        print(1 / 0)
    assert torch.get_num_threads() == before
    with torch_threads(None):
        assert torch.get_num_threads() == before


def test_a_command_shows_messages_on_stderr_and_takes_its_handler_away(capsys: pytest.CaptureFixture[str]) -> None:
    from vitfrost.progress import messages_on_stderr, say

    with messages_on_stderr():
        say("compress: 3 of 9")
        logging.getLogger("vitfrost.deploy.export").warning("saves no time")
    say("later")
    assert capsys.readouterr().err == "compress: 3 of 9\nvitfrost: saves no time\n"
    assert [type(handler) for handler in logging.getLogger("vitfrost").handlers] == [logging.NullHandler]


def test_without_a_handler_of_the_caller_nothing_is_shown() -> None:
    code = "import vitfrost, logging; logging.getLogger('vitfrost.deploy').warning('w')"
    ended = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (ended.stdout, ended.stderr) == ("", "")


def test_a_warning_of_others_during_an_export_is_not_lost() -> None:
    from vitfrost.deploy.tools import quiet_tools

    with pytest.warns(UserWarning, match="from elsewhere"), quiet_tools():
        warnings.warn("from elsewhere", stacklevel=1)
    with warnings.catch_warnings(record=True) as seen, quiet_tools():
        warnings.warn_explicit("a tool's", FutureWarning, "torch/x.py", 1, module="torch.export._trace")
    assert seen == []
