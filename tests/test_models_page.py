"""docs/models.md is what scripts/models_table.py makes: its counts are those of its rows, and some rows are looked at again."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import ModuleType

import pytest

from vitfrost.vit.support import why_unsupported

ROOT = Path(__file__).parents[1]
AGAIN = [
    "test_vit", "deit_tiny_distilled_patch16_224", "eva02_tiny_patch14_224", "beit_base_patch16_224", "vit_relpos_small_patch16_224",
    "swin_tiny_patch4_window7_224", "swinv2_tiny_window8_256",
    "qwen3_vit_88m", "vitamin_small_224", "vit_small_r26_s32_224", "pvt_v2_b0",
    "nextvit_small", "maxvit_rmlp_pico_rw_256",
    "coatnet_nano_rw_224", "cait_xxs24_224", "levit_128s", "crossvit_tiny_240", "vit_pwee_patch16_reg1_gap_256",
    "naflexvit_base_patch16_gap",
    "tiny_vit_5m_224", "hiera_tiny_224", "vit_dwee_patch16_reg1_gap_256",
]  # fmt: skip


@pytest.fixture(scope="module")
def script() -> ModuleType:
    """The generator, as a module."""
    spec = importlib.util.spec_from_file_location("models_table", ROOT / "scripts" / "models_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def listed(script: ModuleType) -> dict[str, str | None]:
    """The verdicts on the page, in its order of timm's names."""
    found = script.listed()
    return {name: found[name] for name in script.architectures() if name in found}


def test_the_page_is_that_of_its_verdicts(script: ModuleType, listed: dict[str, str | None]) -> None:
    assert script.page(listed) == script.PAGE.read_text(encoding="utf-8"), "run: python scripts/models_table.py"


def test_at_least_65_percent_of_the_tags_are_supported(script: ModuleType, listed: dict[str, str | None]) -> None:
    tags = script.tags()
    assert sum(len(tags[name]) for name, reason in listed.items() if reason is None) >= 0.65 * sum(len(tags[name]) for name in listed)


@pytest.mark.parametrize("name", AGAIN)
def test_verdicts_are_those_of_the_code_that_refuses(name: str, listed: dict[str, str | None]) -> None:
    assert why_unsupported(name) == listed[name]
