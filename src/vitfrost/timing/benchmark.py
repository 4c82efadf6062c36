"""What a benchmark measured: rows, limits of the machine, what was left out and why; and the file that holds them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field

from ..files import write_json
from ..records import Format
from ..strict import Count, Positive, Strict

FORMAT = Format("a result of vitfrost bench", "vitfrost bench", mend="measure again")
Figures = Annotated[float, AfterValidator(lambda value: float(f"{value:.6g}")), Field(ge=0)]


class Ratio(Strict):
    """Time over the time of the row called `to`: the median of the rounds' ratios with its 95 % interval; below 1 is faster."""

    to: str
    value: Figures
    interval: tuple[Figures, Figures]


class Rate(Strict):
    """How many multiply-accumulates a second (in units of 1e9) one runtime reaches on large products of one precision.

    `image_size`, `batch` and `threads` name the group of rows that the products were interleaved with; `round_ms` is one chain of
    products.
    """

    runtime: str
    precision: Literal["fp32", "bf16", "int8"]
    image_size: tuple[Positive, Positive]
    batch: Positive
    threads: Positive
    gmacs_per_second: Figures
    round_ms: list[Figures] = Field(min_length=1)


class ProfiledStep(Strict):
    """A step of a model: its time in one image, the mean of all threads, and its multiply-accumulates."""

    name: str
    ms: Figures
    macs: Count


class BenchRow(Strict):
    """One model on one runtime at one precision, batch size, number of threads and image size.

    `subject`: the model, by what it was called; `original`: the unmodified model that it was made from (itself, where `unmodified`).
    `precision` is what was asked for, `effective_precision` what the runtime says that it computes in. `kind`: "executed", or
    "simulated" where quantization is imitated in floating point. `calibration`: what int8 ranges were taken from. `graph`: "lean" if
    `vitfrost export` left out needless work, "plain" as the runtimes' own tools write it, and where PyTorch runs the model.
    `random_weights`: untrained, so that only the time means something. Times are of one image (the batch's divided by its size):
    `p50_ms` and `p90_ms` over all timed runs, `round_ms` the median of each round. `peak_memory_bytes`: growth of the memory of a process
    that opens the model and runs it once. `limit_share`: multiply-accumulates per second over the best rate of products at this precision
    in the same rounds. `other_load`: cores that other processes kept busy meanwhile. `constant_forms`: how PyTorch applied constant heads,
    "matmul", "convolution" or "triton", or how many layers each way. `profile`: where the time of our own engine goes, step by step.
    """

    name: str
    subject: str
    original: str
    unmodified: bool
    kind: Literal["executed", "simulated"]
    runtime: str
    runtime_version: str
    precision: str
    effective_precision: str
    device: str
    batch: Positive
    threads: Positive
    image_size: tuple[Positive, Positive]
    weights: str
    random_weights: bool
    calibration: str | None = None
    graph: Literal["plain", "lean"] = "plain"
    state_hash: str
    plan_hash: str | None = None
    macs: Count
    file_bytes: Count
    peak_memory_bytes: Count | None = None
    p50_ms: Figures
    p90_ms: Figures
    images_per_second: Figures
    round_ms: list[Figures] = Field(min_length=1)
    repetitions: Positive
    to_peer: Ratio | None = None
    to_unmodified: Ratio | None = None
    limit_share: Figures | None = None
    other_load: Figures | None = None
    constant_forms: str | None = None
    profile: list[ProfiledStep] | None = None
    cpu: str


class LeftOut(Strict):
    """A row that is not there, and why."""

    name: str
    why: str


class MeasuredGroup(Strict):
    """Rows that were interleaved with each other, before they are compared; what a run that was stopped goes on from."""

    rows: list[BenchRow]
    rates: list[Rate]
    left_out: list[LeftOut]


class Benchmark(Strict):
    """The result file of `vitfrost bench`: groups of rows one after the other, the fastest row of a group first."""

    kind: Literal["vitfrost bench"] = "vitfrost bench"
    version: Literal[1] = 1
    seed: Count
    rounds: Positive
    environment: dict[str, str]
    rates: list[Rate]
    rows: list[BenchRow] = Field(min_length=1)
    left_out: list[LeftOut] = Field(default_factory=list)

    def __repr__(self) -> str:
        models = list(dict.fromkeys(row.subject for row in self.rows))
        return f"Benchmark({', '.join(models[:4])}{' ...' if len(models) > 4 else ''}: {len(self.rows)} rows, {self.rounds} rounds)"

    __str__ = __repr__

    def groups(self) -> list[list[BenchRow]]:
        """The rows that were interleaved with each other: of one image size, batch size and number of threads."""
        found: dict[Any, list[BenchRow]] = {}
        for row in self.rows:
            found.setdefault((row.image_size, row.batch, row.threads), []).append(row)
        return list(found.values())

    def rates_of(self, row: BenchRow) -> list[Rate]:
        """The limits of the row's group."""
        group = (row.image_size, row.batch, row.threads)
        return [rate for rate in self.rates if (rate.image_size, rate.batch, rate.threads) == group]


def save_benchmark(benchmark: Benchmark, path: str | Path) -> None:
    """Write the result file atomically. Raises VitfrostError when it cannot be written."""
    write_json(path, benchmark.model_dump(mode="json"))


def load_benchmark(path: str | Path) -> Benchmark:
    """Read a result file. Raises VitfrostError when it is missing, damaged, of another kind, or from a newer vitfrost."""
    return FORMAT.load(Benchmark, path)
