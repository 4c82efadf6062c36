"""Any plan's command makes the plan again, and an option without effect is refused."""

from __future__ import annotations

import shlex
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import assume, example, given, settings
from hypothesis import strategies as st

import vitfrost
from vitfrost.cli import main
from vitfrost.configs import Calibrate, Compact, FreezeEntries, FreezeHeads, Hallucinate, Quantize, Repair, Search, WindowHeads
from vitfrost.configs.base import idle_fields, options_of
from vitfrost.configs.words import as_flags, default_text, metavar, read, words_of
from vitfrost.errors import VitfrostError
from vitfrost.plans.criteria import CRITERIA
from vitfrost.plans.schema import Plan, methods_in
from vitfrost.reporting.commands import plan_command

# Type checks of constructors draw which item of a container they look at.
pytestmark = pytest.mark.filterwarnings("ignore:Do not use the `random` module")

CRITERION = st.sampled_from([name for name in CRITERIA if name not in ("fisher", "output-error-joint")])
SEED, BITS = st.integers(0, 99), st.sampled_from([2, 3, 4, 5, 6, 7, 8, 32])
PARTS = st.lists(st.sampled_from(["cls-rows", "cls-columns"]), unique=True).map(lambda parts: tuple(sorted(parts)))


def small(low: float, high: float) -> st.SearchStrategy[float]:
    return st.floats(low, high, exclude_max=True).map(lambda value: round(value, 3))


def effective(method: Any) -> Any:
    """The method with what has no effect left as it is by default."""
    defaults = {option.field: option.default for option in options_of(type(method))}
    return replace(method, **{field: defaults[field] for field in idle_fields(method)})


ENTRIES = st.builds(
    FreezeEntries, ratio=small(0, 0.6), by=CRITERION, scope=st.sampled_from(["head", "layer", "model"]),
    ties=st.sampled_from(["rank", "strict", "le"]), protect=PARTS, renormalize=st.sampled_from(["none", "mass", "renorm"]), bits=BITS,
    grid=st.sampled_from(["layer", "head"]), order=st.sampled_from(["quantize-merge", "merge-quantize"]), seed=SEED,
)  # fmt: skip
HEADS = st.builds(
    FreezeHeads, ratio=small(0, 0.5), unit=st.sampled_from(["head", "layer"]), by=st.one_of(st.none(), CRITERION),
    kind=st.sampled_from(["auto", "dense", "toeplitz", "local"]), window=st.sampled_from([None, 3, 5]), tolerance=small(0, 2), seed=SEED,
)  # fmt: skip
HALLUCINATED = st.builds(
    Hallucinate, share=small(0, 0.4), by=st.sampled_from([None, "medoids", "explained", "first", "random"]),
    mix=st.sampled_from(["ridge", "copy"]), ridge=small(0, 2), seed=SEED, space=st.just("logits"),
    inter_map=st.sampled_from(["linear", "copy", "pair"]), intra_map=st.sampled_from(["none", "3x3", "5x5", "key-grid"]),
    prefix=st.sampled_from(["skip", "include"]), bias=st.booleans(),
)  # fmt: skip
WINDOWED = st.builds(WindowHeads, ratio=small(0, 0.4), window=st.sampled_from([3, 15]), outside=st.sampled_from(["none", "mean"]))
COMPACTED = st.builds(
    Compact, ratio=small(0.1, 0.7), init=st.sampled_from(["activations", "weights", "random"]),
    blocks=st.sampled_from(["all", "transformer"]),
    branches=st.integers(1, 4), norm=st.just("batch"), expand=st.booleans(), identity=st.booleans(), noise=small(0, 2),
)  # fmt: skip
QUANTIZED = st.builds(Quantize, BITS, BITS, st.sampled_from(["published", "strict"]))


