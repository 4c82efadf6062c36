"""How a verb works: on how many images, on which runtime, how often."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from .base import PYTHON_ONLY, Flag, Images, Positive, Seed, config
from .methods import Compact, FreezeHeads, WindowHeads

Format = Literal["onnx", "openvino", "native"]
Precision = Literal["fp32", "bf16", "int8"]
WeightRange = Literal["auto", "full", "reduced"]
AttentionProducts = Literal["auto", "int8", "float"]
Graph = Literal["lean", "plain"]
Detail = Literal["entries", "heads"]
Ranges = Literal["static", "dynamic"]
Unit = Literal["heads", "layers", "ranks", "windows"]
MADE_BY: dict[Unit, type] = {"heads": FreezeHeads, "layers": FreezeHeads, "ranks": Compact, "windows": WindowHeads}  # what a search changes
Rescore = Literal["lazy", "all"]
SearchRuntime = Literal["onnxruntime-fp32", "onnxruntime-int8", "openvino-fp32", "openvino-bf16", "openvino-int8", "torch-fp32", "native"]
BenchRuntime = Literal["openvino", "onnxruntime", "native", "torch", "compiled"]
BetweenZeroAndOne = Annotated[float, Field(gt=0, lt=1)]


@config
class Calibrate:
    """How statistics are taken."""

    TITLE: ClassVar[str] = "statistics"

    limit: Annotated[Images | None, Flag(metavar="COUNT")] = 1000
    """How many images, a seeded draw; None takes all."""
    seed: Seed = 0
    """Seed of the draw."""
    batch_size: Positive = 16
    """Images per forward pass."""
    maps: Literal["before", "after"] = "before"
    """Of a quantized artifact, the maps before or after its map quantizer."""
    sensitivity: bool = False
    """Also measure how much the outputs depend on every attention weight; needs no labels, and takes one and a half to two and a half times
    as long."""
    similarity: bool = False
    """Also measure how alike the heads are, within layers and across them; a plan that hallucinates heads needs it."""
    detail: Annotated[Detail | None, Flag(default="entries where they take at most 4 passes, else heads")] = None
    """`entries`: every attention weight, which freezing single weights and dense constants take. `heads`: sums by relative position and a
    sample of weights, in one pass and little memory however long the sequences are; enough for plans of whole heads."""
    memory_limit: Annotated[float, Field(gt=0), Flag(metavar="GB")] = 4.0
    """Gigabytes for counters; beyond it the images are passed several times."""


@config
class Evaluate:
    """On which images a model is measured."""

    TITLE: ClassVar[str] = "drawn images"

    limit: Annotated[Images | None, Flag(metavar="COUNT")] = None
    """How many images, a seeded draw; all if not given."""
    seed: Seed = 0
    """Seed of the draw."""
    batch_size: Positive = 16
    """Images per forward pass."""
    neighbors: Annotated[Positive, Flag(metavar="COUNT")] = 20
    """Of a model that gives features: how many of the nearest images vote for the class of an image."""
    threshold: Annotated[float, Flag(metavar="VALUE")] = 0.5
    """What of a task head's outputs counts as inside, for the intersection over union."""

    def idle(self) -> dict[str, str]:
        """Fields without effect."""
        return {"seed": "limit"} if self.limit is None else {}


@config
class Compress:
    """Which images a plan is applied with."""

    TITLE: ClassVar[str] = "drawn images"

    seed: Seed = 0
    """Seed of the draws of images."""
    calibration_images: Annotated[Images | None, Flag(metavar="COUNT", default="32 with repq, 192 with fast, 1000 with best")] = None
    """How many images are drawn to quantize activations."""
    compact_images: Annotated[Images, Flag(metavar="COUNT")] = 256
    """How many images are drawn to fit compact blocks and to compare hallucinated heads with the original's."""


