"""Configuration classes: typed, frozen, checked in one line, and with a help text for every field."""

from __future__ import annotations

import dataclasses
import subprocess
import sys

import pytest

from vitfrost import configs
from vitfrost.configs.base import options_of, parsed, plain
from vitfrost.errors import VitfrostError

CLASSES = [each for each in vars(configs).values() if isinstance(each, type)]


@pytest.mark.parametrize("cls", CLASSES)
def test_every_field_has_a_help_text(cls: type) -> None:
    assert options_of(cls)
    for option in options_of(cls):
        assert option.help.endswith("."), f"{cls.__name__}.{option.field}"


def test_positional_and_frozen() -> None:
    made = configs.FreezeEntries(0.3, "fisher")
    assert (made.ratio, made.by) == (0.3, "fisher")
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.ratio = 0.4  # type: ignore[misc]
    assert configs.FreezeEntries(0.3, protect=("cls-rows", "cls-columns", "cls-rows")).protect == ("cls-columns", "cls-rows")


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: configs.FreezeEntries(1.5), "FreezeEntries.ratio is 1.5; it should be less than or equal to 1"),
        (lambda: configs.FreezeEntries(by="nothing"), "FreezeEntries.by is 'nothing'; it should be one of entropy, mean, variance"),
        (lambda: configs.FreezeHeads(0.2, window=4), "FreezeHeads.window is 4; it should be odd, as a kernel around a patch is"),
        (lambda: configs.FreezeHeads(0.2, tolerance=float("nan")), "FreezeHeads.tolerance is nan; it should be a finite number"),
        (lambda: configs.Quantize(weights=9), "Quantize.weights is 9; it should be 2, 3, 4, 5, 6, 7, 8 or 32"),
        (lambda: configs.Quantize(bits=4), "Quantize.bits is not known here; the fields are weights, activations, levels"),  # type: ignore[call-arg]
        (lambda: configs.Hallucinate(0.5, space="post-softmax", inter_map="pair"), "Hallucinate.inter_map is 'pair'"),
        (lambda: configs.Compact(0.5, identity=True, norm="none"), "Compact.identity is true, which needs norm: batch"),
        (lambda: configs.Search(), "a search needs a budget; give max_drop, target_macs or target_latency"),
        (lambda: configs.Search(target_macs=0.5, threads=2), "threads goes with target_latency"),
        (lambda: configs.Export("onnx", "bf16"), "precision is 'bf16', which is of OpenVINO"),
        (lambda: configs.Calibrate(memory_limit=float("inf")), "Calibrate.memory_limit is inf"),
        (lambda: configs.Bench(batch=(0,)), "Bench.batch[0] is 0"),
        (lambda: configs.Hallucinate(), "Hallucinate.share is missing"),  # type: ignore[call-arg]
    ],
)
def test_a_bad_value_is_named_in_one_line(make: object, message: str) -> None:
    with pytest.raises(VitfrostError) as error:
        make()  # type: ignore[operator]
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_keys_of_files_are_read_and_written() -> None:
    assert plain(configs.Quantize(8, 32)) == {"weight_bits": 8, "activation_bits": 32, "levels": "published"}
    assert parsed(configs.Quantize, {"weight_bits": 8, "activation_bits": 32}) == configs.Quantize(8, 32)
    freeze = configs.FreezeEntries(0.1, ties="le")
    assert list(plain(freeze))[:3] == ["unit", "by", "ratio"]
    assert parsed(configs.FreezeEntries, plain(freeze)) == freeze
    with pytest.raises(VitfrostError, match="unit is 'head'"):
        parsed(configs.FreezeEntries, {"unit": "head"})


@pytest.mark.parametrize(
    ("made", "field"),
    [
        (configs.Hallucinate(0.5, mix="copy", ridge=0.1), "Hallucinate.ridge has no effect where mix is copy"),
        (configs.FreezeHeads(0.5, kind="dense", window=3), "FreezeHeads.window has no effect where kind is dense"),
        (configs.FreezeEntries(0.5, bits=32, grid="head"), "FreezeEntries.grid has no effect where bits is 32"),
        (configs.Export("openvino", weight_range="full"), "Export.weight_range has no effect where precision is fp32"),
        (configs.Repair("bias", penalty=1.0), "Repair.penalty has no effect where method is bias"),
    ],
)
def test_a_field_without_effect_is_refused(made: object, field: str) -> None:
    with pytest.raises(VitfrostError, match=field):
        configs.refuse_idle(made)


def test_defaults_are_never_idle() -> None:
    for made in (configs.FreezeEntries(bits=32), configs.Export("openvino"), configs.Repair("bias"), configs.Hallucinate(0.5, mix="copy")):
        configs.refuse_idle(made)


def test_no_torch_is_imported() -> None:
    code = "import sys, vitfrost.configs; sys.exit(any(name in sys.modules for name in ('torch', 'timm', 'scipy', 'numba')))"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
