"""A task head of the user's on a model's features: a callable, or an ONNX file. What it makes of them is compared with the original's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from ..errors import VitfrostError
from ..regular import is_file
from ..runtime.runtimes import first_line, import_runtime
from .features import Features

Reads = Literal["patches", "tokens", "pooled"]
_BY_RANK: dict[int, Reads] = {4: "patches", 3: "tokens", 2: "pooled"}


@dataclass(frozen=True)
class TaskHead:
    """What runs on features. `reads`: "patches" as a map [B, C, rows, columns], all "tokens" [B, N, C], or the "pooled" vector [B, C].

    `run` gives a tensor [B, ...], such as a saliency map or class scores.
    """

    run: Callable[[Tensor], Tensor]
    reads: Reads = "patches"
    name: str = "head"

    @torch.no_grad()
    def of(self, features: Features, model: str) -> Float[Tensor, images * outputs]:
        """The head's outputs. Raises VitfrostError for features that the model does not give, and for outputs that are not finite."""
        try:
            made = self.run(self._read(features, model))
        except VitfrostError:
            raise
        except Exception as error:  # a head of the user's raises anything
            raise VitfrostError(f"the {self.name} cannot be run on the features of {model}: {first_line(error)}") from error
        made = torch.as_tensor(made).float().cpu()
        count = len(features.vector[1])
        if made.ndim < 1 or len(made) != count:
            raise VitfrostError(f"the {self.name} gives {list(made.shape)} for {count} images; it has to give [images, ...]")
        if not bool(torch.isfinite(made).all()):
            raise VitfrostError(f"the outputs of the {self.name} on the features of {model} are not finite")
        return made

    def _read(self, features: Features, model: str) -> Tensor:
        found = getattr(features, self.reads)
        if found is None:
            mend = "open it with outputs tokens, or export it so" if self.reads != "pooled" else "open it with outputs embedding"
            raise VitfrostError(f"the {self.name} reads {self.reads}, which {model} does not give; {mend}")
        if self.reads != "patches":
            return found  # type: ignore[no-any-return]
        if features.grid is None:
            raise VitfrostError(
                f"the {self.name} reads a map of patches, and the grid of {model} is not known; give a head that reads tokens"
            )
        return found.transpose(1, 2).unflatten(2, features.grid).contiguous()  # type: ignore[no-any-return]


HeadLike = TaskHead | Callable[[Tensor], Tensor] | str | Path


def as_head(head: HeadLike) -> TaskHead:
    """A callable on the map of patches, or an ONNX file; the rank of its input says what it reads. Raises VitfrostError as `load_head`."""
    if isinstance(head, TaskHead):
        return head
    if isinstance(head, str | Path):
        return load_head(head)
    if not callable(head):
        raise VitfrostError(f"a {type(head).__name__} is no head; give a callable, a TaskHead or an ONNX file")
    return TaskHead(head, name=f"head {getattr(head, '__name__', type(head).__name__)}")


def load_head(path: str | Path) -> TaskHead:
    """A head from an ONNX file with one input of floats: [B, C, rows, columns] reads patches, [B, N, C] tokens, [B, C] the pooled vector.

    Its first output counts. Raises VitfrostError for a file that is not there, cannot be loaded, or reads anything else.
    """
    if not is_file(path):
        raise VitfrostError(f"no head {path}; name an ONNX file")
    runtime = import_runtime("onnxruntime")
    options = runtime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads, options.log_severity_level = torch.get_num_threads(), 1, 3
    try:
        session = runtime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    except Exception as error:  # onnxruntime raises types of its own
        raise VitfrostError(f"the head {path} cannot be loaded: {first_line(error)}") from error
    inputs: list[Any] = session.get_inputs()
    shown = ", ".join(f"{each.name} {each.type} {each.shape}" for each in inputs) or "nothing"
    if len(inputs) != 1 or inputs[0].type != "tensor(float)" or len(inputs[0].shape) not in _BY_RANK:
        raise VitfrostError(
            f"the head {path} reads {shown}; it has to read patches [B, C, rows, columns], tokens [B, N, C] or a vector [B, C]"
        )
    if len(inputs[0].shape) == 4 and inputs[0].shape[1] == 3:
        raise VitfrostError(
            f"the head {path} reads {shown}, which are pictures: it is a whole model; cut its decoder out (onnx.utils.extract_model)"
        )

    def run(features: Tensor) -> Tensor:
        return torch.from_numpy(np.asarray(session.run(None, {inputs[0].name: features.float().numpy()})[0], np.float32))

    return TaskHead(run, _BY_RANK[len(inputs[0].shape)], f"head {Path(path).name}")


def absolute_errors(original: Float[Tensor, images * outputs], changed: Float[Tensor, images * outputs]) -> Float[Tensor, " images"]:
    """The mean absolute difference of every image's outputs."""
    return (original.double() - changed.double()).abs().flatten(1).mean(1)


def intersections_over_union(
    original: Float[Tensor, images * outputs], changed: Float[Tensor, images * outputs], threshold: float
) -> Float[Tensor, " images"]:
    """Of what is above the threshold in both, the share of what is in either; 1 where nothing is."""
    one, two = (original > threshold).flatten(1), (changed > threshold).flatten(1)
    union = (one | two).sum(1).double()
    return torch.where(union > 0, (one & two).sum(1).double() / union.clamp_min(1), torch.ones_like(union))
