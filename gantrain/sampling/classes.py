"""The classes of a run as a user names them: by name, by number, or both."""

from __future__ import annotations

import csv
import difflib
import re
import unicodedata
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn

from gantrain.errors import UserError
from gantrain.run_folder.checkpoint import read_state
from gantrain.sampling.sheets import can_draw
from gantrain.text_table import align, join_columns

NUMBER = re.compile(r"-?[0-9]{1,18}")  # more digits are a name: Python does not read any number of them
BY_NAME, BY_NUMBER = "name:", "number:"  # prefixes that decide what a text such as "2" is


@dataclass(frozen=True)
class Classes:
    """The classes of a run.

    Attributes:
        count: how many; labels are 0 .. count - 1.
        names: by label; None if the run does not know them.
        images: number of real images of each class; None if the run does not know them.
        run: the run folder, for messages.
    """

    count: int
    names: tuple[str, ...] | None = None
    images: tuple[int, ...] | None = None
    run: str = "RUN"

    @classmethod
    def at(cls, path: Path, run: str | Path) -> Classes:
        """Those of a checkpoint.

        Raises:
            Damaged: the checkpoint is damaged.
        """
        state = read_state(path)
        names, images = (None if state.get(key) is None else tuple(state[key]) for key in ("class_names", "class_counts"))
        return cls(state["shape"][2], names, images, str(run))

    def heading(self, label: int, most: int | None = None) -> str:
        """What a class is called on a sheet: its name, at most so many characters of it, or its number if no font has the name."""
        if self.names is None:
            return str(label)
        name = self.names[label]
        if not name or not can_draw(name):
            return f"no. {label}"
        return name if most is None or len(name) <= most else f"{name[: most - 3].rstrip()}..."

    def describe(self, label: int) -> str:
        """A class in a message: its number, and its name if that says more."""
        return str(label) if self.names is None or self.names[label] == str(label) else f"{label} ({self.names[label]})"

    def listed(self) -> str:
        """A table of all classes: number, number of images and name, as far as they are known."""
        if self.count == 1:
            return "the run has no classes"
        rows = range(self.count)
        columns = [align(["number", *map(str, rows)], right=True)]
        if self.images is not None:
            columns.append(align(["images", *(f"{self.images[i]:,}" for i in rows)], right=True))
        if self.names is not None:  # last, since some characters are wider than others
            columns.append(align(["name", *self.names]))
        table = join_columns(columns)
        unknown = "class names are unknown: the data set has none, or the run was made before they were kept"
        return table if self.names is not None else f"{table}\n{unknown}"

    # ---- reading labels ----------------------------------------------------------------------------------------------

    def parse(self, given: Sequence[int | str]) -> list[int]:
        """Labels from numbers of classes, and from texts as `--labels` takes them.

        A text is the name of a class, or a list of names and numbers separated by commas, with quotes around a name that contains one.
        `name:` or `number:` before a name or number decides where a text could be either.

        Raises:
            UserError: there is no such class, or a text could mean two.
        """
        found: list[int] = []
        for one in given:
            if isinstance(one, str):
                found += [self.find(one)] if one in (self.names or ()) else map(self.find, split_list(one))
            else:
                found.append(self._numbered(int(one)))
        return found

    def find(self, text: str) -> int:
        """The label of a class given by name or number.

        Raises:
            UserError: see `parse`.
        """
        known = self.names or ()
        if text not in known and text.startswith((BY_NAME, BY_NUMBER)):
            kind, _, text = text.partition(":")
            if kind == "name":
                found = self._named(text)
                if found is None:
                    self._unknown(text)
                return found
            if not NUMBER.fullmatch(text):
                raise UserError(f"--labels: {text!r} is not a number; `number:` takes the number of a class")
            return self._numbered(int(text))
        named = self._named(text)
        if not NUMBER.fullmatch(text):
            if named is None:
                self._unknown(text)
            return named
        number = int(text)
        if named is None:  # names such as "07" are read as numbers here, so that 7 is not silently the eighth class
            alike = [i for i, name in enumerate(known) if NUMBER.fullmatch(name) and int(name) == number]
            named = alike[0] if alike else None
        if named is not None and named != number and 0 <= number < self.count:
            raise UserError(
                f"--labels: {text} is both the name of class {named} and the number of class {known[number]!r};"
                f" write {BY_NAME}{known[named]} or {BY_NUMBER}{number}"
            )
        return self._numbered(number) if named is None else named

    def _numbered(self, number: int) -> int:
        """A label, checked.

        Raises:
            UserError: there is no such class.
        """
        if not 0 <= number < self.count:
            known = f"classes 0 to {self.count - 1}" if self.count > 1 else "no classes"
            raise UserError(f"--labels: there is no class {number}; the run has {known}")
        return number

    def _named(self, text: str) -> int | None:
        """The label of the class of a name, spelt exactly or in other upper and lower case; None if there is none.

        Raises:
            UserError: several classes have it.
        """
        known = self.names or ()
        found = [i for i, name in enumerate(known) if name == text] or [i for i, name in enumerate(known) if alike(name) == alike(text)]
        if len(found) > 1:
            which = ", ".join(f"{i} ({known[i]!r})" for i in found)
            raise UserError(f"--labels: {text!r} could be any of the classes {which}; write {BY_NUMBER}{found[0]}, for example")
        return found[0] if found else None

    def _unknown(self, text: str) -> NoReturn:
        """Refuse a name.

        Raises:
            UserError: always; names the nearest one.
        """
        if self.count == 1:
            raise UserError(f"--labels: there is no class {text!r}; the run has no classes")
        if self.names is None:
            raise UserError(
                f"--labels: there is no class {text!r}; the run knows no class names, so use numbers from 0 to {self.count - 1}"
            )
        close = difflib.get_close_matches(alike(text), list(map(alike, self.names)), n=1)
        nearest = next((name for name in self.names if close and alike(name) == close[0]), None)
        hint = f"; did you mean {nearest!r}?" if nearest is not None else ""
        quote = "; quote a name that contains a comma" if any("," in name and text in name for name in self.names) else ""
        raise UserError(f"--labels: there is no class {text!r}{hint}{quote}; `gantrain sample {self.run} --classes` lists them")


def alike(name: str) -> str:
    """A name for comparison: without upper case, and with accents written in one way (macOS writes them in another)."""
    return unicodedata.normalize("NFC", name).casefold()


def split_list(text: str) -> list[str]:
    """Split a list at its commas, but not inside quotes.

    Raises:
        UserError: a part is empty.
    """
    parts = [part.strip() for part in next(csv.reader([text.replace("\n", " ")], skipinitialspace=True), [])]
    if not parts or not all(parts):
        raise UserError(f"--labels: {text!r} has an empty class; write for example --labels 0,3")
    return parts
