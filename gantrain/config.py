"""The configuration: typed sections, YAML files, `section.key=value` overrides, and errors in one line each.

A section is a frozen dataclass; its defaults stand there and nowhere else. Where a section is a plug-in, `name:` chooses
the class from its table and the other keys are that class's fields. OmegaConf reads, merges and converts; the walk over
sections is ours, because a message must name source, full key, value and remedy.
"""
from __future__ import annotations

import dataclasses
import re
import typing
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import yaml
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from gantrain.averaging import AVERAGERS, LIVE, Ema
from gantrain.averaging.batchnorm import POLICIES
from gantrain.batching import BATCH_POLICIES, Fixed
from gantrain.data import DATASETS, Digits
from gantrain.errors import InvalidField, UserError, check, did_you_mean
from gantrain.losses import LOSSES, Hinge
from gantrain.metrics import EXTRACTORS, METRICS, DigitsFeatures
from gantrain.models import ARCHITECTURES, BigGAN
from gantrain.plugins import find, name_of, one_line
from gantrain.schedules import LrTail

FREE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]*")
RESERVED_NAMES = (LIVE, "all")


class ConfigError(UserError):
    """A mistake in a configuration."""


def plugin(kind: str, table: dict[str, type], default: type) -> Any:
    """A field that holds one plug-in."""
    return field(default_factory=default, metadata={"kind": kind, "table": table})


def plugins(kind: str, table: dict[str, type], default: typing.Callable[[], dict]) -> Any:
    """A field that holds plug-ins by free name."""
    return field(default_factory=default, metadata={"kind": kind, "table": table, "mapping": True})


@dataclass(frozen=True)
class Optim:
    """Adam for both players.

    Attributes:
        lr_g, lr_d: learning rates.
        betas, eps: of Adam.
        d_steps: D updates, each on fresh data, before every G update.
        orthogonal_g, orthogonal_d: weight of orthogonal regularisation (Brock et al. 2019, Eq. 3; published 1e-4 for G).
        lr_tail: what the rates do towards the end.
    """

    lr_g: float = 2e-4
    lr_d: float = 2e-4
    betas: tuple[float, float] = (0.0, 0.999)
    eps: float = 1e-8
    d_steps: int = 1
    orthogonal_g: float = 0.0
    orthogonal_d: float = 0.0
    lr_tail: LrTail = field(default_factory=LrTail)

    def __post_init__(self) -> None:
        check(self, "lr_g", 0 < self.lr_g < float("inf"), "must be above 0")
        check(self, "lr_d", 0 < self.lr_d < float("inf"), "must be above 0")
        check(self, "betas", all(0 <= b < 1 for b in self.betas), "must both be in [0, 1)")
        check(self, "eps", 0 < self.eps < 1, "must be above 0 and below 1")
        check(self, "d_steps", self.d_steps >= 1, "must be at least 1")
        check(self, "orthogonal_g", 0 <= self.orthogonal_g < float("inf"), "must be at least 0")
        check(self, "orthogonal_d", 0 <= self.orthogonal_d < float("inf"), "must be at least 0")


