"""When saved multiply-accumulates become saved time: models with hallucinated maps and compact feed-forward blocks on four runtimes.

    pip install -c constraints.txt ".[export]"
    python benchmarks/hallucination_latency.py --models deit_small_patch16_224 vitfrost_pvt_small nextvit_small --work DIR --json out.json

Untrained weights (time does not depend on them), fp32, merged inference form. Variants of a model: the original (fused attention),
half of the heads hallucinated, feed-forward of rank d/2, both, head copies without mix and convolution, and a control that is the
original at a smaller width with about as many multiply-accumulates as both (where timm builds one). All variants of a model,
runtime and batch size are interleaved in random order in one process; a ratio is the median of paired rounds with a 95 % bootstrap
interval, below 1 where the variant is faster than the original on the same runtime. Exported files stay in --work and are used again.
"""

from __future__ import annotations

import os

os.environ.setdefault("OMP_WAIT_POLICY", "passive")  # as the command line does, before torch is imported
os.environ.setdefault("ORT_DISABLE_TELEMETRY", "1")

import argparse
import copy
from collections.abc import Callable, Mapping
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from vitfrost.configs import Compact, Hallucinate
from vitfrost.configs.flat import Method
from vitfrost.evaluation.cost import macs_by_part
from vitfrost.evaluation.results import environment
from vitfrost.files import atomic_file, write_json
from vitfrost.model import Model
from vitfrost.passes.structure import install_structure
from vitfrost.plans.choose import plan
from vitfrost.timing.rounds import paired_ratio, seconds_per_image
from vitfrost.vit.families import find_sites
from vitfrost.vit.load import create_model

RUNTIMES = ("eager", "compiled", "onnxruntime", "openvino")
TOLERANCE = 1e-3  # of the outputs' size, between a runtime and PyTorch
HALF = Hallucinate(share=0.5, by="first")
VARIANTS: dict[str, list[Method]] = {
    "hMHSA": [HALF],
    "head copies": [Hallucinate(0.5, by="first", inter_map="copy", intra_map="none")],
    "cFFN": [Compact(0.5)],
    "hMHSA + cFFN": [HALF, Compact(0.5)],
}


def macs_of(model: nn.Module, sites: Any = None) -> int:
    """Multiply-accumulates of one image."""
    return sum(macs_by_part(model, find_sites(model) if sites is None else sites).values())


def narrow(name: str, target: int) -> nn.Module | None:
    """The original at the smaller width that comes nearest to `target` multiply-accumulates; None where timm has no such option."""
    original: Any = create_model(name)
    best: tuple[int, nn.Module] | None = None
    for share in np.arange(0.99, 0.69, -0.01):
        if hasattr(original, "embed_dim") and isinstance(original.embed_dim, int):
            heads = original.blocks[0].attn.num_heads
            options: dict[str, Any] = {"embed_dim": round(original.embed_dim * share / (2 * heads)) * 2 * heads}
        elif hasattr(original, "stages") and name.startswith("vitfrost_pvt"):
            pairs = [(stage.blocks[0].attn.dim, stage.blocks[0].attn.num_heads) for stage in original.stages]
            options = {"embed_dims": tuple(round(width * share / (2 * heads)) * 2 * heads for width, heads in pairs)}
        else:
            return None
        candidate = create_model(name, **options)
        distance = abs(macs_of(candidate) - target)
        if best is None or distance < best[0]:
            best = (distance, candidate)
    assert best is not None
    return best[1].eval()


def versions(runtimes: list[str]) -> dict[str, str]:
    """Versions of the runtimes beside PyTorch."""
    return {name: version(name) for name in runtimes if name in ("onnxruntime", "openvino")}


def variants_of(name: str) -> dict[str, tuple[nn.Module, int]]:
    """The models to compare, by title, with their multiply-accumulates."""
    torch.manual_seed(0)
    original = create_model(name).eval()
    made: dict[str, tuple[nn.Module, int]] = {"original": (original, macs_of(original))}
    for title, methods in VARIANTS.items():
        model = copy.deepcopy(original)
        sites = install_structure(model, plan(Model.open(name, weights="random"), *methods))
        made[title] = (model.eval(), macs_of(model, sites))
    control = narrow(name, made["hMHSA + cFFN"][1])
    if control is not None:
        made["narrower original"] = (control, macs_of(control))
    return made


