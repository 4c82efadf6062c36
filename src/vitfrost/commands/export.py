"""The command `export`."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from .arguments import ArtifactOrNone, Flags, ModelFlags


def export(
    artifact: ArtifactOrNone = None,
    /,
    *,
    format: Literal["onnx", "openvino"],
    precision: Literal["fp32", "bf16", "int8"],
    out: Path,
    model: Flags = ModelFlags(),
    images: Path | None = None,
    calibration_images: int = 300,
    weight_range: Literal["auto", "full", "reduced"] = "auto",
    attention: Literal["auto", "int8", "float"] = "auto",
    graph: Literal["lean", "plain"] = "lean",
    ranges: Literal["static", "dynamic"] = "static",
    seed: int = 0,
    overwrite: bool = False,
) -> None:
    """Write a model or an artifact as a graph that runs without torch, checked against the original.

    Args:
        format: onnx for ONNX Runtime, openvino for OpenVINO.
        precision: fp32; bf16 (OpenVINO, where the CPU has it); or int8, calibrated on images.
        out: folder for the exported model.
        images: folder of real pictures, to calibrate int8 and to compare with the original.
        calibration_images: how many are drawn to calibrate int8.
        weight_range: whether int8 weights keep to 7 bits, which CPUs without VNNI need; 'auto' asks this CPU.
        attention: whether OpenVINO's int8 covers the products of attention; 'auto': only on CPUs with VNNI.
        graph: lean computes the same with less work, int8 in ONNX Runtime's own operators; plain is the model as PyTorch has it.
        ranges: static: int8 ranges from the calibration images; dynamic (onnx): from every batch as it runs, without images.
        seed: seed of that draw.
        overwrite: replace an existing folder.
    """
    from .. import export as verb
    from ..files import read_json
    from ..runtime.folder import EXPORT_FILE, model_bytes

    folder = verb(
        model.open(artifact), format=format, precision=precision, out=out, images=images,
        calibration_images=calibration_images, weight_range=weight_range,
        attention=attention, graph=graph, ranges=ranges, seed=seed, overwrite=overwrite,
    )  # fmt: skip
    about = read_json(folder / EXPORT_FILE)
    parity = about["parity"]
    print(
        f"{folder}: {model_bytes(folder, about) / 1e6:.3f} MB; logits differ by at most {parity['max_abs_difference']:.2e}, "
        f"best classes agree on {100 * parity['agreement']:.1f} % of {parity['images']} {parity['pixels']} ({about['checked']['runtime']})"
    )
