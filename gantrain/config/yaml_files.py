"""YAML as the configuration needs it: strict reading, exact writing, and `section.key=value` overrides.

Files are read as YAML 1.2 (core schema), with merge keys. PyYAML follows YAML 1.1, which takes 1:30 for 90 (base 60), 010 for 8, `no` for
false, 2026-11-30 for a date, and 1e-4 for text.

Why PyYAML with three small subclasses, and not ruamel.yaml: OmegaConf, which merges and converts, already depends on PyYAML. OmegaConf's
own reader allows YAML 1.1's numbers and reads a file that contains only a word as a key, and its loader class is private.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import yaml

from gantrain.errors import UserError, did_you_mean, one_line, shown
from gantrain.shipped import hint_for, instead_of, list_shipped

TAG = "tag:yaml.org,2002:"
# The core schema (YAML 1.2.2, section 10.3.2): tag, pattern, first characters. `<<` is of YAML 1.1's type repository.
TEXT_ALONE = (("null", r"~|null|Null|NULL|", ["~", "n", "N", ""]), ("merge", r"<<", ["<"]))
CORE = (
    *TEXT_ALONE,
    ("bool", r"true|True|TRUE|false|False|FALSE", list("tTfF")),
    ("int", r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+", list("-+0123456789")),
    ("float", r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)", list("-+0123456789.")),
)
BASES = {"0o": 8, "0x": 16}


class ConfigError(UserError):
    """A mistake in a configuration."""


class ExactDumper(yaml.SafeDumper):
    """YAML's safe dumper, which quotes Unicode's own line breaks so that they read back."""


def represent_text(dumper: ExactDumper, text: str) -> yaml.ScalarNode:
    """A string, quoted if it contains a line break that YAML would fold."""
    breaks = any(character in text for character in "\x85\u2028\u2029")
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if breaks else None)


ExactDumper.add_representer(str, represent_text)


class StrictLoader(yaml.SafeLoader):
    """A safe loader of YAML 1.2 with merge keys, which refuses a key that appears twice."""

    yaml_implicit_resolvers: dict[str, list] = {}  # noqa: RUF012 - PyYAML's own way to replace the rules of YAML 1.1

    def construct_document(self, node: yaml.Node) -> Any:
        """The values of a document; the error for a key that appears twice has its position.

        Keys are checked before anything is constructed, because merging puts the keys of one mapping into another.
        """
        self.refuse_repeated(node, set())
        return super().construct_document(node)

    def refuse_repeated(self, node: yaml.Node, seen: set[int]) -> None:
        """Refuse mappings, in this node or below, in which a key appears twice or is not a single value."""
        if id(node) in seen or not isinstance(node, yaml.CollectionNode):
            return
        seen.add(id(node))
        if isinstance(node, yaml.MappingNode):
            keys = set()
            for key_node, _ in node.value:
                if not isinstance(key_node, yaml.ScalarNode):
                    raise yaml.constructor.ConstructorError(None, None, "a key must be a string", key_node.start_mark)
                merges = key_node.tag == f"{TAG}merge"
                key = "<<" if merges else self.construct_object(key_node)
                if key in keys:
                    remedy = "; write <<: [*one, *other]" if merges else ""
                    raise yaml.constructor.ConstructorError(None, None, f"key {key!r} appears twice{remedy}", key_node.start_mark)
                keys.add(key)
        for part in node.value:
            for inner in part if isinstance(part, tuple) else (part,):
                self.refuse_repeated(inner, seen)


class TextLoader(StrictLoader):
    """The same loader, which leaves every value but null as the text that it is written as."""

    yaml_implicit_resolvers: dict[str, list] = {}  # noqa: RUF012 - as above


def construct_int(loader: yaml.SafeLoader, node: yaml.ScalarNode) -> int:
    """A whole number of YAML 1.2: 010 is ten."""
    text = str(loader.construct_scalar(node))
    return int(text, BASES.get(text[:2], 10))


StrictLoader.add_constructor(f"{TAG}int", construct_int)
StrictLoader.add_constructor(f"{TAG}merge", StrictLoader.construct_yaml_str)  # `<<` as a value
for known, schema in ((StrictLoader, CORE), (TextLoader, TEXT_ALONE), (ExactDumper, CORE)):  # the dumper quotes what either version reads
    for tag, pattern, first in schema:
        known.add_implicit_resolver(f"{TAG}{tag}", re.compile(f"^(?:{pattern})$"), first)


def escape_references(value: Any) -> Any:
    """The same values, with every literal `${` written so that OmegaConf does not read it as a reference."""
    if isinstance(value, dict):
        return {key: escape_references(one) for key, one in value.items()}
    if isinstance(value, list):
        return [escape_references(one) for one in value]
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + "\\${", value)
    return value


def to_yaml(values: dict[str, Any]) -> str:
    """Plain nested values as YAML that reads back equal."""
    return yaml.dump(escape_references(values), Dumper=ExactDumper, sort_keys=False, allow_unicode=True, width=120)


def read_yaml(path: Path) -> dict[str, Any]:
    """The mapping in a YAML file.

    Raises:
        ConfigError: there is no such file, or it does not contain a mapping.
    """
    return parse_yaml(read_file(path), str(path))


def read_file(path: Path) -> str:
    """The text of a YAML file.

    Raises:
        ConfigError: there is no such file, or it cannot be read.
    """
    try:
        return path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file{similar_to(path)}") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or one_line(error)
        raise ConfigError(f"{path}: cannot be read ({reason}); pass a YAML file{instead_of(path)}") from None


def similar_to(path: Path) -> str:
    """How a message about a missing file goes on: with a similar file, or with the configurations that ship with gantrain."""
    beside = Path("configs") / f"{path.name}.yaml"
    if beside.is_file():
        return f"; did you mean {beside}?"
    near = did_you_mean(path.name, [file.name for file in path.parent.glob("*.yaml")])
    return near if near.endswith("?") else hint_for(path) or (near if "known: " in near else "")


def parse_yaml(text: str, source: str, loader: type[StrictLoader] = StrictLoader) -> dict[str, Any]:
    """The mapping in a YAML text.

    Args:
        source: where the text comes from, for messages.
        loader: `TextLoader` gives values as they are written.

    Raises:
        ConfigError: names the position of what cannot be read.
    """
    try:
        values = yaml.load(text, loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise ConfigError(f"{source}: is not YAML: {getattr(error, 'problem', None) or one_line(error)}{where}") from None
    except (ValueError, RecursionError, TypeError, OverflowError) as error:  # an impossible date, a number of a million digits
        raise ConfigError(f"{source}: is not readable YAML: {one_line(error)}") from None
    if values is None:
        return {}
    if holds_itself(values):
        raise ConfigError(f"{source}: a value contains itself (&anchor and *alias); write it out")
    if not isinstance(values, dict):
        raise ConfigError(f"{source}: must contain sections and keys, got {quote_value(values)}")
    return string_keys(values, source)


def holds_itself(value: Any, inside: tuple[int, ...] = ()) -> bool:
    """Whether a value can be reached from itself, which YAML allows."""
    if not isinstance(value, (dict, list)):
        return False
    parts = value.values() if isinstance(value, dict) else value
    return id(value) in inside or any(holds_itself(part, (*inside, id(value))) for part in parts)


def is_template(key: str) -> bool:
    """Whether a key at the top of a file is a template, of which only what is taken by merge keys or references has an effect."""
    return key.startswith(("x-", "."))


def anchored_keys(text: str) -> list[str]:
    """The keys at the top of a YAML text whose value has an anchor, written `key: &anchor`."""
    return re.findall(r"^([\w-]+)[ \t]*:[ \t]+&", text, re.MULTILINE)


def string_keys(values: dict, source: str, where: str = "") -> dict[str, Any]:
    """The same mapping, refused if a key is not a string."""
    for key, value in values.items():
        if not isinstance(key, str):
            raise ConfigError(f"{source}: {where}{key}: a key must be a string, got {key!r}; put it in quotes")
        if isinstance(value, dict):
            string_keys(value, source, f"{where}{key}.")
    return values


def parse_override(text: str, loader: type[StrictLoader] = StrictLoader) -> dict[str, Any]:
    """`section.key=value` as nested mappings; the value is read as YAML, by `parse_yaml`.

    Raises:
        ConfigError: it is not of this form.
    """
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not key:
        second = text.lower().endswith((".yaml", ".yml")) or text in list_shipped() or os.path.exists(text)
        more = "; the command takes one configuration or run, and this is another" if second else ""
        raise ConfigError(f"command line: {text!r} is not an override; write section.key=value{more}")
    parts = key.split(".")
    if not all(re.fullmatch(r"[\w-]+", part) for part in parts):
        raise ConfigError(f"command line: {key!r} is not a key; write section.key=value, with words between the dots")
    nested = parse_yaml(f"value: {value}" if not value.startswith("\n") else value, f"command line: {key}", loader)
    if list(nested) != ["value"]:
        raise ConfigError(f"command line: {key}: {value!r} is not a single value")
    result: Any = nested["value"]
    for part in reversed(parts):
        result = {part: result}
    return result


def as_override(key: str, text: str) -> str:
    """A text as an override that `parse_override` reads back, whatever characters it contains."""
    return f"{key}={json.dumps(escape_references(text))}"


def quote_value(value: Any) -> str:
    """A value for a message, on one line of at most 80 characters."""
    text = " ".join(shown(value).split())
    return text if len(text) <= 80 else text[:77] + "..."


def first_line(error: BaseException) -> str:
    """The first line of an exception's text, or its type's name."""
    return (str(error).splitlines() or [type(error).__name__])[0]