def exported(model: nn.Module, pixels: torch.Tensor, path: Path) -> Path:
    """The model as an ONNX file of this batch size; made once."""
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        program = torch.onnx.export(model, (pixels,), dynamo=True, opset_version=20, verbose=False)
        assert program is not None
        with atomic_file(path) as temporary:
            program.save(str(temporary))
    return path


def runner(runtime: str, model: nn.Module, pixels: torch.Tensor, path: Path, threads: int) -> Callable[[], Any]:
    """What computes the logits on a runtime, as a numpy array or tensor; checked against PyTorch."""
    if runtime == "eager":
        return partial(model, pixels)
    run: Callable[[], Any]
    if runtime == "compiled":
        run = partial(torch.compile(model), pixels)
    elif runtime == "onnxruntime":
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
        session = onnxruntime.InferenceSession(exported(model, pixels, path), options, providers=["CPUExecutionProvider"])
        feed = {session.get_inputs()[0].name: pixels.numpy()}
        run = lambda: session.run(None, feed)[0]  # noqa: E731
    else:
        import openvino

        hints = {"INFERENCE_NUM_THREADS": threads, "INFERENCE_PRECISION_HINT": "f32", "NUM_STREAMS": 1}
        compiled = openvino.Core().compile_model(openvino.Core().read_model(exported(model, pixels, path)), "CPU", hints)
        request = compiled.create_infer_request()
        run = lambda: request.infer([pixels.numpy()])[0]  # noqa: E731
    expected = model(pixels).numpy()
    difference = float(np.abs(np.asarray(run()) - expected).max())
    if difference > TOLERANCE * max(float(np.abs(expected).max()), 1e-3):
        raise SystemExit(f"{path.stem} on {runtime} differs from PyTorch by {difference:.2e}")
    return run


def measure(name: str, models: Mapping[str, tuple[nn.Module, int]], options: argparse.Namespace) -> list[dict[str, Any]]:
    """Rows of one model: every runtime, batch size and variant."""
    rows = []
    original = models["original"][1]
    for batch in options.batch:
        pixels = torch.randn(batch, 3, 224, 224, generator=torch.Generator().manual_seed(options.seed))
        for runtime in options.runtimes:
            runs = {
                title: runner(runtime, model, pixels, options.work / f"{name}-{title.replace(' ', '_')}-{batch}.onnx", options.threads)
                for title, (model, _) in models.items()
            }
            seconds = seconds_per_image(runs, batch, options.rounds, options.seed, warm_up=3)
            for title, (_, macs) in models.items():
                ratio = paired_ratio(seconds[title], seconds["original"], options.seed)
                rows.append(
                    {
                        "model": name, "variant": title, "runtime": runtime, "batch": batch, "threads": options.threads,
                        "precision": "fp32", "kind": "executed", "macs": macs, "macs_ratio": macs / original,
                        "p50_ms": 1e3 * float(np.median(seconds[title])), "p90_ms": 1e3 * float(np.percentile(seconds[title], 90)),
                        "ratio": ratio[0], "interval": ratio[1:],
                    }
                )  # fmt: skip
                row = rows[-1]
                print(f"{name} {runtime} batch {batch}: {title}: {row['p50_ms']:.2f} ms per image, MACs {row['macs_ratio']:.3f}, "
                      f"time {ratio[0]:.3f} [{ratio[1]:.3f}, {ratio[2]:.3f}]", flush=True)  # fmt: skip
            torch.compiler.reset()
            write_json(
                options.json,
                {
                    "environment": environment() | versions(options.runtimes),
                    "rounds": options.rounds,
                    "seed": options.seed,
                    "rows": [*options.before, *rows],
                },
            )
    return rows


def main() -> None:
    """Measure, print, write JSON after every runtime."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", nargs="+", default=["deit_small_patch16_224", "vitfrost_pvt_small", "nextvit_small"])
    parser.add_argument("--runtimes", nargs="+", choices=RUNTIMES, default=list(RUNTIMES))
    parser.add_argument("--batch", type=int, nargs="+", default=[1, 16])
    parser.add_argument("--rounds", type=int, default=21)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--work", type=Path, required=True, help="folder for exported files")
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    options.before = []
    with torch.inference_mode():
        for name in options.models:
            options.before += measure(name, variants_of(name), options)


if __name__ == "__main__":
    main()
