"""The command line: one subcommand per verb. Everything heavy is imported when a verb starts, so `--help` is instant."""

from __future__ import annotations

import contextlib
import functools
import io
import math
import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any, Literal

import tyro
from tyro.conf import Positional, arg

from .errors import VitfrostError

Criterion = Literal["entropy", "mean", "variance", "random", "output-error", "largest-entropy", "output-error-joint", "fisher"]
Crop = Literal["center", "squash", "border"]
ArtefactOrNone = Annotated[Positional[Path | None], arg(metavar="ARTEFACT", help="an artefact folder (or give --model)")]
Model = Annotated[str | None, arg(metavar="NAME", help="a timm model name, such as deit_tiny_patch16_224")]
Weights = Annotated[
    str | None, arg(metavar="FILE", help="safetensors or a plain state dict; 'random' for untrained weights; else timm's own")
]
Size = Annotated[int | None, arg(metavar="PX", help="input size, if not the model's own")]
CropShare = Annotated[float | None, arg(metavar="SHARE", help="share of the resized image that is kept; else the model's own")]
Device = Annotated[str, arg(metavar="DEVICE", help="where the model runs: cpu, or cuda where there is a GPU")]
CropMode = Annotated[Crop | None, arg(help="how the crop is made; 'squash' resizes both sides to the input size")]


def _one_of(artefact: Path | None, model: str | None) -> str | Path:
    if (artefact is None) == (model is None):
        raise VitfrostError("give either an ARTEFACT folder or --model NAME")
    return artefact if artefact is not None else str(model)


def _print(renderable: Any) -> None:
    from rich.console import Console

    Console(width=None if sys.stdout.isatty() else 160).print(renderable)


def demo(out: Path = Path("vitfrost-demo")) -> None:
    """Run the whole path on a bundled digits model: no network, no data of yours, two minutes.

    Args:
        out: folder for the run.
    """
    from . import demo as verb

    verb(out)


def inspect(
    artefact: ArtefactOrNone = None,
    /,
    model: Model = None,
    weights: Weights = None,
    image_size: Size = None,
    plan: Path | None = None,
    json: Path | None = None,
) -> None:
    """Say whether a model is supported; list its attention sites, parameters and multiply-accumulates by part.

    Args:
        plan: also count what this plan leaves of them; without a model, the plan's own is taken.
        json: also write what was found to this file.
    """
    from . import inspect as verb
    from .files import refuse_unwritable, write_json
    from .measure.inspection import format_inspection

    if json is not None:
        refuse_unwritable(json)
    named = None if plan is not None and artefact is None and model is None else _one_of(artefact, model)
    found = verb(named, weights=weights, image_size=image_size, plan=plan)
    _print(format_inspection(found))
    if json is not None:
        write_json(json, found)


def calibrate(
    artefact: ArtefactOrNone = None,
    /,
    *,
    images: Path,
    out: Path,
    model: Model = None,
    weights: Weights = None,
    limit: int = 1000,
    seed: int = 0,
    image_size: Size = None,
    crop_pct: CropShare = None,
    crop_mode: CropMode = None,
    batch_size: int = 16,
    maps: Literal["before", "after"] = "before",
    memory_limit: float = 4.0,
    sensitivity: bool = False,
    similarity: bool = False,
    device: Device = "cpu",
) -> None:
    """Measure the attention maps of a model or an artefact on images: entropy, mean, variance of every weight.

    Args:
        images: folder of pictures (class folders, a folder with labels.csv, or any folder).
        out: statistics file (.safetensors).
        limit: how many images, a seeded draw.
        seed: seed of the draw.
        batch_size: images per forward pass.
        maps: of a quantised artefact, the maps before or after its map quantiser.
        memory_limit: GB for counters; beyond it the images are passed several times.
        sensitivity: also measure how much the outputs depend on every weight (no labels needed; takes up to twice as long).
        similarity: also measure how alike the heads are, within layers and across them; a plan that hallucinates heads needs it.
    """
    from . import calibrate as verb
    from .distributed import rank

    if not (math.isfinite(memory_limit) and memory_limit > 0):
        raise VitfrostError(f"--memory-limit is {memory_limit}; give a number of GB above 0")
    found = verb(
        _one_of(artefact, model), images, limit=limit, seed=seed, out=out, weights=weights, image_size=image_size, crop_pct=crop_pct,
        crop_mode=crop_mode, batch_size=batch_size, maps=maps, memory_limit=int(memory_limit * 1e9), sensitivity=sensitivity,
        similarity=similarity, device=device,
    )  # fmt: skip
    if rank() != 0:
        return
    header = found.header
    print(f"{out}: {len(found.sites)} sites, {header.images} images ({header.skipped} skipped), {header.precision}")


