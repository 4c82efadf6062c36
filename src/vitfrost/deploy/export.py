"""The verb `export`: a model or an artifact as a folder that runs without torch, checked against the original before it appears."""

from __future__ import annotations

import copy
import errno
import json
import logging
import os
import shutil
from importlib.metadata import version
from pathlib import Path
from typing import Any, NamedTuple

import torch
from numpy import ndarray

from ..artifact import Artifact
from ..configs import Export, expect, refuse_idle
from ..configs.verbs import AttentionProducts
from ..errors import VitfrostError
from ..evaluation.description import describe
from ..evaluation.features import about_tokens
from ..files import atomic_folder, refuse_existing, sha256_of_file
from ..images.given import ImagesLike
from ..methods.frozen_entries import FrozenMaps
from ..model import Model, ModelLike, as_model
from ..plans.choose import summary
from ..progress import doing
from ..runtime.folder import EXPORT_FILE, FORMAT, read_export
from ..runtime.runtimes import FORMATS, Native, import_runtime, reason_of
from ..runtime.session import Session, open_export
from ..torch_state import usual_torch
from ..vit.families import find_sites, fit_for_onnx
from ..vit.lean import is_lean, make_lean
from .fuse import fuse
from .graph import inference_form, save_openvino, to_onnx, to_openvino, trace, with_float_weights
from .int8 import (
    PRODUCTS,
    attention_products,
    keeps_attention_float,
    quantize_onnx,
    quantize_onnx_dynamic,
    quantize_openvino,
    reduces_range,
    sign_products,
)
from .native.eight_bits import bits_of, images_for, in_integers, needs_images
from .native.families import check_family, to_native
from .native.format import write_model
from .parity import BATCHES, Parity, compare, in_batches, refuse_difference
from .pictures import draw, random_pixels

_LOG = logging.getLogger(__name__)
DEFAULTS = Export()
# Pictures that an 8-bit export is compared on with the model: so many, and fewer where they have many tokens.
INT8_CHECKS, FEWEST_INT8_CHECKS, CHECKED_TOKENS = 36, 8, 36 * 1024
FEWEST_TO_CALIBRATE = 16
# The least versions of runtimes that know all operators: of ONNX opset 23 (its quantizers came a version later), of OpenVINO's opset 16.
NEEDS = {"onnx": {"onnxruntime": "1.23"}, "openvino": {"openvino": "2025.2"}}
NEEDS_INT8 = {"onnx": {"onnxruntime": "1.24"}}
NATIVE = Native.name
NO_ROOM = 1 << 20  # bytes that are free on a disk that is full


class Int8(NamedTuple):
    """How a graph is quantized: calibration pixels (None: dynamic ranges), and the options of `export`."""

    pixels: ndarray | None
    reduced: bool
    attention: AttentionProducts
    lean: bool


