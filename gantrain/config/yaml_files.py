"""YAML as the configuration needs it: reading with errors in one line, exact writing, and `section.key=value` overrides.

Why PyYAML with a few small subclasses (here and in `gantrain.strict_yaml`), and not ruamel.yaml: OmegaConf, which merges and converts,
already depends on PyYAML. OmegaConf's own reader allows YAML 1.1's numbers and reads a file that contains only a word as a key, and its
loader class is private.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path
from typing import Any

import yaml

from gantrain.errors import UserError, one_line, shown
from gantrain.regular_file import NotAFile, TooLarge, read_text
from gantrain.shipped import instead_of, list_shipped, similar_to
from gantrain.strict_yaml import CORE, DEEPEST, LARGEST, TAG, Refused, StrictLoader

LONGEST_MESSAGE = 1500  # characters
CONTINUE = ("second occurrence", "but found another document")  # errors of PyYAML that begin in their context


class ConfigError(UserError):
    """A mistake in a configuration. A long text, such as a value of a thousand words, loses its middle: the remedy stands at the end."""

    def __init__(self, text: str):
        super().__init__(text if len(text) <= LONGEST_MESSAGE else f"{text[: LONGEST_MESSAGE - 500]} ... {text[-400:]}")


class ExactDumper(yaml.SafeDumper):
    """YAML's safe dumper, which quotes Unicode's own line breaks so that they read back."""


def represent_text(dumper: ExactDumper, text: str) -> yaml.ScalarNode:
    """A string, quoted if it contains a line break that YAML would fold."""
    breaks = any(character in text for character in "\x85\u2028\u2029")
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style='"' if breaks else None)


ExactDumper.add_representer(str, represent_text)
for tag, pattern, first in CORE:  # a text is quoted if the loader would read it as something else
    ExactDumper.add_implicit_resolver(f"{TAG}{tag}", re.compile(f"^(?:{pattern})$"), first)


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


def read_file(path: Path) -> str:
    """The text of a YAML file.

    Raises:
        ConfigError: there is no such file, or it cannot be read.
    """
    try:
        return read_text(path, LARGEST)
    except FileNotFoundError:
        if re.fullmatch(r"[A-Za-z_][\w.-]*=.*", str(path), re.DOTALL):  # not a path that happens to have such a character
            raise ConfigError(f"{path}: is an override, and a configuration comes first, such as: digits {path}") from None
        raise ConfigError(f"{path}: there is no such file{similar_to(path)}") from None
    except NotAFile as error:  # such as /dev/fd/63 for `<(...)`: every process of a run reads its configuration, and a pipe ends once
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); write the configuration to a file, and pass that") from None
    except TooLarge:
        most = f"a configuration has at most {LARGEST // 1024} KiB"
        raise ConfigError(f"{path}: is too large ({most}); pass a YAML file{instead_of(path)}") from None
    except IsADirectoryError as error:
        inside = path / "config.yaml"
        remedy = f"to resume the run in this folder, pass {inside}" if inside.is_file() else f"pass a YAML file{instead_of(path)}"
        raise ConfigError(f"{path}: cannot be read ({error.strerror}); {remedy}") from None
    except (OSError, ValueError) as error:  # not UTF-8; a zero byte in the name
        reason = (isinstance(error, OSError) and error.strerror) or one_line(error)
        raise ConfigError(f"{path}: cannot be read ({reason}); pass a YAML file{instead_of(path)}") from None


def parse_yaml(text: str, source: str, loader: type[StrictLoader] = StrictLoader) -> dict[str, Any]:
    """The mapping in a YAML text.

    Args:
        source: where the text comes from, for messages.
        loader: `TextLoader` gives values as they are written.

    Raises:
        ConfigError: names the position of what cannot be read.
    """
    if len(text) > LARGEST:
        raise ConfigError(f"{source}: has {len(text)} characters, and {LARGEST} is the most")
    try:
        values = yaml.load(text, loader)
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        what = "" if isinstance(error, Refused) else "is not YAML: "
        words = getattr(error, "problem", None) or one_line(error)
        if words in CONTINUE:
            words = f"{getattr(error, 'context', None) or 'YAML'}, {words}"
        raise ConfigError(f"{source}: {what}{words}{where}") from None
    except (ValueError, RecursionError, OverflowError) as error:  # "\UFFFFFFFF"
        raise ConfigError(f"{source}: is not readable YAML: {one_line(error)}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{source}: must contain sections and keys, got {quote_value(values)}")
    return values


def is_template(key: str) -> bool:
    """Whether a key at the top of a file is a template, of which only what is taken by merge keys or references has an effect."""
    return key.startswith(("x-", "."))


def anchored_keys(text: str) -> list[str]:
    """The keys at the top of a YAML text whose value has an anchor, written `key: &anchor`."""
    return re.findall(r"^([\w-]+)[ \t]*:[ \t]+&", text, re.MULTILINE)


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
        item = re.fullmatch(r"([\w.-]+)\[\d+\][\w.-]*", key)  # as messages and records name one, such as optim.betas[1]
        more = f"write the whole list, as {item[1]}=[...]" if item else "write section.key=value, with words between the dots"
        raise ConfigError(f"command line: {key!r} is not a key; {more}")
    if len(parts) > DEEPEST:
        raise ConfigError(f"command line: {key!r} is not a key; it has {len(parts)} words")
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