def plan(
    *,
    out: Path,
    statistics: Path | None = None,
    model: Model = None,
    weights: Weights = None,
    image_size: Size = None,
    hallucinate: float | None = None,
    hallucinate_by: Literal["medoids", "explained", "first", "random"] | None = None,
    mix: Literal["ridge", "copy"] = "ridge",
    ridge: float = 1e-3,
    space: Literal["logits", "post-softmax"] = "logits",
    inter_map: Literal["linear", "copy", "pair"] = "linear",
    intra_map: Literal["none", "3x3", "5x5", "key-grid"] = "3x3",
    prefix: Literal["skip", "include"] = "skip",
    map_bias: Literal["yes", "no"] = "yes",
    compact: float | None = None,
    compact_init: Literal["activations", "weights", "random"] = "activations",
    compact_blocks: Literal["all", "transformer"] = "all",
    branches: int = 2,
    branch_norm: Literal["batch", "none"] = "batch",
    expand: bool = False,
    identity: bool = False,
    noise: float = 0.01,
    freeze: float | None = None,
    by: Criterion = "entropy",
    scope: Literal["head", "layer", "model"] = "head",
    unit: Literal["entry"] = "entry",
    ties: Literal["rank", "strict", "le"] = "rank",
    protect: tuple[Literal["cls-rows", "cls-columns"], ...] = (),
    renormalise: Literal["none", "mass", "renorm"] = "none",
    frozen_bits: int = 4,
    frozen_grid: Literal["layer", "head"] = "layer",
    order: Literal["quantise-merge", "merge-quantise"] = "quantise-merge",
    weight_bits: int | None = None,
    activation_bits: int | None = None,
    levels: Literal["published", "strict"] = "published",
    seed: int = 0,
) -> None:
    """Choose what happens to every head, feed-forward block and bit; write a plan that you can read, edit and diff.

    Args:
        out: plan file (.yaml).
        statistics: file from `vitfrost calibrate`; without it, give --model: a plan for training, which freezes nothing.
        hallucinate: share of every layer's heads that lose their queries and keys; their maps are made of the other heads'.
        hallucinate_by: which heads are computed: medoids of the heads' similarity (default with statistics), those that explain
            the others' logits best, the first, or a draw.
        mix: how the mix across heads starts: ridge regression on logits, or copies.
        ridge: penalty of the regression, relative to the mean energy of a head.
        space: whether logits are mixed, or maps after the softmax.
        inter_map: a learned linear mix across heads, plain copies, or one head each times a scalar.
        intra_map: convolution within a hallucinated map, zero at the start.
        prefix: whether the convolution skips the rows and columns of prefix tokens (CLS).
        map_bias: whether every hallucinated map has a learned constant.
        compact: rank of every second feed-forward projection, as a ratio of its width.
        compact_init: factors that fit the activations of images, plain SVD, or untrained ones.
        compact_blocks: all feed-forward blocks, or only those after attention.
        branches: parallel branches of each factor while training, 1 to 4.
        branch_norm: BatchNorm behind every branch while training, or none.
        expand: branches of two weights each while training.
        identity: one more branch that averages channels.
        noise: how far branches differ at the start, relative to their weights.
        freeze: share of attention weights to freeze, 0 to 1; 0.2 unless heads are hallucinated or blocks compacted, then none.
        by: criterion; the lowest are frozen.
        scope: where the share is taken: every head's map, every layer, or the whole model.
        unit: what is frozen.
        ties: exactly the share by rank; or thresholds: 'strict' as printed (ties become zero), 'le' (ties are frozen).
        protect: rows or columns of the prefix tokens that are never frozen.
        renormalise: none as printed; 'mass' scales the computed entries so that rows sum to one; 'renorm' divides the row.
        frozen_bits: bits of the frozen constants, 2 to 8 or 32.
        frozen_grid: log grid of the constants: the layer's own map quantiser's, or one fitted per head.
        order: quantise the computed entries and then merge, or the other way round.
        weight_bits: 2 to 8, or 32 for floating point; 4 with statistics, 32 without.
        activation_bits: 2 to 8, or 32 for floating point; 4 with statistics, 32 without.
        levels: 'published' as RepQ-ViT's code (17 values at 4 bits), or 'strict' (16).
        seed: seed of random choices.
    """
    from . import plan as verb
    from .plans.choose import summary

    if (statistics is None) == (model is None):
        raise VitfrostError("give either --statistics FILE or --model NAME (a plan without statistics, for training)")
    chosen_by = hallucinate_by or ("first" if statistics is None else "medoids")
    heads = None if hallucinate is None else {
        "share": hallucinate, "by": chosen_by, "mix": mix, "ridge": ridge, "seed": seed, "space": space, "inter_map": inter_map,
        "intra_map": intra_map, "prefix": prefix, "bias": map_bias == "yes",
    }  # fmt: skip
    blocks = None if compact is None else {
        "ratio": compact, "init": compact_init, "blocks": compact_blocks, "branches": branches, "norm": branch_norm, "expand": expand,
        "identity": identity, "noise": noise,
    }  # fmt: skip
    bits = 32 if statistics is None else 4
    weight_bits, activation_bits = bits if weight_bits is None else weight_bits, bits if activation_bits is None else activation_bits
    if statistics is None:
        from .plans.scratch import plan_from_model

        if freeze is not None:
            raise VitfrostError("freezing maps needs their statistics; give --statistics FILE instead of --model, or leave --freeze out")
        made = plan_from_model(
            str(model), hallucinate=heads, compact=blocks, weight_bits=weight_bits, activation_bits=activation_bits, levels=levels,
            weights=weights, image_size=image_size, out=out,
        )  # fmt: skip
        _say_planned(out, summary(made))
        return
    if weights is not None or image_size is not None:
        raise VitfrostError("--weights and --image-size go with --model; statistics know their model")
    if freeze is None and hallucinate is None and compact is None:
        freeze = 0.2
    made = verb(
        statistics, hallucinate=heads, compact=blocks, freeze=freeze, by=by, scope=scope, unit=unit, ties=ties, protect=protect,
        renormalise=renormalise, frozen_bits=frozen_bits, frozen_grid=frozen_grid, order=order, weight_bits=weight_bits,
        activation_bits=activation_bits, levels=levels, seed=seed, out=out,
    )  # fmt: skip
    _say_planned(out, summary(made))


