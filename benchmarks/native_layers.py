"""A quantized plain ViT on the native engine beside its simulation, block by block, each from the stream that the engine itself gives.

    python benchmarks/native_layers.py ARTIFACT NATIVE --images DIR --json FILE

Run as a whole, the two agree on some pictures only: a number on the edge between two codes falls on one side here and on the other there,
and later blocks make much of it. So the model file is cut behind every block, and the simulation in float64 makes the next block of what
the engine gave. Beside it stands what PyTorch in float32 makes of the same stream, which is what float32 allows.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from vitfrost_native import Model as Engine

from vitfrost.artifact import Artifact
from vitfrost.deploy.native.format import EMBED, FEED_FORWARD, HEAD, NONE, Layer, ModelFile, read_model, to_bytes
from vitfrost.deploy.native.plain_vit import ALL_TOKENS
from vitfrost.evaluation.results import environment
from vitfrost.files import write_json
from vitfrost.images.batches import take_usable
from vitfrost.images.preprocess import Preprocess
from vitfrost.images.source import open_images
from vitfrost.vit.stream import ResidualStream

BATCH = 10
TOLERANCE = 1e-4  # of the range of a picture's numbers


def cut_behind(file: ModelFile, last: int) -> bytes:
    """The model file that gives the stream behind the layer `last` in place of logits."""
    unused = next(layer for layer in file.layers if layer.kind < EMBED)  # in place of steps, so that all others keep their numbers
    kept = [unused if index > last and layer.kind >= EMBED else layer for index, layer in enumerate(file.layers)]
    return to_bytes(ModelFile(file.tensors, [*kept, Layer(HEAD, (NONE, NONE, ALL_TOKENS, NONE, 0, 0))]))


def streams(file: ModelFile, pixels: np.ndarray, threads: int) -> Iterator[Tensor]:
    """What stands behind the patches and behind every block, [images, tokens, channels]."""
    for index, layer in enumerate(file.layers):
        if layer.kind in (EMBED, FEED_FORWARD):
            with Engine(cut_behind(file, index), threads) as engine:
                found = np.concatenate([engine.run(part) for part in np.array_split(pixels, -(-len(pixels) // BATCH))])
                yield torch.from_numpy(found).view(len(pixels), engine.info.tokens, -1)


def differences(made: Tensor, wanted: Tensor) -> Tensor:
    """The largest difference of every token's numbers, [images, tokens], relative to the range of the picture's."""
    reach = wanted.flatten(1).amax(1) - wanted.flatten(1).amin(1)
    return (made.double() - wanted).abs().amax(2) / reach[:, None]


def compare(double: ResidualStream, single: ResidualStream, given: Tensor, found: Tensor, index: int, read: int) -> dict[str, Tensor]:
    """Differences of the first `read` tokens behind block `index` to float64: the engine's (`found`) and PyTorch's in float32, of the same
    stream `given`."""
    sides: dict[str, list[Tensor]] = {"engine": [], "float32": []}
    for stream, engine in zip(given.split(BATCH), found.split(BATCH), strict=True):
        wanted = double.through(index, stream.double())[:, :read]
        sides["engine"].append(differences(engine[:, :read], wanted))
        sides["float32"].append(differences(single.through(index, stream)[:, :read], wanted))
    return {name: torch.cat(parts) for name, parts in sides.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("artifact", type=Path)
    parser.add_argument("native", type=Path)
    parser.add_argument("--images", type=Path, required=True)
    parser.add_argument("--limit", type=int)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    artifact = Artifact.load(options.artifact)
    net = artifact.module.eval()
    single, double = ResidualStream(net), ResidualStream(copy.deepcopy(net).double())
    image_set = open_images(options.images)
    pixels = take_usable(image_set, Preprocess(artifact.preprocessing), options.limit or len(image_set)).pixels
    path = options.native / "model.vfn"
    file, rows, given = read_model(path), [], torch.empty(0)
    for index, found in enumerate(streams(file, pixels.numpy(), threads=1)):
        if index:
            last = index == len(double.names)
            read = 1 if last and single.reads_only_prefix(1) else found.shape[1]
            both = compare(double, single, given, found, index - 1, read)
            rows.append(
                {"block": double.names[index - 1], "tokens": both["engine"].shape[1]}
                | {
                    side: {
                        "tokens_alike": float((lost <= TOLERANCE).double().mean()),
                        "median": float(lost.median()),
                        "largest": float(lost.max()),
                    }
                    for side, lost in both.items()
                }
            )
            print(rows[-1], flush=True)
        given = found
    with Engine(path.read_bytes(), 1) as engine, torch.no_grad():
        logits = np.concatenate([engine.run(part.numpy()) for part in pixels.split(BATCH)])
        head = double.leave(given.double()).numpy()
        whole = np.concatenate([net(part).numpy() for part in pixels.split(BATCH)])
    said = {
        "images": len(pixels),
        "tolerance": TOLERANCE,
        "isa": engine.info.isa,
        "head_difference": float((np.abs(logits - head).max(1) / np.ptp(head, axis=1)).max()),
        "same_best_class_of_head": int((logits.argmax(1) == head.argmax(1)).sum()),
        "same_best_class_of_whole": int((logits.argmax(1) == whole.argmax(1)).sum()),
    }
    print(said)
    if options.json is not None:
        write_json(options.json, {"environment": environment(), **said, "blocks": rows})


if __name__ == "__main__":
    main()
