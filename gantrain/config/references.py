"""References between keys, `${section.key}`: resolved against the whole configuration, of which most keys have their defaults.

OmegaConf reads and evaluates a reference. What is done here is the order: everything that a value refers to is settled before the value
itself, so that each is evaluated once. A chain of 25 values, each of which repeats the one before it twice, would otherwise become 300 MB.
"""

from __future__ import annotations

import dataclasses
import re
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf

from gantrain.config.config import Config
from gantrain.config.plain import key_of, plain_value
from gantrain.config.plugins import find, name_of
from gantrain.config.yaml_files import escape_references
from gantrain.errors import UserError

MOST_TEXT = 10_000  # characters of all values with references; OmegaConf parses 10,000 a second
MOST_REFERENCES = 500  # in all values
MOST_RESULT = 20_000  # characters that all references together stand for
OF_NODE = 20  # characters that a value counts besides its text: OmegaConf makes some thousand nodes a second
INNERMOST = re.compile(r"(\\*)\$\{([^${}]*)\}")  # a reference with no other inside it, and the backslashes before it
NODE = re.compile(r"\s*(\.*)([\w.\[\]$-]+)\s*")  # a key, from the top or, after dots, from the section
WORD = re.compile(r"[\w.\[\]-]+")
MISSING = object()
Container = DictConfig | ListConfig
Parts = tuple[str, ...]


class Unresolved(Exception):
    """A reference that leads nowhere.

    Attributes:
        key: the full key whose value contains it.
        words: what is wrong.
        missing: the key that does not exist; "" if something else is wrong.
    """

    def __init__(self, parts: Parts, words: str, missing: str = ""):
        super().__init__(words)
        self.key, self.words, self.missing = ".".join(parts), words, missing


class TextBudget:
    """Counts the characters of values with references before OmegaConf parses them."""

    def __init__(self) -> None:
        self.text = self.references = 0

    def add(self, value: Any) -> bool:
        """Count a value and everything in it. Whether the sum is still within the bounds."""
        if isinstance(value, Mapping):
            return all(self.add(one) for one in value.values())
        if isinstance(value, list):
            return all(self.add(one) for one in value)
        if isinstance(value, str) and "${" in value:
            self.text += len(value)
            self.references += value.count("${")
        return self.text <= MOST_TEXT and self.references <= MOST_REFERENCES


def resolve(merged: DictConfig) -> dict[str, Any]:
    """The same values with every reference replaced by what it stands for.

    Raises:
        Unresolved: a reference leads to no key, to itself, or to too much.
        OmegaConfBaseException: it cannot be read or evaluated.
    """
    values = References(merged).resolve()
    return typing.cast("dict[str, Any]", pruned(values, OmegaConf.to_container(merged)))


def pruned(values: Any, like: Any) -> Any:
    """The values without keys that were only added as defaults: those that a section does not have before it is resolved."""
    if not (isinstance(values, dict) and isinstance(like, dict)):
        return values
    return {key: pruned(values[key], like[key]) for key in like}


class References:
    """Settles the references of a configuration, each once.

    Args:
        merged: all values that files and overrides set; it is copied.
    """

    def __init__(self, merged: DictConfig):
        self.values = OmegaConf.create(OmegaConf.to_container(merged))
        self.open: list[Parts] = []  # being settled
        self.result = 0  # characters so far

    def resolve(self) -> dict[str, Any]:
        """Settle everything; the plain values."""
        self.settle_below(self.values, ())
        plain = OmegaConf.to_container(self.values, resolve=True)
        assert isinstance(plain, dict)
        return typing.cast("dict[str, Any]", plain)

    def settle_below(self, node: Any, parts: Parts) -> None:
        """Settle all values inside a section or list."""
        for key in keys_of(node):
            self.settle(node, key, (*parts, str(key)))

    def settle(self, parent: Container, key: Any, parts: Parts) -> Any:
        """Settle one value, and everything inside it; the node. `parts` is its full key."""
        node: Any = parent._get_node(key)
        text = None if isinstance(node, Container) and not node._is_interpolation() else node._value()
        if not isinstance(text, str):
            self.settle_below(node, parts)
            return node
        if "${" not in text:
            return node
        if parts in self.open:
            raise Unresolved(self.open[-1], f"the reference ${{{'.'.join(parts)}}} leads back to itself")
        self.open.append(parts)
        for target, required in self.targets(text, parts):
            if any(one[: len(target)] == target for one in self.open):
                raise Unresolved(parts, f"the reference ${{{'.'.join(target)}}} leads back to itself")
            found = self.find(target, parts if required else None)
            self.result += size_of(found)
            if self.result > MOST_RESULT:
                raise Unresolved(parts, f"references stand for more than {MOST_RESULT} characters")
        value = parent[key]  # which evaluates it
        parent[key] = escape_references(OmegaConf.to_container(value, resolve=True) if isinstance(value, Container) else value)
        self.open.pop()
        return parent._get_node(key)

    def targets(self, text: str, parts: Parts) -> Iterator[tuple[Parts, bool]]:
        """(full key, whether it must exist) of everything that a text refers to, the innermost references first."""
        while references := list(INNERMOST.finditer(text)):
            for found in references:
                escaped, content = len(found[1]) % 2, found[2]
                inner = ""
                node = NODE.fullmatch(content)
                if not escaped and node:
                    target = (*parts[: -len(node[1])], *split(node[2])) if node[1] else split(node[2])
                    yield target, True
                    value = self.get(target)
                    inner = str(value) if WORD.fullmatch(str(value)) else ""
                elif not escaped:  # of a function, such as oc.env or oc.select, whose arguments may be keys
                    yield from ((split(word), False) for word in WORD.findall(content.partition(":")[2]) if split(word))
                text = text.replace(found[0], inner, 1)

    def find(self, target: Parts, wanted_by: Parts | None) -> Any:
        """The settled node at a full key; where only its default stands, that is added.

        Raises:
            Unresolved: there is no such key, and the key `wanted_by` needs it.
        """
        parent: Any = self.values
        node: Any = self.values
        inside: Any = MISSING
        for i, part in enumerate(target):
            inside = next((key for key in keys_of(node) if str(key) == part), MISSING)
            if inside is MISSING:
                value = default_of(target[: i + 1], self.get) if isinstance(node, DictConfig) else MISSING
                if value is MISSING:
                    if wanted_by is None:
                        return None
                    raise Unresolved(wanted_by, f"the reference ${{{'.'.join(target)}}} leads to no key", ".".join(target[: i + 1]))
                node[part] = escape_references(value)
                inside = part
            parent, node = node, self.step(node, inside, target[: i + 1])
        return self.settle(parent, inside, target)

    def get(self, target: Parts) -> Any:
        """The settled value at a full key that is set, or a section as it stands; None if it is not set."""
        node: Any = self.values
        for i, part in enumerate(target):
            inside = next((key for key in keys_of(node) if str(key) == part), MISSING)
            if inside is MISSING:
                return None
            node = self.step(node, inside, target[: i + 1])
        return node if isinstance(node, Container) else node._value()

    def step(self, parent: Container, key: Any, parts: Parts) -> Any:
        """The node at a full key, settled if it is a value or a reference; a section may contain other values than those in question."""
        node = parent._get_node(key)
        return node if isinstance(node, Container) and not node._is_interpolation() else self.settle(parent, key, parts)


