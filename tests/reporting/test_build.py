"""The page: what it says agrees with the files of the run, it is well formed, and it needs nothing from outside."""

from __future__ import annotations

import base64
import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitfrost.configs import Calibrate, FreezeEntries, Quantize
from vitfrost.errors import VitfrostError
from vitfrost.evaluation.results import load_results
from vitfrost.model import Model
from vitfrost.plans.choose import plan
from vitfrost.plans.freeze_entries import frozen_maps
from vitfrost.plans.schema import Plan
from vitfrost.reporting.build import report
from vitfrost.reporting.heads import build_gallery
from vitfrost.reporting.parts import read_parts
from vitfrost.statistics.calibrate import calibrate
from vitfrost.statistics.record import Statistics
from vitfrost.statistics.site import kl_maps

from ..pages import Page

LAYERS, HEADS = 6, 4
PageOf = Callable[..., Any]


def test_page_is_well_formed_and_needs_nothing_from_outside(finished_run: Path, tmp_path: Path, page_of: PageOf) -> None:
    page = page_of(finished_run, tmp_path / "page.html")
    text = page.source
    assert "http://" not in text
    assert "https://" not in text
    anchors = {reference for reference in page.references if reference.startswith("#")}
    assert anchors
    assert {anchor[1:] for anchor in anchors} <= set(page.ids)
    assert all(reference.startswith(("#", "data:")) for reference in page.references)
    assert len(page.images) == LAYERS * HEADS * (5 + 1)
    for uri in page.images:
        image = Image.open(io.BytesIO(base64.b64decode(uri.removeprefix("data:image/png;base64,"), validate=True)))
        image.load()
        assert image.size in ((65, 65), (8, 8))
    assert len(text) < 1_000_000


def test_page_holds_the_numbers_of_the_run(finished_run: Path, tmp_path: Path, page_of: PageOf) -> None:
    text = page_of(finished_run, tmp_path / "page.html").text
    original, compressed = load_results(finished_run / "results.json").rows
    assert f"{original.top1:.2f} %" in text
    assert f"{compressed.agreement:.2f} %" in text
    size = sum(file.stat().st_size for file in (finished_run / "artifact").iterdir())
    assert f"{size / 1e6:.2f} MB" in text
    chosen = Plan.load(finished_run / "plan.yaml")
    frozen = sum(head.entries for layer in chosen.layers for head in layer.heads)
    assert f"({frozen:,} of {LAYERS * HEADS * 65 * 65:,})" in text
    assert "those of lowest entropy, in the whole model, stored at 4 bits" in text
    assert "On dense hardware, nothing" in text
    assert f"leave out {frozen * 16 / 1e6:.2f} M multiply-accumulates" in text
    for digest in (
        original.state_hash,
        original.images_hash,
        chosen.content_hash,
        Statistics.load(finished_run / "statistics.safetensors").content_hash,
    ):
        assert digest in text


def test_gallery_shows_the_statistics_and_the_plan(finished_run: Path) -> None:
    parts = read_parts(finished_run)
    gallery = build_gallery(parts)
    assert gallery is not None
    statistics, quantized = (Statistics.load(finished_run / f"statistics{kind}.safetensors") for kind in ("", ".quantized"))
    chosen = Plan.load(finished_run / "plan.yaml")
    assert parts.ranking is not None
    assert parts.ranking.content_hash == quantized.content_hash
    assert gallery.divergence is not None
    for number, layer in enumerate(chosen.layers):
        site = statistics.sites[layer.site]
        np.testing.assert_allclose(gallery.mean_entropy[number], site.entropy.mean(axis=(0, 2, 3)), rtol=1e-5)
        divergence = kl_maps(site, quantized.sites[layer.site])[0, :, 0]
        np.testing.assert_allclose(gallery.divergence.mean[number], divergence.mean(axis=1), rtol=1e-5)
        np.testing.assert_allclose(gallery.divergence.highest[number], divergence.max(axis=1), rtol=1e-5)
        mask, _ = frozen_maps(chosen, quantized.sites[layer.site], layer)
        for head, shown in enumerate(gallery.layers[number][1]):
            assert shown.frozen_share == pytest.approx(100 * mask[0, head].mean())
            drawn = next(one for one in shown.pictures if one.caption == "Frozen entries")
            image = Image.open(io.BytesIO(base64.b64decode(drawn.uri.partition(",")[2])))
            np.testing.assert_array_equal(np.asarray(image) > 0, mask[0, head])


