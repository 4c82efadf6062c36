"""The passes of `compress`: their order, what is checked before the first, and a new one."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

import vitfrost
from vitfrost.artifact import Artifact
from vitfrost.configs import Compact, FreezeEntries, FreezeHeads, Quantize, Repair
from vitfrost.errors import VitfrostError
from vitfrost.passes.compress import artifact_of, passes_of, start_work
from vitfrost.passes.work import Record, Work, apply_passes

DOCS = Path(__file__).parents[2] / "docs"


@pytest.mark.parametrize(
    ("methods", "order"),
    [
        ([FreezeEntries(0.2)], ["repair", "quantization", "frozen entries"]),
        ([FreezeEntries(0.2, bits=32), Quantize(32, 32)], ["frozen entries", "repair"]),
        ([FreezeEntries(0.2), Quantize(8, 32)], ["frozen entries", "repair", "quantization"]),
        ([FreezeHeads(0.25)], ["structure", "repair"]),
        ([FreezeHeads(0.25), Quantize(8, 8)], ["structure", "repair", "quantization"]),
        ([Compact(0.5)], ["structure", "repair"]),
    ],
)
def test_frozen_entries_come_before_the_repair_but_after_quantized_maps(shallow: Any, methods: list[Any], order: list[str]) -> None:
    plan = vitfrost.plan(shallow.statistics, *methods)
    assert [one.name for one in passes_of(plan, Repair())] == order
    assert [one.name for one in passes_of(plan)] == [name for name in order if name != "repair"]
    assert [one.name for one in passes_of(plan, structured=True)] == [name for name in order if name not in ("repair", "structure")]


@dataclass(frozen=True)
class Refuses:
    """A pass that lacks something."""

    name = "refuses"

    def check(self, work: Work) -> None:
        """Always."""
        raise VitfrostError("this needs more")

    def apply(self, work: Work) -> Record:
        """Never."""
        raise AssertionError


def test_nothing_is_applied_before_all_is_checked(shallow: Any) -> None:
    plan = vitfrost.plan(shallow.statistics, FreezeHeads(0.25))
    work = start_work(shallow.model, plan, shallow.statistics)
    before = {name: value.clone() for name, value in work.model.state_dict().items()}
    with pytest.raises(VitfrostError, match="this needs more"):
        apply_passes([*passes_of(plan), Refuses()], work)
    after = work.model.state_dict()
    assert before.keys() == after.keys()
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert work.records == {}


def test_the_pass_of_the_documentation_rounds_records_and_is_loaded_again(shallow: Any, tmp_path: Path) -> None:
    (code,) = re.findall(r"```python\n(@dataclass.*?)```", (DOCS / "architecture.md").read_text(), re.S)
    names: dict[str, Any] = {"dataclass": dataclass, "Work": Work, "Record": Record}
    exec(code, names)
    plan = vitfrost.plan(shallow.statistics, FreezeHeads(0.25))
    work = start_work(shallow.model, plan, shallow.statistics)
    apply_passes([*passes_of(plan), names["RoundWeights"](bits=4)], work)
    made = artifact_of(work)
    made.save(tmp_path / "made")
    loaded = Artifact.load(tmp_path / "made")
    assert loaded.passes == made.passes == {"rounding": {"bits": 4}}
    for site in work.sites.linears:
        weight = loaded.module.get_submodule(site.name).weight
        assert torch.equal(weight, made.module.get_submodule(site.name).weight)
        assert all(len(row.unique()) <= 2**4 - 1 for row in weight.flatten(1))
    assert start_work(loaded, plan).records.keys() == {"structure", "rounding"}
