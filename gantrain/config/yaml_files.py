"""YAML as the configuration needs it: strict reading, exact writing, and `section.key=value` overrides."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import yaml

from gantrain.errors import UserError, did_you_mean, one_line, shown


class ConfigError(UserError):
    """A mistake in a configuration."""


class ExactDumper(yaml.SafeDumper):
    """YAML's safe dumper, which writes Unicode's own line breaks so that they read back."""


def represent_text(dumper: ExactDumper, text: str) -> yaml.ScalarNode:
    breaks = any(character in text for character in "\x85\u2028\u2029")
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if breaks else None)


def escaped(value: Any) -> Any:
    """The same values, with every literal `${` written so that OmegaConf does not read it as a reference."""
    if isinstance(value, dict):
        return {key: escaped(one) for key, one in value.items()}
    if isinstance(value, list):
        return [escaped(one) for one in value]
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + "\\${", value)
    return value


class StrictLoader(yaml.SafeLoader):
    """YAML's safe loader, which refuses a key that stands twice and reads 1e-4 as a number (YAML 1.1 wants 1.0e-4)."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict:
        seen = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, (list, dict)):
                raise yaml.constructor.ConstructorError(None, None, "a key must be a word", key_node.start_mark)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} stands twice", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file's mapping."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        folder = path.parent if path.parent.is_dir() else Path(".")
        hint = did_you_mean(path.name, [p.name for p in folder.glob("*.yaml")]) if path.parent.is_dir() else ""
        beside = Path("configs") / f"{path.name}.yaml"
        raise ConfigError(f"{path}: there is no such file{f'; is it {beside}?' if beside.is_file() else hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as a configuration ({one_line(error)})") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    """The mapping that a YAML text holds."""
    try:
        values = yaml.load(text, StrictLoader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise ConfigError(f"{source}: is not YAML: {getattr(error, 'problem', None) or one_line(error)}{where}") from None
    except (ValueError, RecursionError, TypeError, OverflowError) as error:  # an impossible date, a number of a million digits
        raise ConfigError(f"{source}: is not YAML that can be read: {one_line(error)}") from None
    if values is None:
        return {}
    if holds_itself(values):
        raise ConfigError(f"{source}: a value holds itself (&anchor and *alias); write it out")
    if not isinstance(values, dict):
        raise ConfigError(f"{source}: must hold sections and keys, got {shortened(values)}")
    return string_keys(values, source)


def holds_itself(value: Any, inside: tuple[int, ...] = ()) -> bool:
    """Whether a value can be reached from itself, which YAML allows."""
    if not isinstance(value, (dict, list)):
        return False
    parts = value.values() if isinstance(value, dict) else value
    return id(value) in inside or any(holds_itself(part, (*inside, id(value))) for part in parts)


def string_keys(values: dict, source: str, where: str = "") -> dict[str, Any]:
    """The same mapping, refused where a key is no string."""
    for key, value in values.items():
        if not isinstance(key, str):
            raise ConfigError(f"{source}: {where}{key}: a key must be a word, got {key!r}; put it in quotes")
        if isinstance(value, dict):
            string_keys(value, source, f"{where}{key}.")
    return values


def parse_override(text: str) -> dict[str, Any]:
    """`section.key=value` as nested mappings; the value is read as YAML."""
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not key:
        raise ConfigError(f"command line: {text!r} is no override; write section.key=value")
    parts = key.split(".")
    if not all(re.fullmatch(r"[\w-]+", part) for part in parts):
        raise ConfigError(f"command line: {key!r} is no key; write section.key=value, with words between the dots")
    nested = parse_yaml(f"value: {value}" if not value.startswith("\n") else value, f"command line: {key}")
    if list(nested) != ["value"]:
        raise ConfigError(f"command line: {key}: {value!r} is not one value")
    result: Any = nested["value"]
    for part in reversed(parts):
        result = {part: result}
    return result


def as_override(key: str, text: str) -> str:
    """A text as the override that `parse_override` reads it from, whatever is in it."""
    return f"{key}={json.dumps(escaped(text))}"


def shortened(value: Any) -> str:
    """A value for a message, on one line and not too long."""
    text = " ".join(shown(value).split())
    return text if len(text) <= 80 else text[:77] + "..."


def first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
