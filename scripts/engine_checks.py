"""The engine under sanitizers and on Arm: damaged files, models opened and closed over and over, logits of every instruction set.

    python scripts/engine_checks.py [--count 1000] [--build build/engine]

Builds the library with AddressSanitizer and UBSan, warnings as errors, writes small models of every kind of map, and runs
`native/tests/fuzz.cpp` and `cycles.cpp` on each, on every instruction set of this processor; those of AMX are emulated. Where Debian's
compiler for Arm and qemu are installed (g++-aarch64-linux-gnu, qemu-user), it builds the library for Arm and compares its logits with
PyTorch's. It says so and ends with 0 where cmake or a C++ compiler is missing.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import numpy as np
import torch
from torch import nn

import vitfrost as vf
from vitfrost.deploy.native import parts
from vitfrost.deploy.native.eight_bits import in_integers
from vitfrost.deploy.native.families import to_native
from vitfrost.deploy.native.format import write_model
from vitfrost.methods.quantize.repq import QuantizationSettings, quantize_model
from vitfrost.methods.quantize.rotate import rotate
from vitfrost.vit.compat import import_timm
from vitfrost.vit.families import find_sites

import_timm()
from timm.models.pvt_v2 import PyramidVisionTransformerV2  # noqa: E402  (timm must be imported through the guard)
from timm.models.swin_transformer import SwinTransformer  # noqa: E402
from timm.models.vision_transformer import VisionTransformer  # noqa: E402

ROOT = Path(__file__).resolve().parents[1]
PLANS = {
    "computed": (vf.Quantize(4, 4, "strict"),),
    "bases": (vf.Quantize(4, 3, method="fast", steps=(), map_base="searched"),),
    "frozen": (vf.FreezeHeads(0.4, kind="dense"), vf.Quantize(4, 8, "strict")),
    "windowed": (vf.WindowHeads(0.7, 3), vf.Quantize(4, 8, "strict")),
    "hallucinated": (vf.Hallucinate(0.34, by="first", mix="copy"), vf.Compact(0.5), vf.Quantize(8, 4, "strict")),
    "entries": (vf.FreezeEntries(0.3), vf.Quantize(4, 4, "strict")),
    "mixed": (vf.FreezeEntries(0.3), vf.Quantize(4, 8, "strict", layers={"head": (8, 6)}, heads={"*": {0: 3, 1: 4}})),
    "entries_of_their_own": (vf.FreezeEntries(0.3, grid="head"), vf.Quantize(4, 4, "strict")),
}
WINDOW_PLANS = {
    "windows": (vf.Quantize(8, 8, "strict"),),
    "window-maps": (vf.FreezeHeads(0.4, kind="dense"), vf.Quantize(4, 8, "strict")),
    "window-entries": (vf.FreezeEntries(0.3), vf.Quantize(4, 4, "strict")),
}
PYRAMID_PLANS = {
    "pyramid": (vf.Quantize(4, 4, "strict"),),
    "pyramid-maps": (vf.FreezeHeads(0.4, kind="dense"), vf.Compact(0.5), vf.Quantize(8, 8, "strict")),
}

ARM = "aarch64-linux-gnu"
ARM_SEEDS = ("computed", "bases", "windowed", "mixed", "entries", "turned")  # their sums meet no edge between two codes
PICTURES, TOLERANCE = 8, 1e-6


def make_plain() -> nn.Module:
    """A small plain ViT."""
    return VisionTransformer(img_size=32, patch_size=8, embed_dim=48, depth=2, num_heads=3, num_classes=10)


def make_swin() -> nn.Module:
    """A small Swin Transformer whose windows reach over the grid."""
    return SwinTransformer(img_size=36, patch_size=4, embed_dim=24, depths=(2, 1), num_heads=(2, 3), window_size=4, num_classes=10)


def make_pyramid() -> nn.Module:
    """A small PVT v2."""
    sizes: dict[str, Any] = {"depths": (1, 1), "embed_dims": (16, 36), "num_heads": (2, 3), "sr_ratios": (2, 1), "mlp_ratios": (2, 2)}
    made = PyramidVisionTransformerV2(**sizes, num_classes=10)
    made.pretrained_cfg = {"input_size": (3, 36, 36)}
    return made


def write_seeds(folder: Path) -> list[Path]:
    """A small model file of every kind of map and family, with pixels and the artifact's logits beside it."""
    folder.mkdir(parents=True, exist_ok=True)
    found = write_kernels(folder) + write_turned(folder)
    for make, plans in ((make_plain, PLANS), (make_swin, WINDOW_PLANS), (make_pyramid, PYRAMID_PLANS)):
        torch.manual_seed(0)
        found += write_seeds_of(make().eval(), plans, folder)
    return found