@dataclass(frozen=True)
class Eval:
    """How the live weights and every average are scored.

    Attributes:
        every_kimg: null scores at the end only.
        num_samples: generated images a score.
        reference_samples: real images of the reference; null takes all.
        batch_size: images a forward, on each process.
        metrics: names from the table of metrics.
        features: the extractor behind them.
        batchnorm: "recalibrate" measures statistics for the weights at hand; "copy" takes the live ones.
        recalibration_batches: forwards of `batch_size` images for "recalibrate".
        truncation: draw z from the normal cut at this absolute value; null does not cut.
    """

    every_kimg: float | None = 25.0
    num_samples: int = 10_000
    reference_samples: int | None = 50_000
    batch_size: int = 64
    metrics: tuple[str, ...] = ("fid", "is", "kid", "prc")
    features: Any = plugin("feature extractor", EXTRACTORS, DigitsFeatures)
    batchnorm: str = "recalibrate"
    recalibration_batches: int = 16
    truncation: float | None = None

    def __post_init__(self) -> None:
        check(self, "every_kimg", self.every_kimg is None or 0 < self.every_kimg < float("inf"), "must be above 0, or null")
        check(self, "num_samples", self.num_samples >= 16, "must be at least 16")
        check(self, "reference_samples", self.reference_samples is None or self.reference_samples >= 16, "must be at least 16, or null")
        check(self, "batch_size", self.batch_size >= 2, "must be at least 2")
        check(self, "metrics", len(self.metrics) > 0, f"must name at least one of {', '.join(METRICS)}")
        for name in self.metrics:
            try:
                find("metric", METRICS, name)
            except UserError as error:
                raise InvalidField("metrics", name, f"must name metrics ({error})") from None
        check(self, "batchnorm", self.batchnorm in POLICIES, f"must be one of {', '.join(POLICIES)}")
        check(self, "recalibration_batches", self.recalibration_batches >= 1, "must be at least 1")
        check(self, "truncation", self.truncation is None or 0 < self.truncation < float("inf"), "must be above 0, or null for none")


@dataclass(frozen=True)
class Checkpoint:
    """How often the run is saved and how many of its newest checkpoints are kept."""

    every_kimg: float = 25.0
    keep_last: int = 2

    def __post_init__(self) -> None:
        check(self, "every_kimg", 0 < self.every_kimg < float("inf"), "must be above 0")
        check(self, "keep_last", self.keep_last >= 1, "must be at least 1")


@dataclass(frozen=True)
class Wandb:
    """Weights & Biases.

    Attributes:
        mode: "auto" goes online where a key is found and offline elsewhere; or "online", "offline", "disabled".
        project: that the run belongs to.
        entity: user or team; null is the account's default.
        name: of the run; null is the run folder's name.
    """

    mode: Literal["auto", "online", "offline", "disabled"] = "auto"
    project: str = "gantrain"
    entity: str | None = None
    name: str | None = None


@dataclass(frozen=True)
class Tracking:
    """What is reported of a run, and how often.

    Attributes:
        every_kimg: a console line and a line in metrics.jsonl.
        samples_every_kimg: a picture of samples of fixed z; null draws one at the end only.
        sample_rows: images a class in that picture.
        sample_classes: at most so many classes in it.
    """

    every_kimg: float = 1.0
    samples_every_kimg: float | None = 25.0
    sample_rows: int = 8
    sample_classes: int = 10
    wandb: Wandb = field(default_factory=Wandb)

    def __post_init__(self) -> None:
        check(self, "every_kimg", 0 < self.every_kimg < float("inf"), "must be above 0")
        check(self, "samples_every_kimg", self.samples_every_kimg is None or 0 < self.samples_every_kimg < float("inf"), "must be above 0, or null")
        check(self, "sample_rows", 1 <= self.sample_rows <= 64, "must be between 1 and 64")
        check(self, "sample_classes", 1 <= self.sample_classes <= 100, "must be between 1 and 100")


@dataclass(frozen=True)
class Performance:
    """Switches for speed; none changes what is computed beyond rounding.

    Attributes:
        channels_last: keep images and convolution weights in NHWC order.
        compile: compile both networks with torch.compile; the first updates then take minutes.
        tf32: let CUDA matrix products and convolutions round their inputs to TF32.
    """

    channels_last: bool = True
    compile: bool = False
    tf32: bool = True