@st.composite
def methods(draw: Any) -> tuple[Any, ...]:
    """Any methods of one plan that have an effect together."""
    chosen = [
        draw(st.one_of(st.none(), ENTRIES, HEADS)),
        draw(st.one_of(st.none(), WINDOWED, HALLUCINATED)),  # not beside each other in a layer
        draw(st.one_of(st.none(), COMPACTED)),
    ]
    made = [effective(method) for method in chosen if method is not None]
    bits = draw(st.one_of(st.none(), QUANTIZED))
    entries = made[0] if made and isinstance(made[0], FreezeEntries) else None
    used = bits or (Quantize() if entries is not None or not made else Quantize(32, 32))
    if used.activations == 32 and entries is not None:
        made[0] = replace(entries, order="quantize-merge")
    if bits is not None and bits.weights == bits.activations == 32 and (entries is None or entries.bits == 32):
        bits = replace(bits, levels="published")
    return (*made, *(() if bits is None else (bits,)))


@pytest.fixture(scope="module")
def folder(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Statistics of a model of two layers."""
    from vitfrost.model import Model

    made = tmp_path_factory.mktemp("words")
    model = Model.open("vitfrost_digits", weights="random", options={"depth": 2})
    vitfrost.calibrate(model, pictures, vitfrost.Calibrate(limit=4, similarity=True), progress=False, out=made / "statistics.safetensors")
    return made


@given(methods())
@settings(max_examples=60)
def test_the_printed_command_makes_the_plan_again(folder: Path, chosen: tuple[Any, ...]) -> None:
    statistics, again = folder / "statistics.safetensors", folder / "again.yaml"
    try:
        made = vitfrost.plan(statistics, *chosen)
    except VitfrostError as error:  # more heads in all than there are
        assume("can be; give less" not in str(error))
        raise
    again.unlink(missing_ok=True)
    words = shlex.split(plan_command(made).replace("\\\n", " "))
    place = {"STATISTICS": str(statistics), "plan.yaml": str(again)}
    main([place.get(word, word) for word in words[1:]])
    assert Plan.load(again) == made


FIRST_HEADS = st.builds(FreezeHeads, ratio=small(0, 0.5), unit=st.sampled_from(["head", "layer"]))
FIRST_MIXED = st.builds(Hallucinate, share=small(0, 0.4), inter_map=st.sampled_from(["linear", "copy", "pair"]))
SHAPES = [{}, {"options": {"depth": 2}}, {"options": {"depth": 2, "global_pool": "avg"}, "image_size": 48}, {"classes": 7}]


@st.composite
def methods_without_statistics(draw: Any) -> tuple[Any, ...]:
    """Any methods of a plan from a model, none at all too."""
    kinds = (FIRST_HEADS, FIRST_MIXED, COMPACTED, QUANTIZED)
    made = [effective(method) for kind in kinds if (method := draw(st.one_of(st.none(), kind))) is not None]
    if made and isinstance(made[-1], Quantize) and made[-1].weights == made[-1].activations == 32:
        made[-1] = replace(made[-1], levels="published")
    if not any(isinstance(method, Hallucinate | Compact | FreezeHeads) for method in made) and not any(
        isinstance(method, Quantize) for method in made
    ):
        made.append(Quantize(32, 32))
    return tuple(made)


@given(methods_without_statistics(), st.sampled_from(SHAPES), st.sampled_from(["random", None]))
@settings(max_examples=8, deadline=None)
@example((Quantize(32, 32),), {}, None)
@example((Quantize(8, 32), FreezeHeads(0.5, "layer")), {"options": {"depth": 4}}, "random")
def test_so_does_that_of_a_plan_from_a_model(folder: Path, chosen: tuple[Any, ...], shape: dict[str, Any], weights: str | None) -> None:
    from vitfrost.model import Model

    shape = shape if weights == "random" else {}
    model, again = Model.open("vitfrost_digits", weights=weights, **shape), folder / "again.yaml"
    try:
        made = vitfrost.plan(model, *chosen)
    except VitfrostError as error:  # more heads in all than there are
        assume("can be; give less" not in str(error))
        raise
    again.unlink(missing_ok=True)
    words = shlex.split(plan_command(made, shape.get("options")).replace("\\\n", " "))
    main([{"plan.yaml": str(again)}.get(word, word) for word in words[1:]])
    assert Plan.load(again) == made


@given(st.sampled_from([ENTRIES, HEADS, HALLUCINATED, COMPACTED, QUANTIZED]).flatmap(lambda kind: kind))
def test_a_value_is_read_from_its_words(method: Any) -> None:
    for option in options_of(type(method)):
        value = getattr(method, option.field)
        if value is None or (isinstance(value, bool) and option.flag.form == "value"):
            continue
        flag, *words = words_of(option, value)
        assert flag == f"--{option.name}"
        assert read(option, words) == value
        assert metavar(option)
        assert default_text(option) != ""


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--mix copy", "--mix goes with --hallucinate; give that too, or leave --mix out"),
        ("--branches 3", "--branches goes with --compact"),
        ("--expand", "--expand goes with --compact"),
        ("--hallucinate-seed 3", "--hallucinate-seed goes with --hallucinate"),
        ("--hallucinate 0.25 --hallucinate-by first --hallucinate-seed 3", "--hallucinate-seed has no effect with --hallucinate-by first"),
        ("--by entropy --seed 3", "--seed has no effect with --by entropy"),
        ("--unit head --seed 3", "--seed has no effect without --by"),
        ("--quantizer fast --weight-bits 4 --activation-bits 8 --map-base searched", "--map-base has no effect with --activation-bits 8"),
        ("--hallucinate 0.25 --mix copy --ridge 0.1", "--ridge has no effect with --mix copy"),
        ("--hallucinate 0.25 --intra-map none --prefix include", "--prefix has no effect with --intra-map none"),
        ("--hallucinate 0.25 --inter-map copy --map-bias no", "--map-bias has no effect with --inter-map copy"),
        ("--hallucinate 0.25 --scope head", "--scope goes with --freeze"),
        ("--compact 0.5 --seed 3", "--seed goes with --freeze"),
        ("--unit head --ties le", "--ties is of single weights; leave it out, or --unit"),
        ("--unit layer --protect cls-rows", "--protect is of single weights"),
        ("--constants local", "--constants is of whole heads; give --unit head or layer as well"),
        ("--window 3", "--window is of whole heads"),
        ("--unit head --constants dense --window 3", "--window has no effect with --constants dense"),
        ("--unit head --constants local --tolerance 0.2", "--tolerance has no effect with --constants local"),
        ("--frozen-bits 32 --frozen-grid head", "--frozen-grid has no effect with --frozen-bits 32"),
        ("--activation-bits 32 --order merge-quantize", "--order has no effect where --activation-bits is 32"),
        ("--unit head --levels strict", "--levels has no effect where all bits are 32"),
        ("--freeze none --by mean", "--by goes with --freeze"),
        ("--weights random", "--weights goes with --model; statistics know their model"),
        ("--model-option depth=4", "--model-option goes with --model"),
        ("--classes 7", "--classes goes with --model"),
        ("--target-macs 0.9", "Unrecognized options: --target-macs"),
    ],
)
def test_an_option_of_plan_without_effect_is_refused(
    folder: Path, call: Callable[..., Any], tmp_path: Path, words: str, message: str
) -> None:
    ended = call("plan", "--statistics", folder / "statistics.safetensors", "--out", tmp_path / "p.yaml", *words.split())
    assert ended.status == 2
    assert message in ended.err
    assert len(ended.err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("compress --model vitfrost_digits --plan p.yaml --repair-images 8", "--repair-images goes with --repair"),
        ("compress --model vitfrost_digits --plan p.yaml --repair-penalty 1", "--repair-penalty goes with --repair"),
        (
            "compress --model vitfrost_digits --plan p.yaml --repair bias --repair-penalty 1",
            "--repair-penalty has no effect with --repair bias",
        ),
        ("export --model vitfrost_digits --weight-range full", "--weight-range has no effect with --precision fp32"),
        ("export --model vitfrost_digits --calibration-images 8", "--calibration-images has no effect with --precision fp32"),
        ("export --model vitfrost_digits --seed 3", "--seed has no effect with --precision fp32"),
        ("export --model vitfrost_digits --precision int8 --ranges dynamic --seed 3", "--seed has no effect with --ranges dynamic"),
        ("export --model vitfrost_digits --precision int8 --attention float", "--attention has no effect with --format onnx"),
        ("export --model vitfrost_digits --precision bf16", "--precision is 'bf16', which is of OpenVINO; give --format openvino"),
        ("export --model vitfrost_digits --ranges dynamic", "--ranges is 'dynamic', which is of int8 in ONNX Runtime"),
    ],
)
def test_an_option_of_another_command_without_effect_is_refused(call: Callable[..., Any], tmp_path: Path, words: str, message: str) -> None:
    ended = call(*words.split(), "--out", tmp_path / "out")
    assert ended.status == 2
    assert message in ended.err
    assert len(ended.err.strip().splitlines()) == 1


@pytest.mark.parametrize(
    ("methods", "words", "message"),
    [
        (
            (FreezeHeads(0.25),),
            "--calibration-images 4",
            "--calibration-images has no effect: the plan leaves activations",
        ),
        ((FreezeEntries(0.1),), "--compact-images 4", "--compact-images has no effect: the plan neither hallucinates heads nor compacts"),
    ],
)
def test_images_that_a_plan_does_not_draw_are_refused(
    folder: Path, call: Callable[..., Any], tmp_path: Path, methods: tuple[Any, ...], words: str, message: str
) -> None:
    vitfrost.plan(folder / "statistics.safetensors", *methods, out=tmp_path / "plan.yaml")
    ended = call("compress", "--model", "vitfrost_digits", "--plan", tmp_path / "plan.yaml", "--out", tmp_path / "artifact", *words.split())
    assert ended.status == 2
    assert message in ended.err


def test_hallucinated_heads_alone_are_not_quantized(folder: Path, call: Callable[..., Any], tmp_path: Path) -> None:
    ended = call("plan", "--statistics", folder / "statistics.safetensors", "--hallucinate", 0.25, "--out", tmp_path / "p.yaml")
    assert ended.status == 0, ended.err
    assert Plan.load(tmp_path / "p.yaml").quantize == Quantize(32, 32)
    assert "4 where single weights are frozen, else 32" in " ".join(call("plan", "--help").out.replace("│", " ").split())


@pytest.mark.parametrize("levels", ["published", "strict"])
def test_the_advice_to_plan_with_strict_levels_is_not_given_to_who_did(
    folder: Path, call: Callable[..., Any], tmp_path: Path, levels: str
) -> None:
    words = ("--freeze", "none", "--weight-bits", 4, "--activation-bits", 4, "--levels", levels, "--out", tmp_path / "p.yaml")
    ended = call("plan", "--statistics", folder / "statistics.safetensors", *words)
    assert ended.status == 0, ended.err
    assert ("(plan with --levels strict)" in ended.out) == (levels == "published")


def test_the_methods_of_a_plan_are_those_it_was_made_by(folder: Path) -> None:
    chosen = (FreezeEntries(0.1), Hallucinate(0.25, by="first"), Compact(0.3), Quantize(8, 8))
    assert methods_in(vitfrost.plan(folder / "statistics.safetensors", *chosen)) == chosen


def test_messages_call_options_as_they_are_typed() -> None:
    said = 'FreezeEntries.ratio is 2; plan with Compact(init="weights") and Calibrate(sensitivity=True), not Repair.prefix_weight'
    flags = "--freeze is 2; plan with --compact-init weights and --sensitivity, not Repair.prefix_weight"
    assert as_flags(said, (FreezeEntries, Compact, Calibrate, Repair)) == flags
    assert as_flags("Search(over=('heads', 'ranks'))", (Search,)) == "--search-over heads ranks"
