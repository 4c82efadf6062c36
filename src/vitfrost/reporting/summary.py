"""What the page says in words and numbers: the headline, the key numbers, the table of results, hashes and versions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import yaml

from ..evaluation.cost import MAC_PARTS
from ..evaluation.results import Interval, Row
from ..plans.choose import summary as count_frozen
from ..plans.criteria import CRITERIA
from ..plans.schema import Plan
from ..runs.recipe import Recipe
from .parts import RunParts
from .places import QUANTIZED, STATISTICS

Kind = Literal["executed", "simulated"]

MAC_NAMES = {
    "stem": "Patch embedding",
    "query_key_projection": "Q and K projections",
    "query_key_product": "Q·Kᵀ, the logits",
    "hallucination": "Hallucinating maps",
    "map_value_product": "A·V, maps times values",
    "constant_maps": "Constant maps times values",
    "other_maps": "Maps of other sources",
    "value_output_projection": "V and output projections",
    "feed_forward": "Feed-forward",
    "patch_merging": "Patch merging",
    "spatial_reduction": "Spatial reduction of keys",
    "convolution": "Convolutions in blocks",
    "head": "Classifier",
}
SCOPES = {"head": "in every head", "layer": "in every layer", "model": "in the whole model"}
FULL_PRECISION = 32


@dataclass(frozen=True)
class Figure:
    """A number with what stands below it and where it comes from."""

    value: str
    note: str
    kind: Kind


@dataclass(frozen=True)
class KeyNumber:
    """A card of the headline: one number, or the original's and the compressed model's, and a closing line."""

    title: str
    figures: list[Figure]
    closing: str
    closing_kind: Kind | None = None


@dataclass(frozen=True)
class MacBar:
    """A bar: millions of multiply-accumulates, percent of all, percent of the longest bar, and of it what ideal sparsity would save."""

    name: str
    millions: str
    share: str
    length: float
    saved: float


def signed(value: float, digits: int = 2) -> str:
    """A number with its sign, a true minus sign included; no sign on zero."""
    shown = f"{value:+.{digits}f}"
    return shown.replace("-", "−") if float(shown) else f"{0:.{digits}f}"


def interval(bounds: Interval | None, with_sign: bool = False) -> str:
    """An interval in words of numbers: '66.10 to 68.90'."""
    if bounds is None:
        return ""
    return " to ".join(signed(bound) if with_sign else f"{bound:.2f}" for bound in bounds)


def megabytes(count: int) -> str:
    """Bytes as MB (10^6)."""
    return f"{count / 1e6:.2f} MB"


def operations(count: int) -> str:
    """A number of operations in millions or thousands of millions."""
    return f"{count / 1e9:.3f} G" if count >= 1e9 else f"{count / 1e6:.2f} M"


def what_was_done(plan: Plan, exported: dict[str, Any] | None = None) -> str:
    """The plan in one or two sentences, and what export.json says of an export."""
    counted = count_frozen(plan)
    sentences = []
    if plan.freeze is not None and plan.statistics is not None and counted["frozen_entries"]:
        kept = "in full precision" if plan.freeze.bits == FULL_PRECISION else f"at {plan.freeze.bits} bits"
        source = " of the quantized model" if plan.statistics.precision == "quantized" else ""
        sentences.append(
            f"{100 * counted['fraction']:.1f} % of the attention weights ({counted['frozen_entries']:,} of {counted['entries']:,}) "
            f"are frozen to their means over {plan.statistics.images:,} images{source}: "
            f"{CRITERIA[plan.freeze.by].chosen}, {SCOPES[plan.freeze.scope]}, stored {kept}."
        )
    sentences += _structure_sentences(plan, counted)
    weight, activation = plan.quantize.weights, plan.quantize.activations
    if not plan.quantize.parts.any:
        sentences.append("Nothing is quantized." if sentences else "The plan leaves the model as it is.")
    else:
        named = [f"{what} to {bits} bits" for what, bits in (("weights", weight), ("activations", activation)) if bits != FULL_PRECISION]
        by = "RepQ-ViT" if plan.quantize.method == "repq" else f"The quantizer {plan.quantize.method}"
        sentences.append(f"{by} quantizes {' and '.join(named) or 'single layers alone'}.")
        if words := (*(plan.quantize.layers or ()), *(plan.quantize.heads or ())):
            sentences.append(f"Single layers or heads have bits of their own (weights/activations): {', '.join(words)}.")
    if exported is not None:
        runtime = {"onnx": "ONNX Runtime", "openvino": "OpenVINO", "native": "the native engine"}[exported["format"]]
        if exported["precision"] == "int8":
            sentences = [sentence for sentence in sentences if sentence != "Nothing is quantized."]
        sentences.append(f"The result is exported for {runtime} in {exported.get('bits') or exported['precision']}.")
    return " ".join(sentences)


def _structure_sentences(plan: Plan, counted: dict[str, Any]) -> list[str]:
    """Frozen and hallucinated heads and compact blocks, where there are any."""
    sentences = []
    heads, blocks, constant = counted["hallucinated_heads"], counted["compact_blocks"], counted["constant_heads"]
    if constant:
        whole = sum(len(layer.constant) == len(layer.heads) for layer in plan.layers)
        layers = f", {whole} whole {'layer' if whole == 1 else 'layers'} among them" if whole else ""
        sentences.append(
            f"{constant} of {counted['heads']} attention heads are frozen whole{layers}: they have no queries and keys, and their maps are "
            "constants."
        )
    if heads:
        sentences.append(
            f"{heads} of {counted['heads']} attention heads are hallucinated: they have no queries and keys, and their maps are made of "
            "those of the other heads of their layer."
        )
    if blocks:
        ranks = sorted({block.rank for block in plan.feed_forward if block.rank is not None})
        rank = f"rank {ranks[0]}" if len(ranks) == 1 else f"ranks from {ranks[0]} to {ranks[-1]}"
        sentences.append(f"{blocks} of {len(plan.feed_forward)} feed-forward blocks are compact: their second projection has {rank}.")
    return sentences


def untrained(parts: RunParts) -> bool:
    """Whether the artifact's layers were changed and not trained since: accuracy is that of closed-form solutions."""
    return parts.artifact is not None and parts.artifact.get("structure") is not None and not parts.trained