def _say_planned(out: Path, found: dict[str, Any]) -> None:
    said = [f"{found['frozen_entries']:,} of {found['entries']:,} attention weights frozen ({100 * found['fraction']:.2f} %)"]
    if found["hallucinated_heads"]:
        said.append(f"{found['hallucinated_heads']} of {found['heads']} heads hallucinated")
    if found["compact_blocks"]:
        said.append(f"{found['compact_blocks']} feed-forward blocks compact")
    print(f"{out}: {', '.join(said)}")


def compress(
    artefact: ArtefactOrNone = None,
    /,
    *,
    plan: Path,
    out: Path,
    model: Model = None,
    weights: Weights = None,
    statistics: Path | None = None,
    images: Path | None = None,
    seed: int = 0,
    calibration_images: int = 32,
    compact_images: int = 256,
    image_size: Size = None,
    crop_pct: CropShare = None,
    crop_mode: CropMode = None,
    overwrite: bool = False,
) -> None:
    """Apply a plan: hallucinate and compact in closed form, quantise with RepQ-ViT, freeze, and save an artefact (safetensors and JSON).

    Give the timm model that the plan was made for, or a trained artefact that the plan goes on from.

    Args:
        plan: file from `vitfrost plan`.
        out: artefact folder.
        statistics: the file that the plan was made from, where it freezes anything.
        images: folder from which the calibration images are drawn, where activations are quantised.
        seed: seed of that draw.
        calibration_images: how many are drawn for quantisation.
        compact_images: how many are drawn for compact blocks.
        overwrite: replace an existing folder.
    """
    from . import compress as verb

    made = verb(
        _one_of(artefact, model), plan, statistics=statistics, images=images, weights=weights, image_size=image_size,
        crop_pct=crop_pct, crop_mode=crop_mode, seed=seed, calibration_images=calibration_images, compact_images=compact_images,
        out=out, overwrite=overwrite,
    )  # fmt: skip
    print(f"{out}: {made.size_bytes / 1e6:.3f} MB")


