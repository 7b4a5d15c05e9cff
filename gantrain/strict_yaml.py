"""YAML that a user writes, read strictly and within bounds of size, so that no text can take for ever or fill the memory.

Files are read as YAML 1.2 (core schema), with merge keys. PyYAML follows YAML 1.1, which takes 1:30 for 90 (base 60), 010 for 8, `no` for
false, 2026-11-30 for a date, and 1e-4 for text.

An alias stands for its value, and values of aliases multiply: 25 lines, each of which repeats the one before it nine times, mean 9^25
values. The loader counts them while it reads, and stops at a bound.
"""

from __future__ import annotations

import re
from typing import Any, NoReturn

import yaml

LARGEST = 2**20  # bytes of a file; those that ship with gantrain have 3 KB
MOST_VALUES = 20_000  # that a file spells out; a configuration has some hundreds, and a plug-in's table of numbers some thousands
MOST_REPEATED = 5_000  # values that aliases repeat, each time it is repeated
WEIGHT = 32  # characters of a text that an alias repeats count as one value more
DEEPEST = 32  # sections or lists inside each other
LONGEST_NUMBER = 400  # characters, more than the largest float has; converting longer ones takes quadratic time
LONGEST_KEY = 200  # characters

TAG = "tag:yaml.org,2002:"
# The core schema (YAML 1.2.2, section 10.3.2): tag, pattern, first characters. `<<` is of YAML 1.1's type repository.
TEXT_ALONE = (("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]), ("merge", r"<<", ["<"]))
CORE = (
    *TEXT_ALONE,
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+0123456789.")),
)
FORMS = {tag: re.compile(pattern) for tag, pattern, _ in CORE}
BASES = {"0o": 8, "0x": 16}


class Refused(yaml.MarkedYAMLError):
    """YAML that is well formed, and means something that no configuration can be."""


class StrictComposer(yaml.composer.Composer):
    """Composes nodes within bounds, and refuses keys that appear twice, keys that are not texts, and tags.

    Everything is checked before any value is constructed: merging puts the keys of one mapping into another, and merge keys multiply
    like aliases.
    """

    def __init__(self) -> None:
        yaml.composer.Composer.__init__(self)
        self._written, self._repeated = 0, 0  # values that the text spells out so far, and those that aliases repeat
        self._values = 0  # that the text means so far, long texts counted as several
        self._values_of: dict[int, int] = {}  # by the id of a node that is complete
        self._keys_of: dict[int, set[str]] = {}  # by the id of a mapping
        self._depth = 0

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        """The next node, counted with all that it repeats.

        Raises:
            Refused, ConstructorError: the text means too much, a value contains itself or has a tag of its own, or a key is wrong; with
                the position.
        """
        event, before = self.peek_event(), self._values
        self._depth += 1
        if self._depth > DEEPEST:
            refuse(f"has values that are nested more than {DEEPEST} deep", event.start_mark)
        node = super().compose_node(parent, index)
        self._depth -= 1
        if isinstance(event, yaml.AliasEvent):
            if id(node) not in self._values_of:
                refuse(f"a value contains itself (&{event.anchor} and *{event.anchor}); write it out", event.start_mark)
            self._repeated += self._values_of[id(node)]
            self._values += self._values_of[id(node)]
        else:
            self._written += 1
            self._values += 1 + (len(node.value) // WEIGHT if isinstance(node, yaml.ScalarNode) else 0)
            self._values_of[id(node)] = self._values - before
            refuse_foreign(node)
        if self._written > MOST_VALUES:
            refuse(f"has more than {MOST_VALUES} values", event.start_mark)
        if self._repeated > MOST_REPEATED:
            refuse(f"has more than {MOST_REPEATED} values that aliases such as *{event.anchor} repeat; write fewer", event.start_mark)
        if isinstance(parent, yaml.MappingNode) and index is None:
            self._require_key(parent, node)
        return node

    def _require_key(self, parent: yaml.MappingNode, key: yaml.Node) -> None:
        """Refuse a key that is not a text, is too long, or appears twice; at once, since thousands of numbers may have the same hash.

        Raises:
            Refused, ConstructorError: with the position.
        """
        if not isinstance(key, yaml.ScalarNode):
            raise yaml.constructor.ConstructorError(None, None, "a key must be a string", key.start_mark)
        merges = key.tag == f"{TAG}merge"
        if not merges and key.tag != f"{TAG}str":
            got = f"{shorten(key.value)}: a key must be a string, got {shorten(repr(self.construct_object(key)))}; put it in quotes"
            raise Refused(None, None, got, key.start_mark)
        if len(key.value) > LONGEST_KEY:
            refuse(f"has a key of {len(key.value)} characters, {key.value[:40]!r}..., and {LONGEST_KEY} is the most", key.start_mark)
        name, keys = "<<" if merges else key.value, self._keys_of.setdefault(id(parent), set())
        if name in keys:
            remedy = "; write <<: [*one, *other]" if merges else ""
            raise yaml.constructor.ConstructorError(None, None, f"key {name!r} appears twice{remedy}", key.start_mark)
        keys.add(name)


class StrictLoader(StrictComposer, yaml.SafeLoader):
    """A safe loader of YAML 1.2 with merge keys."""

    yaml_implicit_resolvers: dict[str, list] = {}  # noqa: RUF012 - PyYAML's own way to replace the rules of YAML 1.1

    def __init__(self, stream: Any):
        yaml.SafeLoader.__init__(self, stream)
        StrictComposer.__init__(self)


class TextLoader(StrictLoader):
    """The same loader, which leaves every value but null as the text that it is written as."""

    yaml_implicit_resolvers: dict[str, list] = {}  # noqa: RUF012 - as above


def refuse(words: str, mark: yaml.Mark) -> NoReturn:
    """Raise `Refused`. `words` complete the sentence "FILE ..."."""
    raise Refused(None, None, words, mark)


def refuse_foreign(node: yaml.Node) -> None:
    """Refuse a tag of YAML 1.1 or of an application, a value that does not have the form of its tag, and a number of endless length.

    Raises:
        ConstructorError, Refused: with the position.
    """
    tag = node.tag.removeprefix(TAG)
    known = {yaml.MappingNode: ("map",), yaml.SequenceNode: ("seq",), yaml.ScalarNode: ("str", *FORMS)}[type(node)]
    if tag not in known:
        raise yaml.constructor.ConstructorError(None, None, f"the tag {shorten(node.tag)} is not allowed here", node.start_mark)
    if tag in ("int", "float") and len(node.value) > LONGEST_NUMBER:
        refuse(f"has a number of {len(node.value)} characters, {node.value[:20]}..., and {LONGEST_NUMBER} is the most", node.start_mark)
    if tag in FORMS and not FORMS[tag].fullmatch(node.value):  # the tag is written out
        raise yaml.constructor.ConstructorError(None, None, f"{shorten(node.value)!r} is not of type !!{tag}", node.start_mark)


def shorten(text: str) -> str:
    """The beginning of a text, for messages."""
    return text if len(text) <= 40 else text[:37] + "..."


def construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    """A whole number of YAML 1.2: 010 is ten."""
    return parse_int(str(loader.construct_scalar(node)))


def parse_int(text: str) -> int:
    """The value of a text of the form of a whole number."""
    return int(text, BASES.get(text[:2], 10))


loaders: Any = ((StrictLoader, CORE), (TextLoader, TEXT_ALONE))
for known, schema in loaders:
    known.add_constructor(f"{TAG}int", construct_int)
    known.add_constructor(f"{TAG}merge", StrictLoader.construct_yaml_str)  # `<<` as a value
    for tag, pattern, first in schema if known.yaml_implicit_resolvers == {} else ():
        known.add_implicit_resolver(f"{TAG}{tag}", re.compile(f"^(?:{pattern})$"), first)
