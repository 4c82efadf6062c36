"""What is put beside each other: every model on every runtime at every precision that is to be had."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..deploy.native.eight_bits import bits_of
from ..errors import VitfrostError
from ..runtime.runtimes import FORMATS, OWN_BITS, RUNTIMES
from .benchmark import LeftOut
from .sessions import EAGER, Opening
from .subjects import Subject


@dataclass(frozen=True, eq=False)
class Cell:
    """A model on a runtime at a precision. `hint`: what OpenVINO is asked to compute in beside integers; `attention`: what products of
    attention are in an int8 graph for OpenVINO, "int8" or "float"; `graph`: "lean", or "plain" as the runtimes' own tools write it (see
    `deploy.export.export`), which is all there is where PyTorch runs the model; `ranges`: of ONNX Runtime's int8, "static" or "dynamic";
    `bits`: of our own engine's int8, such as "W4/A8"; `isa`: the instructions that it is to use, the best if not given.

    `export`: the exported folder, once there is one; `calibration`: what its int8 ranges were taken from.
    """

    subject: Subject
    runtime: str
    precision: str
    hint: str | None = None
    attention: str | None = None
    graph: str = "plain"
    ranges: str | None = None
    bits: str | None = None
    isa: str | None = None
    export: Path | None = None
    calibration: str | None = None

    @property
    def shown_precision(self) -> str:
        """Such as "fp32", "bf16 hint", "int8 (float attention)", "int8 (dynamic ranges)", "int8 + bf16 hint"; of what PyTorch or our own
        engine runs the model's own ("W4/A4")."""
        if self.bits is not None:
            return self.bits if self.isa is None else f"{self.bits} ({self.isa})"
        if self.runtime in EAGER and self.subject.kind == "simulated":
            return self.subject.precision
        note = "float attention" if self.attention == "float" else "dynamic ranges" if self.ranges == "dynamic" else None
        precision = self.precision if note is None else f"{self.precision} ({note})"
        if self.hint == "bf16":
            return "bf16 hint" if self.precision == "fp32" else f"{precision} + bf16 hint"
        return precision

    @property
    def name(self) -> str:
        """What the row is called."""
        lean = ", lean graph" if self.graph == "lean" and self.bits is None else ""
        return f"{self.subject.label}, {self.runtime} {self.shown_precision}{lean}"

    def opening(self, threads: int, device: str) -> Opening:
        """How it is opened; cells of exported graphs need theirs to be there."""
        size = self.subject.image_size
        if self.runtime in EAGER:
            return Opening(self.runtime, size, threads, source=self.subject.source, precision=self.precision, device=device)
        return Opening(self.runtime, size, threads, export=str(self.export), hint=self.hint, isa=self.isa)


def plan_cells(
    subjects: Sequence[Subject], runtimes: Sequence[str], precisions: Sequence[str], device: str, isas: Sequence[str] = ()
) -> tuple[list[Cell], list[LeftOut]]:
    """The cells of all subjects in their order, and what is not among them, with the reason. `isas`: for which instructions our own engine
    has rows, the best alone if not given.

    Raises VitfrostError for an exported folder of a runtime that is not asked for.
    """
    cells: list[Cell] = []
    left_out: list[LeftOut] = []
    for subject in subjects:
        made = _of_export(subject, runtimes, precisions) if subject.export is not None else _of_model(subject, runtimes, precisions, device)
        cells += [replace(cell, isa=isa) for cell in made for isa in (isas if cell.bits is not None and isas else (None,))]
        if not made:
            left_out.append(LeftOut(name=subject.label, why="no runtime that was asked for has a precision that was asked for"))
    return cells, left_out + _never(runtimes, precisions, device)


def _of_model(subject: Subject, runtimes: Sequence[str], precisions: Sequence[str], device: str) -> list[Cell]:
    cells = []
    for runtime in runtimes:
        if runtime in EAGER:
            own = ["fp32", "bf16"] if device != "cpu" and subject.kind == "executed" else ["fp32"]
            cells += [Cell(subject, runtime, precision) for precision in own if precision in precisions]
        elif runtime in OWN_BITS:
            # What is in integers anyway; one kind of graph.
            if "int8" in precisions and subject.loaded is not None:
                cells.append(Cell(subject, runtime, "int8", graph="lean", bits=bits_of(subject.loaded)))
        else:
            for precision, hint in _graphs(RUNTIMES[runtime].hints, precisions):
                kinds: tuple[dict[str, str], ...] = RUNTIMES[runtime].int8 if precision == "int8" else ({},)
                for graph in ("plain", "lean") if subject.unmodified else ("lean",):
                    # Dynamic ranges are measured as the peer that they make.
                    for kind in kinds:
                        if graph == "plain" or kind.get("ranges") != "dynamic":
                            cells.append(Cell(subject, runtime, precision, hint, kind.get("attention"), graph, kind.get("ranges")))
    return cells


def _graphs(hints: Sequence[str], precisions: Sequence[str]) -> list[tuple[str, str]]:
    """Graphs and hints that the precisions ask for; int8 has both hints where bf16 is asked for too."""
    asked = {("fp32", "fp32"): {"fp32"}, ("fp32", "bf16"): {"bf16"}, ("int8", "fp32"): {"int8"}, ("int8", "bf16"): {"int8", "bf16"}}
    return [pair for pair, needs in asked.items() if pair[1] in hints and needs <= set(precisions)]


def _of_export(subject: Subject, runtimes: Sequence[str], precisions: Sequence[str]) -> list[Cell]:
    """An exported folder is one graph: on its own runtime only, at its precision, with both hints on OpenVINO."""
    assert subject.about is not None
    runtime = FORMATS[subject.about["format"]].name
    if runtime not in runtimes:
        raise VitfrostError(f"{subject.label} is exported for {runtime}, which is not among the runtimes {', '.join(runtimes)}")
    precision = "int8" if subject.about["precision"] == "int8" else "fp32"
    calibration = described(subject.about["calibration"]) if precision == "int8" else None
    hints = [hint for hint in RUNTIMES[runtime].hints if hint in ("fp32", *precisions)]
    attention, ranges, graph = subject.about.get("attention"), subject.about.get("ranges"), str(subject.about.get("graph", "plain"))
    made = Cell(subject, runtime, precision, None, attention, graph, ranges, subject.about.get("bits"), None, subject.export, calibration)
    return [replace(made, hint=hint) for hint in hints]


def described(drawn: dict[str, Any] | None) -> str:
    """The record of an export's calibration in words."""
    return "none" if drawn is None else f"{drawn['images']} pictures ({str(drawn['images_hash'])[:12]}), seed {drawn['seed']}"


def _never(runtimes: Sequence[str], precisions: Sequence[str], device: str) -> list[LeftOut]:
    """What a runtime does not have at all."""
    left_out = []
    if "bf16" in precisions:
        without = [name for name in runtimes if name in RUNTIMES and name not in OWN_BITS and "bf16" not in RUNTIMES[name].hints]
        left_out += [LeftOut(name=f"{name} bf16", why="its CPU kernels compute in fp32") for name in without]
    eager = " and ".join(runtime for runtime in EAGER if runtime in runtimes)
    if eager and "bf16" in precisions and device == "cpu":
        left_out.append(LeftOut(name=f"{eager} bf16", why="measured on a GPU only; on a CPU the bf16 peer is OpenVINO's"))
    if eager and "int8" in precisions:
        left_out.append(LeftOut(name=f"{eager} int8", why="PyTorch runs no int8 form of these models; the int8 peers are the runtimes'"))
    return left_out
