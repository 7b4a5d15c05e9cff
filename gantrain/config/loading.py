"""From YAML files and `section.key=value` overrides to a `Config`, with every mistake in one line.

OmegaConf merges, resolves references and converts values. The walk over sections is our own, because a message must name the source,
the full key, the value and the remedy.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import typing
import warnings
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gantrain.config import yaml_files
from gantrain.config.config import Config
from gantrain.config.hints import hint_for, hint_for_value, hint_in_schedule
from gantrain.config.plain import SCHEDULE_KEYS, fold_schedules, key_of, leaves, plain_default, sections_of, to_dict, written
from gantrain.config.plugins import find, require_values
from gantrain.config.references import MOST_REFERENCES, MOST_TEXT, TextBudget, Unresolved, resolve
from gantrain.config.yaml_files import (
    ConfigError,
    anchored_keys,
    escape_references,
    first_line,
    is_template,
    parse_override,
    parse_yaml,
    quote_value,
    read_file,
)
from gantrain.errors import InvalidField, UserError, did_you_mean, one_line
from gantrain.interruption import Stopped
from gantrain.metrics import PROTOCOLS
from gantrain.plugin_errors import explain_failure
from gantrain.schedule import Schedule
from gantrain.shipped import find_config
from gantrain.strict_yaml import TextLoader
from gantrain.type_words import PLURALS, describe_type, takes_schedule, without_schedule

LONGEST_LIST = 80  # characters of a list that a message spells out
MOST_OVERRIDES = 1000


@dataclass(frozen=True)
class Layer:
    """A file or an override.

    Attributes:
        source: its name in messages.
        values: what it sets.
        as_written: parses it again, and returns what it sets as the texts that are written there.
        anchored: its keys at the top whose value has an anchor, which may be meant as templates.
    """

    source: str
    values: dict[str, Any]
    as_written: Callable[[], dict[str, Any]]
    anchored: Sequence[str] = ()


@dataclass(frozen=True)
class Sources:
    """Where each key was last set, for messages.

    Attributes:
        of_key: full key -> source.
        default: the source of everything else.
        layers: a file and its overrides, in order.
    """

    of_key: Mapping[str, str]
    default: str
    layers: Sequence[Layer] = ()

    @functools.cached_property
    def texts(self) -> dict[str, str]:
        """Full key -> its value as it was written last; texts with a reference to another key are left out."""
        written = (pair for layer in self.layers for pair in leaves(layer.as_written()))
        return {key: text for key, text in written if isinstance(text, str) and "${" not in text}

    def __call__(self, key: str) -> str:
        while key not in self.of_key:  # a section, or a key that was not set: where a neighbouring key was set last
            inside = [source for other, source in self.of_key.items() if other.startswith(f"{key}.")]
            if inside:
                return inside[-1]
            if "." not in key and not key.endswith("]"):
                return self.default
            key = key.rpartition("[" if key.endswith("]") else ".")[0]  # an item of a list, such as optim.betas[1]
        return self.of_key[key]


def load(path: str | Path | None, overrides: Iterable[str] = ()) -> Config:
    """The configuration in a YAML file, or the defaults, with `section.key=value` overrides on top.

    Args:
        path: of the file, or the name of a configuration that ships with gantrain.
        overrides: see above.

    Raises:
        ConfigError: one line naming source, full key, value and remedy.
    """
    of_key: dict[str, str] = {}
    budget = TextBudget()
    base = "defaults" if path is None else str(find_config(path))
    layers = read_layers(None if path is None else Path(base), overrides)
    merged = OmegaConf.create({})
    assert isinstance(merged, DictConfig)
    for source, layer in ((one.source, one.values) for one in layers):
        if not budget.add(layer):
            raise ConfigError(
                f"{source}: values with references ${{...}} have more than {MOST_TEXT} characters or {MOST_REFERENCES} references in all;"
                " write values out"
            )
        for key, value in leaves(layer):
            standing = select(merged, key)
            if value == {} and isinstance(standing, DictConfig) and len(standing):
                one = next(iter(standing_keys(standing)))
                raise ConfigError(f"{source}: {key}={{}} removes nothing; write {key}.{one}=null for each entry to remove")
            require_removable(key, value, standing, source, merged)
            clash = next((k for k in of_key if key.startswith(f"{k}.") and not isinstance(select(merged, k), DictConfig)), None)
            was = None if clash is None else select(merged, clash)
            number = isinstance(was, (int, float)) and not isinstance(was, bool)  # a schedule may take its place
            if clash is not None and source == "command line" and not number:
                raise ConfigError(f"{source}: {key}: {clash} is a single value ({was!r}), not a section")
            of_key |= {clash: source, key: source} if clash is not None else {key: source}
        try:
            together = OmegaConf.merge(merged, layer)
            assert isinstance(together, DictConfig)
            merged = together
        except (OmegaConfBaseException, TypeError, ValueError, RecursionError) as error:  # a list where a section was, say
            key = next(iter(of_layer := dict(leaves(layer))), "")
            raise ConfigError(
                f"{source}: {key}={quote_value(of_layer.get(key))} does not fit the value that it would replace ({one_line(error)})"
            ) from None
    values = resolved(merged, Sources(of_key, base))
    return build({key: value for key, value in values.items() if not is_template(key)}, Sources(of_key, base, layers))


def resolved(merged: DictConfig, sources: Sources) -> dict[str, Any]:
    """The values with every reference replaced.

    Raises:
        ConfigError: a reference leads to no key, to itself, or to too much, or cannot be read.
    """
    try:
        return resolve(merged)
    except Unresolved as error:
        known, within = default_keys(), error.missing.rpartition(".")[0]
        there = [key.rpartition(".")[2] for key in known if key.rpartition(".")[0] == within]
        hint = hint_for(error.missing, there, known) if error.missing and error.missing not in known else ""
        raise ConfigError(
            f"{sources(error.key)}: {error.key}: {error.words}{hint}; write ${{section.key}} for another key's value"
        ) from None
    except (OmegaConfBaseException, RecursionError) as error:
        key = getattr(error, "full_key", None) or ""
        raise ConfigError(
            f"{sources(key)}: {key}{': ' if key else ''}{first_line(error)}; write ${{section.key}} for another key's value"
        ) from None


def read_layers(path: Path | None, overrides: Iterable[str]) -> list[Layer]:
    """The layers of a configuration.

    Raises:
        ConfigError: something is not YAML, or not an override.
    """
    layers = []
    if path is not None:
        text = read_file(path)
        layers.append(Layer(str(path), parse_yaml(text, str(path)), lambda: parse_yaml(text, str(path), TextLoader), anchored_keys(text)))
    overrides = list(overrides)
    if len(overrides) > MOST_OVERRIDES:
        raise ConfigError(f"command line: has {len(overrides)} overrides, and {MOST_OVERRIDES} are the most; write them into a file")
    for one in overrides:
        if one.lstrip().startswith("x-"):  # merge keys have been resolved in the file, so nothing would follow
            raise ConfigError(
                f"command line: {one}: x- begins the name of a template of a file, which cannot be overridden;"
                " override the keys that take its values"
            )
        layers.append(Layer("command line", parse_override(one), functools.partial(parse_override, one, TextLoader)))
    return layers


def set_keys(path: str | Path | None, overrides: Iterable[str] = ()) -> set[str]:
    """Full keys that a YAML file or its overrides set; all others have their defaults. The arguments are those of `load`.

    Raises:
        ConfigError: something is not YAML, or not an override.
    """
    layers = read_layers(None if path is None else find_config(path), overrides)
    return {key for layer in layers for key, _ in leaves(layer.values)}


def standing_keys(values: DictConfig) -> list[str]:
    """The keys that a section has so far."""
    return [str(key) for key in values]


def require_removable(key: str, value: Any, standing: Any, source: str, merged: DictConfig) -> None:
    """Refuse `averagers.NAME=null` if there is no such averager: with a misspelt name, the intended one would remain."""
    section_name, _, name = key.partition(".")
    if section_name != "averagers" or value is not None or not name or "." in name or standing is not None:
        return
    there = list(select(merged, section_name) or Config().averagers)
    if name not in there:
        raise ConfigError(f"{source}: {key}=null: there is no averager of this name to remove{did_you_mean(name, there)}")


def build(values: Mapping[str, Any], sources: Sources | None = None) -> Config:
    """A configuration from plain nested values, as `to_dict` returns them.

    Raises:
        ConfigError: one line naming source, full key, value and remedy.
    """
    config = section(Config, values, "", sources or Sources({}, "configuration"))
    check_across(config, sources or Sources({}, "configuration"))
    return config


def to_yaml(config: Config) -> str:
    """The resolved configuration as YAML that loads back equal."""
    return yaml_files.to_yaml(to_dict(config))


def differing_keys(a: Config, b: Config) -> dict[str, tuple[Any, Any]]:
    """Full keys at which two configurations differ, with both values ("absent" if one has no such key).

    Where one has a schedule and the other a number, that is one key.
    """
    flat_a, flat_b = dict(leaves(to_dict(a))), dict(leaves(to_dict(b)))
    flat_a, flat_b = fold_schedules(flat_a, flat_b), fold_schedules(flat_b, flat_a)
    keys = [*flat_a, *(k for k in flat_b if k not in flat_a)]
    return {k: (flat_a.get(k, "absent"), flat_b.get(k, "absent")) for k in keys if flat_a.get(k, "absent") != flat_b.get(k, "absent")}


def select(values: DictConfig, key: str) -> Any:
    """The value at a full key; None if there is none."""
    node: Any = values
    for part in key.split("."):
        if not isinstance(node, DictConfig) or part not in node:
            return None
        node = node._get_node(part)
    if isinstance(node, DictConfig):
        return node
    plain = OmegaConf.to_container(OmegaConf.create({"v": node}))
    assert isinstance(plain, dict)
    return plain["v"]


# ---- walking over sections -------------------------------------------------------------------------------------------


def section(cls: type, values: Any, path: str, sources: Sources, table_name: bool = False) -> Any:
    """An instance of a section's dataclass from plain values.

    Args:
        cls: the dataclass.
        values: a mapping of its fields.
        path: full key of the section, "" for the whole.
        sources: where each key was set.
        table_name: whether the mapping also contains `name`, which has chosen the class.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{sources(path)}: {path} must be a section with keys, got {quote_value(values)}")
    fields = {key_of(f): f for f in dataclasses.fields(cls) if f.init}
    hints = typing.get_type_hints(cls)
    arguments = {}
    for key, value in values.items():
        full = f"{path}.{key}" if path else key
        if key == "name" and table_name:
            continue
        if key not in fields and table_name and sources(f"{path}.name") == "command line" != sources(full):
            continue  # belongs to a plug-in from the file, which the command line has replaced
        if key not in fields:
            owner = f" of {values['name']}" if table_name and isinstance(values.get("name"), str) else ""
            if not path and isinstance(value, Mapping) and value:  # a section that does not exist: name a key in it
                full, value = next((f"{key}.{inner}", one) for inner, one in leaves(value))
            hint = hint_in_schedule(key, SCHEDULE_KEYS) if cls is Schedule else hint_for(full, list(fields), default_keys())
            if not path and any(key in layer.anchored for layer in sources.layers):
                hint = f"; a template for `<<` needs a name that begins with x-, such as x-{key}"
            raise ConfigError(f"{sources(full)}: {full}={quote_value(value)}: no such key{owner}{hint}")
        arguments[fields[key].name] = field_value(fields[key], hints[fields[key].name], value, full, sources)
    if hasattr(cls, "decided"):  # one key of the section sets others; from the command line, it also overrides those of a file
        by, decided = cls.decided(arguments)
        from_command_line = sources(f"{path}.{by}") == "command line"
        for key, value in decided.items():
            if key not in arguments or (from_command_line and sources(f"{path}.{key}") != "command line"):
                arguments[key] = value
    try:
        return cls(**arguments)
    except InvalidField as error:
        keys = {f.name: key for key, f in fields.items()}
        name = keys.get(error.field, error.field)
        full = f"{path}.{name}" if path else name
        raise ConfigError(f"{sources(full)}: {full} {error.remedy}, got {quote_value(written(error.value))}") from None
    except UserError as error:  # a plug-in's own words
        raise ConfigError(f"{sources(path)}: {path}: {error}" if path else str(error)) from None
    except (KeyboardInterrupt, Stopped):
        raise
    except BaseException as error:
        failed = explain_failure(error)
        if failed is None and not isinstance(error, TypeError):
            raise
        raise ConfigError(f"{sources(path)}: {path}: {failed or one_line(error)}" if path else str(failed or one_line(error))) from error


