"""The command `bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from ..errors import VitfrostError
from .arguments import Device, show


def bench(
    what: Annotated[Positional[tuple[str, ...]], arg(metavar="WHAT...", help="artifact folders, exported folders, timm:NAME")],
    /,
    *,
    runtime: str | None = None,
    precision: str = "fp32,bf16,int8",
    batch: str = "1",
    threads: str = "1",
    image_size: Annotated[str | None, arg(metavar="PX,...", help="input sizes of timm: models, if not their own")] = None,
    images: Path | None = None,
    weights: Annotated[
        str | None,
        arg(metavar="FILE", help="of timm: models and unmodified peers; 'random' for untrained, as peers are without it"),
    ] = None,
    rounds: int = 20,
    seed: int = 0,
    against: str | None = None,
    device: Device = "cpu",
    no_memory: bool = False,
    out: Path | None = None,
    json: Path | None = None,
    resume: bool = False,
) -> None:
    """Measure time as ratios: every model beside its unmodified model on every runtime, interleaved, with 95 % intervals.

    Args:
        runtime: some of openvino,onnxruntime,torch,compiled; those that are installed if not given.
        precision: some of fp32,bf16,int8.
        batch: batch sizes, such as 1,16.
        threads: numbers of threads, such as 1,2.
        images: folder that int8 is calibrated on; without it on noise, which is for time only.
        rounds: how often every row has its turn.
        seed: of the order in the rounds, of draws and noise.
        against: a model or a row to compare with, instead of the fastest int8 row of the unmodified model.
        no_memory: leave out the peak memory, which takes a process per row.
        out: folder for the run: exported graphs, what was measured, bench.json and the chart.
        json: file for the result.
        resume: go on with a run that was stopped.
    """
    from .. import bench as verb
    from ..timing.table import format_benchmark

    found = verb(
        what, runtime=None if runtime is None else _words(runtime), precision=_words(precision), batch=_numbers(batch, "--batch"),
        threads=_numbers(threads, "--threads"), image_size=None if image_size is None else _numbers(image_size, "--image-size"),
        images=images, weights=weights, rounds=rounds, seed=seed, against=against, device=device, memory=not no_memory, out=out,
        json=json, resume=resume,
    )  # fmt: skip
    show(format_benchmark(found))
    if out is not None:
        print(out / "ratios.png")


def _words(given: str) -> tuple[str, ...]:
    return tuple(word.strip() for word in given.split(",") if word.strip())


def _numbers(given: str, flag: str) -> tuple[int, ...]:
    try:
        return tuple(int(word) for word in _words(given))
    except ValueError as error:
        raise VitfrostError(f"{flag} is '{given}'; give whole numbers with commas between them, such as 1,16") from error
