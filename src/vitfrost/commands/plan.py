"""The command `plan`."""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from ..errors import VitfrostError
from .arguments import Criterion, Flags, ModelFlags


def plan(
    *,
    out: Path,
    statistics: Path | None = None,
    model: Flags = ModelFlags(),
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
    by: Criterion | None = None,
    scope: Literal["head", "layer", "model"] = "head",
    unit: Literal["entry", "head", "layer"] = "entry",
    constants: Literal["auto", "dense", "toeplitz", "local"] = "auto",
    window: int | None = None,
    tolerance: float = 0.1,
    ties: Literal["rank", "strict", "le"] = "rank",
    protect: tuple[Literal["cls-rows", "cls-columns"], ...] = (),
    renormalize: Literal["none", "mass", "renorm"] = "none",
    frozen_bits: int = 4,
    frozen_grid: Literal["layer", "head"] = "layer",
    order: Literal["quantize-merge", "merge-quantize"] = "quantize-merge",
    weight_bits: int | None = None,
    activation_bits: int | None = None,
    levels: Literal["published", "strict"] = "published",
    max_drop: float | None = None,
    target_macs: float | None = None,
    target_latency: float | None = None,
    runtime: str | None = None,
    threads: int | None = None,
    images: Path | None = None,
    labels: Path | None = None,
    search_over: tuple[Literal["heads", "layers", "ranks"], ...] = ("heads", "layers", "ranks"),
    search_images: int = 200,
    rescore: Literal["lazy", "all"] = "lazy",
    search: Path | None = None,
    resume: bool = False,
    seed: int = 0,
) -> None:
    """Choose what happens to every head, feed-forward block and bit; write a plan that you can read, edit and diff.

    With --max-drop, --target-macs or --target-latency, a search chooses by what every change does to the outputs of --model on --images.

    Args:
        out: plan file (.yaml).
        statistics: file from `vitfrost calibrate`; without it, give --model: a plan for training or timing, which freezes no entries. A
            search takes both.
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
        by: criterion; the lowest are frozen. Entropy, but for whole heads fisher where the statistics have sensitivity.
        scope: where the share is taken: every head's map, every layer, or the whole model.
        unit: what is frozen: entries of maps, or whole heads or layers, which lose their queries, keys and logits.
        constants: of whole heads: dense maps, toeplitz (by relative position on the patch grid), local (a window and a uniform rest),
            or the cheapest of them that the tolerance allows.
        window: side of local kernels, odd.
        tolerance: how much a constant's structure may add to the error at the layer's output, relative to freezing itself.
        ties: exactly the share by rank; or thresholds: 'strict' as printed (ties become zero), 'le' (ties are frozen).
        protect: rows or columns of the prefix tokens that are never frozen.
        renormalize: none as printed; 'mass' scales the computed entries so that rows sum to one; 'renorm' divides the row.
        frozen_bits: bits of the frozen constants, 2 to 8 or 32.
        frozen_grid: log grid of the constants: the layer's own map quantizer's, or one fitted per head.
        order: quantize the computed entries and then merge, or the other way round.
        weight_bits: 2 to 8, or 32 for floating point; 4 where entries are frozen by statistics, else 32.
        activation_bits: likewise.
        levels: 'published' as RepQ-ViT's code (17 values at 4 bits), or 'strict' (16).
        max_drop: search: percentage points of top-1 on the images, or without labels of agreement with the original, that may be lost.
        target_macs: search: share of the original's multiply-accumulates to come down to.
        target_latency: search: share of the original's time on --runtime to come down to, batch 1, both in that precision; savings are
            timed first, and the plan's whole model last.
        runtime: of --target-latency: onnxruntime-fp32, onnxruntime-int8, openvino-fp32, openvino-bf16, openvino-int8 or torch-fp32.
        threads: of --target-latency: threads of the runtime, 1 if not given.
        images: search: folder from which images are drawn to measure on.
        labels: search: CSV with the columns file and label, if not labels.csv in the folder.
        search_over: search: what may change: heads frozen one by one, layers with all their heads, ranks of feed-forward blocks.
        search_images: search: how many images are drawn; with few the search fits their noise.
        rescore: search: measure changes anew only when old scores come out best, or all of them after every step.
        search: search: file for all that is measured; beside the plan, named like it, if not given.
        resume: search: go on with that file.
        seed: seed of random choices.
    """
    from .. import plan as verb
    from ..plans.choose import summary

    if any(given is not None for given in (max_drop, target_macs, target_latency, runtime, threads)):
        if statistics is None or model.model is None or images is None:
            raise VitfrostError("a search measures the model: give --statistics FILE, --model NAME and --images DIR")
        _refuse_with_search({
            "hallucinate": hallucinate is not None, "compact": compact is not None, "freeze": freeze is not None, "by": by is not None,
            "scope": scope != "head", "unit": unit != "entry", "ties": ties != "rank", "protect": protect,
            "renormalize": renormalize != "none", "frozen-bits": frozen_bits != 4, "frozen-grid": frozen_grid != "layer",
            "order": order != "quantize-merge", "compact-blocks": compact_blocks != "all",
        })  # fmt: skip
        from .. import plan_under_budget

        part = {"init": compact_init, "branches": branches, "norm": branch_norm, "expand": expand, "identity": identity, "noise": noise}
        made = plan_under_budget(
            statistics, model.open(), images, max_drop=max_drop, target_macs=target_macs, target_latency=target_latency, runtime=runtime,
            threads=threads, search_over=search_over, labels=labels, search_images=search_images,
            seed=seed, rescore=rescore, constants=constants, window=window, tolerance=tolerance, compact=part,
            weight_bits=32 if weight_bits is None else weight_bits, activation_bits=32 if activation_bits is None else activation_bits,
            levels=levels, search=search, resume=resume, out=out,
        )  # fmt: skip
        _say_planned(out, summary(made))
        return
    searched = {
        "images": images, "labels": labels, "search": search, "resume": resume, "search-over": len(search_over) < 3,
        "search-images": search_images != 200, "rescore": rescore != "lazy", "device": model.device != "cpu",
    }  # fmt: skip
    for option, given in searched.items():
        if given:
            raise VitfrostError(f"--{option} is of a search; give --max-drop POINTS, --target-macs or --target-latency SHARE as well")
    if (statistics is None) == (model.model is None):
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
    if statistics is None:
        from ..plans.scratch import plan_from_model

        whole = None
        if freeze is not None:
            if unit == "entry" or by is not None:
                raise VitfrostError(
                    "freezing maps needs their statistics; give --statistics FILE instead of --model, or leave --freeze out"
                )
            whole = {"unit": unit, "ratio": freeze, "kind": constants, "window": window, "tolerance": tolerance}
        made = plan_from_model(
            model.open(), hallucinate=heads, compact=blocks, constants=whole,
            weight_bits=32 if weight_bits is None else weight_bits, activation_bits=32 if activation_bits is None else activation_bits,
            levels=levels, out=out,
        )  # fmt: skip
        _say_planned(out, summary(made))
        return
    if model != ModelFlags():
        raise VitfrostError("--weights and --image-size go with --model; statistics know their model")
    made = verb(
        statistics, hallucinate=heads, compact=blocks, freeze="auto" if freeze is None else freeze, by=by, scope=scope, unit=unit,
        constants=constants, window=window, tolerance=tolerance, ties=ties, protect=protect, renormalize=renormalize,
        frozen_bits=frozen_bits, frozen_grid=frozen_grid, order=order, weight_bits=weight_bits, activation_bits=activation_bits,
        levels=levels, seed=seed, out=out,
    )  # fmt: skip
    _say_planned(out, summary(made))


def _refuse_with_search(options: dict[str, Any]) -> None:
    """Raise VitfrostError naming the first option that is given and does not go with a search."""
    for option, given in options.items():
        if given:
            raise VitfrostError(f"--{option} does not go with a search, which chooses whole heads and ranks itself; leave it out")


def _say_planned(out: Path, found: dict[str, Any]) -> None:
    said = []
    if found["constant_heads"]:
        said.append(f"{found['constant_heads']} of {found['heads']} heads frozen whole")
    if found["frozen_entries"] or not said:
        said.append(f"{found['frozen_entries']:,} of {found['entries']:,} attention weights frozen ({100 * found['fraction']:.2f} %)")
    if found["hallucinated_heads"]:
        said.append(f"{found['hallucinated_heads']} of {found['heads']} heads hallucinated")
    if found["compact_blocks"]:
        said.append(f"{found['compact_blocks']} feed-forward blocks compact")
    if (timed := found.get("latency")) is not None:
        low, high = timed["interval"]
        said.append(f"{timed['ratio']:.3f} of the original's latency on {timed['runtime']} (95 % interval {low:.3f} to {high:.3f})")
    print(f"{out}: {', '.join(said)}")
