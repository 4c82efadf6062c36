"""The command `bench`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

from tyro.conf import Positional, arg

from ..configs import Bench
from ..errors import VitfrostError
from .arguments import Device, show
from .flags import Given, Group, takes


@takes(Group.of(Bench))
def bench(
    what: Annotated[Positional[tuple[str, ...]], arg(metavar="WHAT...", help="artifact folders, exported folders, timm:NAME")],
    /,
    *,
    given: Given,
    images: Path | None = None,
    weights: Annotated[
        str | None,
        arg(metavar="FILE", help="of timm: models and unmodified peers; 'random' for untrained, as peers are without it"),
    ] = None,
    device: Device = "cpu",
    out: Path | None = None,
    json: Path | None = None,
    resume: bool = False,
) -> None:
    """Measure time as ratios: every model beside its unmodified model on every runtime, interleaved, with 95 % intervals.

    Args:
        images: folder that int8 is calibrated on; without it on noise, which is for time only.
        out: folder for the run: exported graphs, what was measured, bench.json and the chart.
        json: file for the result.
        resume: go on with a run that was stopped.
    """
    config = given.config(Bench)
    if out is None and json is None:
        raise VitfrostError("nowhere to write the result; give --out RUN or --json FILE")
    from .. import bench as verb
    from ..timing.table import format_benchmark

    show(format_benchmark(verb(what, config, images=images, weights=weights, device=device, out=out, json=json, resume=resume)))
    if out is not None:
        print(out / "ratios.png")
