"""YAML as plain values for readers that need no good words: `gantrain.strict_yaml` many times as fast, and without positions in errors.

`gantrain runs` reads the configurations of hundreds of runs, and PyYAML's loader in Python takes 6 ms for one. Here the events of libyaml,
if PyYAML has it, become values without recursion and without nodes, and an alias is the same object again. What is read and what is
refused is the same.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import yaml

from gantrain.strict_yaml import CORE, DEEPEST, FORMS, LONGEST_KEY, LONGEST_NUMBER, MOST_REPEATED, MOST_VALUES, TAG, WEIGHT, parse_int

Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)
NOT_YET = object()  # a mapping that has no key waiting for a value
MERGE = object()  # the key `<<`
# First character of a plain text -> the tags that it may have.
BY_FIRST: dict[str, list[str]] = {}
for schema_tag, _, schema_first in CORE:
    for character in schema_first:
        BY_FIRST.setdefault(character, []).append(schema_tag)
VALUES: dict[str, Callable[[str], Any]] = {
    "null": lambda text: None,
    "merge": lambda text: text,
    "bool": lambda text: text.lower() == "true",
    "int": parse_int,
    "float": lambda text: float(text.lower().replace(".inf", "inf").replace(".nan", "nan")),
}


class Collection:
    """A list or mapping that is being read.

    Attributes:
        value: what it is so far.
        anchor: its name for aliases, or None.
        before: how many values the text meant before it.
    """

    def __init__(self, value: Any, anchor: str | None = None, before: int = 0):
        self.value, self.anchor, self.before = value, anchor, before
        self._key: Any = NOT_YET
        self._merged: list[Any] | None = None

    @property
    def awaits_key(self) -> bool:
        """Whether the next value is a key."""
        return self._key is NOT_YET and isinstance(self.value, dict)

    def add(self, value: Any, tag: str) -> None:
        """Add the next item, or the next key or value; `tag` is that of a text, a number and so on, or "".

        Raises:
            YAMLError: it cannot be a key, is there already, or cannot be merged.
        """
        if isinstance(self.value, list):
            self.value.append(value)
        elif self._key is NOT_YET:
            self._key = self._require_key(value, tag)
        elif self._key is MERGE:
            self._merged = value if isinstance(value, list) else [value]
            self._key = NOT_YET
        else:
            self.value[self._key] = value
            self._key = NOT_YET

    def _require_key(self, value: Any, tag: str) -> Any:
        if tag == "merge":
            if self._merged is not None:
                raise yaml.YAMLError("two merge keys")
            return MERGE
        if tag != "str" or len(value) > LONGEST_KEY or value in self.value:
            raise yaml.YAMLError("a key that is not a text, is too long, or appears twice")
        return value

    def close(self) -> None:
        """Take what merge keys give: own keys win, then those that are merged first.

        Raises:
            YAMLError: something other than a mapping would be merged.
        """
        if self._merged is None:
            return
        if not all(isinstance(one, dict) for one in self._merged):
            raise yaml.YAMLError("a merge key needs mappings")
        own = dict(self.value)
        self.value.clear()  # in PyYAML's order: what is merged, then what is written
        for one in [*reversed(self._merged), own]:
            self.value.update(one)


def load_plain(text: bytes | str, shallow: bool = False) -> Any:
    """The values of a YAML text of one document.

    Args:
        text: in UTF-8.
        shallow: leave what is below the first level as the texts that are written there, which takes half the time.

    Raises:
        YAMLError, ValueError: it is not YAML, or not what `gantrain.strict_yaml` accepts.
    """
    loader = Loader(text)
    try:
        return Reader(loader, shallow).read()
    finally:
        loader.dispose()


class Reader:
    """Builds the value of the only document of a loader; `shallow` as in `load_plain`."""

    def __init__(self, loader: Any, shallow: bool):
        self._loader, self._shallow = loader, shallow
        self._top = Collection([])
        self._open = [self._top]
        self._anchors: dict[str, tuple[Any, str, int] | None] = {}  # (value, tag, how many values it means); None while it is open
        self._written, self._repeated, self._values = 0, 0, 0  # as in `StrictComposer`

    def read(self) -> Any:
        """The value.

        Raises:
            YAMLError, ValueError: see `load_plain`.
        """
        while self._loader.check_event():
            event = self._loader.get_event()
            if isinstance(event, yaml.ScalarEvent):
                self._add_scalar(event)
            elif isinstance(event, yaml.CollectionStartEvent):
                self._begin(event)
            elif isinstance(event, yaml.CollectionEndEvent):
                self._end()
            elif isinstance(event, yaml.AliasEvent):
                self._add_alias(event)
        if len(self._top.value) > 1:
            raise yaml.YAMLError("more than one document")
        return self._top.value[0] if self._top.value else None

    def _count(self, anchor: str | None) -> None:
        self._written += 1
        self._values += 1
        if self._written > MOST_VALUES:
            raise yaml.YAMLError(f"more than {MOST_VALUES} values")
        if anchor is not None:
            if anchor in self._anchors:
                raise yaml.YAMLError(f"two anchors &{anchor}")
            self._anchors[anchor] = None

    def _add_scalar(self, event: yaml.ScalarEvent) -> None:
        self._count(event.anchor)
        self._values += len(event.value) // WEIGHT
        found = (event.value, "str") if self._shallow and len(self._open) > 2 else read_scalar(event)
        if event.anchor:
            self._anchors[event.anchor] = (*found, 1 + len(event.value) // WEIGHT)
        self._open[-1].add(*found)

    def _begin(self, event: yaml.CollectionStartEvent) -> None:
        if len(self._open) > DEEPEST or self._open[-1].awaits_key:
            raise yaml.YAMLError("too deeply nested, or a key that is a list or a mapping")
        empty: Any = {} if isinstance(event, yaml.MappingStartEvent) else []
        if event.tag not in (None, "!", f"{TAG}{'map' if isinstance(empty, dict) else 'seq'}"):
            raise yaml.YAMLError(f"the tag {event.tag}")
        before = self._values
        self._count(event.anchor)
        self._open.append(Collection(empty, event.anchor, before))

    def _end(self) -> None:
        done = self._open.pop()
        done.close()
        if done.anchor:
            self._anchors[done.anchor] = (done.value, "", self._values - done.before)
        self._open[-1].add(done.value, "")

    def _add_alias(self, event: yaml.AliasEvent) -> None:
        found = self._anchors.get(event.anchor)
        if found is None:
            raise yaml.YAMLError(f"the alias {event.anchor} stands for nothing, or contains itself")
        value, tag, count = found
        self._repeated += count
        self._values += count
        if self._repeated > MOST_REPEATED:
            raise yaml.YAMLError(f"more than {MOST_REPEATED} values that aliases repeat")
        self._open[-1].add(value, tag)


def read_scalar(event: yaml.ScalarEvent) -> tuple[Any, str]:
    """(the value of a scalar, the name of its tag).

    Raises:
        YAMLError: a tag that is not allowed, or that the text does not fit.
    """
    text, tag = event.value, event.tag
    if tag is None or tag == "!":
        if not event.implicit[0]:  # it is quoted
            return text, "str"
        name = next((one for one in BY_FIRST.get(text[:1], ()) if FORMS[one].fullmatch(text)), "str")
    else:
        name = tag.removeprefix(TAG)
        if name != "str" and (name not in FORMS or not FORMS[name].fullmatch(text)):
            raise yaml.YAMLError(f"the tag {tag}")
    if name == "str":
        return text, name
    if name in ("int", "float") and len(text) > LONGEST_NUMBER:
        raise yaml.YAMLError("a number of endless length")
    return VALUES[name](text), name
