"""The list of all keys: complete, in words, the same on the terminal and in docs/configuration.md; and which keys may change."""

from __future__ import annotations

import dataclasses
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

import pytest
from conftest import ROOT, error_of

from gantrain.averaging import AVERAGERS
from gantrain.batching import BATCH_POLICIES
from gantrain.config.config import Config
from gantrain.config.keys import (
    GENERAL,
    SCHEDULES,
    Key,
    Part,
    allowed_values,
    anchor_of,
    as_markdown,
    as_text,
    list_parts,
    meanings_of,
    select_parts,
)
from gantrain.config.loading import build, key_of, leaves, load, to_dict
from gantrain.config.schema import may_change, may_differ, walk_sections
from gantrain.data import DATASETS
from gantrain.errors import InvalidField, UserError, check, remedies_of
from gantrain.losses import LOSSES, PENALTIES
from gantrain.metrics import EXTRACTORS, METRICS
from gantrain.models import ARCHITECTURES
from gantrain.optimizers import OPTIMIZERS
from gantrain.type_words import describe_type

PARTS = list_parts()
TABLES = {
    "data": DATASETS, "model": ARCHITECTURES, "loss": LOSSES, "penalties": PENALTIES, "batching": BATCH_POLICIES, "averagers": AVERAGERS,
    "optim.g": OPTIMIZERS, "optim.d": OPTIMIZERS,
    "eval.metrics": METRICS, "eval.features": EXTRACTORS,
}  # fmt: skip
PLUGINS = [(path, name, cls) for path, table in TABLES.items() for name, cls in table.items()]


def keys_under(path: str, plugin: str | None = None) -> dict[str, Key]:
    """The keys that the list has for a section, or for a plug-in with those that it shares."""
    parts = [part for part in PARTS if part.path == path and part.plugin in (None, plugin)]
    return {key.name.removeprefix("NAME."): key for part in parts for key in part.keys}


@pytest.mark.parametrize("path,name,cls", PLUGINS, ids=lambda value: value if isinstance(value, str) else "")
def test_every_field_of_every_plugin_is_listed_with_its_own_default(path, name, cls):
    keys = keys_under(path, name)
    fields = [f for f in dataclasses.fields(cls) if f.init]
    assert {key_of(f) for f in fields} <= keys.keys()
    for f in fields:
        key, default = keys[key_of(f)], f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
        assert key.meaning and key.type, f"{path}: {name}.{key.name} has no meaning: add a line to the docstring's Attributes"
        shown = load_yaml(key.default)
        assert shown == (list(default) if isinstance(default, tuple) else default) or str(shown) == default, key


def load_yaml(text: str) -> Any:
    from gantrain.config.yaml_files import parse_yaml

    return parse_yaml(f"value: {text}", "test")["value"]


def test_every_key_of_the_defaults_is_listed_with_its_default():
    config = to_dict(Config())
    for full, value in leaves(config):
        section, _, name = full.rpartition(".")
        if section.startswith("averagers."):  # free names
            continue
        if name == "name" and section in TABLES:
            assert keys_under(section)[name].default == value
            continue
        plugin = config["data" if section == "data" else section.partition(".")[0]] if section in TABLES else None
        plugin = (
            {"data": "digits", "model": "biggan", "batching": "fixed", "optim.g": "adam", "optim.d": "adam"}.get(section)
            if plugin
            else None
        )
        if value != {}:
            assert load_yaml(keys_under(section or GENERAL, plugin)[name].default) == value, full


@pytest.mark.parametrize("part", PARTS, ids=lambda part: part.title)
def test_every_key_has_a_meaning_and_every_number_a_range(part):
    assert part.intro
    for key in part.keys:
        assert key.meaning.endswith((".", "?", ":")) and len(key.meaning) > 8, (
            f"{part.title}.{key.name}: add it to the docstring's Attributes"
        )
        assert key.range or not re.match(r"a (whole )?number", key.type), f"{part.title}.{key.name} has no range: check it in __post_init__"
        assert "typing" not in key.type and not re.search(r"\bword\b|<", key.type)


def test_sections_come_in_the_order_of_the_configuration():
    tops = dict.fromkeys(part.path.partition(".")[0] for part in PARTS)
    assert list(tops) == [GENERAL, *(f.name for f in dataclasses.fields(Config) if any(part.path == f.name for part in PARTS)), SCHEDULES]


# ---- what is read off a class ----------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Base:
    """A base.

    Attributes:
        first: from the base.
        both: a line
            and its continuation.
    """

    first: int = 1
    both: float = 0.5


@dataclass(frozen=True)
class Derived(Base):
    """Something.

    Attributes:
        first, last: theta_0 of the derived class: it wins.

    Afterwards: no attribute.
    """

    last: int | None = None
    parts: dict = field(default_factory=dict)

    def __post_init__(self) -> None:
        check(self, "first", self.first > 0, "must be above 0")
        check(self, "first", self.first < 9, "must be below 9")
        check(self, "last", self.last is None or self.last >= 2, "must be at least 2, or null")
        if not self.parts:
            raise InvalidField("parts", self.parts, "must not be empty")