def test_equal_runs_give_equal_pages(finished_run: Path, run_folder: Path, tmp_path: Path) -> None:
    assert report(finished_run, tmp_path / "a.html").read_bytes() == report(run_folder, tmp_path / "b.html").read_bytes()


MISSING = {
    "results.json": "This run has no results",
    "statistics.quantized.safetensors": "no statistics of both the original and the quantized model",
    "statistics.safetensors": "Measured over 12 images on the quantized model",
    "recipe.yaml": "This run has no recipe",
    "artifact": "those of lowest entropy",
    "plan.yaml": "those of lowest entropy",
}


@pytest.mark.parametrize(("name", "sentence"), MISSING.items(), ids=MISSING)
def test_a_missing_part_is_left_out(run_folder: Path, name: str, sentence: str, page_of: PageOf) -> None:
    path = run_folder / name
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink()
    assert sentence in page_of(run_folder).text


@pytest.mark.parametrize("kept", ["results.json", "statistics.safetensors", "plan.yaml", "artifact"])
def test_a_single_part_is_a_page(run_folder: Path, kept: str, page_of: PageOf) -> None:
    for path in run_folder.iterdir():
        if path.name != kept:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    page = page_of(run_folder)
    assert ("There are no maps" in page.text or "so there are no maps" in page.text) == (kept != "statistics.safetensors")
    assert ("Top-1 accuracy" in page.text) == (kept == "results.json")


def test_statistics_of_another_calibration_leave_the_frozen_entries_undrawn(run_folder: Path, pictures: Path, page_of: PageOf) -> None:
    (run_folder / "statistics.quantized.safetensors").unlink()
    page = page_of(run_folder)
    assert "the frozen entries cannot be drawn" in page.text
    assert len(page.images) == LAYERS * HEADS * 4


def test_an_edited_plan_is_noted_and_the_artifacts_own_is_shown(run_folder: Path, page_of: PageOf) -> None:
    before = page_of(run_folder)
    plan(run_folder / "statistics.quantized.safetensors", FreezeEntries(0.5), out=run_folder / "plan.yaml")
    after = page_of(run_folder)
    assert "plan.yaml was changed" in after.text
    assert "plan.yaml was changed" not in before.text
    assert after.images == before.images


def test_windowed_models_show_the_mean_over_windows(tmp_path: Path, pictures: Path, page_of: PageOf) -> None:
    model = Model.open("swin_tiny_patch4_window7_224", weights="random", image_size=112)
    calibrate(model, pictures, Calibrate(limit=1), out=tmp_path / "statistics.safetensors", progress=False)
    plan(tmp_path / "statistics.safetensors", FreezeEntries(1.0), Quantize(32, 32), out=tmp_path / "plan.yaml")
    page = page_of(tmp_path)
    assert "every map is the mean over the windows of its layer" in page.text
    assert "there is no CLS row" in page.text
    heads = 2 * 3 + 2 * 6 + 6 * 12 + 2 * 24
    assert len(page.images) == 3 * heads
    assert f"{heads} heads are frozen wholly" in page.text
    assert "100.0 % of the attention weights" in page.text


def damaged_results(folder: Path) -> None:
    (folder / "results.json").write_text("{")


def foreign_artifact(folder: Path) -> None:
    (folder / "artifact" / "config.json").write_text("{}")


def artifact_without_weights(folder: Path) -> None:
    (folder / "artifact" / "model.safetensors").unlink()


def truncated_statistics(folder: Path) -> None:
    path = folder / "statistics.safetensors"
    path.write_bytes(path.read_bytes()[:1000])


