"""Small but real runs: the digits model with random weights through every stage before the report, and a grid; and how pages are read."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Callable
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from vitfrost.artifact import Artifact
from vitfrost.configs import Calibrate, Evaluate
from vitfrost.evaluation.evaluate import evaluate_many
from vitfrost.evaluation.results import Results, save_results
from vitfrost.model import Model
from vitfrost.passes.compress import compress
from vitfrost.plans.choose import plan, unfrozen_plan
from vitfrost.plans.schema import QuantizePlan
from vitfrost.reporting.build import report
from vitfrost.runs.recipe import Recipe, load_recipe, save_recipe
from vitfrost.statistics.calibrate import calibrate
from vitfrost.studies.outcome_files import Outcome
from vitfrost.studies.picture import take_picture
from vitfrost.studies.variants import Variant, expand
from vitfrost.vit.families import find_sites

MODEL = "vitfrost_digits"
VOID = {"meta", "link", "img", "br", "hr", "input"}


class Page(HTMLParser):
    """Fails on unbalanced tags; collects pictures, text, and every reference to something outside the page."""

    def __init__(self, text: str):
        super().__init__()
        self.source = text
        self.open: list[str] = []
        self.images: list[str] = []
        self.references: list[str] = []
        self.ids: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert self.open == []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        found = dict(attrs)
        assert tag not in ("script", "iframe", "object")
        if tag == "img":
            assert found.get("alt")
            self.images.append(found["src"] or "")
        self.references += [value or "" for name, value in attrs if name in ("href", "src", "srcset", "action", "xlink:href")]
        self.references += re.findall(r"url\(([^)]*)\)", found.get("style") or "")
        self.ids += [found["id"] or ""] if "id" in found else []
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self.handle_endtag(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open, f"</{tag}> closes nothing"
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if self.open and self.open[-1] == "style":
            assert "url(" not in data
            assert "@import" not in data
        else:
            self.words.append(data)

    @property
    def text(self) -> str:
        """All words of the page."""
        return " ".join(" ".join(self.words).split())


@pytest.fixture(scope="session")
def parse_page() -> Callable[[str], Page]:
    """Read a page's text."""
    return Page


@pytest.fixture(scope="session")
def page_of() -> Callable[..., Page]:
    """Report a run's folder and read the page."""
    return lambda folder, out=None: Page(report(folder, out).read_text(encoding="utf-8"))


class Browser:
    """A headless Chromium without a network."""

    def __init__(self, program: str, folder: Path):
        self.program, self.folder = program, folder

    def _run(self, width: int, *arguments: str) -> str:
        command = [
            self.program, "--headless", "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--no-first-run",
            "--hide-scrollbars", "--disable-dev-shm-usage", "--proxy-server=http://127.0.0.1:9", "--virtual-time-budget=5000",
            f"--user-data-dir={self.folder / 'profile'}", f"--window-size={width},1600", *arguments,
        ]  # fmt: skip
        return subprocess.run(command, capture_output=True, text=True, timeout=120, check=True).stdout

    def look_at(self, page: Path, width: int) -> dict[str, Any]:
        """Images, how many were loaded, whether the page is wider than the window, what was fetched and what the page's policy refused."""
        probe = """<script>
          let refused = 0;
          addEventListener("securitypolicyviolation", () => refused++);
          addEventListener("load", () => {
            const images = [...document.images];
            const loaded = images.filter(image => image.complete && image.naturalWidth > 0).length;
            const wide = document.documentElement.scrollWidth > document.documentElement.clientWidth;
            const fetched = performance.getEntriesByType("resource").filter(entry => !entry.name.startsWith("data:")).length;
            document.title = JSON.stringify({images: images.length, loaded, wide, fetched, refused});
          });
        </script>"""
        watched = self.folder / "watched.html"
        text = page.read_text(encoding="utf-8").replace(
            "style-src 'unsafe-inline'", "style-src 'unsafe-inline'; script-src 'unsafe-inline'"
        )
        watched.write_text(text.replace("<title>", probe + "<title>"), encoding="utf-8")
        found = re.search(r"<title>(\{.*?\})</title>", self._run(width, "--dump-dom", watched.as_uri()))
        assert found
        return dict(json.loads(found[1].replace("&quot;", '"')))

    def photograph(self, page: Path, width: int) -> np.ndarray:
        """The first 1600 rows of pixels."""
        self._run(width, f"--screenshot={self.folder / 'page.png'}", page.as_uri())
        return np.asarray(Image.open(self.folder / "page.png").convert("RGB"))