@usual_torch()
def export(
    model: ModelLike,
    config: Export = DEFAULTS,
    *,
    out: str | Path,
    images: ImagesLike | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a model as an ONNX or OpenVINO graph, or as a file of our own engine; returns the folder `out`.

    The graph takes normalized pixels [B, 3, H, W] float32 with any B and gives logits [B, classes], or the model's features: an embedding
    [B, C], or tokens [B, N, C] of a model opened so. export.json says what was written:
    where nothing could be left out, a lean graph is plain.

    Args:
        model: as of every verb.
        config: what graph is written.
        out: folder for the exported model.
        images: a folder or an iterable, to calibrate int8 and to compare with the original; random pixels do the latter without it.
        overwrite: replace an existing folder.

    Raises VitfrostError for a model that cannot be exported, for int8 without images, for missing packages, and where the exported
    model's logits are not the original's; nothing is written then.
    """
    expect(Export, config, "config")
    return export_graph(model, config, out, images, overwrite=overwrite)


@torch.random.fork_rng(devices=[])
def export_graph(
    model: ModelLike,
    config: Export,
    out: str | Path,
    images: ImagesLike | None = None,
    *,
    time_only: bool = False,
    overwrite: bool = False,
    floating: Path | None = None,
) -> Path:
    """What `export` does.

    `time_only`: an int8 model whose logits differ too much is written all the same, for measurements of time on noise or untrained
    weights; export.json says how far they differ. `floating`: the folder of the same graph of this model in fp32, from which int8 is made.
    """
    out = Path(out)
    refuse_idle(config)
    format, seed = config.format, config.seed
    precision = "int8" if format == NATIVE else config.precision
    if format != NATIVE:
        _check_images(config, images)
    refuse_existing(out, overwrite)
    for package in FORMATS[format].needs(precision):
        import_runtime(package, "export")
    loaded = as_model(model)
    _check_model(loaded, format)
    static = needs_images(loaded) if format == NATIVE else precision == "int8" and config.ranges == "static"
    if static and images is None:
        raise VitfrostError(f"{loaded.name} has activations in floating point; give images to calibrate 8 bits (--images DIR)")
    about = describe(loaded)
    checks = _int8_checks(loaded) if precision == "int8" else sum(BATCHES)
    doing(f"export to {format} {precision}: read images")
    wanted = config.calibration_images if static else 0
    wanted = min(wanted, images_for(loaded)) if wanted and format == NATIVE else wanted
    calibration, compared, record = _drawn(loaded, images, wanted, checks, seed)
    if record is not None and not time_only:
        _warn_few(record["images"], wanted, images)
    ready = inference_form(loaded)
    int8 = None
    if precision == "int8":
        reduced = format != NATIVE and reduces_range(config.weight_range)
        int8 = Int8(calibration if static else None, reduced, config.attention, config.graph == "lean")
    with atomic_folder(out, overwrite) as folder:
        doing(f"export to {format} {precision}: write the graph")
        made = _write(ready, loaded, config, int8, folder, floating)
        fields: dict[str, Any] = {
            "kind": FORMAT.kind,
            "version": FORMAT.version,
            "format": format,
            "precision": precision,
            "model": loaded.identity.model_dump(mode="json"),
            "classes": loaded.classes,
            **_about_outputs(loaded),
            **({} if loaded.class_names is None else {"class_names": list(loaded.class_names)}),
            "preprocessing": loaded.preprocessing.plain(),
            "plan_hash": about.plan_hash,
            "plan": _plan_of(loaded),
            "seeds": about.seeds | ({"export": seed} if record is not None or images is None else {}),
            "calibration": record,
            **made,
            "macs": about.macs,
            "sha256": {path.name: sha256_of_file(path) for path in sorted(folder.iterdir())},
            "needs": NEEDS.get(format, {}) | (NEEDS_INT8.get(format, {}) if precision == "int8" else {}),
            "versions": _versions(format, precision),
        }
        _write_json(folder, fields)
        doing(f"export to {format} {precision}: compare with the model")
        session = open_export(folder, threads=torch.get_num_threads())
        parity = _compared(ready, session, compared, precision, "random" if images is None else "images")
        if not (time_only and precision == "int8"):
            refuse_difference(parity, loaded.name, format)
        _write_json(folder, fields | {"parity": parity.as_dict(), "checked": {"runtime": session.runtime, "precision": session.precision}})
        del session
    return out


def _check_images(config: Export, images: ImagesLike | None) -> None:
    if config.precision == "int8" and config.ranges == "static" and images is None:
        also = ", or ranges dynamic" if config.format == "onnx" else ""
        raise VitfrostError(f"int8 is calibrated on real images; give images (--images DIR){also}")


def _check_model(loaded: Model, form: str) -> None:
    """Refuse what the format has no form for: families that our own does not know, simulated quantization in the others. Warn of
    frozen entries that save nothing."""
    if form == NATIVE:
        check_family(loaded.module, loaded.name)
        return
    if isinstance(loaded, Artifact) and loaded.plan.quantize.parts.any_activations:
        raise VitfrostError(
            f"the artifact quantizes activations to {loaded.plan.quantize.parts.of_activations} bits, which is simulated in floating point "
            'and would be exported as such; export with Export(format="native"), or plan with Quantize(activations=32) and export with '
            'Export(precision="int8")'
        )
    if any(isinstance(module, FrozenMaps) and module.partial_heads for module in loaded.module.modules()):
        _LOG.warning("entry-wise frozen maps save no time: every logit is still computed, and the constants make the graph larger")


def _int8_checks(loaded: Model) -> int:
    tokens = max(site.queries * site.windows for site in find_sites(loaded.blank()).attention)
    return max(FEWEST_INT8_CHECKS, min(INT8_CHECKS, CHECKED_TOKENS // tokens))


def _about_outputs(loaded: Model) -> dict[str, Any]:
    """What export.json says of outputs that are no classes."""
    found = {} if loaded.outputs == "classes" else {"outputs": loaded.outputs}
    return found | ({"tokens": about_tokens(loaded)} if loaded.outputs == "tokens" else {})


def _drawn(
    loaded: Model, images: ImagesLike | None, wanted: int, checks: int, seed: int
) -> tuple[ndarray | None, ndarray, dict[str, Any] | None]:
    """Pixels to calibrate with, pixels to compare with, and the record of the former; see `pictures.draw`."""
    if images is None:
        return None, random_pixels(loaded, checks, seed), None
    return draw(loaded, images, wanted, checks, seed)


def _warn_few(found: int, wanted: int, images: object) -> None:
    if found < FEWEST_TO_CALIBRATE:
        _LOG.warning(f"int8 ranges are calibrated on {found} image{'s' * (found > 1)}, which fit those and little else; give a few hundred")
    elif found < wanted:
        _LOG.warning(f"{images} has only {found} usable images to calibrate with; a few hundred give a better int8 model")


def _write(ready: Any, loaded: Model, config: Export, int8: Int8 | None, folder: Path, floating: Path | None) -> dict[str, str | None]:
    """Write the model's files; see `_write_graph`. Raises VitfrostError where the tools cannot, OSError where there is no room."""
    try:
        if config.format == NATIVE:
            return _write_native(loaded, int8, folder)
        return _write_graph(_float_graph(ready, loaded, config, folder, floating), config, int8, folder)
    except OSError:
        raise
    except Exception as error:  # the tools raise types of their own, also where the disk is full
        if _no_room(folder, loaded, error):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from error
        if isinstance(error, VitfrostError):
            raise
        raise VitfrostError(f"{loaded.name} cannot be exported to {config.format} {config.precision}: {reason_of(error)}") from error


def _no_room(folder: Path, loaded: Model, error: Exception) -> bool:
    """Whether the disk was too full. Some tools do not say it, and some take back what they have written."""
    free = shutil.disk_usage(folder).free
    weights = sum(each.nbytes for each in (*loaded.module.parameters(), *loaded.module.buffers()))
    return free < NO_ROOM or (free < weights + NO_ROOM and "stream" in str(error))


def _write_native(loaded: Model, int8: Int8 | None, folder: Path) -> dict[str, str | None]:
    """The engine's own file. Returns, for export.json, what `_write_graph` does, and "bits": "W4/A8"."""
    pixels = None if int8 is None or int8.pixels is None else torch.from_numpy(int8.pixels)
    write_model(to_native(in_integers(loaded, pixels), loaded.name), folder / FORMATS[NATIVE].files[0])
    return {"weight_range": None, "graph": "lean", "attention": None, "ranges": None, "bits": bits_of(loaded)}


class FloatGraph(NamedTuple):
    """A model as a graph in floating point: "lean" or "plain"; of OpenVINO, or the file of ONNX that it was written to."""

    kind: str
    openvino: Any
    onnx: Path


def _float_graph(ready: Any, loaded: Model, config: Export, folder: Path, floating: Path | None) -> FloatGraph:
    """The graph that is written in fp32 and that int8 is made from: traced, or taken from the folder `floating`."""
    form, made = config.format, None
    onnx = folder / ("float.onnx" if config.precision == "int8" else FORMATS["onnx"].files[0])
    if floating is not None:
        if form == "openvino":
            made = import_runtime("openvino", "export").Core().read_model(floating / FORMATS[form].files[0])
        else:
            shutil.copyfile(floating / FORMATS[form].files[0], onnx)
        return FloatGraph(read_export(floating)["graph"], made, onnx)
    written = make_lean(with_float_weights(copy.deepcopy(ready))) if config.graph == "lean" else ready
    program = trace(fit_for_onnx(written) if form == "onnx" else written, loaded.image_size, loaded.name)
    if form == "openvino":
        made = to_openvino(program, loaded.image_size, loaded.name)
    else:
        to_onnx(program, onnx, loaded.name)
    return FloatGraph("lean" if is_lean(written) else "plain", made, onnx)


def _write_graph(floating: FloatGraph, config: Export, int8: Int8 | None, folder: Path) -> dict[str, str | None]:
    """Returns, for export.json, "graph", "weight_range", "ranges", and "attention": what its products are computed in, "int8" or "float",
    if there are any in an int8 graph for OpenVINO."""
    kind, graph = floating.kind, floating.openvino
    said: dict[str, str | None] = {"weight_range": None, "ranges": None}
    if int8 is not None:
        said = {"weight_range": "reduced" if int8.reduced else "full", "ranges": config.ranges}
    if config.format == "openvino":
        products, leave = [], []
        if int8 is not None:
            products = attention_products(graph)
            leave = products if keeps_attention_float(int8.attention) else []
            assert int8.pixels is not None
            graph = quantize_openvino(graph, int8.pixels, int8.reduced, [*leave, *sign_products(graph)])
        save_openvino(graph, folder)
        return {"graph": kind, "attention": "float" if leave else "int8" if products else None} | said
    if int8 is None:
        return {"graph": kind, "attention": None} | said
    if int8.pixels is None:
        quantize_onnx_dynamic(floating.onnx, folder / "model.onnx", int8.reduced)
    else:
        options = {"OpTypesToExcludeOutputQuantization": list(PRODUCTS)} if int8.lean else {}
        quantize_onnx(floating.onnx, folder / "model.onnx", int8.pixels, int8.reduced, **options)
    for path in folder.glob("float.onnx*"):
        os.unlink(path)
    if int8.lean and fuse(folder / "model.onnx"):
        kind = "lean"
    return {"graph": kind, "attention": None} | said


@torch.inference_mode()
def _compared(ready: Any, session: Session, pixels: ndarray, precision: str, what: str) -> Parity:
    expected = in_batches(lambda part: ready(torch.from_numpy(part)).numpy(), pixels)
    # bf16 that the CPU does not have is fp32, and must be as close.
    found, bound = in_batches(session.run, pixels), "int8" if precision == "int8" else session.precision
    return compare(expected, found, bound, what, features=session.outputs != "classes")


def _plan_of(loaded: Model) -> dict[str, Any] | None:
    if not isinstance(loaded, Artifact):
        return None
    found = summary(loaded.plan)
    del found["layers"]
    quantize = loaded.plan.quantize
    return found | {"weight_bits": quantize.weights} | ({} if quantize.layers is None else {"layer_bits": list(quantize.layers)})


def _versions(form: str, precision: str) -> dict[str, str]:
    return {name: version(name) for name in ("vitfrost", "torch", "timm", *FORMATS[form].needs(precision))}


def _write_json(folder: Path, fields: dict[str, Any]) -> None:
    (folder / EXPORT_FILE).write_text(json.dumps(fields, indent=2, allow_nan=False) + "\n", encoding="utf-8")