def evaluate(
    artefact: ArtefactOrNone = None,
    /,
    *,
    images: Path,
    model: Model = None,
    weights: Weights = None,
    labels: Path | None = None,
    reference: str | None = None,
    reference_weights: Weights = None,
    limit: int | None = None,
    seed: int = 0,
    image_size: Size = None,
    crop_pct: CropShare = None,
    crop_mode: CropMode = None,
    batch_size: int = 16,
    device: Device = "cpu",
    json: Path | None = None,
) -> None:
    """Measure accuracy with its interval; with a reference also agreement, KL and the paired difference.

    Args:
        images: class folders, or a folder with labels.csv; without labels a reference is needed.
        labels: CSV with the columns file and label, if not labels.csv in the folder.
        reference: timm name or artefact folder to compare with on the same images.
        reference_weights: weights of the reference; for an artefact, --weights is taken as well.
        limit: how many images, a seeded draw; all if not given.
        seed: seed of the draw.
        batch_size: images per forward pass.
        json: write the result row to this file.
    """
    from . import evaluate as verb
    from .measure.results import format_rows

    if artefact is not None and weights is not None:
        if reference is None:
            raise VitfrostError("an artefact has its own weights; --weights goes with --model, or with --reference")
        weights, reference_weights = None, reference_weights or weights
    row = verb(
        _one_of(artefact, model), images, weights=weights, labels=labels, reference=reference, reference_weights=reference_weights,
        limit=limit, seed=seed, image_size=image_size, crop_pct=crop_pct, crop_mode=crop_mode, batch_size=batch_size,
        device=device, json=json,
    )  # fmt: skip
    if row is not None:
        _print(format_rows([row]))


def report(run: Annotated[Positional[Path], arg(metavar="RUN")], /, out: Path | None = None) -> None:
    """Make one HTML page of a run's folder that needs no network.

    Args:
        run: folder made by `vitfrost run`.
        out: HTML file; report.html in the folder if not given.
    """
    from . import report as verb

    print(verb(run, out))


def run(
    recipe: Annotated[Positional[Path], arg(metavar="RECIPE")],
    /,
    *,
    out: Path,
    resume: bool = False,
    quick: bool = False,
    weights: Weights = None,
    calibration: Path | None = None,
    images: Path | None = None,
    device: Device = "cpu",
) -> None:
    """Run a recipe from statistics to report; every stage can be resumed.

    Args:
        recipe: YAML file: one run, a grid of variants, or a list of recipes.
        out: folder for the run.
        resume: go on with a run that was stopped.
        quick: the recipe's quick variant.
        calibration: calibration images, instead of the recipe's.
        images: evaluation images, instead of the recipe's.
    """
    from . import run as verb
    from .measure.results import format_rows, load_results

    folder = verb(recipe, out, resume=resume, quick=quick, weights=weights, calibration=calibration, images=images, device=device)
    if (folder / "outcomes").is_dir():
        from .grid.record import grid_outcomes
        from .grid.summary import points
        from .grid.table import format_points

        _print(format_points(points(grid_outcomes(folder))))
    elif (folder / "results.json").is_file():
        _print(format_rows(load_results(folder / "results.json").rows))
    print(folder / "report.html")