@config
class Search:
    """The budget of a search, and how it searches."""

    TITLE: ClassVar[str] = "budget"

    max_drop: Annotated[float | None, Field(ge=0, le=100), Flag(metavar="POINTS")] = None
    """Percentage points of top-1 on the images, or without labels of agreement with the original, that may be lost."""
    target_macs: Annotated[BetweenZeroAndOne | None, Flag(metavar="SHARE")] = None
    """Share of the original's multiply-accumulates to come down to."""
    target_latency: Annotated[BetweenZeroAndOne | None, Flag(metavar="SHARE")] = None
    """Share of the original's time on the runtime to come down to, batch 1, both in that precision. Savings are timed first, and the plan's
    whole model last."""
    runtime: SearchRuntime | None = None
    """Runtime and precision of the target latency; `native` runs everything in integers."""
    threads: Positive | None = None
    """Threads of that runtime; 1 if not given."""
    over: Annotated[tuple[Unit, ...], Field(min_length=1), Flag("search-over", form="words")] = ("heads", "layers", "ranks")
    """What may change: heads frozen one by one, layers with all their heads, ranks of feed-forward blocks, heads windowed one by one (they
    may be frozen later)."""
    images: Annotated[int, Field(strict=True, ge=2), Flag("search-images", "COUNT")] = 200
    """How many images are drawn to measure on; with few the search fits their noise."""
    rescore: Rescore = "lazy"
    """Measure changes anew only when old scores come out best, or all of them after every step."""
    seed: Seed = 0
    """Seed of the draw of images."""
    batch_size: Annotated[Positive, PYTHON_ONLY] = 20
    """Images per forward pass."""

    @model_validator(mode="after")
    def _budget_is_one(self) -> Search:
        if self.target_latency is not None and self.target_macs is not None:
            raise ValueError("target_macs and target_latency are two searches; give one of them, and max_drop beside it if you like")
        if self.target_latency is not None and self.runtime is None:
            raise ValueError("target_latency needs a runtime; give one, such as openvino-int8")
        for field in ("runtime", "threads"):
            if self.target_latency is None and getattr(self, field) is not None:
                raise ValueError(f"{field} goes with target_latency; give that too, or leave {field} out")
        if self.max_drop is None and self.target_macs is None and self.target_latency is None:
            raise ValueError("a search needs a budget; give max_drop, target_macs or target_latency")
        return self


@config
class Export:
    """What graph is written."""

    TITLE: ClassVar[str] = "graph"

    format: Format = "onnx"
    """`onnx` for ONNX Runtime, `openvino` for OpenVINO, `native` for vitfrost's own engine: it runs an artifact's integer codes, a model in
    floating point in 8 bits."""
    precision: Precision = "fp32"
    """`fp32`; `bf16` (OpenVINO: an fp32 graph that CPUs with bf16 instructions compute in bf16); or `int8`, calibrated on images."""
    calibration_images: Annotated[Images, Flag(metavar="COUNT")] = 300
    """How many images are drawn to calibrate int8; `native` takes at most 32 of them."""
    weight_range: WeightRange = "auto"
    """Whether int8 weights keep to 7 bits, which CPUs without VNNI need: `reduced` always, `full` never, `auto` asks this CPU."""
    attention: AttentionProducts = "auto"
    """Whether OpenVINO's int8 covers the products of attention; `auto`: only on CPUs with VNNI."""
    graph: Graph = "lean"
    """`lean` computes the same with less work, int8 in ONNX Runtime's own operators; `plain` is the model as PyTorch has it."""
    ranges: Ranges = "static"
    """`static`: int8 ranges from the calibration images; `dynamic` (onnx): from every batch as it runs, without images."""
    seed: Seed = 0
    """Seed of the draw of images."""

    @model_validator(mode="after")
    def _runtime_has_it(self) -> Export:
        if self.precision == "bf16" and self.format != "openvino":
            other = "leave precision out" if self.format == "native" else "precision fp32 or int8"
            raise ValueError(f"precision is 'bf16', which is of OpenVINO; give format openvino, or {other}")
        if self.attention == "int8" and self.format == "onnx":
            raise ValueError("attention is 'int8', but ONNX Runtime's int8 covers layers with weights only; give float or leave it out")
        if self.ranges == "dynamic" and (self.format, self.precision) != ("onnx", "int8"):
            raise ValueError("ranges is 'dynamic', which is of int8 in ONNX Runtime; give format onnx and precision int8, or static")
        return self

    def idle(self) -> dict[str, str]:
        """Fields without effect."""
        if self.format == "native":
            return dict.fromkeys(("precision", "weight_range", "attention", "graph", "ranges"), "format")
        if self.precision != "int8":
            return dict.fromkeys(("calibration_images", "weight_range", "attention", "seed"), "precision")
        found = {"attention": "format"} if self.format == "onnx" else {}
        return found | (dict.fromkeys(("calibration_images", "seed"), "ranges") if self.ranges == "dynamic" else {})


