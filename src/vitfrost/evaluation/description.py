"""What a result row says about a model: kind, precision, size, multiply-accumulates, runtime."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from ..artifact import Artifact
from ..deploy.exported import ExportedModel
from ..methods.frozen_entries import FrozenMaps
from ..model import Model
from ..vit.attention import MapAttention
from ..vit.families import find_sites
from ..vit.load import device_of
from .cost import logit_macs, macs_by_part
from .inspect import skeleton
from .results import environment

FULL_PRECISION_BITS = 32


@dataclass(frozen=True)
class Description:
    """What is written into a result row about a model. `runtime`: what runs it, and where ("torch 2.13.0 cpu", "openvino 2026.4.1 cpu");
    `threads`: of a forward pass on the CPU."""

    kind: Literal["executed", "simulated"]
    precision: str
    seeds: dict[str, int]
    plan_hash: str | None
    size_bytes: int
    macs: int
    runtime: str
    threads: int


def describe(loaded: Model) -> Description:
    """Kind, precision ("fp32", "W4/A4"), seeds, plan, size and multiply-accumulates of a loaded model or artifact.

    Size is that of an artifact's folder or of an export's graph, else of the parameters. Fake-quantized models are "simulated".
    """
    if isinstance(loaded, ExportedModel):
        about, session = loaded.about, loaded.session
        return Description(
            "executed", session.precision, dict(about["seeds"]), about["plan_hash"], session.size_bytes, about["macs"], session.runtime,
            session.threads,
        )  # fmt: skip
    macs, threads = executed_macs(loaded), torch.get_num_threads()
    runtime = f"torch {torch.__version__.partition('+')[0]} {device_of(loaded.module).type}"
    if not isinstance(loaded, Artifact):
        size = sum(parameter.numel() * parameter.element_size() for parameter in loaded.module.parameters())
        return Description("executed", "fp32", {}, None, size, macs, runtime, threads)
    bits = loaded.plan.quantize.parts
    return Description(
        kind="simulated" if bits.any else "executed",
        precision=bits.label if bits.any else "fp32",
        seeds=dict(loaded.seeds),
        plan_hash=loaded.plan_hash,
        size_bytes=loaded.size_bytes,
        macs=macs,
        runtime=runtime,
        threads=threads,
    )


def about_model(loaded: Model) -> dict[str, Any]:
    """What a result row says of a model, whatever it did."""
    about = describe(loaded)
    return {
        "kind": about.kind,
        "runtime": about.runtime,
        "threads": about.threads,
        "precision": about.precision,
        "seeds": about.seeds,
        "weight_tag": loaded.weight_tag,
        "state_hash": loaded.state_hash,
        "plan_hash": about.plan_hash,
        "size_bytes": about.size_bytes,
        "macs": about.macs,
        "preprocessing": loaded.preprocessing.plain(),
        "environment": environment(),
        "outputs": loaded.outputs,
    }


def executed_macs(loaded: Model) -> int:
    """Multiply-accumulates per image that are executed: those of its layers less Q K^T of wholly frozen heads.

    Where a layer hallucinates, all its other heads have their logits computed, whether their maps are frozen or not.
    """
    model: nn.Module = loaded.module
    attention = [module for module in model.modules() if isinstance(module, MapAttention)]
    saved = 0
    for module in attention:
        if isinstance(module.frozen, FrozenMaps) and module.hallucination is None:
            saved += logit_macs(module.site) // module.site.heads * len(module.frozen.constant_heads)
    plain, sites = skeleton(loaded) if attention else (model, find_sites(model))
    return sum(macs_by_part(plain, sites).values()) - saved