def test_meanings_come_from_the_docstrings_and_a_derived_class_wins():
    words = "theta_0 of the derived class: it wins."
    assert meanings_of(Derived) == {"first": words, "both": "A line and its continuation.", "last": words}
    assert meanings_of(int) == {}


@pytest.mark.parametrize(
    "hint,words",
    [
        (int | None, "a whole number or null"),
        (None | float, "a number or null"),
        (None | bool, "true or false or null"),
        (Literal["g", "gd"], "one of g, gd"),
        (tuple[float, float], "a list of 2 numbers"),
        (tuple[str, ...], "a list of strings"),
        (Sequence[str], "a list of strings"),
        (Mapping[str, Any], "a mapping"),
        (Any, "a value"),
    ],
)
def test_a_type_has_the_same_words_in_the_list_and_in_every_message(hint, words):
    assert describe_type(hint) == words


def test_ranges_are_the_words_of_the_refusals_and_listing_them_leaves_the_refusals_as_they_are():
    asked = {"first": ["must be above 0", "must be below 9"], "last": ["must be at least 2, or null"]}
    assert remedies_of(Derived) == asked
    with pytest.raises(InvalidField, match="first: must be above 0, got 0"):
        Derived(first=0, parts={"a": 1})
    with pytest.raises(InvalidField, match="last: must be at least 2, or null, got 1"):
        Derived(last=1, parts={"a": 1})
    assert remedies_of(Derived) == asked


@pytest.mark.parametrize(
    "type_,allowed,words",
    [
        ("a number", "above 0", "a number above 0"),
        ("a whole number", "at least 1", "a whole number of at least 1"),
        ("a number or null", "above 0", "a number above 0, or null"),
        ("a number or null", "above 0, or null for none", "a number above 0, or null for none"),
        ("a string", "one of a, b", "one of a, b"),
        ("a string or null", "one of a, b", "one of a, b, or null"),
        ("a string", "must name a folder", "a string; must name a folder"),
        ("true or false", "", "true or false"),
    ],
)
def test_type_and_range_become_one_phrase(type_, allowed, words):
    assert allowed_values(Key("k", type_, "1", allowed, "", False)) == words


def test_a_refused_value_is_refused_with_the_range_that_is_listed():
    for part in PARTS:
        for key in part.keys:
            if part.plugin is None and part.path not in (GENERAL, *TABLES) and key.range in ("above 0", "at least 1"):
                with pytest.raises(UserError, match=f"{part.path}.{key.name} must be {key.range}"):
                    load(None, [f"{part.path}.{key.name}=-1"])


# ---- the command -----------------------------------------------------------------------------------------------------


def test_the_command_lists_all_keys_within_100_columns(gantrain, monkeypatch):
    monkeypatch.delenv("COLUMNS", raising=False)  # pytest-xdist sets it
    text = gantrain("config", "--keys").stdout
    assert text == as_text(PARTS, 100)
    assert max(map(len, text.splitlines())) <= 100
    assert text.endswith("Every other key must stay\nas it was; `gantrain fork` continues a run with other settings.\n")  # one paragraph
    for words in (
        "  lr_g: 0.0002 ", "(a number or a schedule above 0)", "Learning rate of the generator.", "averagers: lookahead",
        "  NAME.name: required",
        "A key with * may change when a run is resumed", "  async*: false",
    ):  # fmt: skip
        assert words in text


@pytest.mark.parametrize(
    "asked,titles",
    [
        ("optim.lr_tail", ["optim.lr_tail"]),
        ("optim.g", ["optim.g", "optim.g: adam", "optim.g: adamw", "optim.g: sgd", "optim.g: rmsprop"]),
        ("optim.d.rmsprop", ["optim.d", "optim.d: rmsprop"]),
        ("schedules", ["schedules"]),
        ("averagers.ema", ["averagers", "averagers: ema"]),
        ("eval.features", ["eval.features", "eval.features: inception", "eval.features: digits"]),
        ("general", ["general"]),
        ("seed", ["general", "eval.metrics: fid_infinity"]),
        ("optim.lr_g", ["optim"]),
        ("lr_g", ["optim"]),
        ("averagers.ema.half_life_kimg", ["averagers: ema"]),
    ],
)
def test_a_part_of_the_list_is_selected_by_section_plugin_or_key(asked, titles):
    assert [part.title for part in select_parts(PARTS, asked)] == titles


def test_a_key_is_selected_without_the_others_of_its_section():
    (part,) = select_parts(PARTS, "swap.growth")
    assert [key.name for key in part.keys] == ["growth"] and "(a number or auto; a number of at least 1, or auto)" in as_text([part])


