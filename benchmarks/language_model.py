"""A small language model with a share of its heads frozen to mean maps, or windowed: what next tokens cost, in nats.

    python benchmarks/language_model.py --weights SmolLM2-135M-Instruct.Q4_1.gguf --statistics-text ONE.txt --text ANOTHER.txt \
        --work DIR --json docs/results/language_model.json

A script alone: vitfrost itself does nothing to language models. It needs transformers, gguf and accelerate. Nothing is fetched: `--weights`
is a GGUF file, the texts are plain. Statistics (mean maps, entropy, mass outside windows, what kernels explain) and the effect of every
head alone come from one text, losses from the other. A frozen head has its mean map over the statistics' texts, by position; a windowed one
computes its map over the first tokens (sinks) and the last ones. Nothing is trained or repaired.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, Int
from torch import Tensor

from vitfrost.errors import VitfrostError
from vitfrost.evaluation.intervals import Z95
from vitfrost.files import read_json, write_json
from vitfrost.vit.compat import import_timm

BINS = 256  # of the histograms that entropy is taken from, as in vitfrost.statistics
SINKS, WINDOW = 4, 64
KERNEL = 60  # values of the kernel beside the sinks' means
SAMPLED = 2048  # entries of a head's map that have a histogram
SHARES = (0.1, 0.2, 0.3, 0.5)

Heads = Mapping[int, tuple[int, ...]]  # by layer


@dataclass
class State:
    """What attention does with its maps [texts, heads, tokens, tokens]."""

    frozen: Heads = field(default_factory=dict)
    windowed: Heads = field(default_factory=dict)
    means: list[Float[Tensor, "heads tokens tokens"]] = field(default_factory=list)
    watch: Callable[[Tensor], None] | None = None


STATE = State()


def attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None, scaling: float = 1.0, **_: Any
) -> tuple[Tensor, None]:
    """Causal attention as `STATE` says."""
    groups, tokens, layer = query.shape[1] // key.shape[1], query.shape[2], module.layer_idx
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    logits = (query @ key.mT) * scaling
    future = torch.ones(tokens, tokens, dtype=torch.bool).triu(1)
    if windowed := STATE.windowed.get(layer):
        logits[:, list(windowed)] = logits[:, list(windowed)].masked_fill(~inside(tokens), float("-inf"))
    maps = logits.masked_fill(future, float("-inf")).softmax(-1)
    if frozen := STATE.frozen.get(layer):
        maps[:, list(frozen)] = STATE.means[layer][list(frozen)].to(maps)
    if STATE.watch is not None:
        STATE.watch(maps)
    return (maps @ value).transpose(1, 2).contiguous(), None


def inside(tokens: int) -> Tensor:
    """Which keys a windowed query sees: the first ones, and the last ones up to itself."""
    back = torch.arange(tokens)[:, None] - torch.arange(tokens)
    return (back < WINDOW) | (torch.arange(tokens) < SINKS)


class Language:
    """The model, its tokens, and how it is run with some heads changed."""

    def __init__(self, path: Path):
        import_timm()  # transformers imports torchvision, too
        from transformers import AttentionInterface, AutoModelForCausalLM, AutoTokenizer

        AttentionInterface.register("vitfrost", attend)
        place = {"pretrained_model_name_or_path": path.parent, "gguf_file": path.name}
        self.tokenizer: Any = AutoTokenizer.from_pretrained(**place)
        self.model: Any = AutoModelForCausalLM.from_pretrained(**place, dtype=torch.float32, attn_implementation="vitfrost").eval()
        self.layers, self.heads = self.model.config.num_hidden_layers, self.model.config.num_attention_heads

    def texts(self, path: Path, count: int, tokens: int) -> Int[Tensor, "texts tokens"]:
        """Stretches of a text, spread over all of it. Raises VitfrostError where it is too short."""
        found = torch.tensor(self.tokenizer(path.read_text(encoding="utf-8"))["input_ids"])
        if len(found) < count * tokens:
            raise VitfrostError(f"{path} has {len(found)} tokens, and {count} texts of {tokens} are wanted; give a longer one")
        return found[: len(found) // tokens * tokens].view(-1, tokens)[np.linspace(0, len(found) // tokens - 1, count).astype(int)]

    def begin(self, texts: Tensor) -> tuple[Tensor, Any]:
        """What the first layer reads, and rotary positions."""
        x = self.model.model.embed_tokens(texts)
        places = torch.arange(texts.shape[1])[None]
        return x, self.model.model.rotary_emb(x, places)

    def layer(self, number: int, x: Tensor, rotary: Any) -> Tensor:
        """One layer."""
        found = self.model.model.layers[number](x, attention_mask=None, position_embeddings=rotary)
        return found if isinstance(found, Tensor) else found[0]

    def scores(self, x: Tensor) -> Tensor:
        """Log-probabilities of next tokens."""
        return self.model.lm_head(self.model.model.norm(x)).log_softmax(-1)

    def losses(self, texts: Tensor) -> np.ndarray:
        """Mean nats of a next token, text by text."""
        found = []
        for text in texts:
            x, rotary = self.begin(text[None])
            for number in range(self.layers):
                x = self.layer(number, x, rotary)
            scores = self.scores(x)[0, :-1]
            found.append(-float(scores.gather(1, text[1:, None]).mean()))
        return np.array(found)


@dataclass
class LayerSums:
    """Sums over the texts of one layer."""

    maps: Tensor
    squares: Tensor
    histograms: Int[Tensor, "heads sampled bins"]

    @classmethod
    def of(cls, heads: int, tokens: int) -> LayerSums:
        return cls(torch.zeros(heads, tokens, tokens), torch.zeros(heads, dtype=torch.float64), torch.zeros(heads, SAMPLED, BINS).long())


def statistics(language: Language, texts: Tensor) -> dict[str, Any]:
    """Layer by layer: mean maps, and of every head its entropy, its mass outside the window, and what is explained of its variance."""
    tokens, allowed = texts.shape[1], torch.ones(texts.shape[1], texts.shape[1], dtype=torch.bool).tril()
    pairs = allowed.nonzero()
    chosen = pairs[torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))[:SAMPLED]]
    begun = [language.begin(text[None]) for text in texts]
    streams, rotary = [x for x, _ in begun], begun[0][1]
    means, about = [], {"entropy": [], "outside": [], "kernel": [], "mean_map": []}  # type: ignore[var-annotated]
    outside = allowed & ~inside(tokens)
    for number in range(language.layers):
        sums = LayerSums.of(language.heads, tokens)

        def watch(maps: Tensor, sums: LayerSums = sums) -> None:
            sums.maps += maps[0]
            sums.squares += maps[0].double().square().sum((1, 2))
            bins = (maps[0][:, chosen[:, 0], chosen[:, 1]] * BINS).long().clamp(max=BINS - 1)
            sums.histograms.scatter_add_(2, bins[..., None], torch.ones_like(bins)[..., None])

        STATE.watch = watch
        streams = [language.layer(number, x, rotary) for x in streams]
        STATE.watch = None
        average = sums.maps / len(texts)
        share = sums.histograms.double() / len(texts)
        about["entropy"].append(-(share * share.clamp_min(1e-12).log2()).sum(2).mean(1))
        about["outside"].append((average * outside).sum((1, 2)) / tokens)
        kernel, whole = explained(average.double(), sums.squares / len(texts), allowed)
        about["kernel"].append(kernel)
        about["mean_map"].append(whole)
        means.append(average.half())
    return {name: torch.stack(values).tolist() for name, values in about.items()} | {"means": means}


def explained(mean_maps: Tensor, squares: Tensor, allowed: Tensor) -> tuple[Tensor, Tensor]:
    """Shares of the variance over entries and texts [heads]: by sinks (a mean a key), a kernel by distance and one rest; by mean maps."""
    tokens = len(allowed)
    rows, keys = torch.arange(tokens)[:, None], torch.arange(tokens).expand(tokens, -1)
    back = rows - keys
    group = torch.where(back < KERNEL, back, torch.where(keys < SINKS, KERNEL + keys, KERNEL + SINKS))[allowed]
    values = mean_maps[:, allowed]
    counts = torch.zeros(KERNEL + SINKS + 1, dtype=torch.float64).index_add_(0, group, torch.ones(len(group), dtype=torch.float64))
    sums = torch.zeros(len(values), KERNEL + SINKS + 1, dtype=torch.float64).index_add_(1, group, values)
    base = values.sum(1).square() / values.shape[1]
    variance = squares - base
    return ((sums.square() / counts).sum(1) - base) / variance, (values.square().sum(1) - base) / variance


def effects(language: Language, texts: Tensor) -> Float[Tensor, "layers heads"]:
    """KL of next tokens, original to one head frozen, in nats; a mean over tokens."""
    found = torch.zeros(language.layers, language.heads)
    for text in texts:
        x, rotary = language.begin(text[None])
        streams = [x]
        for number in range(language.layers):
            streams.append(language.layer(number, streams[-1], rotary))
        aim = language.scores(streams[-1])
        for first in range(language.layers):
            for head in range(language.heads):
                STATE.frozen = {first: (head,)}
                x = streams[first]
                for number in range(first, language.layers):
                    x = language.layer(number, x, rotary)
                found[first, head] += float((aim.exp() * (aim - language.scores(x))).sum(-1).mean()) / len(texts)
        STATE.frozen = {}
    return found


def lowest(scores: Any, share: float) -> Heads:
    """The heads of lowest score."""
    scores = np.asarray(scores)
    order = np.argsort(scores, axis=None, kind="stable")[: round(share * scores.size)]
    made: dict[int, tuple[int, ...]] = {}
    for layer, head in sorted((int(each // scores.shape[1]), int(each % scores.shape[1])) for each in order):
        made[layer] = (*made.get(layer, ()), head)
    return made


def cases(known: Mapping[str, Any], scores: Any) -> dict[str, tuple[Heads, Heads]]:
    """Frozen and windowed heads by the name of a case."""
    random = [np.random.default_rng(seed).random(np.shape(scores)) for seed in range(2)]
    made: dict[str, tuple[Heads, Heads]] = {f"frozen {share:.0%}, lowest KL": (lowest(scores, share), {}) for share in SHARES}
    made["frozen 10%, lowest entropy"] = (lowest(known["entropy"], 0.1), {})
    made |= {f"frozen 10%, random {seed}": (lowest(each, 0.1), {}) for seed, each in enumerate(random)}
    return made | {f"windowed {share:.0%}, least mass outside": ({}, lowest(known["outside"], share)) for share in (0.2, 0.5)}


def added(losses: Mapping[str, list[float]], name: str) -> dict[str, Any]:
    """The loss of a case, and what it adds to the original's, paired by text, with a 95 % interval."""
    change = np.array(losses[name]) - np.array(losses["original"])
    half = Z95 * float(change.std(ddof=1)) / len(change) ** 0.5
    middle = float(change.mean())
    return {"nats": float(np.mean(losses[name])), "added": middle, "interval": [middle - half, middle + half]}