@dataclass(frozen=True)
class Config:
    """A whole run. Every attribute is a section or key of the YAML file."""

    run_dir: str = "runs/gantrain"
    seed: int = 0
    total_kimg: float = 200.0
    data: Any = plugin("data set", DATASETS, Digits)
    model: Any = plugin("architecture", ARCHITECTURES, BigGAN)
    loss: Any = plugin("loss", LOSSES, Hinge)
    optim: Optim = field(default_factory=Optim)
    batching: Any = plugin("batch policy", BATCH_POLICIES, Fixed)
    averagers: dict = plugins("averager", AVERAGERS, lambda: {"ema": Ema()})
    eval: Eval = field(default_factory=Eval)
    checkpoint: Checkpoint = field(default_factory=Checkpoint)
    tracking: Tracking = field(default_factory=Tracking)
    mixed_precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    performance: Performance = field(default_factory=Performance)

    def __post_init__(self) -> None:
        check(self, "run_dir", bool(self.run_dir), "must name a folder")
        check(self, "seed", 0 <= self.seed < 2**63, "must be in [0, 2**63)")
        check(self, "total_kimg", 0 < self.total_kimg < float("inf"), "must be above 0")
        for name in self.averagers:
            if name in RESERVED_NAMES or not FREE_NAME.fullmatch(name):
                raise InvalidField(f"averagers.{name}", name, f"a free name has letters, digits, '_', '.', '-' and is none of {', '.join(RESERVED_NAMES)}")


@dataclass(frozen=True)
class Sources:
    """Where each key was last set, for messages."""

    of_key: Mapping[str, str]
    default: str

    def __call__(self, key: str) -> str:
        if key not in self.of_key:  # a section: where one of its keys was set
            inside = [source for other, source in self.of_key.items() if other.startswith(f"{key}.")]
            if inside:
                return inside[-1]
        while key not in self.of_key and "." in key:
            key = key.rpartition(".")[0]
        return self.of_key.get(key, self.default)


def load(path: str | Path, overrides: Iterable[str] = ()) -> Config:
    """The configuration in a YAML file with `section.key=value` overrides on top.

    Raises:
        ConfigError: one line naming source, full key, value and remedy.
    """
    path = Path(path)
    values, of_key = {}, {}
    layers = [(str(path), read_yaml(path)), *(("command line", parse_override(text)) for text in overrides)]
    merged = OmegaConf.create({})
    for source, layer in layers:
        for key, value in leaves(layer):
            clash = next((k for k in of_key if key.startswith(f"{k}.") and not isinstance(select(merged, k), DictConfig)), None)
            if clash is not None and source == "command line":
                raise ConfigError(f"{source}: {key}: {clash} is a single value ({select(merged, clash)!r}), not a section")
            of_key[key] = source
        try:
            merged = OmegaConf.merge(merged, layer)
        except (OmegaConfBaseException, TypeError, ValueError) as error:  # a list where a section was, say
            key = next(iter(of_layer := dict(leaves(layer))), "")
            raise ConfigError(f"{source}: {key}={shortened(of_layer.get(key))} does not fit what stands there ({one_line(error)})") from None
    try:
        values = OmegaConf.to_container(merged, resolve=True)
    except OmegaConfBaseException as error:
        key = getattr(error, "full_key", None)
        raise ConfigError(f"{path}: {key + ': ' if key else ''}{first_line(error)}; write ${{section.key}} for another key's value") from None
    return build(values, Sources(of_key, str(path)))


def build(values: Mapping[str, Any], sources: Sources | None = None) -> Config:
    """A configuration from plain nested values, as `to_dict` gives them."""
    config = section(Config, values, "", sources or Sources({}, "configuration"))
    check_across(config, sources or Sources({}, "configuration"))
    return config


def to_dict(config: Any) -> dict[str, Any]:
    """Plain nested values that `build` turns back into an equal configuration."""
    result: dict[str, Any] = {}
    for f in dataclasses.fields(config):
        value = getattr(config, f.name)
        table = f.metadata.get("table")
        if f.metadata.get("mapping"):
            result[f.name] = {name: {"name": name_of(table, one), **to_dict(one)} for name, one in value.items()}
        elif table is not None:
            result[f.name] = {"name": name_of(table, value), **to_dict(value)}
        elif dataclasses.is_dataclass(value):
            result[f.name] = to_dict(value)
        else:
            result[f.name] = list(value) if isinstance(value, tuple) else value
    return result


def to_yaml(config: Config) -> str:
    """The resolved configuration as YAML that loads back equal."""
    return yaml.safe_dump(escaped(to_dict(config)), sort_keys=False, allow_unicode=True, width=120)


