"""A small model of every kind through all that can be done to it: statistics, plan, compress, save, load, quantize, export."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import vitfrost
from vitfrost.artifact import Artifact
from vitfrost.configs import Calibrate, Compact, Compress, Export, FreezeEntries, FreezeHeads, Hallucinate, Quantize, Repair
from vitfrost.errors import VitfrostError
from vitfrost.model import Model
from vitfrost.runtime.session import open_export
from vitfrost.vit.families import find_sites

SMALL: dict[str, Any] = {"embed_dim": 48, "depth": 2, "num_heads": 2, "num_classes": 10}
WIDE: dict[str, Any] = {**SMALL, "embed_dim": 64}
SWIN: dict[str, Any] = {"embed_dim": 24, "depths": (2, 2), "num_heads": (2, 4), "num_classes": 10}
TINY: dict[str, Any] = {
    "embed_dims": (16, 24, 32), "depths": (1, 2, 1), "num_heads": (1, 2, 4), "window_sizes": (4, 4, 4), "num_classes": 10,
}  # fmt: skip
# name, image size, options; whether norms stand behind the layers; whether heads have a position bias of their own; whether it is exported
MODELS: list[tuple[str, int | tuple[int, int], dict[str, Any], bool, bool, bool]] = [
    ("eva02_base_patch14_448", 56, SMALL, False, False, False),
    ("vit_small_plus_patch16_dinov3", (64, 96), WIDE, False, False, True),
    ("vit_pe_core_tiny_patch16_384", 64, {"depth": 2, "num_classes": 10}, False, False, False),
    ("vit_small_patch16_rope_mixed_224", 64, WIDE, False, False, False),
    ("beitv2_large_patch16_224", 64, SMALL, False, True, True),
    ("vit_srelpos_small_patch16_224", 64, SMALL, False, True, False),
    ("vit_relpos_medium_patch16_rpn_224", 64, SMALL, True, True, False),
    ("swinv2_tiny_window8_256", 64, SWIN, True, True, True),
    ("maxxvitv2_nano_rw_256", 64, {"depths": (1, 1, 1, 1), "num_classes": 10}, False, True, False),
    ("test_coatnet", (64, 96), {"num_classes": 10}, False, True, True),
    ("tiny_vit_5m_224", (64, 96), TINY, False, True, False),
    ("hiera_small_abswin_256", (64, 96), {"embed_dim": 16, "stages": (1, 1, 2, 1), "num_classes": 10}, False, True, False),
    ("qwen3_vit_88m", 64, WIDE, False, False, True),
    ("aimv2_large_patch14_224", 56, SMALL, False, False, False),
    ("vitamin_small_224", 64, {"depth": 1, "num_classes": 10}, False, False, False),
    ("vit_small_patch14_reg4_dinov2", 56, {**SMALL, "init_values": 0.1}, False, False, False),
    ("vit_base_patch16_clip_224", 64, SMALL, False, False, False),
]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(("name", "size", "options", "behind", "biased", "has_graph"), MODELS, ids=[row[0] for row in MODELS])
@torch.no_grad()
def test_what_can_be_done_to_a_model(
    name: str,
    size: int | tuple[int, int],
    options: dict[str, Any],
    behind: bool,
    biased: bool,
    has_graph: bool,
    pictures: Path,
    tmp_path: Path,
) -> None:
    model = Model.open(name, weights="random", image_size=size, options=options)
    statistics = vitfrost.calibrate(model, pictures, Calibrate(limit=4, similarity=not biased), progress=False)
    pixels = torch.randn(2, 3, *model.image_size, generator=torch.Generator().manual_seed(0))
    sites = find_sites(model.module)

    def compress(out: str, *methods: Any, repair: Repair | None = None) -> Artifact:
        plan = vitfrost.plan(statistics, *methods, *(() if out == "integers" else (Quantize(32, 32),)))
        config = Compress(calibration_images=4, compact_images=4)
        made = vitfrost.compress(model, plan, statistics=statistics, images=pictures, repair=repair, config=config, out=tmp_path / out)
        again = Artifact.load(tmp_path / out)
        assert torch.equal(made.module(pixels), again.module(pixels))
        return again

    # all heads frozen: neither queries nor keys are left, nor what is done to them
    still = compress("still", FreezeHeads(1.0))
    assert all(still.module.get_submodule(site.name).logit_heads == 0 for site in sites.attention)
    assert not [
        key
        for key in still.module.state_dict()
        if any(part in key for part in ("q_bias", "q_proj", "k_proj", "attn.rel_pos", "attention_biases", "logit_scale"))
    ]
    # some frozen, feed-forward blocks compact, repaired; then an export that gives what PyTorch gives
    methods = (FreezeHeads(0.5), Compact(0.5))
    if behind:
        with pytest.raises(VitfrostError, match="has norms behind its layers, so none can be fitted to the stream"):
            compress("repaired", *methods, repair=Repair(images=4))
        changed = compress("changed", *methods)
    else:
        changed = compress("changed", *methods, repair=Repair(images=4))
    assert {block.rank for block in changed.plan.feed_forward} == {round(site.width / 2) for site in sites.feed_forward}
    if has_graph:
        logits = open_export(vitfrost.export(changed, Export("onnx"), out=tmp_path / "onnx")).run(pixels.numpy())
        assert np.allclose(logits, changed.module(pixels).numpy(), atol=1e-4)
    # maps made of other heads' logits
    if biased:
        with pytest.raises(VitfrostError, match="hallucination does not support Swin, BEiT and their like"):
            compress("mixed", Hallucinate(0.5, by="first"))
    else:
        compress("mixed", Hallucinate(0.5))
    # integers, by the baseline and layer by layer
    compress("integers", FreezeEntries(0.3), Quantize(4, 4))
    if has_graph:
        fast = vitfrost.plan(statistics, FreezeHeads(0.5), Quantize(4, 8, method="fast", steps=("ridge",)))
        made = vitfrost.compress(model, fast, statistics=statistics, images=pictures, config=Compress(calibration_images=8))
        assert bool(torch.isfinite(made.module(pixels)).all())