def key_numbers(parts: RunParts) -> list[KeyNumber]:
    """The headline's cards, as far as the run has their numbers."""
    original, compressed, savings = parts.original, parts.compressed, parts.savings
    frozen = savings is not None and savings.frozen_entries > 0
    bounded = savings is not None and savings.ideal_saved_macs > 0
    state = " Before any training." if untrained(parts) else ""
    cards = []
    if original and compressed and original.top1 is not None and compressed.top1 is not None:
        difference = compressed.top1_difference
        cards.append(
            KeyNumber(
                "Top-1 accuracy",
                [Figure(f"{row.top1:.2f} %", interval(row.interval), row.kind) for row in (original, compressed)],
                (f"Paired difference {signed(difference.value)} points ({interval(difference.interval, True)})." if difference else "")
                + state,
                compressed.kind if difference else None,
            )
        )
    if compressed and compressed.agreement is not None:
        closing = "" if compressed.kl is None else f"KL divergence of its outputs {compressed.kl:.4f} nats."
        figure = Figure(f"{compressed.agreement:.2f} %", interval(compressed.agreement_interval), compressed.kind)
        title = "Same nearest image as with the original" if compressed.features else "Same top-1 as the original"
        for part, like in (compressed.features.likeness if compressed.features else {}).items():
            closing += f"{' ' if closing else ''}Cosine of the {part.replace('_', ' ')} {like.cosine:.4f}."
        cards.append(KeyNumber(title, [figure], closing, compressed.kind if closing else None))
    if parts.artifact_bytes is not None:
        before = [] if original is None or original.size_bytes is None else [original.size_bytes]
        figures = [Figure(megabytes(size), "fp32 parameters", "executed") for size in before]
        figures.append(Figure(megabytes(parts.artifact_bytes), "artifact, all files", "executed"))
        included = "frozen maps included" if frozen else ""
        ratio = ", ".join([*(f"{size / parts.artifact_bytes:.1f} times smaller" for size in before), *([included] if frozen else [])])
        cards.append(KeyNumber("Size on disk", figures, f"{ratio[0].upper()}{ratio[1:]}." if ratio else ""))
    if parts.anatomy is not None and savings is not None:
        total = sum(parts.anatomy.macs.values())
        made = sum(parts.anatomy.planned.macs.values()) if parts.anatomy.planned else total
        done, ideal = made - savings.dense_saved_macs, made - savings.ideal_saved_macs
        fewer = f"{signed(100 * (done / total - 1))} %." if parts.anatomy.planned else ""
        cards.append(
            KeyNumber(
                "Multiply-accumulates per image",
                [Figure(operations(total), "original", "executed"), Figure(operations(done), "compressed", "executed")],
                f"{fewer} Ideal sparse bound {operations(ideal)} ({signed(100 * (ideal / total - 1))} %).".strip() if bounded else fewer,
                "simulated" if bounded else None,
            )
        )
    return cards