def write_kernels(folder: Path) -> list[Path]:
    """Frozen heads that are kernels over the patch grid, and the same carried over to a larger grid, where their taps stand apart."""
    torch.manual_seed(0)
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 10}
    model = vf.Model.open("deit_tiny_patch16_224", weights="random", options=options)
    frozen = vf.plan(vf.calibrate(model, torch.randn(40, 3, 32, 32).split(8)), vf.FreezeHeads(0.4, kind="local", window=3))
    small, found = vf.compress(model, frozen), []
    for name, artifact, side in (("kernels", small, 32), ("kernels-apart", vf.resize(small, 72), 72)):
        pixels = torch.randn(PICTURES, 3, side, side)
        module = in_integers(artifact, pixels)
        found.append(folder / f"{name}.vfn")
        with patch.object(parts, "WHOLE_MAPS_TOKENS", 0), patch.object(parts, "LARGEST_WHOLE_MAPS_TOKENS", 0):
            write_model(to_native(module, name), found[-1])
        write_beside(found[-1], module, pixels)
    return found


@torch.no_grad()
def write_beside(path: Path, model: Any, pixels: torch.Tensor) -> None:
    """Pixels, and what a model makes of them, beside its file."""
    pixels.numpy().astype("<f4").tofile(path.with_suffix(".pixels"))
    np.save(path.with_suffix(".npy"), model(pixels).numpy())


def write_turned(folder: Path) -> list[Path]:
    """A model of tokens with a norm in front of the first block, whose stream is turned by layers of its own there and at its end."""
    torch.manual_seed(0)
    options = {"img_size": 32, "patch_size": 8, "embed_dim": 48, "depth": 2, "num_heads": 3, "num_classes": 0, "global_pool": ""}
    net = VisionTransformer(**options, pre_norm=True).eval()
    sites, pixels, path = find_sites(net), torch.randn(PICTURES, 3, 32, 32), folder / "turned.vfn"
    rotate(net, sites, 0)
    quantize_model(net, sites, QuantizationSettings(4, 4, "strict"), pixels)
    write_model(to_native(net, "turned"), path)
    write_beside(path, net, pixels)
    return [path]


def write_seeds_of(net: nn.Module, plans: dict[str, tuple[Any, ...]], folder: Path) -> list[Path]:
    """The model's files by the names of plans."""
    side = find_sites(net).image_size
    model, pixels = vf.Model.of(net, mean=(0.5,) * 3, std=(0.5,) * 3), torch.randn(40, 3, *side).split(8)
    statistics = vf.calibrate(model, pixels)
    for name, methods in plans.items():
        artifact = vf.compress(model, vf.plan(statistics, *methods), images=pixels)
        write_model(to_native(artifact.module, name), folder / f"{name}.vfn")
        write_beside(folder / f"{name}.vfn", artifact, pixels[0])
    return [folder / f"{name}.vfn" for name in plans]