def keys_of(node: Any) -> list[Any]:
    """The keys of a section, the indices of a list, nothing of a single value."""
    if not isinstance(node, Container) or node._is_none() or node._is_missing() or node._is_interpolation():
        return []
    return list(node) if isinstance(node, DictConfig) else list(range(len(node)))


def split(path: str) -> Parts:
    """The parts of a key as references write it: "a.b[0]" or "a.b.0"."""
    return tuple(re.findall(r"[^.\[\]]+", path))


def size_of(node: Any) -> int:
    """About how many characters a value has as a text."""
    if isinstance(node, Container):
        return OF_NODE + sum(len(str(key)) + size_of(node._get_node(key)) for key in keys_of(node))
    return 0 if node is None else OF_NODE + len(str(node._value()))


# ---- defaults --------------------------------------------------------------------------------------------------------


def default_of(target: Parts, get: Callable[[Parts], Any]) -> Any:
    """The default at a full key that nothing sets, as plain values; `MISSING` if there is no such key or it has no default.

    Args:
        target: the full key.
        get: the value at a full key that is set, or None: it decides which plug-in's defaults stand there.
    """
    cls: type = Config
    for i, part in enumerate(target):
        here, last = target[:i], i == len(target) - 1
        fields = {key_of(f): f for f in dataclasses.fields(cls) if f.init}
        if part not in fields:
            return MISSING
        f, hint = fields[part], typing.get_type_hints(cls)[fields[part].name]
        there, rest = (*here, part), target[i + 1 :]
        if f.metadata.get("mapping") and not last:
            if get(there) is not None:  # what is set replaces all entries that are there by default
                section = (*there, rest[0])
                return plugin_default(f, section, rest[1:], get) if get(section) is not None else MISSING
            standard: Any = f.default_factory  # every field that holds a plug-in has one
            return inside(plain_value(f, standard()), rest)
        if "table" in f.metadata and not last:
            return plugin_default(f, there, rest, get)
        if last:
            return leaf_default(cls, f, here, get)
        if not (isinstance(hint, type) and dataclasses.is_dataclass(hint)):
            return MISSING
        cls = hint
    return MISSING


def plugin_default(f: dataclasses.Field, section: Parts, rest: Parts, get: Callable[[Parts], Any]) -> Any:
    """The default of a key of the plug-in whose section is at a full key."""
    name = get((*section, "name"))
    try:
        if name is None:
            standard: Any = f.default_factory
            cls = standard if isinstance(standard, type) and standard is not dict and "mapping" not in f.metadata else None
        else:
            cls = find(f.metadata["kind"], f.metadata["table"], name)
    except UserError:  # refused with its own words when the plug-in is built
        return MISSING
    if cls is None:
        return MISSING
    if rest == ("name",):
        return next((name for name, one in f.metadata["table"].items() if one is cls), name_of(f.metadata["table"], cls))
    one = next((one for one in dataclasses.fields(cls) if one.init and key_of(one) == rest[0]), None)
    return MISSING if one is None else inside(leaf_default(cls, one, section, get), rest[1:])


def leaf_default(cls: type, f: dataclasses.Field, section: Parts, get: Callable[[Parts], Any]) -> Any:
    """The default of a field of the section at a full key, as plain values; another key of the section may decide it."""
    if hasattr(cls, "decided"):
        given = {key_of(one): get((*section, key_of(one))) for one in dataclasses.fields(cls)}
        _, decided = cls.decided({key: value for key, value in given.items() if value is not None})
        if key_of(f) in decided:
            return plain_value(f, decided[key_of(f)])
    if f.default is not dataclasses.MISSING:
        return plain_value(f, f.default)
    return MISSING if f.default_factory is dataclasses.MISSING else plain_value(f, f.default_factory())


def inside(value: Any, parts: Sequence[str]) -> Any:
    """What is at a key inside plain values; `MISSING` if there is nothing."""
    for part in parts:
        if isinstance(value, list) and part.isdecimal() and len(part) < 10 and int(part) < len(value):
            value = value[int(part)]
        elif isinstance(value, dict) and part in value:
            value = value[part]
        else:
            return MISSING
    return value
