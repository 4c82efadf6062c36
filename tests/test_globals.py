"""What belongs to the process stays as it is: generators, threads, logging, warnings."""

from __future__ import annotations

import logging
import random
import re
import subprocess
import sys
import time
import warnings
from pathlib import Path

import pytest
import torch


def test_the_verbs_leave_the_process_as_it_was(tmp_path: Path) -> None:
    script = Path(__file__).with_name("untouched.py")
    ended = subprocess.run([sys.executable, str(script), str(tmp_path)], capture_output=True, text=True, check=False)
    assert (ended.returncode, ended.stdout, ended.stderr) == (0, "", "")


def test_threads_are_those_of_before_after_a_run_and_an_error() -> None:
    from vitfrost.torch_state import torch_threads

    before = torch.get_num_threads()
    with torch_threads(before + 1):
        assert torch.get_num_threads() == before + 1
    assert torch.get_num_threads() == before
    with pytest.raises(ZeroDivisionError), torch_threads(before + 1):
        print(1 / 0)
    assert torch.get_num_threads() == before
    with torch_threads(None):
        assert torch.get_num_threads() == before


def test_a_tool_that_draws_when_it_is_imported_moves_no_generator_of_the_caller(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from vitfrost.runtime.runtimes import import_runtime

    (tmp_path / "tool_that_draws.py").write_text("import random\n\ndrawn = random.random()\n")
    monkeypatch.syspath_prepend(tmp_path)
    before = random.getstate()
    assert 0 <= import_runtime("tool_that_draws").drawn < 1
    assert random.getstate() == before


def test_a_command_shows_messages_on_stderr_and_takes_its_handler_away(capsys: pytest.CaptureFixture[str]) -> None:
    from vitfrost.progress import messages_on_stderr, say

    with messages_on_stderr():
        say("compress: 3 of 9")
        logging.getLogger("vitfrost.deploy.export").warning("saves no time")
    say("later")
    assert capsys.readouterr().err == "compress: 3 of 9\nvitfrost: saves no time\n"
    assert [type(handler) for handler in logging.getLogger("vitfrost").handlers] == [logging.NullHandler]


def test_a_long_silence_ends_with_a_line_that_says_what_is_being_done(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from vitfrost import progress

    monkeypatch.setitem(progress.SECONDS_OF_SILENCE, "file", 0.3)
    with progress.messages_on_stderr():
        progress.doing("export: write the graph")
        time.sleep(1.2)
    time.sleep(0.6)
    assert re.fullmatch(r"export: write the graph, \d s so far\n", capsys.readouterr().err)


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


@pytest.mark.usefixtures("unchecked")
def test_what_a_caller_has_switched_in_torch_changes_no_bit(pictures: Path, tmp_path: Path) -> None:
    import vitfrost

    def artifact() -> Path:
        model = vitfrost.Model.open("vitfrost_digits", options={"depth": 1}, weights="random")
        statistics = vitfrost.calibrate(model, pictures, vitfrost.Calibrate(limit=4, sensitivity=True), progress=False)
        plan = vitfrost.plan(statistics, vitfrost.FreezeHeads(0.3, by="fisher"), vitfrost.Quantize(4, 4, method="fast"))
        made = vitfrost.compress(model, plan, images=pictures, config=vitfrost.Compress(calibration_images=8))
        vitfrost.evaluate(made, pictures, progress=False)
        return made.save(tmp_path / str(len(list(tmp_path.iterdir()))))

    usual = artifact()
    with torch.inference_mode(), torch.autocast("cpu", torch.bfloat16):
        torch.set_default_dtype(torch.float64)
        try:
            switched = artifact()
            assert torch.is_inference_mode_enabled()
            assert torch.is_autocast_enabled("cpu")
            assert torch.get_default_dtype() == torch.float64
        finally:
            torch.set_default_dtype(torch.float32)
    assert (switched / "model.safetensors").read_bytes() == (usual / "model.safetensors").read_bytes()