def results_of_another_model(folder: Path) -> None:
    data = json.loads((folder / "results.json").read_text())
    data["rows"][0]["state_hash"] = "0" * 64
    (folder / "results.json").write_text(json.dumps(data))


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damaged_results, "results.json is not readable JSON"),
        (foreign_artifact, "config.json is not an artifact: it has no kind"),
        (artifact_without_weights, "has no model.safetensors"),
        (truncated_statistics, "statistics.safetensors is no readable statistics file"),
        (results_of_another_model, "mixes runs"),
    ],
)
def test_damage_is_one_line(run_folder: Path, damage, message: str) -> None:
    damage(run_folder)
    with pytest.raises(VitfrostError, match=message):
        report(run_folder)
    assert not (run_folder / "report.html").exists()


def test_statistics_of_another_model_are_refused(run_folder: Path, pictures: Path) -> None:
    calibrate(
        Model.open("vitfrost_digits", weights="random", seed=7),
        pictures,
        Calibrate(limit=2),
        out=run_folder / "statistics.safetensors",
        progress=False,
    )
    with pytest.raises(VitfrostError, match=r"mixes runs.*statistics\.safetensors"):
        report(run_folder)


def test_a_folder_without_a_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(VitfrostError, match="holds no run"):
        report(tmp_path)
    with pytest.raises(VitfrostError, match="no run folder"):
        report(tmp_path / "nowhere")


@pytest.mark.browser
def test_a_browser_shows_the_page_without_the_network(finished_run: Path, tmp_path: Path, browser: Any) -> None:
    page = report(finished_run, tmp_path / "page.html")
    for width in (1280, 500):
        seen = browser.look_at(page, width)
        assert seen == {"images": LAYERS * HEADS * 6, "loaded": LAYERS * HEADS * 6, "wide": False, "fetched": 0, "refused": 0}
    pixels = browser.photograph(page, 1280)
    assert pixels.shape == (1600, 1280, 3)
    assert len(np.unique(pixels.reshape(-1, 3), axis=0)) > 100
    assert (pixels[800:].astype(int).std(axis=(0, 1)) > 5).all()


MARKUP = """<img src=x onerror="document.body.innerHTML=''"></style></svg>"'><script>document.body.innerHTML=''</script>{{ 7 * 7 }}"""


def _poisoned(value: Any) -> Any:
    """Every text of a file, but what it is checked by, with markup in it."""
    if isinstance(value, dict):
        hashes = {"state_hash", "plan_hash", "images_hash"}
        fixed = hashes | {"kind", "version", "precision", "runtime", "crop_mode", "interpolation", "outputs"}
        return {key: each if key in fixed else _poisoned(each) for key, each in value.items()}
    if isinstance(value, list):
        return [_poisoned(each) for each in value]
    return value + MARKUP if isinstance(value, str) else value


def _with_markup(folder: Path) -> Page:
    results = json.loads((folder / "results.json").read_text())
    (folder / "results.json").write_text(json.dumps(_poisoned(results)))
    return Page(report(folder).read_text(encoding="utf-8"))  # refuses scripts and what is not closed


def test_names_full_of_markup_stay_text(run_folder: Path) -> None:
    """Names that a file may bring: of models, rows, weights, and of the machine."""
    plain = Page(report(run_folder).read_text(encoding="utf-8"))
    page = _with_markup(run_folder)
    assert (page.images, page.references, page.ids) == (plain.images, plain.references, plain.ids)
    assert " ".join(MARKUP.split()) in page.text
    assert "default-src 'none'" in page.source


@pytest.mark.browser
def test_a_browser_shows_markup_as_text(run_folder: Path, browser: Any) -> None:
    plain = browser.look_at(report(run_folder), 1280)
    _with_markup(run_folder)
    seen = browser.look_at(run_folder / "report.html", 1280)
    assert seen["images"] == plain["images"] > 0
    assert (seen["fetched"], seen["refused"]) == (0, 0)
