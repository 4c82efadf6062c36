"""A criterion takes one function: that of the documentation works from the flag to the table."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitfrost.configs import FreezeEntries, FreezeHeads
from vitfrost.configs.flat import flat_options
from vitfrost.configs.tables import criteria_table
from vitfrost.configs.words import metavar
from vitfrost.plans.choose import plan
from vitfrost.plans.criteria import CRITERIA, Scores, SiteArrays, criterion
from vitfrost.plans.schema import Plan

ARCHITECTURE = Path(__file__).parents[2] / "docs" / "architecture.md"


@pytest.fixture
def added() -> Iterator[str]:
    """The criterion of the documentation, until the test ends."""
    (code,) = re.findall(r"```python\n(@criterion.*?)```", ARCHITECTURE.read_text(), re.S)
    before = set(CRITERIA)
    exec(code, {"criterion": criterion, "np": np, "SiteArrays": SiteArrays, "Scores": Scores})
    (name,) = set(CRITERIA) - before
    yield name
    del CRITERIA[name]


def test_it_chooses_entries_and_heads(added: str, draw_record: Any) -> None:
    record = draw_record([(1, 3, 9, 9)])
    assert plan(record, FreezeEntries(0.3, by=added)).freeze == FreezeEntries(0.3, by=added)
    assert sum(len(layer.constant) for layer in plan(record, FreezeHeads(0.4, by=added)).layers) == 1
    assert f"| `{added}` |" in criteria_table()


def test_it_is_a_value_of_the_flag(added: str, prepared: Any, call: Callable[..., Any], tmp_path: Path) -> None:
    assert added in metavar(flat_options()["by"])
    ended = call("plan", "--statistics", prepared.statistics, "--by", added, "--out", tmp_path / "plan.yaml")
    assert ended.status == 0, ended.err
    assert Plan.load(tmp_path / "plan.yaml").freeze.by == added
