"""A source of maps takes one class: that of the documentation goes the whole way, with its cost and its configuration."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import vitfrost
from vitfrost.configs import FreezeHeads, Hallucinate, Quantize
from vitfrost.configs.base import Share, config
from vitfrost.deploy.graph import inference_form, trace
from vitfrost.errors import VitfrostError
from vitfrost.evaluation.cost import macs_by_part
from vitfrost.map_sources import SOURCES, MapSource, register
from vitfrost.passes.structure import changed_sites
from vitfrost.plans.schema import Plan
from vitfrost.vit.families import find_sites

ARCHITECTURE = Path(__file__).parents[2] / "docs" / "architecture.md"


class UniformHeads(nn.Module):
    """The mean of the values, mixed with the token's own value."""

    def __init__(self, tokens: int, heads: int, own: float):
        super().__init__()
        self.tokens, self.heads, self.own = tokens, heads, own

    def forward(self, values: Tensor) -> Tensor:
        return self.own * values + (1 - self.own) * values.mean(2, keepdim=True)

    def maps(self) -> Tensor:
        whole = self.own * torch.eye(self.tokens) + (1 - self.own) / self.tokens
        return whole.expand(1, self.heads, self.tokens, self.tokens)


@pytest.fixture
def uniform() -> Iterator[None]:
    """The source of the documentation, until the test ends."""
    (code,) = re.findall(r"```python\n(@config\nclass UniformMaps.*?)```", ARCHITECTURE.read_text(), re.S)
    names = {"config": config, "Share": Share, "MapSource": MapSource, "register": register, "UniformHeads": UniformHeads}
    exec(compile(code, ARCHITECTURE.name, "exec", dont_inherit=True), names)
    yield
    del SOURCES["uniform"]


@pytest.fixture
def written(uniform: None, shallow: Any, tmp_path: Path) -> Path:
    """A plan with constant and hallucinated heads, and one uniform head instead of a computed one in each layer."""
    methods = FreezeHeads(0.125, kind="dense"), Hallucinate(0.25, by="first", mix="copy")
    vitfrost.plan(shallow.statistics, *methods, Quantize(32, 32), out=tmp_path / "plan.yaml")
    text = (tmp_path / "plan.yaml").read_text()
    head, *layers = text.split("\n- site: ")
    head = head.replace("\nlayers:", "\nsources:\n  uniform: {own: 0.25}\nlayers:")
    layers = [layer.replace("{source: computed}", "{source: uniform}", 1).replace(", like: 0", "") for layer in layers]
    (tmp_path / "plan.yaml").write_text("\n- site: ".join([head, *layers]))
    return tmp_path / "plan.yaml"


def test_it_goes_from_the_plan_file_to_the_loaded_artifact(written: Path, shallow: Any, tmp_path: Path) -> None:
    plan, model = Plan.load(written), shallow.model
    made = vitfrost.compress(model, plan, statistics=shallow.statistics, out=tmp_path / "artifact")
    again = vitfrost.Artifact.load(tmp_path / "artifact")
    assert again.plan == plan
    assert "2 of 8 heads uniform" in repr(plan)
    pixels = torch.randn(2, 3, *model.image_size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        assert torch.equal(again.module(pixels), made.module(pixels))
    trace(inference_form(again), model.image_size, "the artifact")  # as an export does
    name = plan.layers[0].site
    attention: Any = again.module.get_submodule(name)
    seen: list[Tensor] = []
    attention.observe(lambda maps, values: seen.append(maps))
    with torch.no_grad():
        again.module(pixels)
    (head,) = plan.layers[0].heads_of("uniform")
    tokens = attention.site.keys
    assert torch.allclose(seen[0][:, head], 0.25 * torch.eye(tokens) + 0.75 / tokens)
    width = attention.site.head_dim
    rows = attention.order.index(head) - attention.logit_heads
    assert attention.qkv.out_features == (2 * attention.logit_heads + attention.site.heads) * width
    assert rows >= 0  # it has no queries and keys


def test_its_cost_its_statistics_and_its_page(written: Path, shallow: Any, pictures: Path) -> None:
    plan = Plan.load(written)
    made = vitfrost.compress(shallow.model, plan, statistics=shallow.statistics, out=written.parent / "artifact")
    page = vitfrost.report(written.parent).read_text()
    assert "Maps of other sources" in page
    assert "</span> 2 uniform</span>" in page
    sites = changed_sites(find_sites(made.blank()), plan)
    macs = macs_by_part(made.module, sites)
    assert macs["other_maps"] == sum(site.keys * site.head_dim for site in sites.attention)
    assert vitfrost.inspect(shallow.model, plan=plan)["planned"]["macs"] == macs
    again = vitfrost.calibrate(made, pictures, vitfrost.Calibrate(limit=2), progress=False)
    assert again.header.structure is not None
    assert again.header.structure["sources"] == {"uniform": {"own": 0.25}}
    quantized = vitfrost.plan(again, Quantize(8, 8))
    assert [layer.heads for layer in quantized.layers] == [
        tuple(head.model_copy(update={"why": None}) for head in layer.heads) for layer in plan.layers
    ]


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("own: 0.25", "own: 2.0", r"sources.uniform: UniformMaps.own is 2.0; it should be less than or equal to 1"),
        ("uniform: {own", "frozen: {own", "sources.frozen is not known here"),
        (
            "source: uniform",
            "source: uniform, entries: 3",
            "entries is 3, but a uniform head has none; leave it out, or write",
        ),
        ("source: uniform", "source: unform", "source is 'unform'; it should be one of computed, frozen, hallucinated, windowed, uniform"),
    ],
)
def test_mistakes_are_named(written: Path, old: str, new: str, message: str) -> None:
    written.write_text(written.read_text().replace(old, new, 1))
    with pytest.raises(VitfrostError, match=message):
        Plan.load(written)


def test_a_name_is_taken_once() -> None:
    with pytest.raises(ValueError, match="named computed already"):
        register(type(SOURCES["computed"])())
