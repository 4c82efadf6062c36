"""The page of a run that hallucinates heads and makes blocks compact: what it says agrees with the files of the run."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from vitfrost.artifact import Artifact
from vitfrost.configs import Calibrate, Compact, FreezeEntries, FreezeHeads, Hallucinate, Quantize
from vitfrost.errors import VitfrostError
from vitfrost.evaluation.inspect import inspect
from vitfrost.evaluation.results import load_results
from vitfrost.files import read_json, write_json
from vitfrost.model import Model
from vitfrost.passes.compress import compress
from vitfrost.plans.choose import plan
from vitfrost.plans.schema import Plan
from vitfrost.reporting.build import report
from vitfrost.reporting.commands import plan_command
from vitfrost.reporting.heads import build_gallery
from vitfrost.reporting.parts import read_parts
from vitfrost.reporting.structure import build_likeness, build_structure
from vitfrost.statistics.calibrate import calibrate
from vitfrost.statistics.record import Statistics

LAYERS, HEADS = 6, 4
PageOf = Callable[..., Any]


def cells(table: Any) -> dict[str, list[str]]:
    return {name: [cell.value for cell in row] for name, row in table.rows}


def test_page_is_whole_and_says_what_was_done(structured_run: Path, tmp_path: Path, page_of: PageOf) -> None:
    page = page_of(structured_run, tmp_path / "page.html")
    assert "http" not in page.source.replace("http-equiv", "")
    anchors = {reference[1:] for reference in page.references if reference.startswith("#")}
    assert {"structure", "likeness"} <= anchors <= set(page.ids)
    assert "12 of 24 attention heads are hallucinated" in page.text
    assert "6 of 6 feed-forward blocks are compact: their second projection has rank 32" in page.text
    assert "so fused attention, which never writes them, is lost" in page.text
    assert "12 computed" in page.text
    assert "12 hallucinated, like the head named" in page.text
    said = page.text.rpartition("How it was made")[0].lower()
    assert "frozen" not in said
    assert "freez" not in said


def test_accuracy_is_that_before_training(structured_run: Path, structured_folder: Path, tmp_path: Path, page_of: PageOf) -> None:
    text = page_of(structured_run, tmp_path / "page.html").text
    original, compressed = load_results(structured_run / "results.json").rows
    assert f"The accuracy of {compressed.top1:.2f} % executed is that of this state" in text
    assert "Before any training." in text
    assert (
        "mixes come in closed form from the heads' similarity, factors come in closed form from the original's weights and images" in text
    )
    assert f"took {1e3 * original.seconds_per_image:.2f} ms in the original and {1e3 * compressed.seconds_per_image:.2f} ms here" in text
    config = read_json(structured_folder / "artifact" / "config.json")
    config["training"] = {"steps": 3}
    write_json(structured_folder / "artifact" / "config.json", config)
    after = page_of(structured_folder).text
    assert "Before any training" not in after
    assert "before any training" not in after
    assert "what is said here of mixes and factors is from before that training" in after


def test_times_of_simulated_models_are_not_compared(structured_folder: Path, page_of: PageOf) -> None:
    results = read_json(structured_folder / "results.json")
    results["rows"][1]["kind"] = "simulated"
    write_json(structured_folder / "results.json", results)
    text = page_of(structured_folder).text
    assert "ms in the original" not in text
    assert "simulated is that of this state" in text


def test_costs_are_those_that_inspect_counts(structured_run: Path) -> None:
    found = inspect(plan=structured_run / "plan.yaml")
    parts = read_parts(structured_run)
    assert parts.anatomy is not None
    assert parts.anatomy.planned is not None
    assert (parts.anatomy.parameters, parts.anatomy.macs) == (found["parameters"], found["macs"])
    assert (parts.anatomy.planned.parameters, parts.anatomy.planned.macs) == (found["planned"]["parameters"], found["planned"]["macs"])
    assert parts.compressed is not None
    assert found["planned"]["macs_total"] == parts.compressed.macs
    made = build_structure(parts, None)
    assert made is not None
    everything = cells(made.costs)["Everything"]
    assert everything[:2] == [f"{found['parameters_total']:,}", f"{found['planned']['parameters_total']:,}"]
    assert everything[5] == f"{100 * (found['planned']['macs_total'] / found['macs_total'] - 1):.1f} %".replace("-", "−")
    assert cells(made.costs)["Q and K projections"][2] == "−50.0 %"
    assert cells(made.costs)["Hallucinating maps"][2] == "new"


def test_heads_and_blocks_are_those_of_the_artifact(structured_run: Path, tmp_path: Path, page_of: PageOf) -> None:
    chosen, record = Plan.load(structured_run / "plan.yaml"), Artifact.load(structured_run / "artifact").structure
    assert record is not None
    parts = read_parts(structured_run)
    likeness = build_likeness(parts)
    made = build_structure(parts, likeness)
    assert likeness is not None
    assert made is not None
    statistics = Statistics.load(structured_run / "statistics.safetensors")
    rows = cells(made.likes)
    assert len(rows) == 12
    bars = iter(likeness.bars.bars)
    for number, layer in enumerate(chosen.layers):
        moments = statistics.head_moments(layer.site)
        reached = {one["head"]: one for one in record["heads"][layer.site]}
        for head, bar in zip(range(HEADS), bars, strict=False):
            assert bar.title.startswith(f"L{number}H{head}: ")
            assert (bar.reached is not None) == (head in layer.hallucinated) == (made.sources[number][head][0] == "hallucinated")
            if head in layer.hallucinated:
                one, like = reached[head], layer.heads[head].like
                assert like is not None
                possible = likeness.shares[number][head]
                assert possible is not None
                assert one["explained"] <= possible + 1e-3
                explained = f"{100 * one['explained']:.1f}".replace("-", "−")
                cosine = moments[head, like] / np.sqrt(moments[head, head] * moments[like, like])
                assert rows[f"L{number}H{head}"] == [
                    f"L{number}H{like}", f"{cosine:.3f}", f"{100 * possible:.1f}", explained,
                    f"{one['distance']:.3f}",
                ]  # fmt: skip
                assert made.sources[number][head][1] == f"like H{like}"
    assert [(bar.name, bar.rank, bar.error) for bar in made.blocks] == [
        (f"F{number}", "rank 32 of 64", f"{100 * record['relative_errors'][block.site]:.2f} %")
        for number, block in enumerate(chosen.feed_forward)
    ]
    gallery = build_gallery(parts)
    assert gallery is not None
    for layer, (_, heads) in zip(chosen.layers, gallery.layers, strict=True):
        assert [head.like for head in heads] == [one.like for one in layer.heads]
    titles = re.findall(r"<title>(L\dH\d) is hallucinated like (L\dH\d)", page_of(structured_run, tmp_path / "page.html").source)
    assert titles == [(name, row[0]) for name, row in rows.items()]


def test_heads_are_compared_without_a_plan_too(structured_folder: Path, page_of: PageOf) -> None:
    before = build_likeness(read_parts(structured_folder))
    for path in structured_folder.iterdir():
        if path.name != "statistics.safetensors":
            path.rename(structured_folder.parent / path.name)
    likeness = build_likeness(read_parts(structured_folder))
    page = page_of(structured_folder)
    assert before is not None
    assert likeness is not None
    assert likeness.shares == before.shares
    assert likeness.chart.marks == []
    assert all(bar.reached is None for bar in likeness.bars.bars)
    assert "How alike the heads are" in page.text
    assert "structure" not in page.ids
    assert "allucinat" not in page.text
    assert page.source.count("data:image/png") == len(page.images) + 1


def test_statistics_that_compare_no_heads(finished_run: Path, tmp_path: Path, page_of: PageOf) -> None:
    page = page_of(finished_run, tmp_path / "page.html")
    assert "likeness" not in page.ids
    assert "structure" not in page.ids
    assert "What freezing saves" in page.text


def test_frozen_and_hallucinated_heads_side_by_side(tmp_path: Path, pictures: Path, structured_run: Path, page_of: PageOf) -> None:
    statistics = tmp_path / "statistics.safetensors"
    statistics.write_bytes((structured_run / "statistics.safetensors").read_bytes())
    made = plan(statistics, FreezeEntries(0.2), Hallucinate(0.25), Quantize(32, 32), out=tmp_path / "plan.yaml")
    page = page_of(tmp_path)
    parts = read_parts(tmp_path)
    assert parts.savings is not None
    assert parts.savings.frozen_entries == sum(head.entries for layer in made.layers for head in layer.heads)
    assert parts.savings.ideal_saved_macs == parts.savings.dense_saved_macs == 0
    assert "15.0 % of the attention weights" in page.text
    assert "6 of 24 attention heads are hallucinated" in page.text
    assert "18 frozen in part or wholly" in page.text
    assert "Ideal sparse bound" not in page.text
    assert "could leave any out there" in page.text
    assert "This run has no artifact, so what is reached is not known" in page.text
    found = build_structure(parts, build_likeness(parts))
    assert found is not None
    assert found.counts == [("frozen", 18), ("hallucinated", 6)]
    assert found.blocks == []
    assert all(row[3] == row[4] == "–" for row in cells(found.likes).values())


def test_compact_blocks_alone(tmp_path: Path, pictures: Path, structured_run: Path, page_of: PageOf) -> None:
    statistics = structured_run / "statistics.safetensors"
    chosen = plan(statistics, Compact(0.25, init="weights"))
    compress(Model.open("vitfrost_digits", weights="random"), chosen, out=tmp_path / "artifact")
    text = page_of(tmp_path).text
    assert "rank 16 of 64" in text
    assert "the relative error of a projection's weights" in text
    assert "Nothing was trained: factors come in closed form from the original's weights." in text
    assert "fused attention" not in text
    assert "allucinat" not in text.rpartition("How it was made")[0]


def test_copies_and_random_factors_are_called_so(tmp_path: Path, structured_run: Path, page_of: PageOf) -> None:
    statistics, options = structured_run / "statistics.safetensors", {"inter_map": "copy", "mix": "copy"}
    chosen = plan(statistics, Hallucinate(0.5, **options), Compact(0.5, init="random"))
    compress(Model.open("vitfrost_digits", weights="random"), chosen, statistics=statistics, out=tmp_path / "artifact")
    text = page_of(tmp_path).text
    assert "the logits of their maps are copies of those of another head of their layer" in text
    assert "Nothing was trained: mixes start as copies, factors are random numbers." in text
    assert "closed form" not in text
    assert "How far they are off is not known" in text


def test_heads_of_other_shapes_are_left_gray(tmp_path: Path, pictures: Path, page_of: PageOf) -> None:
    model = Model.open("swin_tiny_patch4_window7_224", weights="random", image_size=112)
    calibrate(model, pictures, Calibrate(limit=1, similarity=True), out=tmp_path / "statistics.safetensors", progress=False)
    assert "Maps of different shapes cannot be compared; those squares are gray" in page_of(tmp_path).text
    likeness = build_likeness(read_parts(tmp_path))
    assert likeness is not None
    assert likeness.heads == 2 * 3 + 2 * 6 + 6 * 12 + 2 * 24


def test_a_damaged_record_is_one_line(structured_folder: Path) -> None:
    config = read_json(structured_folder / "artifact" / "config.json")
    config["structure"]["heads"]["blocks.0.attn"][0]["explained"] = "much"
    write_json(structured_folder / "artifact" / "config.json", config)
    with pytest.raises(VitfrostError, match=r"structure\.heads\.blocks\.0\.attn\[0\]\.explained is 'much'"):
        report(structured_folder)


def test_the_command_makes_the_plan_again(structured_run: Path, tmp_path: Path, call: Callable[..., Any]) -> None:
    statistics = structured_run / "statistics.safetensors"
    options = {"share": 0.5, "by": "random", "mix": "copy", "intra_map": "none", "bias": False, "seed": 3}
    chosen = plan(statistics, Hallucinate(**options), Compact(0.25, expand=True), Quantize(32, 8))  # fmt: skip
    words = plan_command(chosen).replace("\\\n", " ").replace("STATISTICS", str(statistics)).replace("plan.yaml", str(tmp_path / "p.yaml"))
    assert call(*words.split()[1:]).status == 0
    assert Plan.load(tmp_path / "p.yaml") == chosen


@pytest.mark.browser
@pytest.mark.parametrize("width", [1280, 500])
def test_a_browser_shows_the_page(structured_run: Path, tmp_path: Path, browser: Any, width: int) -> None:
    page = report(structured_run, tmp_path / "page.html")
    images = LAYERS * HEADS * 4
    assert browser.look_at(page, width) == {"images": images, "loaded": images, "wide": False, "fetched": 0, "refused": 0}


def test_heads_that_are_frozen_whole(tmp_path: Path, structured_run: Path, page_of: PageOf) -> None:
    statistics = tmp_path / "statistics.safetensors"
    statistics.write_bytes((structured_run / "statistics.safetensors").read_bytes())
    made = plan(statistics, FreezeHeads(0.5, kind="local", window=5), out=tmp_path / "plan.yaml")
    page = page_of(tmp_path)
    whole = sum(len(layer.constant) == HEADS for layer in made.layers)
    assert "12 of 24 attention heads are frozen whole" in page.text
    assert (f"{whole} whole layer" in page.text) == (whole > 0)
    assert "Frozen heads" in page.text
    found = build_structure(read_parts(tmp_path), None)
    assert found is not None
    assert found.counts == [("computed", 12), ("frozen", 12)]
    assert {row[0] for row in cells(found.constants).values()} == {"local, 5 × 5"}
    gallery = build_gallery(read_parts(tmp_path))
    assert gallery is not None
    for layer, (_, heads) in zip(made.layers, gallery.layers, strict=True):
        drawn = [any(picture.caption == "Its constant" for picture in head.pictures) for head in heads]
        assert drawn == [number in layer.constant for number in range(HEADS)]