@pytest.fixture
def browser(tmp_path: Path) -> Browser:
    """Chromium; skips where there is none."""
    program = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if program is None:
        pytest.skip("no Chromium on this machine")
    return Browser(program, tmp_path)


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    """The folder of a run whose plan was made on the quantized model; it has every part but the report."""
    folder = tmp_path_factory.mktemp("run")
    recipe = {
        "model": {"name": MODEL, "weights": "random"},
        "calibration": {"images": str(pictures), "limit": 12, "precision": "quantized"},
        "evaluation": {"images": str(pictures), "limit": 12},
    }
    save_recipe(Recipe.model_validate(recipe), folder / "recipe.yaml")
    statistics, quantized = folder / "statistics.safetensors", folder / "statistics.quantized.safetensors"
    calibrate(Model.open(MODEL, weights="random"), pictures, Calibrate(limit=12), out=statistics, progress=False)
    loaded = Model.open(MODEL, weights="random")
    unfrozen = unfrozen_plan(loaded.identity, find_sites(loaded.module).signature(), QuantizePlan(weight_bits=4, activation_bits=4))
    compress(loaded, unfrozen, images=pictures, calibration_images=4, out=folder / "quantized")
    calibrate(folder / "quantized", pictures, Calibrate(limit=12), out=quantized, progress=False)
    plan(quantized, freeze=0.2, scope="model", out=folder / "plan.yaml")
    compress(loaded, folder / "plan.yaml", statistics=quantized, images=pictures, calibration_images=4,
             out=folder / "artifact")  # fmt: skip
    models = {"original": loaded, "compressed": Artifact.load(folder / "artifact")}
    save_results(
        Results(rows=evaluate_many(models, pictures, config=Evaluate(limit=12), reference="original", progress=False)),
        folder / "results.json",
    )
    return folder


@pytest.fixture
def run_folder(finished_run: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(finished_run, tmp_path / "run"))


