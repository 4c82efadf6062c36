"""The step that trains the quantized model towards the original by gradient steps."""

from __future__ import annotations

import logging
import math
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from ...files import atomic_file
from ...methods.quantize.polish import Polishing, PolishOptions, best_precision
from ...progress import track
from ..guard import take_back_blocks
from ..left_models import key_of
from ..quantize_chain import Chain
from ..work import Record

log = logging.getLogger("vitfrost")


@dataclass(frozen=True)
class Polish:
    """Codes, scales, biases and gains of LayerNorms of all blocks at once (see methods.quantize.polish). Of its states the best on the
    images held out is kept; then single blocks are given back what they were before where that is surely nearer to the original.

    Where the artifact has a place on disk, the state is saved beside it each time that it is measured, so a run that was killed goes on
    to the same bits; the file goes when the artifact is saved.
    """

    options: PolishOptions = field(default_factory=PolishOptions)
    name = "polish"
    needed = False

    def apply(self, chain: Chain) -> Record:
        """Train a copy of the quantized model."""
        before, chain.model = chain.model, chain.copied()
        pixels = torch.cat(chain.batches)
        options = replace(self.options, seed=chain.seed, batch=min(self.options.batch, len(pixels)))
        precision = best_precision()
        key = key_of([chain.model], [pixels], options, precision)
        polishing = Polishing(chain.model, chain.teacher, pixels, chain.divergence_of, options, chain.outputs, precision)
        path = None if chain.scratch is None else chain.scratch / "gradient_steps"
        if (found := _saved(path, key)) is not None:
            polishing.restore(found)
        for done in track(polishing.steps(), options.steps - polishing.done, "quantize: gradient steps", chain.progress):
            if path is not None and (done % options.every == 0 or done == options.steps):
                with atomic_file(path) as temporary:
                    torch.save({"key": key, "state": polishing.state()}, temporary)
        end = polishing.end
        if end.broke_at is not None:
            log.warning("numbers were not finite at gradient step %d; the state of step %d is kept", end.broke_at, end.best_step)
        taken_back = take_back_blocks(chain, before) if before is not None and end.best_step else []
        record: Record = {"options": asdict(options), "precision": str(precision).removeprefix("torch."), "best_step": end.best_step}
        record |= {"blocks_taken_back": taken_back} if taken_back else {}
        measured = {str(step): lost if math.isfinite(lost) else None for step, lost in end.measured.items()}
        return record | {"measured": measured} | ({} if end.broke_at is None else {"broke_at": end.broke_at})


def _saved(path: Path | None, key: str) -> dict[str, Any] | None:
    """The state that a run with the same start left; None where there is none."""
    if path is None or not path.is_file():
        return None
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception:  # torch raises many types; each means that there is nothing to go on from
        return None
    return content["state"] if isinstance(content, dict) and content.get("key") == key else None
