"""What a person who wants to deploy the model asks first: is it as accurate, is it faster, is it smaller, and what to do next."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ..budget.history import Taken
from ..outputs import distance_text
from ..timing.benchmark import BenchRow
from .commands import compress_command
from .parts import RunParts
from .places import ARTIFACT, DEPLOY
from .summary import interval, megabytes, signed

SMALL_DROP = 1.0
"""Percentage points; where less is lost, the next step is a tighter budget, else giving something back."""


@dataclass(frozen=True)
class Answer:
    """One line of the verdict: the number that answers, its interval and what it is compared with, or the command that finds it out."""

    question: str
    value: str
    note: str = ""
    kind: Literal["executed", "simulated"] | None = None
    command: str | None = None


@dataclass(frozen=True)
class Verdict:
    """Accuracy, time and size in this order, and what to do next, most useful first: (what, the command that does it)."""

    answers: list[Answer]
    next: list[tuple[str, str | None]]


def build_verdict(parts: RunParts) -> Verdict | None:
    """The verdict of a run; None where nothing was planned and nothing measured."""
    if parts.plan is None and parts.results is None:
        return None
    return Verdict([_accuracy(parts), _time(parts), _size(parts)], _next(parts))


def _name(parts: RunParts) -> str:
    return parts.identity.name if parts.identity else "MODEL"


def _accuracy(parts: RunParts) -> Answer:
    question, row = "Accuracy kept", parts.compressed
    if row is None:
        where = parts.place(DEPLOY if parts.exported else ARTIFACT)
        command = f"vitfrost evaluate {where} --images EVALUATION_IMAGES --reference {_name(parts)} --json RUN/result.json"
        return Answer(question, "not measured", "No results in this folder.", command=command)
    if row.agreement is None and row.top1 is None:
        return Answer(question, "not compared", f"no original beside, on {row.images:,} images", row.kind)
    if row.top1 is None:
        what = "same nearest image as with the original" if row.features else "same top-1 as the original"
        note = f"{what}, {interval(row.agreement_interval)}, on {row.images:,} images{'' if row.features else ' without labels'}"
        return Answer(question, f"{row.agreement:.2f} %", note, row.kind)
    lost = row.top1_difference
    if lost is None:
        return Answer(
            question, f"{row.top1:.2f} %", f"top-1, {interval(row.interval)}, on {row.images:,} images; no original beside", row.kind
        )
    note = (
        f"top-1, {signed(lost.value)} points ({interval(lost.interval, True)}) from the original's {row.top1 - lost.value:.2f} %, "
        f"paired, on {row.images:,} images"
    )
    return Answer(question, f"{row.top1:.2f} %", note, row.kind)


def compared_row(rows: list[BenchRow]) -> BenchRow | None:
    """The fastest row that was compressed, of the first group of the bench."""
    return next((row for row in rows if not row.unmodified), None)


def _time(parts: RunParts) -> Answer:
    question = "Time beside the fastest peer"
    rows = parts.bench.groups()[0] if parts.bench else []
    row = compared_row(rows)
    if row is None or row.to_peer is None:
        where = parts.place(DEPLOY if parts.exported else ARTIFACT)
        command = f"vitfrost bench timm:{_name(parts)} {where} --images CALIBRATION_IMAGES --out RUN/bench"
        return Answer(question, "not measured", "No bench in this folder.", command=command)
    ratio, threads = row.to_peer, f"{row.threads} {'thread' if row.threads == 1 else 'threads'}"
    note = (
        f"({interval(ratio.interval)}) of the time of {ratio.to}; {row.p50_ms:.2f} ms per image on {row.runtime} {row.precision}, "
        f"batch {row.batch}, {threads}{_untimed(row, rows)}"
    )
    return Answer(question, f"{ratio.value:.2f}", note, row.kind)


def _untimed(row: BenchRow, rows: list[BenchRow]) -> str:
    """Which precisions the peers have, where none has that of the row: the fastest may be one that was not timed."""
    timed = list(dict.fromkeys(peer.precision for peer in rows if peer.unmodified))
    if row.precision in timed or not timed:
        return ""
    return f"; the fastest of {' and '.join(timed)} only: {row.precision} peers were not timed"


def _size(parts: RunParts) -> Answer:
    row, before = parts.compressed, None if parts.original is None else parts.original.size_bytes
    after = parts.artifact_bytes if row is None or row.size_bytes is None else row.size_bytes
    if after is None:
        return Answer("Size", "not known", "No artifact in this folder.", command=compress_command(parts))
    note = "" if before is None else f"on disk, after {megabytes(before)} in fp32: {before / after:.1f} times smaller"
    return Answer("Size", megabytes(after), note or "on disk", "executed")


def _next(parts: RunParts) -> list[tuple[str, str | None]]:
    """Advice by rules: where accuracy was lost, what to give back first; where it was kept, what else saves."""
    found: list[tuple[str, str | None]] = []
    row = parts.compressed
    lost = None if row is None or row.top1_difference is None else -row.top1_difference.value
    if lost is not None and lost > SMALL_DROP:
        found += _give_back(parts)
    if parts.plan is not None and parts.artifact is not None and parts.changed and not parts.repaired and not parts.trained:
        found.append(("Repair the changed layers; it needs images without labels.", "vitfrost compress ... --repair ridge"))
    if parts.plan is not None and _only_entries(parts):
        found.append(
            ("Freeze whole heads to save time: single frozen weights save none.",
             "vitfrost search ... --target-latency 0.9 --runtime onnxruntime-int8"),
        )  # fmt: skip
    if parts.artifact is not None and not parts.exported and parts.plan is not None and not parts.plan.quantize.parts.any_activations:
        found.append(
            ("Export it, to run without torch and in int8.",
             f"vitfrost export {parts.place(ARTIFACT)} --format onnx --precision int8 --images CALIBRATION_IMAGES --out RUN/deploy"),
        )  # fmt: skip
    if lost is not None and lost <= SMALL_DROP and parts.search is not None:
        found.append(("Accuracy is nearly kept, so a tighter budget may pay.", _tighter(parts)))
    return found


def _give_back(parts: RunParts) -> list[tuple[str, str | None]]:
    plan = parts.plan
    found: list[tuple[str, str | None]] = []
    if plan is not None and plan.quantize.activations < 8:
        bits = plan.quantize.activations
        found.append(
            (f"Give bits back first: activations have {bits}, and they usually cost the most.", "vitfrost plan ... --activation-bits 8")
        )
    taken = _costliest(parts)
    if taken is not None:
        left = taken.macs_share if taken.latency_share is None else taken.latency_share
        what = "multiply-accumulates" if taken.latency_share is None else "time"
        added = distance_text(parts.search.subject.outputs if parts.search else "classes", taken.increase, "+.3g")
        cost = f"{added}; the search was then at {left:.2f} of the {what}"
        text = f"Give back first what changed the outputs most for what it saves: {taken.move} ({cost})."
        found.append((f"{text} Set it to 'computed' in plan.yaml, or search with a looser budget.", None))
    elif (head := _most_sensitive(parts)) is not None:
        found.append((f"Give back first the frozen head that the outputs depend on most: {head}. Set it to 'computed' in plan.yaml.", None))
    return found


def _costliest(parts: RunParts) -> Taken | None:
    """The step of the search that added most divergence for the cost that it saved."""
    if parts.search is None or not parts.search.steps:
        return None
    shares = [step.macs_share if step.latency_share is None else step.latency_share for step in parts.search.steps]
    saved = [before - after for before, after in zip([1.0, *shares], shares, strict=False)]
    return max(zip(parts.search.steps, saved, strict=True), key=lambda pair: pair[0].increase / max(pair[1], 1e-9))[0]


def _most_sensitive(parts: RunParts) -> str | None:
    """The frozen head whose weights the outputs are most sensitive to, where the statistics say so."""
    statistics = parts.ranking
    if parts.plan is None or statistics is None:
        return None
    best: tuple[float, str] | None = None
    for layer in parts.plan.layers:
        sensitivity = statistics.sites[layer.site].sensitivity
        for number in layer.constant if sensitivity is not None else ():
            assert sensitivity is not None
            counted = getattr(statistics.sites[layer.site], "weights", 1.0)  # where only a sample of the weights is known
            value = float((sensitivity.gradient_second[:, number] * counted).sum())
            if best is None or value > best[0]:
                best = (value, f"head {number} of {layer.site}")
    return None if best is None else best[1]


def _only_entries(parts: RunParts) -> bool:
    assert parts.plan is not None
    return parts.plan.freeze is not None and not any(layer.constant for layer in parts.plan.layers)


def _tighter(parts: RunParts) -> str | None:
    assert parts.search is not None
    for name in ("target_latency", "target_macs"):
        target = parts.search.budget.get(name)
        if target is not None:
            return f"vitfrost search ... --{name.replace('_', '-')} {max(target - 0.05, 0.05):.2f} --resume"
    return None
