"""Random weights are a function of their seed: whatever else draws, on any number of threads, on any processor, in busy processes."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import torch

from vitfrost.model import Model
from vitfrost.vit.draws import own_seed
from vitfrost.vit.load import create_model

from ..processes import Started

DIGITS = "42521bbe0c"  # on every processor with AVX2
SCRIPT = """
import sys, torch
from vitfrost.model import Model
torch.set_num_threads(int(sys.argv[1]))
print(Model.open("vitfrost_digits", weights="random").state_hash)
"""


def state_hash(_: object = None) -> str:
    return Model.open("vitfrost_digits", weights="random").state_hash


def test_threads_that_draw_at_the_same_time_change_nothing() -> None:
    ended = threading.Event()

    def draw() -> None:
        while not ended.is_set():
            torch.rand(100)

    noise = threading.Thread(target=draw)
    noise.start()
    try:
        with ThreadPoolExecutor(4) as pool:
            found = set(pool.map(state_hash, range(8)))
    finally:
        ended.set()
        noise.join()
    assert [one[:10] for one in found] == [DIGITS]


def test_processes_on_any_number_of_threads_and_any_path_of_mkl_agree(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    paths = {1: {}, 2: {"MKL_CBWR": "COMPATIBLE"}, 3: {"MKL_CBWR": "AVX2"}, 8: {}}
    running = [Started(threads, script=tmp_path / "script.py", environment=path) for threads, path in paths.items()]
    assert {process.communicate()[0].strip()[:10] for process in running} == {DIGITS}


@pytest.mark.parametrize("name", ["test_vit", "vitfrost_pvt_tiny", "nextvit_small", "swin_tiny_patch4_window7_224", "pvt_v2_b0"])
def test_no_family_draws_from_torchs_own_generator(name: str) -> None:
    before = torch.get_rng_state()
    create_model(name, seed=3)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_draws_are_those_of_torchs_generator_with_that_seed() -> None:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        expected = torch.nn.Linear(5, 5).weight, torch.randn(40), torch.randperm(9)
    with own_seed(7):
        found = torch.nn.Linear(5, 5).weight, torch.randn(40), torch.randperm(9)
        given = torch.rand(3, generator=torch.Generator().manual_seed(1))
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))
    assert torch.equal(given, torch.rand(3, generator=torch.Generator().manual_seed(1)))
