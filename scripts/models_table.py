"""Make docs/models.md anew: every architecture of timm, whether it is supported, and why not. It takes some minutes; files of timm that are
named (python scripts/models_table.py eva beit) are looked at alone, and the other rows stay."""

from __future__ import annotations

import re
import sys
from collections import Counter, defaultdict
from pathlib import Path

from vitfrost.files import write_text
from vitfrost.vit.compat import import_timm
from vitfrost.vit.support import why_unsupported

timm = import_timm()
from timm.models import list_models, list_pretrained  # noqa: E402
from timm.models._registry import _model_to_module  # noqa: E402

PAGE = Path(__file__).parents[1] / "docs" / "models.md"
# Files of timm in which tokens attend to tokens by a softmax, in all layers or in some; the others are convolutional, mix channels
# (XCiT, EdgeNeXt), mix without a softmax (EfficientViT of MIT), or mix by fixed rules.
TRANSFORMERS = (
    "beit", "cait", "coat", "convit", "crossvit", "davit", "deepseek_vit", "deit", "efficientformer", "efficientformer_v2",
    "efficientvit_msra", "eva", "fastvit", "gcvit", "gemma4_vit", "hiera", "hieradet_sam2", "iformer", "levit", "maxxvit",
    "metaformer", "mobilevit", "mvitv2", "naflexvit", "nest", "nextvit", "pit", "pvt_v2", "qwen3_vit", "shvit", "swin_transformer",
    "swin_transformer_v2", "swin_transformer_v2_cr", "tiny_vit", "tnt", "twins", "visformer", "vision_transformer",
    "vision_transformer_hybrid", "vision_transformer_relpos", "vision_transformer_sam", "vitamin", "volo",
)  # fmt: skip

# What refusals of models in these files say that have no such attention.
OTHERS = ("has no attention layers", "LinearSelfAttention")


def tags() -> dict[str, list[str]]:
    """The pretrained tags of every architecture."""
    found: dict[str, list[str]] = defaultdict(list)
    for name in list_pretrained():
        architecture, _, tag = name.partition(".")
        found[architecture].append(tag or "default")
    return found


def architectures() -> dict[str, str]:
    """The architectures of the page, and the files of timm they are from."""
    return {name: file for name in list_models() if (file := _model_to_module[name]) in TRANSFORMERS and name != "vitfrost_digits"}


def page(reasons: dict[str, str | None]) -> str:
    """The text, from the reason (None: supported) of every architecture."""
    files, pretrained = architectures(), tags()
    by_file: dict[str, list[str]] = defaultdict(list)
    for name in reasons:
        by_file[files[name]].append(name)
    count = Counter({file: sum(len(pretrained[name]) for name in names) for file, names in by_file.items()})
    taken = {file: [name for name in names if reasons[name] is None] for file, names in by_file.items()}
    taken_tags = {file: sum(len(pretrained[name]) for name in names) for file, names in taken.items()}
    total, supported = sum(count.values()), sum(taken_tags.values())
    lines = [
        "# Models of timm",
        "",
        f"Of timm {timm.__version__}'s {total} pretrained tags of transformers with softmax attention {supported} are supported,"
        f" {100 * supported / total:.0f} %: {sum(map(len, taken.values()))} of {len(reasons)} architectures. An architecture is supported"
        " where every layer is understood; else it is refused in the line that stands here.",
        "",
        "`python scripts/models_table.py` makes this page: each architecture is built without weights and looked at as any model is.",
        "",
        "| file of timm | architectures | supported | tags | supported |",
        "|---|--:|--:|--:|--:|",
    ]
    for file, _ in count.most_common():
        lines.append(f"| {file} | {len(by_file[file])} | {len(taken[file])} | {count[file]} | {taken_tags[file]} |")
    for file, _ in count.most_common():
        lines += ["", f"## {file}", "", "| architecture | tags | supported |", "|---|---|---|"]
        for name in by_file[file]:
            lines.append(f"| {name} | {', '.join(pretrained[name])} | {reasons[name] or 'yes'} |")
    return "\n".join(lines) + "\n"


def listed() -> dict[str, str | None]:
    """The verdicts on the page as it is, by architecture."""
    rows = re.findall(r"^\| (\w+) \| [^|]*\| (.*) \|$", PAGE.read_text(encoding="utf-8"), flags=re.M)
    return {name: None if verdict == "yes" else verdict for name, verdict in rows if name != "architecture"}


def main(files: list[str]) -> None:
    """Look at all of them, or at those of some files of timm alone, and write the page."""
    known: dict[str, str | None] = listed() if files else {}
    reasons: dict[str, str | None] = {}
    for name, file in architectures().items():
        if files and file not in files:
            reasons |= {name: known[name]} if name in known else {}
            continue
        reason = why_unsupported(name)
        print(f"{name}: {reason or 'yes'}", file=sys.stderr)
        if reason is None or not any(other in reason for other in OTHERS):
            reasons[name] = reason
    write_text(PAGE, page(reasons))


if __name__ == "__main__":
    main(sys.argv[1:])
