"""What each part of a lean graph saves (exporting.lean, exporting.fuse): int8 on ONNX Runtime, one part after the other.

    python benchmarks/lean_graphs.py --weights model.safetensors --images DIR --judge DIR --work DIR --json lean_graphs.json

Graphs are written once into the work folder, calibrated on `--calibration` pictures of `--images`, and interleaved in random order;
wall time, batch 1. KL of the logits to the original's is over pictures of `--judge`.
"""

from __future__ import annotations

import argparse
import copy
import time
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch

from vitfrost.deploy.fuse import fuse
from vitfrost.deploy.graph import inference_form, to_onnx, trace
from vitfrost.deploy.int8 import PRODUCTS, quantize_onnx, reduces_range
from vitfrost.evaluation.results import environment, processor_name
from vitfrost.files import write_json
from vitfrost.images.batches import images_hash, take_usable
from vitfrost.images.preprocess import Preprocess
from vitfrost.images.source import open_images
from vitfrost.model import Model
from vitfrost.timing.load import OtherLoad
from vitfrost.timing.rounds import paired_ratio, slot_for, timed_rounds
from vitfrost.vit.families import install_map_attention
from vitfrost.vit.lean import LastBlock, PatchProduct, SeparateAttention, tokens_read

# Every stage keeps what those before it changed.
STAGES = ("plain", "outputs of products in floating point", "products with their biases, FastGelu", "queries, keys and values apart: "
          "MultiHeadAttention", "last block for the class token", "patches by a product")  # fmt: skip


def rebuilt(model: torch.nn.Module, stage: int) -> Any:
    """The model with the parts that stages from the fourth on rebuild."""
    model = copy.deepcopy(model)
    vit: Any = model
    if stage >= 3:
        install_map_attention(model)
        for block in vit.blocks:
            block.attn = SeparateAttention(block.attn)
    if stage >= 4:
        read = tokens_read(vit)
        assert read is not None, "the classifier of this model reads all tokens"
        vit.blocks[-1] = LastBlock(vit.blocks[-1], read)
    if stage >= 5:
        vit.patch_embed = PatchProduct(vit.patch_embed)
    return model


def write_stages(loaded: Model, pixels: np.ndarray, folder: Path) -> list[Path]:
    """The int8 graphs of all stages."""
    ready, paths = inference_form(loaded), []
    for stage, name in enumerate(STAGES):
        path = folder / f"{stage}.onnx"
        paths.append(path)
        if path.is_file():
            continue
        print(f"writing {name}", flush=True)
        to_onnx(trace(rebuilt(ready, stage), loaded.image_size, loaded.name), folder / "float.onnx", loaded.name)
        options: dict[str, Any] = {"OpTypesToExcludeOutputQuantization": list(PRODUCTS)} if stage else {}
        quantize_onnx(folder / "float.onnx", folder / "new.onnx", pixels, reduces_range("auto"), **options)
        if stage >= 2:
            fuse(folder / "new.onnx")
        (folder / "new.onnx").rename(path)
    return paths


def main() -> None:
    import onnxruntime

    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="deit_tiny_patch16_224")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--image-size", type=int)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--calibration", type=int, default=300)
    parser.add_argument("--judge", type=Path, required=True)
    parser.add_argument("--judged", type=int, default=200)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    loaded = Model.open(options.model, weights=options.weights, image_size=options.image_size and (options.image_size,) * 2)
    drawn = open_images(options.images)
    batch = take_usable(drawn.subset(len(drawn), 0), Preprocess(loaded.preprocessing), options.calibration)
    paths = write_stages(loaded, batch.pixels.numpy(), options.work)

    def session(path: Path, threads: int) -> Any:
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads, settings.inter_op_num_threads = threads, 1
        settings.add_session_config_entry("session.intra_op.allow_spinning", "0")
        return onnxruntime.InferenceSession(str(path), settings, providers=["CPUExecutionProvider"])

    judged = open_images(options.judge)
    seen = take_usable(judged.subset(len(judged), 0), Preprocess(loaded.preprocessing), options.judged).pixels
    with torch.inference_mode():
        expected = torch.cat([loaded.module(part) for part in seen.split(20)]).log_softmax(-1)
    rows: list[dict[str, Any]] = []
    for name, path in zip(STAGES, paths, strict=True):
        run = partial(session(path, 1).run, ["logits"])
        found = torch.cat([torch.from_numpy(run({"pixels": part.numpy()})[0]) for part in seen.split(20)]).log_softmax(-1)
        kl = float((expected.exp() * (expected - found)).sum(-1).mean())
        rows.append({"stage": name, "kl": kl, "file_bytes": path.stat().st_size, "times": []})
    for threads in options.threads:
        runs = [partial(session(path, threads).run, ["logits"], {"pixels": seen[:1].numpy()}) for path in paths]
        slots = {}
        for name, run in zip(STAGES, runs, strict=True):
            run()
            start = time.perf_counter()
            run()
            slots[name] = slot_for(run, time.perf_counter() - start)
        others = OtherLoad()
        rounds = list(timed_rounds(slots, options.rounds + 2, 0))[2:]
        taken = {name: [1e3 * float(np.median(each[name])) for each in rounds] for name in STAGES}
        for before, row in zip((rows[0], *rows), rows, strict=False):
            value, low, high = paired_ratio(taken[row["stage"]], taken[STAGES[0]], 0)
            step, *interval = paired_ratio(taken[row["stage"]], taken[before["stage"]], 0)
            row["times"].append({
                "threads": threads, "ms": float(np.median(taken[row["stage"]])), "to_plain": value, "interval": [low, high],
                "to_stage_before": step, "interval_before": interval, "other_load": others.cores(),
            })  # fmt: skip
            print(f"{threads} threads  {row['stage']:50s} {value:.3f} [{low:.3f}, {high:.3f}]  KL {row['kl']:.4f}")
    record = {
        "model": loaded.identity.model_dump(mode="json"),
        "rounds": options.rounds,
        "calibration": options.calibration,
        "judged": options.judged,
        "rows": rows,
    }
    hashes = {"calibration_hash": images_hash(drawn, batch.digests), "cpu": processor_name(), "environment": environment()}
    write_json(options.json, record | hashes)


if __name__ == "__main__":
    main()