def result_columns(rows: list[Row]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Columns of the results table, of cells (value, interval); those that no row fills are left out."""

    def plain(texts: list[str]) -> list[tuple[str, str]]:
        return [(text, "") for text in texts]

    compared = [row if row.name != row.reference else None for row in rows]
    columns = {
        "Precision": plain([row.precision for row in rows]),
        "Runtime": plain([row.runtime for row in rows]),
        "Threads": plain([str(row.threads) for row in rows]),
        "Images": [(f"{row.images:,}", f"{row.skipped:,} skipped" if row.skipped else "") for row in rows],
        "Top-1 %": [("", "") if row.top1 is None else (f"{row.top1:.2f}", interval(row.interval)) for row in rows],
        "Top-5 %": plain(["" if row.top5 is None else f"{row.top5:.2f}" for row in rows]),
        "Difference, points": [
            (signed(row.top1_difference.value), interval(row.top1_difference.interval, True)) if row and row.top1_difference else ("", "")
            for row in compared
        ],
        "Agreement %": [
            (f"{row.agreement:.2f}", interval(row.agreement_interval)) if row and row.agreement is not None else ("", "")
            for row in compared
        ],
        "KL, nats": plain([f"{row.kl:.4f}" if row and row.kl is not None else "" for row in compared]),
        **dict(feature_columns(rows)),
        "Size, MB": plain(["" if row.size_bytes is None else f"{row.size_bytes / 1e6:.2f}" for row in rows]),
    }
    return [(title, cells) for title, cells in columns.items() if any(value for value, _ in cells)]


def feature_columns(rows: list[Row]) -> list[tuple[str, list[tuple[str, str]]]]:
    """Columns of models that give features."""

    def cell(value: float | None, bounds: tuple[float, float] | None) -> tuple[str, str]:
        if value is None:
            return "", ""
        return f"{value:.4f}", "" if bounds is None else f"{bounds[0]:.4f} to {bounds[1]:.4f}"

    found = [None if row.features is None or row.name == row.reference else row.features for row in rows]
    parts = dict.fromkeys(part for each in found if each is not None for part in each.likeness)
    columns = []
    for part in parts:
        likeness = [each.likeness.get(part) if each is not None else None for each in found]
        cells = [("", "") if like is None else cell(like.cosine, like.cosine_interval) for like in likeness]
        columns.append((f"Cosine, {part.replace('_', ' ')}", cells))
    heads = [None if each is None else each.head for each in found]
    errors = [("", "") if head is None else cell(head.absolute_error, head.absolute_error_interval) for head in heads]
    overlaps = [("", "") if head is None else cell(head.overlap, head.overlap_interval) for head in heads]
    return [*columns, ("Head: mean absolute error", errors), ("Head: intersection over union", overlaps)]


def mac_bars(parts: RunParts) -> list[MacBar]:
    """Multiply-accumulates by part, in the order in which data passes them; Q·Kᵀ carries what ideal sparsity would save."""
    if parts.anatomy is None:
        return []
    savings = parts.savings
    macs = parts.anatomy.planned.macs if parts.anatomy.planned else parts.anatomy.macs
    total, longest = sum(macs.values()), max(macs.values())
    saved = {"query_key_product": savings.ideal_saved_macs} if savings else {}
    return [
        MacBar(
            MAC_NAMES[part], f"{macs[part] / 1e6:,.1f}", f"{100 * macs[part] / total:.1f}",
            100 * macs[part] / longest, 100 * saved.get(part, 0) / macs[part],
        )
        for part in MAC_PARTS if macs[part]
    ]  # fmt: skip


def facts(parts: RunParts) -> list[tuple[str, str, str]]:
    """What the numbers hang on: a name, its value in short, and the full hash where there is one."""
    found = []
    row = parts.compressed or parts.original
    if parts.identity is not None:
        found.append(("Weights", parts.identity.weight_tag, parts.identity.state_hash))
    if row is not None:
        found.append(("Evaluation images", f"{row.images:,}", row.images_hash))
    for name, statistics in (("Calibration images", parts.statistics), ("Calibration images, quantized model", parts.quantized)):
        if statistics is not None:
            found.append((name, f"{statistics.header.images:,}", statistics.header.images_hash))
    if parts.plan is not None:
        found.append(("Plan", "", parts.plan.content_hash))
    seeds = parts.artifact["seeds"] if parts.artifact else (row.seeds if row else {})
    if seeds:
        found.append(("Seeds", ", ".join(f"{name} {seed}" for name, seed in sorted(seeds.items())), ""))
    return found


def file_hashes(parts: RunParts) -> list[tuple[str, str]]:
    """Full hashes by what they are of."""
    found = [(f"{name} ({value})" if value else name, digest) for name, value, digest in facts(parts) if digest]
    found += [
        (f"Contents of {name}", one.content_hash) for name, one in ((STATISTICS, parts.statistics), (QUANTIZED, parts.quantized)) if one
    ]
    if parts.artifact is not None:
        found.append(("File artifact/model.safetensors", parts.artifact["weights_sha256"]))
    return found


def settings(parts: RunParts) -> str:
    """The plan without its layers, as YAML."""
    if parts.plan is None:
        return ""
    return _yaml(
        parts.plan.model_dump(
            mode="json", by_alias=True, include={"freeze", "constants", "windowed", "hallucinate", "compact", "quantize"}, exclude_none=True
        )
    )


def recipe_text(recipe: Recipe | None) -> str:
    """The recipe as YAML, without the paths of this machine."""
    return "" if recipe is None else _yaml(recipe.without_paths())


def _yaml(data: dict[str, Any]) -> str:
    return yaml.safe_dump(data, sort_keys=False, allow_unicode=True)


def versions(parts: RunParts) -> list[tuple[str, str]]:
    """Versions behind the artifact, and the environment of the measurements."""
    row = parts.compressed or parts.original
    found = dict(parts.artifact["versions"]) if parts.artifact else {}
    return list((found | (row.environment if row else {})).items())
