"""Which class an image has: from `dataset.json`, or from the folder it lies in, and when a folder is not a class."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from gantrain.data.imageset import numbered_classes, printable
from gantrain.data.listing import LABELS, Listing, take_out, zip_components
from gantrain.errors import UserError, counted, one_line

# Names of the parts of a data set: train, val, test_set, train2017, trainA, ...
SPLIT = re.compile(
    r"(train(ing|val)?|trn|val(id|idation)?|test(ing)?|tst|dev|eval(uation)?)([-_ ]?(set|split|data|images|imgs|a|b|\d{1,4}))?",
    re.IGNORECASE,
)
# The same as words in longer names: seg_train, cifar-test, ILSVRC2012_img_val, 1_train, TrainImages, holdout, ...
PART = re.compile(r"train(ing|val)?|trn|(mini)?val(id|idation)?|test(ing)?|tst|dev|eval(uation)?|holdout|heldout|unseen")
SHORT = {"tr", "ts"}  # parts beside other words, as in imagesTr; alone, they may be languages
FILLERS = {"set", "split", "data", "images", "imgs", "hold", "out", "held", "a", "b"}
WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[^\W\d_A-Za-z]+")
UNLIKELY = {"image", "images", "img", "imgs", "jpegimages", "picture", "pictures", "mask", "masks", "label", "labels", "annotations"}
UNLABELLED = "set data.labels=false to train without labels"
SHOWN = 5  # folders named in a message
SHOWN_OF_LABEL = 40  # characters of a strange label in a message
FEWEST_BYTES, BYTES_OF_LABEL = 2**26, 256  # a label list may have 64 MiB, or 256 bytes an image
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


def most_label_bytes(images: int) -> int:
    """The largest size in bytes of the label list of so many images. It may list others besides."""
    return max(FEWEST_BYTES, BYTES_OF_LABEL * images)


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
    except (ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"{where}: is not valid JSON ({one_line(error)}); {remedy}") from None
    if not isinstance(content, dict) or "labels" not in content:
        raise UserError(
            f'{where}: has no "labels", which StyleGAN\'s tool writes there; add them, delete the file if the folders are the classes,'
            f" or {UNLABELLED}"
        )
    return content["labels"]


def lists_around(listing: Listing, paths: Sequence[Sequence[str]]) -> list[str]:
    """The label lists that lie beside or around all images, the outermost first; of several spellings, the one in lower case.

    Args:
        paths: components of the relative path of each image.
    """
    folders = {name: zip_components(name)[:-1] for name in listing.lists}
    around = [name for name, above in folders.items() if all(list(one[: len(above)]) == above for one in paths)]
    return sorted(around, key=lambda name: (len(folders[name]), zip_components(name)[-1] != LABELS, name))


def note_unused(listing: Listing, used: str | None = None) -> list[str]:
    """The warning that there are labels that do not count, because they do not lie beside or around all images."""
    others = sorted(name for name in listing.lists if name != used)
    if not others:
        return []
    of_all = "it is not beside the folders of all images" if len(others) == 1 else "they are not beside the folders of all images"
    return [f"warning: {listed(others)} {'is' if len(others) == 1 else 'are'} not used for labels, because {of_all}"]


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
    known = set(files)
    for spelled, label in pairs:
        name = spelled if spelled in known else "/".join(zip_components(spelled.replace("\\", "/")))  # .\\00000\\img.png of Windows
        if by_name.setdefault(name, label) != label:
            two = f"{str(by_name[name])[:SHOWN_OF_LABEL]} and {str(label)[:SHOWN_OF_LABEL]}"
            raise UserError(f"{where}: {LABELS} gives {printable(name)!r} two classes, {two}; keep one of them")
    missing = [name for name in files if name not in by_name]
    if missing:
        raise UserError(f"{where}: {len(missing)} images have no label in {LABELS}, for example {printable(missing[0])!r}; {UNLABELLED}")
    numbers = [by_name[name] for name in files]
    strange = next((n for n in numbers if type(n) is not int or not 0 <= n < 2**31), None)
    if strange is not None:
        raise UserError(f"{where}: a label in {LABELS} is {repr(strange)[:SHOWN_OF_LABEL]}, not a class 0, 1, 2, ...; {UNLABELLED}")
    labels_of_files = [n for n in numbers if isinstance(n, int)]
    extra = len(by_name) - len(known)
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
        """The sub-folders that are named like parts of one data set: what their names have besides is the same."""
        rests = {name: rest for name in self.counts if (rest := rest_of(name)) is not None}
        common = max(Counter(rests.values()).items(), key=lambda one: (one[1], not one[0]))[0] if rests else None
        return [name for name, rest in rests.items() if rest == common]

    @property
    def shared(self) -> list[str]:
        """Names of folders that every sub-folder has, if all images lie in such folders and there are two or more."""
        if self.direct or len(self.counts) < 2:
            return []
        found = sorted(set.intersection(*self.below.values()))
        return found if len(found) > 1 else []

    @property
    def parts(self) -> list[str]:
        """The sub-folders that are parts of a data set, and not classes themselves; empty if they may be classes.

        Two parts or more, by name, have folders for classes, or do not lie where classes belong. Where at least half of all
        sub-folders have such names and all contain the same folders, the others are parts as well: train beside rest.
        """
        splits, others = self.splits, len(self.counts) - len(self.splits)
        folders = [self.below[name] for name in splits]
        if len(splits) > 1 and (any(folders) or self.base):
            overlap = len(set().union(*folders)) < sum(map(len, folders))  # two parts have folders of the same name
            if overlap or not others:
                return splits
        plain = [name for name in splits if not rest_of(name)]  # not test_tube, which may be a class
        return list(self.counts) if plain and others <= len(plain) and self.shared else []

    @property
    def main_part(self) -> str:
        """The part to train on: the one named train, or else the largest."""
        return max(self.parts, key=lambda name: (any(word.startswith("tr") for word in words_of(name)), self.counts[name]))


def words_of(name: str) -> list[str]:
    """The words of a folder's name, in lower case and without numbers: seg_train, TrainImages and 1-train have "train"."""
    return [word.lower() for word in WORD.findall(name)]


