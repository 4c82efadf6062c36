"""The plan's file: round trips, stable bytes and hash, and one line for every way to edit it to nonsense."""

from __future__ import annotations

import re

import pytest
import yaml

from vitfrost.configs import FreezeEntries, Quantize
from vitfrost.errors import VitfrostError
from vitfrost.model import Model
from vitfrost.plans.choose import plan, unfrozen_plan
from vitfrost.plans.fits import check_fits
from vitfrost.plans.schema import Plan
from vitfrost.vit.families import find_sites

SHAPES = [(1, 2, 5, 5), (1, 2, 5, 5)]


@pytest.fixture(scope="module")
def made(draw_record):
    return plan(draw_record(SHAPES), FreezeEntries(0.2, protect=["cls-columns", "cls-rows"]))


@pytest.fixture
def written(made, tmp_path):
    path = tmp_path / "plan.yaml"
    made.save(path)
    return path


def refusal(path):
    """The one line with which a file is refused."""
    with pytest.raises(VitfrostError) as caught:
        Plan.load(path)
    assert "\n" not in str(caught.value)
    return str(caught.value)


@pytest.mark.parametrize(
    "methods",
    [
        [],
        [Quantize()],
        [FreezeEntries(0.0)],
        [FreezeEntries(1 / 3, ties="strict", scope="model")],
        [FreezeEntries(bits=32), Quantize(32, 4)],
    ],
)
@pytest.mark.parametrize("masked", [False, True])
def test_a_plan_survives_its_file_with_the_same_bytes_and_hash(draw_record, tmp_path, methods, masked):
    made = plan(draw_record(SHAPES, masked=masked), *methods)
    made.save(tmp_path / "one.yaml")
    loaded = Plan.load(tmp_path / "one.yaml")
    assert loaded == made
    assert loaded.content_hash == made.content_hash
    loaded.save(tmp_path / "two.yaml")
    assert (tmp_path / "one.yaml").read_bytes() == (tmp_path / "two.yaml").read_bytes()
    assert Plan.parse(made.model_dump(mode="json"), source="config.json") == made


def test_the_file_is_for_people(written):
    text = written.read_text()
    assert text.startswith("# A plan: ")
    assert text.count("  - {source: frozen, entries: 5}\n") == 4
    assert "  maps: [1, 2, 5, 5]\n" in text
    assert max(map(len, text.splitlines())) <= 140


def test_changing_one_head_changes_one_line(made, written):
    before = written.read_text().splitlines()
    data = made.model_dump(mode="json")
    data["layers"][1]["heads"][0]["entries"] = 7
    Plan.model_validate(data).save(written)
    after = written.read_text().splitlines()
    assert [(old, new) for old, new in zip(before, after, strict=True) if old != new] == [
        ("  - {source: frozen, entries: 5}", "  - {source: frozen, entries: 7}")
    ]


def test_the_hash_ignores_comments_layout_and_key_order_but_no_value(made, written):
    data = yaml.safe_load(written.read_text())
    written.write_text(yaml.safe_dump(data, sort_keys=True, default_flow_style=True))
    assert Plan.load(written).content_hash == made.content_hash
    data["freeze"]["seed"] = 1
    assert Plan.model_validate(data).content_hash != made.content_hash