@pytest.mark.parametrize(
    "arguments,words",
    [
        (["--keys", "batchign"], "--keys: no section or key 'batchign'; did you mean 'batching'?"),
        (["--keys", "optim.lr_gg"], "--keys: no section or key 'optim.lr_gg'; did you mean 'optim.lr_g'?"),
        (["--keys", "zzz"], "--keys: no section or key 'zzz'; known: averagers, batching, checkpoint, data, "),
        (["--keys", "batching", "some.yaml"], "--keys: lists keys and takes no CONFIG, got some.yaml; for a section write --keys SECTION"),
        (["some.yaml", "--markdown"], "--markdown: only works with --keys; write --keys --markdown"),
        ([], "config: CONFIG is missing; pass a YAML file, the name of a configuration that ships with gantrain, or --keys"),
    ],
)
def test_what_does_not_fit_is_one_line(arguments, words, gantrain):
    assert error_of(gantrain("config", *arguments, check=False)).startswith(f"gantrain: error: {words}")


def test_the_page_is_up_to_date():
    told = as_markdown(PARTS)
    assert (ROOT / "docs" / "configuration.md").read_text() == told, "run `gantrain config --keys --markdown > docs/configuration.md`"


def test_the_page_is_what_the_command_writes():
    done = subprocess.run([sys.executable, "-m", "gantrain", "config", "--keys", "--markdown"], cwd=ROOT, capture_output=True, text=True)
    assert done.stdout == as_markdown(PARTS) and not done.stderr


def test_the_pages_tables_are_tables_and_its_links_lead_to_headings():
    page = as_markdown(PARTS)
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert len(rows) == sum(len(part.keys) for part in PARTS) + 2 * sum(bool(part.keys) for part in PARTS)
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {6}
    headings = re.findall(r"^#{2,3} (.*)$", page, re.M)
    anchors = [re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings]
    assert re.findall(r"\]\(#([^)]*)\)", page) == anchors == [anchor_of(part) for part in PARTS] and len(set(anchors)) == len(anchors)
    part = Part("a", None, "p(y|x) < 1, `a|b*`", (Key("k", "a|b", "1", "", "2**3 `root/**`", True),))
    assert "| `k` \\* | a\\|b | `1` |  | 2\\*\\*3 `root/**` |" in as_markdown([part]) and "p(y\\|x) &lt; 1, `a\\|b*`" in as_markdown([part])


# ---- what may change -------------------------------------------------------------------------------------------------

CHANGES = (
    "run_dir", "total_kimg", "eval.", "checkpoint.", "guard.", "tracking.", "performance.", "orbit.every_kimg",
    "data.root", "data.keep_in", "data.workers", "data.download", "data.on_error",
)  # fmt: skip
DIFFERS = (
    "run_dir", "seed", "checkpoint.", "tracking.", "performance.", "data.root", "data.keep_in", "data.workers", "data.download",
    "data.on_error", "orbit.", "guard.", "eval.async", "eval.every_kimg",
)  # fmt: skip
EVERY_KEY = sorted(
    {key for section in walk_sections() for key, _, _ in section.fields()}
    | {full for full, _ in leaves(to_dict(Config()))}
    | {f"averagers.free.{f.name}" for cls in AVERAGERS.values() for f in dataclasses.fields(cls)}
    | {f"{path}.name" for path in TABLES}
    | {"data.of_a_class_from_outside", "eval.features.of_a_class_from_outside", "batching.of.noise.target", "penalties.a.every"}
)


def test_what_may_change_and_differ_is_what_may():
    """Marked at the fields; written out here once more, as a promise to users of run folders."""
    sections = {f.name for f in dataclasses.fields(Config)} | {"optim.lr_tail", "eval.features", "tracking.wandb"}
    assert len(EVERY_KEY) > 150
    for key in EVERY_KEY:
        if key not in sections or key in ("run_dir", "seed", "total_kimg"):
            assert may_change(key) == key.startswith(CHANGES), key
            assert may_differ(key) == key.startswith(DIFFERS), key


def test_the_list_marks_what_may_change():
    for part in PARTS:
        for key in part.keys:
            full = key.name if part.path == GENERAL else f"{part.path}.{key.name}"
            assert key.may_change == (may_change(full) and part.path != "eval.metrics"), full


def test_a_class_from_outside_is_marked_by_its_keys_names(tmp_path, monkeypatch):
    """A data set of one's own whose `root` moves resumes, as those of gantrain do."""
    (tmp_path / "own_data.py").write_text(
        "from dataclasses import dataclass\n@dataclass(frozen=True)\nclass Own:\n"
        "    root: str = ''\n    size: int = 8\n    def build(self): ...\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    config = build({"data": {"name": "own_data:Own"}})
    assert [key for key, _ in leaves(to_dict(config)) if key.startswith("data.") and may_change(key)] == ["data.root"]
