"""One group of rows: cells of one image size, batch size and number of threads, interleaved in one process."""

from __future__ import annotations

import gc
import statistics
from collections.abc import Callable, Sequence
from functools import partial

import torch
from numpy import ndarray

from ..errors import VitfrostError
from ..evaluation.description import describe
from ..evaluation.results import processor_name
from ..progress import track
from ..runtime import Session
from ..runtime.folder import model_bytes, read_export
from ..runtime.runtimes import PRECISIONS, reason_of
from ..torch_state import torch_threads
from .benchmark import BenchRow, LeftOut, MeasuredGroup, ProfiledStep, Rate
from .cells import Cell
from .roofline import chain_macs, open_products
from .rounds import Slot, interleaved, percentile, tried_slot
from .sessions import EAGER, Opened, runtime_version

FEWEST_PROFILED = 20


def measure_group(
    cells: Sequence[Cell],
    batch: int,
    threads: int,
    rounds: int,
    seed: int,
    device: str,
    text: str,
    progress: bool,
    profile: bool = False,
) -> MeasuredGroup:
    """Open the cells and the machine's products, interleave them, and describe what was found; with `profile`, where the time goes too.

    `WARM_UP` rounds are not kept, `rounds` are. Cells that turn out to compute the same as another (a bf16 hint on a CPU without bf16),
    and cells that cannot be opened or run, are left out. Ratios are not filled in.
    """
    with torch_threads(threads):
        sessions, left_out = _open(cells, threads, device, progress, text)
        slots: dict[str, Slot] = {}
        for cell, session in list(sessions.items()):
            pixels = cell.opening(threads, device).pixels(batch, seed)
            try:
                slots[cell.name] = tried_slot(partial(session.run, pixels))
            except Exception as error:  # runtimes raise types of their own; each means that this row cannot be had here
                left_out.append(LeftOut(name=cell.name, why=f"it cannot be run: {reason_of(error)}"))
                del sessions[cell]
        products = _products(cells, threads, device)
        slots |= {name: tried_slot(multiply) for name, multiply in products.items()}
        timed = interleaved(slots, rounds, seed, text, progress)
        rows = [
            _row(cell, session, timed.seconds[cell.name], batch, threads, device, timed.other_load) for cell, session in sessions.items()
        ]
        if profile:
            rows = [
                _profiled(row, session, cell.opening(threads, device).pixels(batch, seed), rounds)
                for row, (cell, session) in zip(rows, sessions.items(), strict=True)
            ]
        rates = [_rate(name, timed.seconds[name], cells[0].subject.image_size, batch, threads) for name in products]
        del sessions, slots, products
        gc.collect()
        torch.compiler.reset()
    return MeasuredGroup(rows=rows, rates=rates, left_out=left_out)


def _products(cells: Sequence[Cell], threads: int, device: str) -> dict[str, Callable[[], object]]:
    """The products of the runtimes and precisions of the cells, and of fp32, by "RUNTIME PRECISION"."""
    runtimes = dict.fromkeys("torch" if cell.runtime in EAGER else cell.runtime for cell in cells)
    asked = {"fp32", *(name for cell in cells for name in (cell.precision, cell.hint) if name is not None)}
    opened = open_products(runtimes, [name for name in PRECISIONS if name in asked], threads, device)
    return {f"products {runtime} {precision}": run for (runtime, precision), run in opened.items()}


def _rate(name: str, seconds: list[list[float]], image_size: tuple[int, int], batch: int, threads: int) -> Rate:
    _, runtime, precision = name.split()
    round_ms = [1e3 * statistics.median(taken) for taken in seconds]
    return Rate.model_validate({
        "runtime": runtime, "precision": precision, "image_size": image_size, "batch": batch, "threads": threads,
        "gmacs_per_second": chain_macs() / 1e6 / statistics.median(round_ms), "round_ms": round_ms,
    })  # fmt: skip


def _open(cells: Sequence[Cell], threads: int, device: str, progress: bool, text: str) -> tuple[dict[Cell, Opened], list[LeftOut]]:
    sessions: dict[Cell, Opened] = {}
    left_out: list[LeftOut] = []
    same: dict[tuple[str, str, str], Cell] = {}
    for cell in track(cells, len(cells), f"{text}: opening", progress):
        try:
            session = cell.opening(threads, device).open(cell.subject.loaded)
        except VitfrostError as error:
            left_out.append(LeftOut(name=cell.name, why=str(error)))
            continue
        except Exception as error:  # as above
            left_out.append(LeftOut(name=cell.name, why=f"it cannot be opened: {reason_of(error)}"))
            continue
        kind = f"{cell.precision} {cell.attention} {cell.graph} {cell.ranges} {cell.isa} {session.precision}"
        computed = (cell.subject.label, cell.runtime, kind)
        if computed in same:
            why = f"this CPU has no bf16: it computes in {session.precision}, as the row {same[computed].name} does"
            left_out.append(LeftOut(name=cell.name, why=why))
            continue
        same[computed] = cell
        sessions[cell] = session
    return sessions, left_out


def _row(cell: Cell, session: Opened, seconds: list[list[float]], batch: int, threads: int, device: str, load: float | None) -> BenchRow:
    subject = cell.subject
    round_ms = [1e3 * statistics.median(taken) / batch for taken in seconds]
    single = [taken / batch for in_round in seconds for taken in in_round]
    eager = cell.runtime in EAGER
    return BenchRow.model_validate({
        "name": cell.name, "subject": subject.label, "original": subject.peer, "unmodified": subject.unmodified,
        "kind": subject.kind if eager else "executed", "runtime": cell.runtime, "runtime_version": _version_of(cell, session),
        "precision": cell.shown_precision, "effective_precision": session.precision, "device": device, "batch": batch,
        "threads": threads, "image_size": subject.image_size, "weights": subject.weight_tag, "random_weights": subject.random_weights,
        "calibration": cell.calibration, "graph": cell.graph, "state_hash": subject.state_hash, "plan_hash": subject.plan_hash,
        "macs": subject.macs,
        "file_bytes": _file_bytes(cell), "p50_ms": 1e3 * percentile(single, 50.0), "p90_ms": 1e3 * percentile(single, 90.0),
        "images_per_second": 1e3 / statistics.median(round_ms), "round_ms": round_ms, "repetitions": len(seconds[0]),
        "other_load": load, "constant_forms": getattr(session, "constant_forms", None), "cpu": processor_name(),
    })  # fmt: skip


def _version_of(cell: Cell, session: Opened) -> str:
    """Name and version of what runs the model; of our own engine its instructions too."""
    return session.runtime if isinstance(session, Session) and cell.bits is not None else runtime_version(cell.runtime)


def _profiled(row: BenchRow, session: Opened, pixels: ndarray, runs: int) -> BenchRow:
    """The row with the time of every step of one image, as far as its runtime tells; a mean of at least `FEWEST_PROFILED` runs.

    The runtime tells the times of its threads added up; steps have their mean.
    """
    session.run(pixels)
    images, runs = len(pixels), max(runs, FEWEST_PROFILED)
    steps = [
        ProfiledStep(name=name, ms=1e3 * seconds / images / row.threads, macs=round(macs / images))
        for name, seconds, macs in session.profile(pixels, runs)
    ]
    return row.model_copy(update={"profile": steps or None})


def _file_bytes(cell: Cell) -> int:
    """Of the exported graph; of an artifact's folder or the parameters where PyTorch runs the model."""
    if cell.export is not None:
        return model_bytes(cell.export, read_export(cell.export))
    assert cell.subject.loaded is not None
    return describe(cell.subject.loaded).size_bytes