def escaped(value: Any) -> Any:
    """The same values, with every literal `${` written so that OmegaConf does not read it as a reference."""
    if isinstance(value, dict):
        return {key: escaped(one) for key, one in value.items()}
    if isinstance(value, list):
        return [escaped(one) for one in value]
    if isinstance(value, str):
        return re.sub(r"(\\*)\$\{", lambda found: found[1] * 2 + "\\${", value)
    return value


def differing_keys(a: Config, b: Config) -> dict[str, tuple[Any, Any]]:
    """Full keys at which two configurations differ, with both values ("absent" where one has no such key)."""
    flat_a, flat_b = dict(leaves(to_dict(a))), dict(leaves(to_dict(b)))
    keys = [*flat_a, *(k for k in flat_b if k not in flat_a)]
    return {k: (flat_a.get(k, "absent"), flat_b.get(k, "absent")) for k in keys if flat_a.get(k, "absent") != flat_b.get(k, "absent")}


# ---- reading ---------------------------------------------------------------------------------------------------------


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


StrictLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*)(\.[\d_]*)?[eE][-+]?\d+$|^[-+]?\.\d[\d_]*[eE][-+]?\d+$"),
    list("-+0123456789."),
)


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file's mapping."""
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        folder = path.parent if path.parent.is_dir() else Path(".")
        hint = did_you_mean(path.name, [p.name for p in folder.glob("*.yaml")]) if path.parent.is_dir() else ""
        raise ConfigError(f"{path}: there is no such file{hint}") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read as a configuration ({one_line(error)})") from None
    return parse_yaml(text, str(path))


def parse_yaml(text: str, source: str) -> dict[str, Any]:
    """The mapping that a YAML text holds."""
    try:
        values = yaml.load(text, StrictLoader)  # noqa: S506 - derived from SafeLoader
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        where = f" (line {mark.line + 1}, column {mark.column + 1})" if mark else ""
        raise ConfigError(f"{source}: is not YAML: {getattr(error, 'problem', None) or one_line(error)}{where}") from None
    except (ValueError, RecursionError, TypeError, OverflowError) as error:  # an impossible date, a number of a million digits
        raise ConfigError(f"{source}: is not YAML that can be read: {one_line(error)}") from None
    if values is None:
        return {}
    if not isinstance(values, dict):
        raise ConfigError(f"{source}: must hold sections and keys, got {shortened(values)}")
    return string_keys(values, source)


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


def leaves(values: Mapping[str, Any], prefix: str = "") -> Iterable[tuple[str, Any]]:
    """(full key, value) of everything that is no section."""
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def select(values: DictConfig, key: str) -> Any:
    """The value at a full key, None where there is none."""
    node: Any = values
    for part in key.split("."):
        if not isinstance(node, DictConfig) or part not in node:
            return None
        node = node._get_node(part)
    return node if isinstance(node, DictConfig) else OmegaConf.to_container(OmegaConf.create({"v": node}))["v"]


# ---- walking over sections -------------------------------------------------------------------------------------------


def section(cls: type, values: Any, path: str, sources: Sources, table_name: bool = False) -> Any:
    """An instance of a section's dataclass from plain values.

    Args:
        cls: the dataclass.
        values: a mapping of its fields.
        path: full key of the section, "" for the whole.
        sources: where each key was set.
        table_name: the mapping also holds `name`, which chose the class.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{sources(path)}: {path} is a section with keys of its own, got {shortened(values)}")
    fields = {f.name: f for f in dataclasses.fields(cls) if f.init}
    hints = typing.get_type_hints(cls)
    arguments = {}
    for key, value in values.items():
        full = f"{path}.{key}" if path else key
        if key == "name" and table_name:
            continue
        if key not in fields:
            owner = f" of {values['name']}" if table_name and isinstance(values.get("name"), str) else ""
            raise ConfigError(f"{sources(full)}: {full}={shortened(value)}: no such key{owner}{did_you_mean(key, fields)}")
        arguments[key] = field_value(fields[key], hints[key], value, full, sources)
    try:
        return cls(**arguments)
    except InvalidField as error:
        full = f"{path}.{error.field}" if path else error.field
        raise ConfigError(f"{sources(full)}: {full} {error.remedy}, got {error.value!r}") from None
    except TypeError as error:
        raise ConfigError(f"{sources(path)}: {path}: {one_line(error)}") from None


def field_value(f: dataclasses.Field, hint: Any, value: Any, full: str, sources: Sources) -> Any:
    """One field's value: a section, a plug-in, plug-ins by name, or a leaf of the declared type."""
    table = f.metadata.get("table")
    if f.metadata.get("mapping"):
        if not isinstance(value, Mapping):
            raise ConfigError(f"{sources(full)}: {full} maps free names to {f.metadata['kind']}s, got {shortened(value)}")
        return {name: plugin_value(f, None, one, f"{full}.{name}", sources) for name, one in value.items()}
    if table is not None:
        return plugin_value(f, f.default_factory, value, full, sources)
    if dataclasses.is_dataclass(hint):
        return section(hint, value, full, sources)
    return leaf(hint, value, full, sources)


