"""What a user writes, for the type checker alone (see test_typed.py)."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from matplotlib.figure import Figure
from torch.utils.data import DataLoader, TensorDataset

import vitfrost as vf


def compress_my_model(net: torch.nn.Module, folder: Path) -> float | None:
    """From a module in memory to a saved artifact, and its accuracy."""
    pixels, labels = torch.randn(8, 3, 224, 224), torch.zeros(8, dtype=torch.long)
    loader = DataLoader(TensorDataset(pixels, labels), batch_size=4)
    model: vf.Model = vf.Model.of(net, mean=(0.5,) * 3, std=(0.5,) * 3, class_names=["a", "b"])
    statistics: vf.Statistics = vf.calibrate(model, loader, vf.Calibrate(limit=8, similarity=True))
    entropy: np.ndarray = statistics["blocks.0.attn"].entropy
    figure: Figure = statistics.plot("blocks.0.attn", 1)
    figure.savefig(folder / "head.png")
    chosen: vf.Plan = vf.plan(statistics, vf.FreezeHeads(0.2), vf.Quantize(weights=4, activations=8))
    small: vf.Artifact = vf.compress(model, chosen, statistics=statistics, images=loader, repair=vf.Repair(images=8))
    exported: Path = vf.export(small, vf.Export(format="openvino", precision="fp32"), out=folder / "exported")
    small.save(folder / "artifact", overwrite=True)
    plan: vf.Plan = vf.Artifact.load(folder / "artifact", build=lambda: net).plan
    logits: torch.Tensor = small(pixels)
    row: vf.Row = vf.evaluate(small, loader, reference=model, config=vf.Evaluate(batch_size=4))
    try:
        vf.evaluate("deit_tiny_patch16_224", folder)
    except vf.VitfrostError as error:
        print(error, entropy.mean(), plan, logits.shape, exported)
    return row.top1