def train(
    recipe: Annotated[Positional[Path], arg(metavar="RECIPE")],
    /,
    *,
    out: Path,
    resume: bool = False,
    variant: tuple[str, ...] = (),
    weights: Annotated[
        str | None, arg(metavar="FILE", help="weights to start from, instead of the recipe's; 'timm' for timm's own, 'random' for none")
    ] = None,
    data: Path | None = None,
    statistics: Path | None = None,
    seed: int | None = None,
    device: Device = "cpu",
) -> None:
    """Train a model from a recipe, from scratch or from trained weights, plain or with a plan's structure, with a teacher or without.

    Args:
        recipe: YAML file (kind: vitfrost training).
        out: folder for the run: metrics, checkpoint, artefact and result.
        resume: go on with a run that was stopped.
        variant: parts of the recipe's variants, laid over it in this order.
        data: folder that the recipe's pictures are in, or a pack (.npz) for all of them.
        statistics: statistics that a plan's start is fitted to, instead of the recipe's.
        seed: instead of the recipe's.
    """
    from . import train as verb
    from .distributed import rank
    from .measure.results import format_rows
    from .training.verb import result_of

    folder = verb(recipe, out, resume=resume, variants=variant, weights=weights, data=data, statistics=statistics, seed=seed, device=device)
    if rank() != 0:
        return
    if (row := result_of(folder)) is not None:
        _print(format_rows([row]))
    print(folder / "artefact")


def _deferred(verb: Callable[..., None]) -> Callable[..., Callable[[], None]]:
    """The same signature and help, but called it only returns what is to be done: parsing and doing stay apart."""

    @functools.wraps(verb)
    def collect(*args: Any, **options: Any) -> Callable[[], None]:
        return functools.partial(verb, *args, **options)

    return collect


COMMANDS = {verb.__name__: _deferred(verb) for verb in (demo, inspect, calibrate, plan, compress, evaluate, report, run, train)}


def _parse(arguments: list[str] | None) -> Callable[[], None]:
    """Turn the command line into something to do; a mistake in it ends in one line."""
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            return tyro.extras.subcommand_cli_from_dict(
                COMMANDS, prog="vitfrost", args=arguments, config=(tyro.conf.FlagCreatePairsOff,),
                description="Make Vision Transformers smaller and faster by using what their attention maps repeat.",
            )  # fmt: skip
    except SystemExit as error:
        if error.code in (0, None):
            raise
        raise VitfrostError(f"{_without_frame(complaint.getvalue())} (see vitfrost --help or vitfrost COMMAND --help)") from error


def _without_frame(complaint: str) -> str:
    """The words of a framed complaint of the parser, less its title and the sections that only repeat the help."""
    _title, *lines = complaint.strip().splitlines() or [""]
    sections: list[list[str]] = [[]]
    for line in (line.strip("│╰╯ ") for line in lines):
        if line.strip("─-"):
            sections[-1].append(line)
        else:
            sections.append([])
    said = [" ".join(section) for section in sections if section and "helptext" not in section[0]]
    return "; ".join(said) or "the command line is not understood"


def main(arguments: list[str] | None = None) -> None:
    """Parse the command line and run a verb; bad input ends in one line on stderr and exit status 2."""
    # OpenMP threads that spin while they wait take the cores that decode images, and slow a busy machine several times over.
    os.environ.setdefault("OMP_WAIT_POLICY", "passive")
    try:
        _parse(arguments)()
        sys.stdout.flush()
    except VitfrostError as error:
        sys.exit(_fail(str(error)))
    except KeyboardInterrupt:
        _fail("interrupted; nothing half-written was left")
        sys.exit(130)
    except BrokenPipeError:
        _discard_output()
        sys.exit(0)
    except OSError as error:
        _discard_output()
        sys.exit(_fail(f"{error.strerror or error}{f': {error.filename}' if error.filename else ''}"))


def _discard_output() -> None:
    """Leave nothing in stdout's buffer that the interpreter would fail to write once more when it ends."""
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _fail(message: str) -> int:
    print(f"vitfrost: {message}", file=sys.stderr)
    return 2