def field_value(f: dataclasses.Field, hint: Any, value: Any, full: str, sources: Sources) -> Any:
    """One field's value: a section, a plug-in, plug-ins by name, a schedule, or a leaf of the declared type."""
    if f.metadata.get("mapping"):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{sources(full)}: {full} must map free names to {plural(f.metadata['kind'])}, got {quote_value(value)}")
        # null removes an entry that a file has set
        return {name: plugin_value(f, None, one, f"{full}.{name}", sources) for name, one in value.items() if one is not None}
    if "table" in f.metadata:
        assert isinstance(f.default_factory, type)
        return plugin_value(f, f.default_factory, value, full, sources)
    if isinstance(hint, type) and dataclasses.is_dataclass(hint):
        return section(hint, value, full, sources)
    return scheduled_leaf(hint, value, full, sources) if takes_schedule(hint) else leaf(hint, value, full, sources)


def scheduled_leaf(hint: Any, value: Any, full: str, sources: Sources) -> Any:
    """A number or a schedule, or a list of numbers some of which may be schedules, or null.

    Raises:
        ConfigError: it is none of these; says what is expected.
    """
    if isinstance(value, Mapping) and Schedule in typing.get_args(hint):
        if "from" not in value and all(key in SCHEDULE_KEYS for key in value):
            raise ConfigError(f"{sources(full)}: {full}.from is missing: a schedule begins with a value, such as {{from: 2e-4, ...}}")
        return section(Schedule, value, full, sources)
    items = next((typing.get_args(one) for one in (hint, *typing.get_args(hint)) if typing.get_origin(one) is tuple), ())
    if isinstance(value, list) and len(value) == len(items) and any(isinstance(one, Mapping) for one in value):
        return tuple(scheduled_leaf(item, one, f"{full}[{i}]", sources) for i, (item, one) in enumerate(zip(items, value)))
    return leaf(without_schedule(hint), value, full, sources, describe_type(hint))


