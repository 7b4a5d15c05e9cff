"""Which class an image has: from `dataset.json`, or from the folder it lies in, and when a folder is not a class."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from gantrain.data.imageset import numbered_classes, printable
from gantrain.data.listing import LABELS, Listing, take_out
from gantrain.errors import UserError, counted, one_line

# Names of the parts of a data set: train, val, test_set, train2017, trainA, ...
SPLIT = re.compile(
    r"(train(ing|val)?|trn|val(id|idation)?|test(ing)?|tst|dev|eval(uation)?)([-_ ]?(set|split|data|images|imgs|a|b|\d{1,4}))?",
    re.IGNORECASE,
)
UNLIKELY = {"image", "images", "img", "imgs", "jpegimages", "picture", "pictures", "mask", "masks", "label", "labels", "annotations"}
UNLABELLED = "set data.labels=false to train without labels"
SHOWN = 5  # folders named in a message
Into = Callable[[Sequence[str]], str]


@dataclass
class Labelled:
    """The classes of a listing.

    Attributes:
        chosen: numbers of the files that have a class; the others lie outside the class folders.
        labels: class number of each chosen file.
        names: of the classes, by number.
        named: whether the names are those of folders; None if they are numbers.
        notes: what the user should know, a line each.
    """

    chosen: list[int]
    labels: list[int]
    names: list[str]
    named: bool | None = None
    notes: list[str] = field(default_factory=list)


# ---- dataset.json ----------------------------------------------------------------------------------------------------


def read_labels(where: str, text: bytes) -> object:
    """Returns what `dataset.json` says of the labels.

    Args:
        where: of the file, for messages.
        text: its content.

    Raises:
        UserError: it is not JSON, or does not say anything.
    """
    remedy = f"fix it, or {UNLABELLED}"
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where}: is not valid JSON ({one_line(error)}); {remedy}") from None
    if not isinstance(content, dict) or "labels" not in content:
        raise UserError(
            f'{where}: has no "labels", which StyleGAN\'s tool writes there; add them, delete the file if the folders are the classes,'
            f" or {UNLABELLED}"
        )
    return content["labels"]


def label_by_list(where: str, files: Sequence[str], labels: object) -> Labelled:
    """Takes the classes from the `labels` entry of `dataset.json`.

    Args:
        where: the folder or zip, for messages.
        files: names of the images as the file should spell them.
        labels: pairs of a name and a class number.

    Raises:
        UserError: there are no labels, an image has none or two, or a label is not a whole number of at least 0.
    """
    if labels is None:
        raise UserError(f"{where}: has no labels ({LABELS} contains null); {UNLABELLED}")
    try:
        pairs = [(str(name), label) for name, label in labels]  # type: ignore[attr-defined]  # any JSON value; the except refuses it
    except (TypeError, ValueError):
        raise UserError(f"{where}: the labels in {LABELS} are not pairs of a name and a class; {UNLABELLED}") from None
    by_name: dict[str, object] = {}
    for name, label in pairs:
        if by_name.setdefault(name, label) != label:
            raise UserError(f"{where}: {LABELS} gives {printable(name)!r} two classes, {by_name[name]} and {label}; keep one of them")
    missing = [name for name in files if name not in by_name]
    if missing:
        raise UserError(f"{where}: {len(missing)} images have no label in {LABELS}, for example {printable(missing[0])!r}; {UNLABELLED}")
    numbers = [by_name[name] for name in files]
    strange = next((n for n in numbers if type(n) is not int or not 0 <= n < 2**31), None)
    if strange is not None:
        raise UserError(f"{where}: a label in {LABELS} is {strange!r}, not a class 0, 1, 2, ...; {UNLABELLED}")
    labels_of_files = [n for n in numbers if isinstance(n, int)]
    extra = len(by_name) - len(set(files))
    notes = [f"labels come from {LABELS}"] + ([f"warning: {LABELS} has {counted(extra, 'label')} without an image"] if extra else [])
    return Labelled(list(range(len(files))), labels_of_files, numbered_classes(where, max(labels_of_files), len(files)), notes=notes)


# ---- folders ---------------------------------------------------------------------------------------------------------


@dataclass
class Tree:
    """Where images lie.

    Attributes:
        base: the folders around everything: each is the only one in the folder above, and has no images of its own.
        loose: numbers of the images directly in the innermost of them.
        direct: how many images lie directly in each of its sub-folders.
        below: names of the folders in each of its sub-folders, of those that hold images.
        counts: how many images each of its sub-folders holds in all.
    """

    base: list[str]
    loose: list[int]
    direct: Counter[str]
    below: dict[str, set[str]]
    counts: Counter[str]

    @property
    def splits(self) -> list[str]:
        """The sub-folders that are named like parts of a data set."""
        return [name for name in self.counts if SPLIT.fullmatch(name)]

    @property
    def holds_splits(self) -> bool:
        """Whether the sub-folders are parts of a data set, and not classes themselves.

        They are if they have folders for classes, or if they do not lie where classes belong.
        """
        splits, others = self.splits, len(self.counts) - len(self.splits)
        folders = [self.below[name] for name in splits]
        if len(splits) < 2 or not (any(folders) or self.base):
            return False
        shared = len(set().union(*folders)) < sum(map(len, folders))  # two parts have folders of the same name
        return shared or not others

    @property
    def main_split(self) -> str:
        """The part to train on: the one named train, or else the largest."""
        return max(self.splits, key=lambda name: (name.lower().startswith("tr"), self.counts[name]))


def see_tree(paths: Sequence[Sequence[str]]) -> Tree:
    """Sees how images lie in folders.

    Args:
        paths: components of the relative path of each image.
    """
    depth = 0
    while paths and all(len(path) > depth + 2 for path in paths) and len({path[depth] for path in paths}) == 1:
        depth += 1
    direct: Counter[str] = Counter()
    counts: Counter[str] = Counter()
    below: dict[str, set[str]] = {}
    loose = []
    for number, path in enumerate(paths):
        inside = path[depth:]
        if len(inside) == 1:
            loose.append(number)
            continue
        counts[inside[0]] += 1
        folders = below.setdefault(inside[0], set())
        if len(inside) == 2:
            direct[inside[0]] += 1
        else:
            folders.add(inside[1])
    ordered = Counter({name: counts[name] for name in sorted(counts)})
    return Tree(list(paths[0][:depth]) if paths else [], loose, direct, below, ordered)


def label_by_folder(listing: Listing, paths: Sequence[Sequence[str]], where: str, into: Into, unwraps: bool) -> Labelled:
    """Takes the classes from the folders that images lie in.

    Args:
        listing: counts the images outside the class folders as passed over.
        paths: components of the relative path of each image.
        where: the folder or zip, for messages.
        into: words a remedy that uses only the folder with these components.
        unwraps: whether folders around the classes are passed through; otherwise they are refused.

    Raises:
        UserError: the folders are parts of a data set, or one folder lies around the classes.
    """
    tree = see_tree(paths)
    if tree.holds_splits:
        best = tree.main_split
        flat = "" if tree.below[best] else ", and set data.labels=false, since it has no folders for classes"
        raise UserError(
            f"data.root: {where} holds {listed(tree.splits)}, which are parts of a data set and not classes;"
            f" {into([*tree.base, best])}{flat}"
        )
    if tree.base and not unwraps and len(tree.counts) > 1:
        raise UserError(
            f"data.root: {where} has only one class, {tree.base[0]!r}, so a conditional model has nothing to learn;"
            f" {into(tree.base)}, whose sub-folders look like the classes, or set data.labels=false"
        )
    depth = len(tree.base) if unwraps else 0
    names = sorted(tree.counts) if unwraps else listing.folders
    number = {name: i for i, name in enumerate(names)}
    chosen = list(take_out(listing, tree.loose))
    notes = [f"the folder {'/'.join(tree.base)} lies around the classes"] if depth else []
    return Labelled(chosen, [number[paths[i][depth]] for i in chosen], names, True, notes + warnings_of(tree))


def warnings_of(tree: Tree) -> list[str]:
    """What makes it doubtful that the sub-folders are the classes, a line each."""
    lines, classes = [], set(tree.counts)
    if len(tree.splits) > 1:
        lines.append(f"warning: classes are named {listed(tree.splits)}; if these are parts of a data set, use the folder of one of them")
    unlikely = sorted(name for name in classes if name.lower() in UNLIKELY)
    if unlikely:
        lines.append(f"warning: a class is named {listed(unlikely)}; the outermost folders are the classes")
    inner = set().union(*tree.below.values())
    if len(inner) > 1 and all(SPLIT.fullmatch(name) for name in inner):
        lines.append(f"warning: the classes contain {listed(sorted(inner))}; images of all these parts are used")
    elif not tree.direct and classes and all(len(folders) > 1 for folders in tree.below.values()):
        count = sum(map(len, tree.below.values()))
        lines.append(f"all images lie deeper, in {count:,} folders inside the {len(classes):,} class folders; those are not classes")
    return lines


def note_splits(paths: Sequence[Sequence[str]]) -> list[str]:
    """The line for images that are used without classes, if they come from several parts of a data set, such as train and val."""
    tree = see_tree(paths)
    if len(tree.splits) < 2:
        return []
    inside = f" in {'/'.join(tree.base)}" if tree.base else ""
    return [f"warning: images of {listed(tree.splits)}{inside} are used together; to use one part, pass its folder"]


def listed(names: Sequence[str]) -> str:
    """Names of folders as "'test', 'train' and 'val'"."""
    some = [repr(printable(name)) for name in names[:SHOWN]]
    if len(names) > SHOWN:
        return f"{', '.join(some)} and {len(names) - SHOWN} more"
    return " and ".join([", ".join(some[:-1]), some[-1]]) if len(some) > 1 else some[0]
