"""Which class is meant by a word: a number, a synset, or a name. Folders and tables of labels are read with it."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from ..errors import VitfrostError

SYNSET = re.compile(r"(n\d{8})(?:[\s_-].*)?")
NUMBER = re.compile(r"\d{1,9}")
SPLITS = frozenset({"train", "training", "val", "valid", "validation", "test", "testing"})


@dataclass(frozen=True)
class ClassSpace:
    """The classes of a model: how many, what each is called (several words may mean one class, one word several), and the synsets.

    `names` has the words in the form of `spelled`.
    """

    count: int
    names: Mapping[str, frozenset[int]] = field(default_factory=dict)
    synsets: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, count: int, names: Sequence[Iterable[str]] | None = None, synsets: Sequence[str] = ()) -> ClassSpace:
        """`names`: the words for every class, in order; `synsets`: WordNet's number of every class, in order."""
        known: dict[str, set[int]] = {}
        for index, words in enumerate(names or ()):
            for word in words:
                known.setdefault(spelled(word), set()).add(index)
        return cls(count, {word: frozenset(found) for word, found in known.items()}, {name: index for index, name in enumerate(synsets)})

    def synset(self, word: str) -> int | None:
        """The class of a synset, such as n01440764 or n01440764_tench."""
        found = SYNSET.fullmatch(word)
        return None if found is None else self.synsets.get(found[1])

    def named(self, word: str) -> int | None:
        """The class of that name, None where there is none or more than one."""
        found = self.names.get(spelled(word), frozenset())
        return next(iter(found)) if len(found) == 1 else None

    def find(self, word: str) -> int | None:
        """The class of a word, whatever it is; a number is not checked against the number of classes."""
        if NUMBER.fullmatch(word):
            return int(word)
        found = self.synset(word)
        return self.named(word) if found is None else found


def spelled(name: str) -> str:
    """A name without what differs between a folder and a text: case, and what stands between words."""
    return " ".join(re.split(r"[\W_]+", name.casefold())).strip()


def classes_of_folders(names: Sequence[str], space: ClassSpace | None, root: object, mend: str) -> dict[str, int]:
    """The class of every class folder; `names` are in timm's natural order.

    As many folders as classes: by their names where all are the model's (synsets, or names of classes), else 0, 1, ... in the order
    given, as timm counts them, where none is the model's. Fewer folders: each says its class by itself, as a synset, a number or a name;
    names that are numbers, and all of classes, are names. Without `space` they are counted. Raises VitfrostError for more folders than
    classes, for one whose class is not known, or is another's, for numbers with gaps, and for the folders of a split.
    """
    if SPLITS.issuperset(map(str.casefold, names)):
        raise VitfrostError(
            f"the folders of {root} ({', '.join(names)}) are called like the parts of a data set, not like classes; name one"
        )
    if space is None:
        return {name: number for number, name in enumerate(names)}
    if len(names) > space.count:
        raise VitfrostError(f"the folder {root} has {len(names)} class folders but the model has {space.count} classes; {mend}")
    if len(names) == space.count:
        return _all_classes(names, space, root, mend)
    found: dict[str, int] = {}
    find = space.find if any(space.named(name) is None for name in names) else space.named
    for name in names:
        number = find(name)
        if number is None or number >= space.count:
            why = "is no class" if number is None else f"is above the last class, {space.count - 1}"
            raise VitfrostError(
                f"the folder {root} has {len(names)} class folders, the model {space.count} classes, and '{name}' {why}; "
                f"call folders by {_words(space)}, or give a labels CSV"
            )
        found[name] = number
    _refuse_twice(found, root)
    return found


def _all_classes(names: Sequence[str], space: ClassSpace, root: object, mend: str) -> dict[str, int]:
    counted = {name: number for number, name in enumerate(names)}
    known = {name: number for name in names if (number := _by_name(name, space)) is not None}
    if len(set(known.values())) == len(names):
        return known
    if known:
        first = next((name for name in known if known[name] != counted[name]), next(iter(known)))
        unknown = next((name for name in names if name not in known), first)
        raise VitfrostError(
            f"the class folders of {root} are called like the model's classes ('{first}' is its class {known[first]}), but '{unknown}' is "
            f"not one of them, or one of them twice; {mend}"
        )
    if all(map(NUMBER.fullmatch, names)):
        numbers = sorted(map(int, names))
        if numbers not in (list(range(len(names))), list(range(1, len(names) + 1))):
            raise VitfrostError(
                f"the class folders of {root} are numbers from {numbers[0]} to {numbers[-1]} with gaps, of {space.count} classes; "
                f"call folders by their numbers (0 to {space.count - 1}), or give a labels CSV"
            )
        return {name: int(name) - numbers[0] for name in names}
    return counted


def _by_name(name: str, space: ClassSpace) -> int | None:
    found = space.synset(name)
    return space.named(name) if found is None else found


def _refuse_twice(found: Mapping[str, int], root: object) -> None:
    first: dict[int, str] = {}
    for name, number in found.items():
        if number in first:
            raise VitfrostError(f"the class folders '{first[number]}' and '{name}' of {root} are both class {number}; put them into one")
        first[number] = name


def _words(space: ClassSpace) -> str:
    names = ", by the names of the classes" if space.names else ", by class names (and give those: --class-names FILE)"
    return f"the number of the class (0 to {space.count - 1}){', by synsets' if space.synsets else ''}{names}"
