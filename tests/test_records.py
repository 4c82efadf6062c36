"""Whatever a file holds, its reader gives a record or one line that names the file."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors.numpy import save_file

from vitfrost.artifact import Artifact
from vitfrost.budget.history import load_search
from vitfrost.errors import VitfrostError
from vitfrost.evaluation.results import load_results
from vitfrost.files import read_json
from vitfrost.plans.schema import Plan
from vitfrost.records import DEEPEST, LARGEST_NUMBER, Format, parse
from vitfrost.runs.recipe import load_recipe
from vitfrost.runs.stages import run_stages
from vitfrost.runtime.folder import read_export
from vitfrost.statistics.record import FORMAT as STATISTICS
from vitfrost.statistics.record import Statistics
from vitfrost.studies.outcome_files import load_outcome
from vitfrost.studies.recipe import load_study, load_study_list
from vitfrost.timing.benchmark import load_benchmark
from vitfrost.training.recipe import load_training_recipe

THING = Format("a thing", "vitfrost thing", 2, mend="make it again")
NUMBERS = st.integers() | st.floats() | st.sampled_from([10**400, -(2**64), float("nan"), float("inf")])
TEXTS = st.text(max_size=8) | st.sampled_from(["\x1b[2J", "a\nb", "é" * 300, "\u2028"])
VALUES = st.recursive(
    st.none() | st.booleans() | NUMBERS | TEXTS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(TEXTS, inner, max_size=3),
    max_leaves=12,
)
FIELDS = st.sampled_from(
    ["version", "layers", "model", "rows", "row", "data", "calibration", "variant", "correct", "context", "format", "sha256",
     "preprocessing", "classes", "plan", "measurements", "subject", "budget", "quick", "variants", "recipes", "sites",
     "images", "frozen", "entries", "macs"]
)  # fmt: skip
# Readers by the kind of their files, and the name of the file in a folder where they read a folder.
READERS: dict[str, tuple[Callable[[Path], object], str]] = {
    "vitfrost plan": (Plan.load, "plan.yaml"),
    "vitfrost recipe": (load_recipe, "recipe.yaml"),
    "vitfrost recipes": (load_study_list, "recipes.yaml"),
    "study": (load_study, "study.yaml"),
    "vitfrost training": (load_training_recipe, "training.yaml"),
    "vitfrost results": (load_results, "results.json"),
    "vitfrost bench": (load_benchmark, "bench.json"),
    "vitfrost search": (load_search, "plan.search.json"),
    "vitfrost outcome": (load_outcome, "original.json"),
    "vitfrost artifact": (lambda path: Artifact.load(path.parent), "config.json"),
    "vitfrost export": (lambda path: read_export(path.parent), "export.json"),
    "stages": (lambda path: run_stages([], path.parent), "stages.json"),
}


def outcome(read: Callable[[Path], object], path: Path) -> str | None:
    """The one line that a reader gives; None where it takes the file."""
    try:
        read(path)
    except VitfrostError as error:
        text = str(error)
        assert str(path.parent) in text
        assert "\n" not in text
        assert text.isprintable()
        assert len(text) < 700 + len(str(path))
        return text
    return None


@pytest.mark.parametrize("kind", READERS)
@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fields=st.dictionaries(FIELDS | TEXTS, VALUES, max_size=5), version=st.sampled_from([1, 1, 1, 2, "1", None, 10**30]))
def test_any_value_gives_a_record_or_one_line(tmp_path: Path, kind: str, fields: dict[str, Any], version: object) -> None:
    read, name = READERS[kind]
    path = tmp_path / name
    (tmp_path / "model.safetensors").touch()
    data = {"kind": "vitfrost recipe" if kind == "study" else kind, "version": version} | fields
    path.write_text(json.dumps(data), encoding="utf-8")
    outcome(read, path)
    if path.suffix == ".yaml":
        path.write_text(yaml.safe_dump(data, allow_unicode=True), encoding="utf-8")
        outcome(read, path)


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(text=st.text(max_size=40) | st.lists(st.sampled_from("[]{}:,-&a*a !!set\n\t#'\"|>0.?%@"), max_size=30).map("".join))
def test_any_text_gives_a_record_or_one_line(tmp_path: Path, text: str) -> None:
    for read, name in READERS.values():
        path = tmp_path / name
        (tmp_path / "model.safetensors").touch()
        path.write_text(text, encoding="utf-8", errors="surrogatepass")
        if outcome(read, path) is None:
            assert name in ("recipes.yaml", "stages.json")  # no list of recipes; no stage that was done


@settings(max_examples=40, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(fields=VALUES)
def test_any_header_of_statistics_gives_one_line(tmp_path: Path, fields: Any) -> None:
    header = {
        "model": {}, "sites": [], "precision": "fp32", "observed": "before", "quantization": None, "images": 1, "skipped": 0,
        "images_hash": "0", "seed": 0, "limit": None, "version": 3,
    }  # fmt: skip
    path = tmp_path / "statistics.safetensors"
    for data in (fields, header | fields if isinstance(fields, dict) else header | {"sites": [fields]}, header | {"images": fields}):
        save_file({}, path, metadata={STATISTICS.kind: json.dumps(data)})
        outcome(Statistics.load, path)


@pytest.mark.parametrize("language", ["JSON", "YAML"])
def test_what_is_read_is_bounded(language: Any, tmp_path: Path) -> None:
    assert parse("[" * DEEPEST + "]" * DEEPEST, language, "it") is not None
    for depth in (DEEPEST + 1, 100_000):
        with pytest.raises(VitfrostError, match="nested too deeply"):
            parse("[" * depth + "]" * depth, language, "it")
    assert parse(f"[{LARGEST_NUMBER}]", language, "it") == [LARGEST_NUMBER]
    for number in (LARGEST_NUMBER + 1, 10**4000, "9" * 5000):
        with pytest.raises(VitfrostError, match=r"64 bits|digits"):
            parse(f'{{"a": [{number}]}}', language, "it")
    for number in ("NaN", "-Infinity", "1e999") if language == "JSON" else (".nan", "-.inf", "1.0e+999"):
        with pytest.raises(VitfrostError, match=r"it: a\[1\]\.b is -?(nan|inf); it should be a finite number"):
            parse(f'{{"a": [0, {{"b": {number}}}]}}', language, "it")
    path = tmp_path / "long.json"
    with path.open("wb") as file:
        file.truncate(65 << 20)
    with pytest.raises(VitfrostError, match="it is larger than 64 MB"):
        read_json(path)


def test_what_yaml_alone_can_say_is_bounded() -> None:
    laughs = "a0: &a0 [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
        f"a{level}: &a{level} [{', '.join(10 * [f'*a{level - 1}'])}]\n" for level in range(1, 12)
    )
    for text, message in (
        (laughs, "holds too many values"), ("&a [*a]", "nested too deeply"), ("a: {b: 1, b: 2}", "'b' stands twice"),
        ('a: "\\0"', "a null character"), ("a: 2020-01-01", "a is of the type date"), ("a: !!set {b}", "a is of the type set"),
        ("a: !!binary aGk=", "a is of the type bytes"),
        ("a: !!python/object:os.system {}", "could not determine a constructor"), ("a: 0x" + "f" * 9000, "64 bits"),
    ):  # fmt: skip
        with pytest.raises(VitfrostError, match=message):
            parse(text, "YAML", "it")


def test_kinds_and_versions() -> None:
    assert THING.check({"kind": "vitfrost thing", "version": 2}, "here") == {"kind": "vitfrost thing", "version": 2}
    assert THING.check({"kind": "vitfrost thing"}, "here") == {"kind": "vitfrost thing"}
    for data, message in (
        ([], "here is not a thing: it has no kind, and should say 'kind: vitfrost thing'"),
        ({"kind": 1}, "here is not a thing: its kind is 1, and should say 'kind: vitfrost thing'"),
        ({"kind": "vitfrost thing", "version": 3}, "here has thing version 3, this vitfrost reads up to 2; update vitfrost"),
        ({"kind": "vitfrost thing", "version": True}, "here is damaged: version is True; it should be 2; make it again"),
    ):
        with pytest.raises(VitfrostError) as caught:
            THING.check(data, "here")
        assert str(caught.value) == message


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(VitfrostError, match=f"^no thing {tmp_path}/none.json$"):
        THING.read(tmp_path / "none.json")
    with pytest.raises(VitfrostError, match="is not readable JSON"):
        THING.read(tmp_path)