def plugin_value(f: dataclasses.Field, default: type | None, value: Any, full: str, sources: Sources) -> Any:
    """A plug-in from its section; without `name:` it is the default class, if there is one."""
    kind, table = f.metadata["kind"], f.metadata["table"]
    if not isinstance(value, Mapping):
        out = "; null removes it" if default is None else ""
        raise ConfigError(f"{sources(full)}: {full} must be a section such as {{name: {next(iter(table))}}}, got {quote_value(value)}{out}")
    name: Any = value.get("name")
    if name is None and default is None:
        raise ConfigError(f"{sources(full)}: {full}.name is missing; known {plural(kind)} are {', '.join(sorted(table))}")
    try:
        cls = default if name is None and default is not None else find(kind, table, name)
    except UserError as error:
        raise ConfigError(f"{sources(full + '.name')}: {full}.name: {error}") from None
    made = section(cls, without_defaults(f, value, full, sources), full, sources, table_name=True)
    if isinstance(name, str) and ":" in name:
        try:
            require_values(made, kind, name)
        except UserError as error:
            raise ConfigError(f"{sources(full)}: {full}: {error}") from None
    return made


def without_defaults(f: dataclasses.Field, value: Mapping[str, Any], full: str, sources: Sources) -> Mapping[str, Any]:
    """A plug-in's section without what the file has of another plug-in that the command line replaces: the values that it has by default.

    The configuration in a run folder spells out all values, and only those that somebody has chosen may mean something to the new one.
    """
    before = select(OmegaConf.create(dict(sources.layers[0].values)), f"{full}.name") if sources.layers else None
    if before is None or before == value.get("name") or sources(f"{full}.name") != "command line":
        return value
    try:
        was = find(f.metadata["kind"], f.metadata["table"], before)
    except UserError:
        return value  # it is no longer there to be asked
    own = {key_of(one): plain_default(one) for one in dataclasses.fields(was) if one.init}
    return {k: v for k, v in value.items() if k == "name" or sources(f"{full}.{k}") == "command line" or k not in own or own[k] != v}


