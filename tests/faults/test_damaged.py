"""Damaged files of every kind, drawn by hypothesis: each is refused in one line, or read, and never changes a prediction silently.

`make fuzz` does the same for as long as one likes, with limits on time and memory.
"""

from __future__ import annotations

import os
import signal
from collections import Counter
from pathlib import Path
from random import Random

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from .corpus import ENGINE, Kind, make_corpus
from .fuzz import OUTCOMES, Worker, fuzz, outcome_of, table

KINDS = (
    "plan", "statistics", "artifact", "onnx export", "openvino export", *(("native export", "native model file") if ENGINE else ()),
    "recipe", "grid recipe", "training recipe", "results", "search", "bench", "pack", "checkpoint", "weights (torch)",
    "weights (safetensors)", "labels", "class names", "picture (png)", "picture (jpg)", "picture (webp)", "picture (tiff)",
    "picture (gif)", "picture (bmp)", "run folder",
)  # fmt: skip


pytestmark = pytest.mark.xdist_group("corpus")  # one worker writes it


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Kind]:
    return {kind.name: kind for kind in make_corpus(tmp_path_factory.mktemp("corpus"))}


def test_every_kind_is_drawn(corpus: dict[str, Kind]) -> None:
    assert tuple(corpus) == KINDS
    for kind in corpus.values():
        assert kind.read(kind.whole) == kind.read(kind.whole)


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize("name", KINDS)
def test_a_damaged_file_is_refused_in_one_line_or_read(corpus: dict[str, Kind], name: str, tmp_path: Path) -> None:
    @settings(max_examples=12, suppress_health_check=list(HealthCheck))
    @given(st.randoms(use_true_random=False))
    def ends_well(random: Random) -> None:
        outcome, about = outcome_of(corpus[name], tmp_path, random)
        assert outcome in ("refused", "accepted"), about

    ends_well()


def _stuck(kind: str) -> Kind:
    def read(path: Path) -> str:
        if kind == "hang":
            while True:
                pass
        if kind == "memory":
            kept = []
            while True:
                kept.append(b"x" * (64 << 20))
        if kind == "crash":
            os.kill(os.getpid(), signal.SIGKILL)
        raise KeyError(path)

    return Kind(kind, Path(__file__), {"": lambda content, random: content}, read)


def test_the_fuzzer_sees_what_it_should(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tests.faults.fuzz.MOST_SECONDS", 1.0)
    kinds = [_stuck(name) for name in ("hang", "crash", "traceback")]
    counts = fuzz(kinds, 3, 60, 2, tmp_path)
    assert counts == {name: Counter({name: 1}) for name in ("hang", "crash", "traceback")}
    assert "| all | 3 | 0 | 0 | 1 | 1 | 1 |" in table(counts)
    assert set(OUTCOMES) >= {"hang", "memory"}
    assert Worker  # whose memory limit needs two gigabytes to be seen
