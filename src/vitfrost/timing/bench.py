"""The verb `bench`: time of models beside their peers on the runtimes of this machine, as ratios with intervals."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from ..configs import Bench, expect, refuse_idle
from ..errors import VitfrostError
from ..evaluation.results import device_environment, environment, processor_name
from ..files import refuse_existing_run, refuse_unwritable, write_json
from ..images.given import ImagesLike, find_given
from ..keyed import found_or_made, hash_of
from ..model import Model
from ..progress import TimeLeft, say, track
from ..runtime.runtimes import OWN_BITS, RUNTIMES, cores, how_to_install, reason_of
from ..torch_state import usual_torch
from ..vit.load import find_device
from .benchmark import FORMAT, Benchmark, BenchRow, LeftOut, MeasuredGroup, save_benchmark
from .cells import Cell, plan_cells
from .chart import draw_chart
from .compare import compared
from .exports import identity_of, with_exports
from .group import measure_group
from .held import on_disk
from .memory import peak_memory
from .rounds import WARM_UP
from .sessions import EAGER, find_isas, find_runtimes, runtime_version
from .subjects import open_subjects

RESULT_FILE, SETTINGS_FILE = "bench.json", "bench-settings.json"
DEFAULTS = Bench()


@usual_torch()
def bench(
    what: str | Path | Model | nn.Module | Sequence[str | Path | Model | nn.Module],
    config: Bench = DEFAULTS,
    *,
    images: ImagesLike | None = None,
    weights: str | Path | None = None,
    device: str = "cpu",
    out: str | Path | None = None,
    json: str | Path | None = None,
    resume: bool = False,
    progress: bool = True,
) -> Benchmark:
    """Measure the time of models, each beside its unmodified model on every runtime, and return (and write) what was found.

    Args:
        what: artifact folders, exported folders, "timm:NAME" for a timm model, and models in memory.
        config: what is timed, and how often.
        images: a folder or an iterable that int8 is calibrated on; noise if not given.
        weights: of timm models and unmodified peers; "random" for untrained ones, which peers have where none are given.
        device: "cpu" or "cuda".
        out: folder of the run; exported graphs and what was measured are kept there, and with `resume` a run that was stopped goes on.
        json: file for the result.

    Raises VitfrostError for anything that cannot be opened or is out of range, and where not a single row can be measured.
    """
    expect(Bench, config, "config")
    refuse_idle(config)
    batches, threads_asked = tuple(dict.fromkeys(config.batch)), tuple(dict.fromkeys(config.threads))
    sizes, rounds, seed, against = config.image_size, config.rounds, config.seed, config.against
    _check(threads_asked, device)
    runtimes, absent = find_runtimes(config.runtime, device)
    if out is not None:
        refuse_existing_run(Path(out), resume, SETTINGS_FILE, "run of vitfrost bench")
    if json is not None:
        refuse_unwritable(json)
    pictures = None if images is None else find_given(images, several=True)
    with ExitStack() as stack:
        subjects = open_subjects(stack.enter_context(on_disk(what)), weights, sizes)
        isas = find_isas() if config.isa and any(name in OWN_BITS for name in runtimes) else ()
        cells, left_out = plan_cells(subjects, runtimes, tuple(dict.fromkeys(config.precision)), device, isas)
        left_out += [LeftOut(name=name, why=f"not installed; {_origin(name)}") for name in absent]
        if not cells:
            raise VitfrostError(f"nothing to measure: {'; '.join(f'{left.name}: {left.why}' for left in left_out)}")
        if against is not None and against not in {name for cell in cells for name in (cell.name, cell.subject.label)}:
            raise VitfrostError(
                f"Bench.against is {against}, which is none of the rows; the models are {', '.join(subject.label for subject in subjects)}"
            )
        folder = Path(out) if out is not None else Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="vitfrost-bench-")))
        write_json(folder / SETTINGS_FILE, {"kind": "vitfrost bench settings", "what": [subject.label for subject in subjects]})
        cells, failed = with_exports(cells, folder, pictures, seed)
        run = _Run(folder, rounds, seed, device, config.memory, config.profile, progress)
        groups = run.groups(cells, batches, threads_asked)
        left_out += [*failed, *(left for group in groups for left in group.left_out)]
        rows = [row for group in groups for row in compared(group.rows, group.rates, seed, against)]
        if not rows:
            raise VitfrostError(f"nothing could be measured: {left_out[0].name}: {left_out[0].why}")
        rates = [rate for group in groups for rate in group.rates]
        versions = environment() | device_environment(device) | run.versions(runtimes)
        made = Benchmark(seed=seed, rounds=rounds, environment=versions, rates=rates, rows=rows, left_out=_once(left_out))
        if out is not None:
            save_benchmark(made, folder / RESULT_FILE)
            draw_chart(made, folder)
        if json is not None:
            save_benchmark(made, json)
    return made


class _Run:
    """A folder in which what was measured is kept, group by group, so that a run that was stopped loses one group at most."""

    def __init__(self, folder: Path, rounds: int, seed: int, device: str, memory: bool, profile: bool, progress: bool):
        self.folder, self.rounds, self.seed, self.device = folder, rounds, seed, device
        self.memory, self.profile, self.progress = memory, profile, progress

    def versions(self, runtimes: Sequence[str]) -> dict[str, str]:
        """Versions of the runtimes."""
        return {name: runtime_version(name).split()[1] for name in runtimes if name not in EAGER}

    def groups(self, cells: Sequence[Cell], batches: Sequence[int], threads: Sequence[int]) -> list[MeasuredGroup]:
        """All groups in the order image size, batch size, threads, measured or read."""
        sizes = sorted({cell.subject.image_size for cell in cells})
        todo = [(size, batch, count) for size in sizes for batch in batches for count in threads]
        clock = TimeLeft(sum(_work(size, batch) for size, batch, _ in todo))
        found = []
        for number, (size, batch, count) in enumerate(todo, 1):
            here = [cell for cell in cells if cell.subject.image_size == size]
            text = f"[{number}/{len(todo)}] {size[0]} px, batch {batch}, threads {count}"
            key = self._key(here, batch, count, self.rounds, WARM_UP, self.seed, self.memory, *([1] if self.profile else []))
            path = self.folder / "groups" / f"{size[0]}x{size[1]}-batch{batch}-threads{count}-{key}.json"
            there = path.is_file()
            say(f"{text}: already there" if there else f"{text}: {len(here)} rows{clock.text()}")
            measure = partial(self._measured, here, batch, count, min(threads), text)
            try:
                found.append(FORMAT.record(MeasuredGroup, found_or_made(path, measure), path))
            except Exception as error:  # such as no memory for this batch; it is measured anew by a run that goes on
                why = f"{text.partition('] ')[2]} could not be measured: {reason_of(error)}"
                found.append(MeasuredGroup(rows=[], rates=[], left_out=[LeftOut(name=cell.name, why=why) for cell in here]))
            (clock.skipped if there else clock.done)(_work(size, batch))
        return found

    def _measured(self, cells: Sequence[Cell], batch: int, threads: int, fewest_threads: int, text: str) -> dict[str, Any]:
        group = measure_group(cells, batch, threads, self.rounds, self.seed, self.device, text, self.progress, self.profile)
        if self.memory and self.device == "cpu":
            group = group.model_copy(update={"rows": self._with_memory(group.rows, cells, batch, fewest_threads, text)})
        return group.model_dump(mode="json")

    def _with_memory(self, rows: list[BenchRow], cells: Sequence[Cell], batch: int, threads: int, text: str) -> list[BenchRow]:
        """The rows with their peak memory, which is measured once for all numbers of threads, with the smallest."""
        by_name = {cell.name: cell for cell in cells}
        made = []
        for row in track(rows, len(rows), f"{text}: memory", self.progress):
            path = self.folder / "memory" / f"{self._key([by_name[row.name]], batch, threads)}.json"
            opening = by_name[row.name].opening(threads, self.device)
            made.append(row.model_copy(update={"peak_memory_bytes": found_or_made(path, partial(peak_memory, opening, batch))}))
        return made

    def _key(self, cells: Sequence[Cell], *settings: int) -> str:
        """Differs where anything differs that a measurement depends on."""
        made_of = [[cell.name, identity_of(cell.subject), cell.export and cell.export.name] for cell in cells]
        versions = [runtime_version(cell.runtime) for cell in cells]
        return hash_of(made_of, versions, self.device, processor_name(), settings)[:12]


def _work(size: tuple[int, int], batch: int) -> float:
    """Opening and memory, which are about the same for every group, and pixels on top, in units of 16 pictures of 224 px."""
    return 1 + size[0] * size[1] * batch / (16 * 224 * 224)


def _origin(runtime: str) -> str:
    return how_to_install(RUNTIMES[runtime].package) or "it comes with vitfrost[export]"


def _once(left_out: Sequence[LeftOut]) -> list[LeftOut]:
    return list({(left.name, left.why): left for left in left_out}.values())


def _check(threads: Sequence[int], device: str) -> None:
    if max(threads) > cores():
        raise VitfrostError(f"{max(threads)} threads are more than the {cores()} cores of this machine")
    find_device(device)