def default_keys() -> list[str]:
    """Full keys of the default configuration, and of its sections."""
    keys = [key for key, _ in leaves(to_dict(Config()))]
    return list(dict.fromkeys(part for key in keys for part in (*sections_of(key), key)))


def plural(kind: str) -> str:
    """The plural of a kind of plug-in."""
    return f"{kind[:-1]}ies" if kind.endswith("y") else f"{kind}s"


def leaf(hint: Any, value: Any, full: str, sources: Sources, words: str = "") -> Any:
    """A value converted to its declared type by OmegaConf.

    Args:
        words: what is expected; "" describes the type.

    Raises:
        ConfigError: it cannot be converted; says what is expected.
    """
    if hint is Any:
        return value
    if value is not None and not isinstance(value, str) and hint in (str, str | None):  # a name such as 12e3, which YAML reads as a number
        value = sources.texts.get(full, value)
    words = words or describe_type(hint)
    wants_bool = bool in (hint, *typing.get_args(hint))
    if wants_bool and type(value) in (int, float) and value not in (0, 1):  # OmegaConf reads any number as true
        raise ConfigError(f"{sources(full)}: {full} must be {words}, got {quote_value(value)}")
    try:
        holder = OmegaConf.structured(dataclasses.make_dataclass("Leaf", [("value", hint)]))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # of OmegaConf's conversions, which are wanted here
            holder.value = escape_references(value)
            converted: Any = OmegaConf.to_object(holder)
            return converted.value
    except (OmegaConfBaseException, ValueError, TypeError, OverflowError):
        remedy = f"; write a value after {full}=" if value is None and sources(full) == "command line" else ""
        remedy = remedy or hint_for_value(full, value)
        remedy = as_list(value) if words.startswith(f"a list of {PLURALS[str]}") else remedy
        raise ConfigError(f"{sources(full)}: {full} must be {words}, got {quote_value(value)}{remedy}") from None


def as_list(value: Any) -> str:
    """How a message goes on where a list of strings is asked for and a single value was written, perhaps with commas."""
    words = [] if value is None else [word for word in re.split(r"[\s,;]+", str(value).strip("()[] ")) if word]
    text = ", ".join(words)
    return "" if isinstance(value, (list, Mapping)) or len(text) > LONGEST_LIST else f"; write [{text}]"


def check_across(config: Config, sources: Sources) -> None:
    """Refuse values of different sections that do not fit together.

    Raises:
        ConfigError: one line naming source, full key, value and remedy.
    """
    if config.data.resolution is not None:
        try:
            config.model.require_resolution(config.data.resolution)
        except UserError as error:
            raise ConfigError(f"{sources(str(error).partition(':')[0])}: {error}") from None
    protocol, split = PROTOCOLS.get(config.eval.protocol or ""), config.data.split
    if protocol and config.eval.reference is None and split not in (None, protocol.split):
        raise ConfigError(
            f"{sources('data.split')}: data.split is {split}, and eval.protocol={config.eval.protocol} scores against {protocol.split};"
            f" set data.split={protocol.split}, set eval.reference to that split, or remove the protocol"
        )
