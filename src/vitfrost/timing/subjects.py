"""What is measured: artifacts, exported folders and timm models, and the unmodified models that they are measured beside."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

from ..artifact import Artifact, is_artifact
from ..configs.words import size_word
from ..errors import VitfrostError
from ..evaluation.description import describe
from ..model import Model
from ..runtime.folder import is_export, read_export
from ..vit.load import RANDOM_WEIGHTS, find_weights
from .sessions import ModelSource

TIMM = "timm:"
Size = int | tuple[int, int]


@dataclass(frozen=True, eq=False)
class Subject:
    """A model to be measured. `source` and `loaded` are None for an exported folder, `export` for anything else.

    `original` names the timm model that it was made from, with size and options: what an unmodified peer is built as; `peer` is the label
    of that unmodified model.
    """

    label: str
    unmodified: bool
    original: ModelSource
    weight_tag: str
    state_hash: str
    plan_hash: str | None
    macs: int
    image_size: tuple[int, int]
    kind: Literal["executed", "simulated"] = "executed"
    precision: str = "fp32"
    source: ModelSource | None = None
    loaded: Model | None = None
    export: Path | None = None
    about: dict[str, Any] | None = None
    peer: str = ""

    @property
    def random_weights(self) -> bool:
        """Whether the weights are untrained."""
        return self.weight_tag.startswith(f"{RANDOM_WEIGHTS}:")


def open_subjects(
    what: Sequence[str | Path | ModelSource], weights: str | Path | None, image_sizes: Sequence[Size] | None
) -> list[Subject]:
    """The models named by `what`, in their order, and after them the unmodified models that are not among them.

    `weights`: a file (or a folder with NAME/model.safetensors) for timm models and unmodified ones, or "random". Without it a timm
    model that is named has timm's own, and an unmodified peer has random ones. `image_sizes`: what timm models are built for;
    an artifact has one size, which must be among them. Raises VitfrostError for anything that cannot be opened.
    """
    if not what:
        raise VitfrostError("nothing to measure; give artifact folders, exported folders or timm:NAME")
    labels = _labels(what)
    given: list[Subject] = []
    for item, label in zip(what, labels, strict=True):
        if isinstance(item, ModelSource):
            given.append(_timm(item, label))
            _check_size(given[-1], image_sizes)
        elif str(item).startswith(TIMM):
            name = str(item).removeprefix(TIMM)
            for size in image_sizes or (None,):
                sides = (size, size) if isinstance(size, int) else size
                given.append(_timm(ModelSource(name, False, _weights(weights, name), sides), label))
        else:
            given.append(_folder(Path(str(item)), label))
            _check_size(given[-1], image_sizes)
    known = {_build(subject) for subject in given if subject.unmodified}
    peers: list[Subject] = []
    for subject in given:
        if _build(subject) not in known:
            known.add(_build(subject))
            peers.append(_timm(_peer_source(subject.original, weights), subject.original.model))
    every = [*given, *_named_apart(peers, {subject.label for subject in given})]
    unmodified = {_build(subject): subject.label for subject in every if subject.unmodified}
    return [replace(subject, peer=unmodified[_build(subject)]) for subject in every]


def _peer_source(original: ModelSource, weights: str | Path | None) -> ModelSource:
    chosen = RANDOM_WEIGHTS if weights is None else _weights(weights, original.model)
    return ModelSource(original.model, False, chosen, original.image_size, original.options)


def _build(subject: Subject) -> tuple[Any, ...]:
    """What tells one unmodified model from another: name, image size, options."""
    return subject.original.model, subject.image_size, repr(sorted(subject.original.options.items()))


def _weights(weights: str | Path | None, name: str) -> str | None:
    if weights is None or str(weights) == RANDOM_WEIGHTS:
        return None if weights is None else RANDOM_WEIGHTS
    return find_weights(Path(weights), name)


def _labels(what: Sequence[str | Path | ModelSource]) -> list[str]:
    """What the subjects are called: a timm name, a folder's name, or its whole path where names are alike."""
    named = [f"{TIMM}{item.model}" if isinstance(item, ModelSource) else str(item) for item in what]
    short = [name.removeprefix(TIMM) if name.startswith(TIMM) else Path(name).resolve().name for name in named]
    labels = [name if short.count(name) == 1 else whole for name, whole in zip(short, named, strict=True)]
    for label in labels:
        if labels.count(label) > 1:
            raise VitfrostError(f"{label} is given twice; name every model once")
    return labels


def _named_apart(peers: list[Subject], taken: set[str]) -> list[Subject]:
    found = []
    for peer in peers:
        alike = peer.label in taken or [other.label for other in peers].count(peer.label) > 1
        size = "x".join(map(str, peer.image_size))
        label = f"{peer.label} at {size}" if alike else peer.label
        while label in taken:
            label += " unmodified"
        taken.add(label)
        found.append(replace(peer, label=label))
    return found


def _timm(source: ModelSource, label: str) -> Subject:
    loaded = source.load()
    return _subject(loaded, source, label, unmodified=True)


def _subject(loaded: Model, source: ModelSource, label: str, unmodified: bool) -> Subject:
    about = describe(loaded)
    return Subject(
        label, unmodified, ModelSource(loaded.name, False, None, loaded.image_size, loaded.options), loaded.weight_tag, loaded.state_hash,
        about.plan_hash, about.macs, loaded.image_size, about.kind, about.precision, source, loaded,
    )  # fmt: skip


def _folder(path: Path, label: str) -> Subject:
    if is_export(path):
        return _exported(path, label)
    if is_artifact(path):
        return _subject(Artifact.load(path), ModelSource(str(path.resolve()), artifact=True), label, unmodified=False)
    hint = f"; for the timm model write {TIMM}{path}" if "/" not in str(path) and not path.exists() else ""
    raise VitfrostError(f"{path} is neither an artifact nor an exported folder{hint}")


def _exported(path: Path, label: str) -> Subject:
    about = read_export(path)
    try:
        model, size = about["model"], tuple(about["model"]["image_size"])
        original = ModelSource(model["name"], False, None, size, dict(model.get("options") or {}))
        return Subject(
            label, False, original, str(model["weight_tag"]), str(model["state_hash"]), about["plan_hash"], int(about["macs"]), size,
            export=path, about=about,
        )  # fmt: skip
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise VitfrostError(f"the export.json of {path} is damaged: {type(error).__name__} {error}; export again") from error


def _check_size(subject: Subject, image_sizes: Sequence[Size] | None) -> None:
    if image_sizes and subject.image_size not in [size if isinstance(size, tuple) else (size, size) for size in image_sizes]:
        own, asked = size_word(subject.image_size), ", ".join(map(size_word, image_sizes))
        raise VitfrostError(f"{subject.label} is built for {own} px, Bench.image_size is {asked}; only timm: models are built for any size")