def rest_of(name: str) -> tuple[str, ...] | None:
    """What else is in the name of a part of a data set, such as ("seg",) of seg_train; None if no part has such a name."""
    if SPLIT.fullmatch(name):
        return ()
    words = words_of(name)
    of_part = [word for word in words if PART.fullmatch(word) or (word in SHORT and len(words) > 1)]
    if not of_part and not re.search("hold[-_ ]?out|held[-_ ]?out", name.lower()):
        return None
    return tuple(word for word in words if word not in of_part and word not in FILLERS)


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
    if parts := tree.parts:
        best = tree.main_part
        flat = "" if tree.below[best] else ", and set data.labels=false, since it has no folders for classes"
        rename = "" if len(tree.splits) > 1 else f", or rename {tree.splits[0]!r} if it is a class"
        raise UserError(
            f"data.root: {where} holds {listed(parts)}, which are parts of a data set and not classes;"
            f" {into([*tree.base, best])}{flat}{rename}"
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
    notes += [*note_unused(listing), *note_numbered(tree, paths), *warnings_of(tree)]
    return Labelled(chosen, [number[paths[i][depth]] for i in chosen], names, True, notes)


def note_numbered(tree: Tree, paths: Sequence[Sequence[str]]) -> list[str]:
    """The warning that folders are those of StyleGAN's tool, which puts a thousand images of any classes into each."""
    numbered = all(re.fullmatch(r"\d{5}", name) for name in tree.counts) and all(re.fullmatch(r"img\d+\.\w+", path[-1]) for path in paths)
    if not tree.counts or not numbered:
        return []
    example = f"{min(tree.counts)!r} with {printable(paths[0][-1])!r}"
    return [
        f"warning: the classes are folders such as {example}, as StyleGAN's data set tool numbers them, and those are not classes;"
        f" add its {LABELS} with the labels, or {UNLABELLED}"
    ]


def warnings_of(tree: Tree) -> list[str]:
    """What makes it doubtful that the sub-folders are the classes, a line each."""
    lines, classes = [], set(tree.counts)
    if len(tree.splits) > 1:
        lines.append(f"warning: classes are named {listed(tree.splits)}; if these are parts of a data set, use the folder of one of them")
    unlikely = sorted(name for name in classes if name.lower() in UNLIKELY)
    if unlikely:
        lines.append(f"warning: a class is named {listed(unlikely)}; the outermost folders are the classes")
    inner = set().union(*tree.below.values())
    if inner and all(rest_of(name) is not None for name in inner):
        lines.append(f"warning: the classes contain {listed(sorted(inner))}; images of all these parts are used")
    elif shared := tree.shared:
        lines.append(
            f"warning: each of the class folders {listed(sorted(classes))} contains {listed(shared)};"
            " if those are the classes, use the folder of one part"
        )
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
