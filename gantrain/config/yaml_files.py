"""YAML as the configuration needs it: strict reading, exact writing, and `section.key=value` overrides.

Why PyYAML with two small subclasses, and not ruamel.yaml: OmegaConf, which merges and converts, already depends on PyYAML. ruamel.yaml
would be a second parser with different rules for numbers. The subclasses take thirty lines. They add numbers such as 1e-4 (YAML 1.2), the
position of a key that appears twice, and quotes around Unicode's line breaks. OmegaConf's own reader does the first two, but it reads a
file that contains only a word as a key, and its loader class is private.
"""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from gantrain.errors import UserError, did_you_mean, one_line, shown
from gantrain.shipped import hint_for, instead_of

FLOAT = re.compile(r"^[-+]?(\d[\d_]*)(\.[\d_]*)?[eE][-+]?\d+$|^[-+]?\.\d[\d_]*[eE][-+]?\d+$")  # with an exponent, with or without a dot


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
    """YAML's safe loader, which refuses a key that appears twice and reads 1e-4 as a number (YAML 1.1 wants 1.0e-4)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        """A mapping; the error for a key that appears twice has its position."""
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, (list, dict)):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a string", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} appears twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


StrictLoader.add_implicit_resolver("tag:yaml.org,2002:float", FLOAT, list("-+0123456789."))


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
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file{similar_to(path)}") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = (isinstance(error, OSError) and error.strerror) or one_line(error)
        raise ConfigError(f"{path}: cannot be read ({reason}); pass a YAML file{instead_of(path)}") from None
    return parse_yaml(text, str(path))


def similar_to(path: Path) -> str:
    """How a message about a missing file goes on: with a similar file, or with the configurations that ship with gantrain."""
    beside = Path("configs") / f"{path.name}.yaml"
    if beside.is_file():
        return f"; did you mean {beside}?"
    near = did_you_mean(path.name, [file.name for file in path.parent.glob("*.yaml")])
    return near if near.endswith("?") else hint_for(path) or (near if "known: " in near else "")


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    """The mapping in a YAML text.

    Args:
        source: where the text comes from, for messages.

    Raises:
        ConfigError: names the position of what cannot be read.
    """
    try:
        values = yaml.load(text, StrictLoader)
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


def string_keys(values: dict, source: str, where: str = "") -> dict[str, Any]:
    """The same mapping, refused if a key is not a string."""
    for key, value in values.items():
        if not isinstance(key, str):
            raise ConfigError(f"{source}: {where}{key}: a key must be a string, got {key!r}; put it in quotes")
        if isinstance(value, dict):
            string_keys(value, source, f"{where}{key}.")
    return values


def parse_override(text: str) -> dict[str, Any]:
    """`section.key=value` as nested mappings; the value is read as YAML.

    Raises:
        ConfigError: it is not of this form.
    """
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not key:
        raise ConfigError(f"command line: {text!r} is not an override; write section.key=value")
    parts = key.split(".")
    if not all(re.fullmatch(r"[\w-]+", part) for part in parts):
        raise ConfigError(f"command line: {key!r} is not a key; write section.key=value, with words between the dots")
    nested = parse_yaml(f"value: {value}" if not value.startswith("\n") else value, f"command line: {key}")
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
