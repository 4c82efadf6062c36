"""What a constant map that is fitted to the outputs of its head (repair.constants) misses of a layer's output, beside the mean map.

    python benchmarks/refitted_constants.py --weights model.safetensors --images DIR --json refitted_constants.json

Both are taken from the first pictures of a seeded draw and measured on the others: mean squared error at the output of attention, all
heads of a layer frozen, relative to the variance of that output. The layers before are the original's.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from vitfrost.configs import Repair
from vitfrost.files import write_json
from vitfrost.images.batches import images_hash, take_usable
from vitfrost.images.preprocess import Preprocess
from vitfrost.images.source import open_images
from vitfrost.methods.repair.constants import ValueSums
from vitfrost.model import Model


def maps_and_values(attention: Any, tokens: Tensor) -> tuple[Tensor, Tensor]:
    """Maps [B, H, N, N] and values [B, H, N, D] of a plain ViT's attention."""
    q, k, v = attention.qkv(tokens).unflatten(-1, (3, attention.num_heads, -1)).permute(2, 0, 3, 1, 4)
    return (attention.scale * q @ k.mT).softmax(-1), v


@torch.no_grad()
def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--model", default="deit_tiny_patch16_224")
    parser.add_argument("--weights", required=True)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--fit", type=int, default=300)
    parser.add_argument("--judge", type=int, default=100)
    parser.add_argument("--json", type=Path, required=True)
    options = parser.parse_args()
    loaded = Model.open(options.model, weights=options.weights)
    image_set = open_images(options.images)
    drawn = image_set.subset(len(image_set), 0)
    batch = take_usable(drawn, Preprocess(loaded.preprocessing), options.fit + options.judge)
    model: Any = loaded.module
    read: dict[int, Tensor] = {}
    for index, block in enumerate(model.blocks):
        block.attn.register_forward_pre_hook(lambda _, inputs, index=index: read.__setitem__(index, inputs[0]))
    penalty = Repair().constants_penalty
    assert penalty is not None
    depth = len(model.blocks)
    means: list[Any] = [0.0] * depth
    for pixels in batch.pixels[: options.fit].split(20):
        model(pixels)
        for index, block in enumerate(model.blocks):
            means[index] = means[index] + maps_and_values(block.attn, read[index])[0].sum(0) / options.fit
    sums = [ValueSums() for _ in range(depth)]
    for pixels in batch.pixels[: options.fit].split(20):
        model(pixels)
        for index, block in enumerate(model.blocks):
            maps, values = maps_and_values(block.attn, read[index])
            sums[index].add(values[:, None], (maps @ values - means[index] @ values)[:, None])
    fitted = [mean + sums[index].solve(penalty).maps[0].float() for index, mean in enumerate(means)]
    missed = torch.zeros(depth, 2, dtype=torch.float64)
    outputs: list[list[torch.Tensor]] = [[] for _ in range(depth)]
    for pixels in batch.pixels[options.fit :].split(20):
        model(pixels)
        for index, block in enumerate(model.blocks):
            maps, values = maps_and_values(block.attn, read[index])
            mixed = [(each @ values).transpose(1, 2).flatten(2) @ block.attn.proj.weight.T for each in (maps, means[index], fitted[index])]
            outputs[index].append(mixed[0])
            missed[index] += torch.stack([(each - mixed[0]).double().square().sum() for each in mixed[1:]])
    rows = []
    for index in range(depth):
        whole = torch.cat(outputs[index]).double()
        mean, refitted = (missed[index] / (whole - whole.mean(0)).square().sum()).tolist()
        rows.append({"layer": index, "mean_map": mean, "refitted": refitted, "refitted_over_mean_map": refitted / mean})
        print(f"layer {index:2d}  mean map {mean:.3f}  refitted {refitted:.3f}  {refitted / mean:.2f}")
    record = {
        "model": loaded.identity.model_dump(mode="json"),
        "fitted_on": options.fit,
        "judged_on": options.judge,
        "penalty": penalty,
        "layers": rows,
    }
    write_json(options.json, record | {"images_hash": images_hash(drawn, batch.digests), "seed": 0})


if __name__ == "__main__":
    main()