@config
class Bench:
    """What is timed, and how often."""

    TITLE: ClassVar[str] = "timing"

    runtime: Annotated[tuple[BenchRuntime, ...] | None, Flag(form="commas")] = None
    """Runtimes, some of openvino, onnxruntime, native, torch, compiled (torch.compile); those that are installed if not given."""
    precision: Annotated[tuple[Precision, ...], Field(min_length=1), Flag(form="commas")] = ("fp32", "bf16", "int8")
    """Precisions, some of fp32, bf16, int8."""
    batch: Annotated[tuple[Positive, ...], Field(min_length=1), Flag(form="commas")] = (1,)
    """Batch sizes, such as 1,16."""
    threads: Annotated[tuple[Positive, ...], Field(min_length=1), Flag(form="commas")] = (1,)
    """Numbers of threads, such as 1,2."""
    image_size: Annotated[tuple[Positive | tuple[Positive, Positive], ...] | None, Flag(metavar="PX,...", form="sizes")] = None
    """Input sizes of timm: models in pixels, or height x width (256x128), if not their own."""
    rounds: Positive = 20
    """How often every row has its turn."""
    seed: Seed = 0
    """Seed of the order in the rounds, of bootstrap draws and of noise."""
    against: str | None = None
    """A model or a row to compare with, instead of the fastest row of the unmodified model on any other engine than ours."""
    memory: Annotated[bool, Flag("no-memory", form="off")] = True
    """Measure the peak memory of every row too, which takes a process per row."""
    isa: bool = False
    """A row of the native engine for every instruction set that this processor has."""
    profile: bool = False
    """Where the time of the native engine's rows goes, layer by layer, measured after the rounds."""

    def idle(self) -> dict[str, str]:
        """Fields without effect."""
        return {} if self.runtime is None or "native" in self.runtime else dict.fromkeys(("isa", "profile"), "runtime")


@config
class Train:
    """What takes the place of what a training recipe says."""

    TITLE: ClassVar[str] = "replacement"

    variants: Annotated[tuple[str, ...], Flag("variant", "NAME", form="words")] = ()
    """Parts of the recipe's variants, laid over it in this order."""
    weights: Annotated[str | Path | None, Flag(metavar="FILE")] = None
    """Weights to start from; 'timm' for timm's own, 'random' for untrained ones."""
    data: Annotated[str | Path | None, Flag(metavar="PATH")] = None
    """Folder that the recipe's pictures are in, or one pack (.npz) for all of them."""
    statistics: Annotated[str | Path | None, Flag(metavar="FILE")] = None
    """Statistics that a plan's start is fitted to."""
    artifact: Annotated[str | Path | None, Flag(metavar="DIR")] = None
    """Artifact to go on from, with its plan."""
    teacher_weights: Annotated[str | Path | None, Flag(metavar="FILE")] = None
    """Weights of the teacher that the recipe names."""
    seed: Seed | None = None
    """Seed of the order, of draws and of noise."""


@config
class Run:
    """What takes the place of what a recipe says."""

    TITLE: ClassVar[str] = "replacement"

    quick: bool = False
    """The recipe's quick variant."""
    weights: Annotated[str | Path | None, Flag(metavar="FILE")] = None
    """Safetensors or a checkpoint, or a folder of them by the name of the model; 'random' for untrained weights."""
    calibration: Annotated[str | Path | None, Flag(metavar="DIR")] = None
    """Calibration images."""
    images: Annotated[str | Path | None, Flag(metavar="DIR")] = None
    """Evaluation images."""
