"""The step that trains the quantized model towards the original by gradient steps."""

from __future__ import annotations

import logging
from dataclasses import asdict, dataclass, field, replace

import torch

from ...methods.quantize.polish import PolishEnd, PolishOptions, polish
from ...progress import track
from ..quantize_chain import Chain
from ..work import Record

log = logging.getLogger("vitfrost")


@dataclass(frozen=True)
class Polish:
    """Codes, scales, biases and gains of LayerNorms of all blocks at once (see methods.quantize.polish). Of its states the best on the
    images held out is kept."""

    options: PolishOptions = field(default_factory=PolishOptions)
    name = "polish"
    needed = False

    def apply(self, chain: Chain) -> Record:
        """Train a copy of the quantized model."""
        chain.model = chain.copied()
        options = replace(self.options, seed=chain.seed, batch=min(self.options.batch, sum(map(len, chain.batches))))
        end = PolishEnd(0, chain.divergence())
        steps = polish(chain.model, chain.teacher, torch.cat(chain.batches), chain.divergence_of, options, end)
        for _ in track(steps, options.steps, "quantize: gradient steps", chain.progress):
            pass
        if end.broke_at is not None:
            log.warning("the loss was not finite at gradient step %d; the state of step %d is kept", end.broke_at, end.best_step)
        return {"options": asdict(options), "best_step": end.best_step} | ({} if end.broke_at is None else {"broke_at": end.broke_at})