def test_the_hash_is_the_same_in_every_version(identity):
    """Artifacts and results hold it, so a change needs a new plan version."""
    signature = [{"name": "blocks.0.attn", "heads": 2, "maps": [1, 2, 5, 5], "prefix_tokens": 1}]
    assert unfrozen_plan(identity, signature, Quantize()).content_hash == "1a1ed83301c5eceffce17533206c3b17dee8547eefea91f91cc179a98b118dfd"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("entries: 5", "entries: 99999", "layers[0].heads[0].entries is 99999, more than the 25 entries of a head"),
        ("entries: 5", "entries: -1", "layers[0].heads[0].entries is -1; it should be greater than or equal to 0"),
        ("entries: 5", "entries: 2.5", "layers[0].heads[0].entries is 2.5; it should be a valid integer"),
        ("entries: 5", "entries: many", "layers[0].heads[0].entries is 'many'; it should be a valid integer"),
        ("entries: 5", "entries: true", "layers[0].heads[0].entries is True; it should be a valid integer"),
        ("entries: 5", "entries: 0", "layers[0].heads[0].entries is 0, but a frozen head has at least 1"),
        ("entries: 5", "entry: 5", "layers[0].heads[0].entry is not known here; the fields are source, entries, zeros"),
        ("entries: 5", "entries: 5, zeros: 6", "layers[0].heads[0].zeros is 6, more than the 5 frozen entries"),
        ("entries: 5", "entries: 5, zeros: 2", "layers[0].heads[0].zeros is 2, but freeze.ties is 'rank'"),
        ("source: frozen", "source: computed", "layers[0].heads[0].entries is 5, but a computed head has none"),
        ("source: frozen", "source: dreamt", "layers[0].heads[0].source is 'dreamt'; it should be one of computed, frozen, hallucinated"),
        ("source: frozen, ", "", "layers[0].heads[0].source is missing"),
        ("  - {source: frozen, entries: 5}\n", "", "layers[0].heads has 1 lines, but maps says that there are 2 heads"),
        ("{source: frozen, entries: 5}", "frozen", "layers[0].heads[0] is 'frozen'; it should be a valid dictionary"),
        ("maps: [1, 2, 5, 5]", "maps: [1, 2, 5]", "layers[0].maps[3] is missing"),
        ("maps: [1, 2, 5, 5]", "maps: [1, 2, 5, 0]", "layers[0].maps[3] is 0; it should be greater than or equal to 1"),
        ("blocks.1.attn", "blocks.0.attn", "layers[1].site is 'blocks.0.attn', which layers[0] is already"),
        ("weight_bits: 4", "weight_bits: 9", "quantize.weight_bits is 9; it should be 2, 3, 4, 5, 6, 7, 8 or 32"),
        ("ratio: 0.2", "ratio: 20", "freeze.ratio is 20; it should be less than or equal to 1"),
        ("ratio: 0.2", "ratio: .nan", "freeze.ratio is nan; it should be"),
        ("  ratio: 0.2\n", "", "freeze.ratio is missing"),
        ("by: entropy", "by: entrop", "freeze.by is 'entrop'; it should be one of entropy, mean, variance, random, output-error"),
        ("by: entropy", "by: entropy\n  by: mean", "'by' stands twice"),
        ("unit: entry", "unit: head", "freeze.unit is 'head'; it should be 'entry'"),
        ("quantize:", "quantizes:", "quantizes is not known here; the fields are kind, version, model"),
        ("version: 1", "version: 2", "has plan version 2, this vitfrost reads up to 1; update vitfrost"),
        ("version: 1", "version: first", "version is 'first'; it should be 1"),
        ("kind: vitfrost plan", "kind: vitfrost recipe", "is not a plan: its kind is 'vitfrost recipe'"),
        ("kind: vitfrost plan\n", "", "is not a plan: it has no kind"),
        ("layers:", "layers: [", "is not readable YAML"),
    ],
)
def test_nonsense_is_refused_in_one_line(written, old, new, message):
    text = "".join(line for line in written.read_text().splitlines(keepends=True) if not line.startswith("#"))
    assert old in text
    written.write_text(text.replace(old, new, 1))
    line = refusal(written)
    assert message in line
    assert line.startswith(str(written))


@pytest.mark.parametrize("part", ["freeze", "statistics"])
def test_frozen_heads_need_their_settings_and_statistics(made, written, part):
    data = yaml.safe_load(written.read_text())
    written.write_text(yaml.safe_dump(data | {part: None}))
    assert f"layers[0].heads[0].source is 'frozen', but the plan has no {part} part" in refusal(written)


@pytest.mark.parametrize("content", [b"", b"[1, 2]", b"\x00\xff\xfe", b"kind: [vitfrost plan", b"[" * 5000])
def test_files_that_are_no_plan_are_refused(tmp_path, content):
    path = tmp_path / "plan.yaml"
    path.write_bytes(content)
    assert re.search("is not a plan|is not readable YAML", refusal(path))


def test_a_missing_file_and_a_folder_are_refused(tmp_path):
    assert refusal(tmp_path / "plan.yaml") == f"no plan {tmp_path / 'plan.yaml'}"
    assert "is not readable YAML" in refusal(tmp_path)


def test_more_problems_are_counted(written):
    written.write_text(written.read_text().replace("bits: 4", "bits: 11"))
    assert "(and 2 more problems)" in refusal(written)


@pytest.fixture(scope="module")
def digits():
    loaded = Model.open("vitfrost_digits", weights="random")
    return loaded.identity, find_sites(loaded.module).signature()


def test_a_plan_fits_the_model_it_was_made_for_wherever_the_weights_lay(digits):
    identity, signature = digits
    made = unfrozen_plan(identity, signature, Quantize())
    check_fits(made, identity, signature)
    check_fits(made, identity.model_copy(update={"weight_tag": "file:elsewhere.safetensors"}), signature)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"name": "vit_tiny_patch16_224"}, "another model: vitfrost_digits in the plan, vit_tiny_patch16_224 given"),
        ({"image_size": (64, 32)}, "another resolution: 32x32 in the plan, 64x32 given"),
        ({"classes": 7}, "another number of classes: 10 in the plan, 7 given"),
        ({"state_hash": "0" * 64}, r"other weights of vitfrost_digits: random:0 \(\w{12}\) in the plan, random:0 \(0{12}\) given"),
    ],
)
def test_another_model_is_told_apart(digits, changes, message):
    identity, signature = digits
    with pytest.raises(VitfrostError, match=message):
        check_fits(unfrozen_plan(identity, signature, Quantize()), identity.model_copy(update=changes), signature)


def test_other_sites_are_told_apart(digits):
    identity, signature = digits
    made = unfrozen_plan(identity, signature, Quantize())
    with pytest.raises(VitfrostError, match="6 layers, but vitfrost_digits has 5 attention sites"):
        check_fits(made, identity, signature[:-1])
    wider = signature[0] | {"maps": [1, 4, 66, 66]}
    with pytest.raises(VitfrostError, match=r"layers\[0\] of the plan is .*65, 65\].* but the model's site is .*66, 66\]"):
        check_fits(made, identity, [wider, *signature[1:]])
