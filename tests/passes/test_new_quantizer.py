"""A quantizer takes one file: that of the documentation works from the flag to the artifact."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

import vitfrost
from vitfrost.configs import Compress, FreezeHeads, Quantize
from vitfrost.configs.flat import flat_options
from vitfrost.configs.methods import QUANTIZER_FOLDERS
from vitfrost.configs.words import metavar
from vitfrost.errors import VitfrostError
from vitfrost.passes import quantizers
from vitfrost.plans.schema import Plan

ARCHITECTURE = Path(__file__).parents[2] / "docs" / "architecture.md"


@pytest.fixture
def added(tmp_path: Path) -> Iterator[str]:
    """The quantizer of the documentation in a folder of its own, until the test ends."""
    (code,) = re.findall(r"```python\n(\"\"\"`wider`.*?)```", ARCHITECTURE.read_text(), re.S)
    folder = tmp_path / "quantizers"
    folder.mkdir()
    (folder / "wider.py").write_text(code)
    QUANTIZER_FOLDERS.append(str(folder))
    quantizers.__path__.append(str(folder))
    yield "wider"
    QUANTIZER_FOLDERS.remove(str(folder))
    quantizers.__path__.remove(str(folder))
    del sys.modules["vitfrost.passes.quantizers.wider"]


def test_it_is_a_value_of_the_flag_and_quantizes(added: str, shallow: Any, prepared: Any, call: Callable[..., Any], tmp_path: Path) -> None:
    assert added in metavar(flat_options()["quantizer"])
    bits = ("--weight-bits", 4, "--activation-bits", 6)
    ended = call("plan", "--statistics", prepared.statistics, *bits, "--quantizer", added, "--out", tmp_path / "plan.yaml")
    assert ended.status == 0, ended.err
    assert Plan.load(tmp_path / "plan.yaml").quantize == Quantize(4, 6, method=added)
    plan = vitfrost.plan(shallow.statistics, FreezeHeads(0.25), Quantize(4, 6, method=added))
    made = vitfrost.compress(shallow.model, plan, statistics=shallow.statistics, images=shallow.pictures, config=Compress(0, 8))
    assert [step["step"] for step in made.quantization["steps"]] == ["ranges", "widening"]
    assert made.quantization["steps"][1]["factor"] == 1.05


def test_a_plan_of_a_quantizer_that_is_not_there(shallow: Any) -> None:
    with pytest.raises(VitfrostError, match="method is 'wider'; it should be one of best, fast, repq"):
        Quantize(method="wider")