def check_arm(seeds: list[Path], build: Path) -> None:
    """Logits on Arm under emulation, on each of its instruction sets. Raises SystemExit where they are not the artifact's."""
    compiler, emulator = shutil.which(f"{ARM}-g++"), shutil.which("qemu-aarch64")
    if compiler is None or emulator is None:
        print("no compiler for Arm or no qemu here: the kernels for Arm are not checked")
        return
    flags = ["-DCMAKE_SYSTEM_NAME=Linux", "-DCMAKE_SYSTEM_PROCESSOR=aarch64", f"-DCMAKE_CXX_COMPILER={compiler}", "-DVITFROST_CHECKS=ON"]
    subprocess.run(["cmake", "-S", ROOT / "native", "-B", build, *flags], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cmake", "--build", build, "--parallel", str(os.cpu_count() or 1)], check=True, stdout=subprocess.DEVNULL)
    libraries = f"{build}:/usr/{ARM}/lib"
    for seed in (seed for seed in seeds if seed.stem in ARM_SEEDS):
        wanted = np.load(seed.with_suffix(".npy"))
        for isa in ("i8mm", "dotprod", "portable"):
            given = ["-L", f"/usr/{ARM}", "-E", f"LD_LIBRARY_PATH={libraries}", "-E", f"VITFROST_ISA={isa}"]
            call = [emulator, "-cpu", "max", *given, build / "logits", seed, seed.with_suffix(".pixels"), str(PICTURES)]
            name, *logits = subprocess.run(call, check=True, capture_output=True, text=True).stdout.split()
            difference = np.abs(np.array(logits, np.float32).reshape(wanted.shape) - wanted).max()
            print(f"{seed.stem} on {name}: largest difference of a logit {difference:.2g}")
            if name != isa or difference > TOLERANCE * max(1.0, np.ptp(wanted)):
                raise SystemExit(f"the kernels {isa} are wrong")


def here(build: Path, seed: Path) -> list[str]:
    """The instruction sets on which the library that was built opens a model."""
    call = [build / "logits", seed, seed.with_suffix(".pixels"), str(PICTURES)]
    names = ("amx", "avx512vnni", "avxvnni", "avx2", "i8mm", "dotprod", "portable")
    return [name for name in names if not subprocess.run(call, capture_output=True, env={**os.environ, "VITFROST_ISA": name}).returncode]


def main() -> int:
    """Build, run, and print what every check says."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--count", type=int, default=1000, help="damaged files for every model and instruction set")
    parser.add_argument("--cycles", type=int, default=250, help="how often a model is opened, run and closed, for each of them")
    parser.add_argument("--build", type=Path, default=ROOT / "build" / "engine")
    arguments = parser.parse_args()
    if not shutil.which("cmake") or not shutil.which(os.environ.get("CXX", "c++")):
        print("no cmake or no C++ compiler here: the engine is not checked under sanitizers")
        return 0
    flags = [
        "-DVITFROST_SANITIZE=address,undefined",
        "-DVITFROST_EMULATE_AMX=ON",
        "-DVITFROST_CHECKS=ON",
        "-DVITFROST_WARNINGS_AS_ERRORS=ON",
        "-DCMAKE_CXX_FLAGS_RELEASE=-O1",
    ]
    subprocess.run(["cmake", "-S", ROOT / "native", "-B", arguments.build, *flags], check=True, stdout=subprocess.DEVNULL)
    subprocess.run(["cmake", "--build", arguments.build, "--parallel", str(os.cpu_count() or 1)], check=True, stdout=subprocess.DEVNULL)
    seeds = write_seeds(arguments.build / "seeds")
    check_arm(seeds, arguments.build.with_name(arguments.build.name + "-arm"))
    for isa in here(arguments.build, seeds[0]):
        environment = {**os.environ, "UBSAN_OPTIONS": "halt_on_error=1:print_stacktrace=1", "VITFROST_ISA": isa}
        for index, seed in enumerate(seeds):
            for check in (
                [arguments.build / "fuzz", seed, str(arguments.count), str(index)],
                [arguments.build / "cycles", seed, str(arguments.cycles)],
            ):
                print(f"{isa}, {seed.stem}, {check[0].name}: ", end="", flush=True)
                subprocess.run(check, check=True, env=environment)
    return 0


if __name__ == "__main__":
    sys.exit(main())