def plugin_value(f: dataclasses.Field, default: type | None, value: Any, full: str, sources: Sources) -> Any:
    """A plug-in from its section; without `name:` it is the default class, where there is one."""
    kind, table = f.metadata["kind"], f.metadata["table"]
    if not isinstance(value, Mapping):
        raise ConfigError(f"{sources(full)}: {full} is a section such as {{name: {next(iter(table))}}}, got {shortened(value)}")
    if value.get("name") is None and default is None:
        raise ConfigError(f"{sources(full)}: {full}.name is missing; choose a {kind} from {', '.join(sorted(table))}")
    try:
        cls = default if value.get("name") is None else find(kind, table, value["name"])
    except UserError as error:
        raise ConfigError(f"{sources(full + '.name')}: {full}.name: {error}") from None
    return section(cls, value, full, sources, table_name=True)


def leaf(hint: Any, value: Any, full: str, sources: Sources) -> Any:
    """A value converted to its declared type by OmegaConf, or a message that says what was wanted."""
    if hint is Any:
        return value
    holder = OmegaConf.structured(dataclasses.make_dataclass("Leaf", [("value", hint)]))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # conversions from what YAML gives are wanted here
            holder.value = escaped(value)
            return OmegaConf.to_object(holder).value
    except (OmegaConfBaseException, ValueError, TypeError, OverflowError):
        raise ConfigError(f"{sources(full)}: {full} must be {described(hint)}, got {shortened(value)}") from None


def described(hint: Any) -> str:
    """A type in words."""
    origin, args = typing.get_origin(hint), typing.get_args(hint)
    if origin is Literal:
        return "one of " + ", ".join(map(str, args))
    if origin is tuple:
        return f"a list of {'values' if args[-1] is ... else len(args)}, each {described(args[0])}"
    if type(None) in args:
        return " or ".join([*(described(a) for a in args if a is not type(None)), "null"])
    return {int: "a whole number", float: "a number", bool: "true or false", str: "a word"}.get(hint, str(hint))


def shortened(value: Any) -> str:
    """A value for a message, on one line and not too long."""
    text = " ".join(repr(value).split())
    return text if len(text) <= 80 else text[:77] + "..."


def first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def check_across(config: Config, sources: Sources) -> None:
    """What no section can see alone."""
    if hasattr(config.model, "require_resolution"):
        try:
            config.model.require_resolution(config.data.resolution)
        except UserError as error:
            raise ConfigError(f"{sources(str(error).partition(':')[0])}: {error}") from None


def notes(config: Config) -> list[str]:
    """What a user should know of a configuration that is no mistake: settings without effect."""
    total = config.total_kimg
    starts = {f"averagers.{name}.start_kimg": getattr(one, "start_kimg", 0) for name, one in config.averagers.items()}
    if config.optim.lr_tail.kind != "none":
        starts["optim.lr_tail.start_kimg"] = config.optim.lr_tail.start_kimg
    return [f"{key}={start:g} is not before total_kimg={total:g}: it will have no effect" for key, start in starts.items() if start >= total]