@torch.inference_mode()
def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Everything that is not in the working folder yet; all figures."""
    language = Language(options.weights)
    path, tokens = options.work / "statistics.pt", options.tokens
    texts = language.texts(options.statistics_text, options.statistics, tokens)
    if not path.is_file():
        torch.save(statistics(language, texts), path)
    known = torch.load(path)
    STATE.means = known["means"]
    path = options.work / "effects.json"
    if not path.is_file():
        write_json(path, effects(language, texts[: options.effects]).tolist())
    scores = read_json(path)
    others = language.texts(options.text, options.texts, tokens)
    path = options.work / "losses.json"
    losses: dict[str, list[float]] = read_json(path) if path.is_file() else {}
    for name, (frozen, windowed) in {"original": ({}, {}), **cases(known, scores)}.items():
        if name not in losses:
            STATE.frozen, STATE.windowed = frozen, windowed
            losses[name] = language.losses(others).tolist()
            write_json(path, losses)
        print(f"{name:36s} {added(losses, name)}", flush=True)
    rows = {name: added(losses, name) for name in losses}
    variance = {name: [float(each) for each in np.quantile(known[name], (0.1, 0.5, 0.9))] for name in ("kernel", "mean_map")}
    return {"perplexity": float(np.exp(np.mean(losses["original"]))), "explained_10_50_90": variance, "rows": rows}


def main() -> None:
    """Measure and write what `--json` names."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name in ("weights", "statistics-text", "text", "work", "json"):
        parser.add_argument(f"--{name}", type=Path, required=True)
    for name, count in (("tokens", 512), ("statistics", 20), ("effects", 1), ("texts", 16)):
        parser.add_argument(f"--{name}", type=int, default=count)
    options = parser.parse_args()
    options.work.mkdir(parents=True, exist_ok=True)
    found = measure(options)
    settings = {name: getattr(options, name) for name in ("tokens", "statistics", "effects", "texts")}
    write_json(options.json, {"model": options.weights.name, "settings": settings | {"sinks": SINKS, "window": WINDOW}, **found})


if __name__ == "__main__":
    main()