@pytest.fixture(scope="session")
def structured_run(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    """The folder of a run whose plan hallucinates half of the heads and makes all feed-forward blocks compact, and freezes nothing."""
    folder = tmp_path_factory.mktemp("structured")
    options: dict[str, Any] = {"hallucinate": 0.5, "compact": 0.5, "weight_bits": 32, "activation_bits": 32}
    recipe = {
        "model": {"name": MODEL, "weights": "random"},
        "calibration": {"images": str(pictures), "limit": 12},
        "plan": options,
        "evaluation": {"images": str(pictures), "limit": 12},
    }
    save_recipe(Recipe.model_validate(recipe), folder / "recipe.yaml")
    loaded, statistics = Model.open(MODEL, weights="random"), folder / "statistics.safetensors"
    calibrate(loaded, pictures, Calibrate(limit=12, similarity=True), out=statistics, progress=False)
    plan(statistics, freeze=None, out=folder / "plan.yaml", **options)
    compress(loaded, folder / "plan.yaml", statistics=statistics, images=pictures, compact_images=4, out=folder / "artifact")
    models = {"original": loaded, "compressed": Artifact.load(folder / "artifact")}
    save_results(
        Results(rows=evaluate_many(models, pictures, config=Evaluate(limit=12), reference="original", progress=False)),
        folder / "results.json",
    )
    return folder


@pytest.fixture
def structured_folder(structured_run: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(structured_run, tmp_path / "structured"))


def grid_recipe(pictures: Path) -> Recipe:
    """The paper's grid in small; the names of the blocks say nothing."""
    shares = [0.1, 0.2, 0.5]
    blocks = [
        {"name": "a", "freeze": shares, "statistics": ["fp32", "quantized"], "frozen_bits": [32, 4]},
        {"name": "b", "freeze": shares, "by": "random", "statistics": "quantized"},
        {"name": "c", "freeze": shares, "by": ["entropy", "random"], "weight_bits": 32, "activation_bits": 32, "frozen_bits": 32},
        {"name": "d", "freeze": [0.2, 1.0], "by": ["mean", "variance"], "statistics": "quantized"},
        {"name": "f", "freeze": [0.5], "scope": ["layer", "model"], "statistics": "quantized"},
        {"name": "e", "freeze": [0.2], "statistics": "quantized", "statistics_images": [4, 8]},
    ]
    return Recipe.model_validate(
        {
            "model": {"name": MODEL, "weights": "random"},
            "calibration": {"images": str(pictures), "limit": 12},
            "evaluation": {"images": str(pictures), "limit": 12},
            "grid": {"seeds": [0, 1], "blocks": blocks},
            "published": {
                "source": "A paper, table 9", "images": "other pictures",
                "full_precision": 97.5, "quantized": 91.25, "frozen": {0.1: 91.5, 0.2: 91.0},
            },
        }
    )  # fmt: skip


def save_outcomes(folder: Path, pictures: Path) -> None:
    """Outcomes of all variants: the original's row as it was measured, and a draw of right and wrong answers for each variant."""
    loaded = Model.open(MODEL, weights="random")
    row = evaluate_many({"original": loaded}, pictures, config=Evaluate(limit=12), progress=False)[0]
    sites = find_sites(loaded.module).attention
    entries, logits = sum(site.entries for site in sites), sum(site.entries * site.head_dim for site in sites)

    def outcome(variant: Variant | None) -> Outcome:
        share = 0.0 if variant is None else variant.freeze
        rng = np.random.default_rng(0 if variant is None else int(variant.key, 16))
        correct = rng.random(12) < 0.8 - 0.3 * share
        own = row.model_copy(
            update={"top1": 100 * float(correct.mean()), "labeled": True, "macs": row.macs - (logits if share == 1 else 0)}
        )
        own.size_bytes = 1000 + int(100 * share)
        return Outcome(variant, "context", own, correct, int(share * entries), entries)

    for variant in [None, *expand(load_recipe(folder / "recipe.yaml"))]:
        outcome(variant).save(folder / "outcomes")


@pytest.fixture(scope="session")
def finished_grid(tmp_path_factory: pytest.TempPathFactory, pictures: Path) -> Path:
    """The folder of a grid run: real statistics, artifacts and picture, drawn outcomes."""
    folder = tmp_path_factory.mktemp("grid")
    save_recipe(grid_recipe(pictures), folder / "recipe.yaml")
    loaded = Model.open(MODEL, weights="random")
    unfrozen = unfrozen_plan(loaded.identity, find_sites(loaded.module).signature(), QuantizePlan(weight_bits=4, activation_bits=4))
    calibrate(loaded, pictures, Calibrate(limit=12), out=folder / "statistics" / "fp32-12.safetensors", progress=False)
    for seed in (0, 1):
        name = f"w4a4-seed{seed}"
        compress(loaded, unfrozen, images=pictures, calibration_images=4, seed=seed, out=folder / "quantized" / name)
        calibrate(
            folder / "quantized" / name, pictures, Calibrate(limit=12), out=folder / "statistics" / f"{name}-12.safetensors", progress=False
        )
    take_picture(loaded, pictures, folder / "picture.safetensors")
    save_outcomes(folder, pictures)
    return folder


@pytest.fixture
def grid_folder(finished_grid: Path, tmp_path: Path) -> Path:
    """A copy that a test may change."""
    return Path(shutil.copytree(finished_grid, tmp_path / "grid"))
