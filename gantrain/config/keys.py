"""Every key of the configuration with its type, default, range and meaning, as text or Markdown.

All of it comes from the dataclasses: types and defaults from the fields, meanings from the `Attributes:` of the docstrings, and ranges
from the messages with which `__post_init__` refuses a wrong value.
"""

from __future__ import annotations

import dataclasses
import inspect
import re
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from gantrain.config.config import Config
from gantrain.config.loading import key_of, plural
from gantrain.config.plugins import name_of
from gantrain.config.schema import Section, is_section, marks_of, walk_sections
from gantrain.errors import UserError, did_you_mean, remedies_of, shown
from gantrain.schedule import Schedule
from gantrain.type_words import describe_type

GENERAL = "general"  # heading of the keys outside all sections
MARKED = "*"  # a key that may change when a run is resumed
LEGEND = (
    f"A key with {MARKED} may change when a run is resumed, and averages may be added. Every other key must stay as it was; `gantrain fork`"
    " continues a run with other settings."
)
OUTSIDE = "package.module:Class"
SCHEDULES = "schedules"  # heading of the keys of a schedule
OF_SCHEDULES = " It is the value of a key that takes a number or a schedule."
INDENT, COLUMN = " " * 6, 40


@dataclass(frozen=True)
class Key:
    """A key in the list.

    Attributes:
        name: within its section.
        type: in words.
        default: as written in YAML.
        range: the allowed values, in words; "" if the type is enough.
        meaning: a sentence; "" if no docstring has one.
        may_change: whether it may change when a run is resumed.
    """

    name: str
    type: str
    default: str
    range: str
    meaning: str
    may_change: bool


@dataclass(frozen=True)
class Part:
    """Keys that are listed together: those of a section, those that all plug-ins of a kind share, or those that one plug-in adds.

    Attributes:
        path: full key of the section, or `GENERAL`.
        plugin: name of the plug-in; None for a section and for the keys that a kind shares.
        intro: a paragraph about it.
        keys: in the order of the fields.
    """

    path: str
    plugin: str | None
    intro: str
    keys: tuple[Key, ...]

    @property
    def title(self) -> str:
        """A heading."""
        return self.path if self.plugin is None else f"{self.path}: {self.plugin}"

    @property
    def address(self) -> str:
        """The text after `--keys` that selects it."""
        return self.path if self.plugin is None else f"{self.path}.{self.plugin}"


# ---- reading dataclasses ---------------------------------------------------------------------------------------------


def meanings_of(cls: type) -> dict[str, str]:
    """field -> meaning, from the docstrings of a dataclass and of those that it inherits from."""
    found: dict[str, str] = {}
    for one in reversed(cls.__mro__):
        _, heading, attributes = inspect.cleandoc(one.__doc__ or "").partition("Attributes:\n")
        for names, text in re.findall(r"^ {4}(\w+(?:, \w+)*): (.*(?:\n {8}.*)*)", attributes if heading else "", re.M):
            found |= dict.fromkeys(names.split(", "), as_sentence(text))
    return found


def as_sentence(text: str) -> str:
    """On one line, with a capital and a full stop; an identifier stays as it is."""
    text = " ".join(text.split())
    first = text.partition(" ")[0]
    text = text if re.search(r"[_\d]", first) else text[:1].upper() + text[1:]
    return text if text.endswith((".", "?", ":")) else f"{text}."


def intro_of(cls: type) -> str:
    """The first paragraph of a class's docstring, on one line."""
    return " ".join(re.split(r"\n\s*\n|Attributes:\n", inspect.cleandoc(cls.__doc__ or ""))[0].split())


def range_of(remedies: Sequence[str], nullable: bool) -> str:
    """The range that the checks of a field allow: "above 0" for "must be above 0"."""
    asked = [re.sub(r"^must (both |)be ", r"\1", one) for one in remedies if one.startswith("must ")]
    asked = [re.sub(r" \(-?[\d.]+\)", "", one) for one in asked]  # values of other keys, which a message quotes
    return "; ".join(re.sub(r", or (be )?null$", "", one) if nullable else one for one in asked)


def default_of(f: dataclasses.Field) -> str:
    """A field's default as written in YAML."""
    value = f.default if f.default_factory is dataclasses.MISSING else f.default_factory()
    return "required" if value is dataclasses.MISSING else as_yaml(value)


def as_yaml(value: Any) -> str:
    """A plain value as written in YAML."""
    if isinstance(value, (list, tuple)):
        return f"[{', '.join(map(as_yaml, value))}]"
    return str(value).lower() if isinstance(value, bool) else value if isinstance(value, str) and value else shown(value)


def keys_of(section: Section) -> tuple[Key, ...]:
    """The keys of a section that are not sections themselves."""
    meanings, remedies, keys = meanings_of(section.cls), remedies_of(section.cls), []
    for _, f, hint in section.fields():
        if is_section(f, hint) and not (section.plugin is not None and "table" in f.metadata):
            continue
        inside = "table" in f.metadata  # plug-ins within a plug-in
        type_ = f.metadata.get("type") or ("a section of free names" if inside else describe_type(hint))
        allowed = f.metadata.get("range") or range_of(remedies.get(f.name, []), type_.endswith("null"))
        may_change = "may_change" in section.marks | marks_of(f)
        keys.append(Key(key_of(f), type_, default_of(f), allowed, meanings.get(f.name, ""), may_change))
    return tuple(keys)


def shared_keys(each: Sequence[Sequence[Key]]) -> list[Key]:
    """The keys that all plug-ins of a kind have, in the form that most of them have; a plug-in that differs lists its own form too."""
    names = [key.name for key in each[0] if all(any(other.name == key.name for other in keys) for keys in each)]
    forms = [[key for keys in each for key in keys if key.name == name] for name in names]
    return [max(same, key=same.count) for same in forms]


def plugin_parts(sections: Sequence[Section], f: dataclasses.Field, meaning: str) -> list[Part]:
    """A part with the keys that all plug-ins of a field share, then one per plug-in with the keys that it adds."""
    each: list[list[Key]] = [list(keys_of(section)) for section in sections]
    path = sections[0].path
    shared = shared_keys(each) if len(each) > 1 else []
    names = f"one of {', '.join(str(section.plugin) for section in sections)}, or {OUTSIDE}"
    may_change = "may_change" in sections[0].marks
    kind = f.metadata["kind"]
    if "table" not in f.metadata:
        intro = f"The {plural(kind)} that `{path}` can name. It takes only names, so the values below are fixed."
        first = Part(path, None, intro, ())
        each = [[dataclasses.replace(key, may_change=False) for key in keys] for keys in each]
    elif f.metadata.get("mapping"):
        name = Key("NAME.name", names, "required", "", f"Which {kind}; NAME is free.", may_change)
        first = Part(path, None, meaning, (name, *(dataclasses.replace(key, name=f"NAME.{key.name}") for key in shared)))
        each = [[dataclasses.replace(key, name=f"NAME.{key.name}") for key in keys if key not in shared] for keys in each]
        shared = []
    else:
        assert f.default_factory is not dataclasses.MISSING
        chosen = name_of(f.metadata["table"], f.default_factory())
        first = Part(path, None, meaning, (Key("name", names, chosen, "", f"Which {kind}.", may_change), *shared))
    rest = [tuple(key for key in keys if key not in shared) for keys in each]
    return [first, *(Part(path, section.plugin, intro_of(section.cls), keys) for section, keys in zip(sections, rest))]


def list_parts() -> list[Part]:
    """All keys, in the order in which a configuration has them."""
    sections = list(walk_sections())
    parts = []
    for section in sections:
        if section.plugin is not None:
            continue
        intro = "Keys outside all sections." if section.cls is Config else intro_of(section.cls)
        parts.append(Part(section.path or GENERAL, None, intro, keys_of(section)))
        meanings = meanings_of(section.cls)
        for key, f, _ in section.fields():
            chosen = [one for one in sections if one.plugin is not None and one.path == key]
            if chosen:
                parts += plugin_parts(chosen, f, meanings.get(f.name, ""))
    parts.append(Part(SCHEDULES, None, intro_of(Schedule) + OF_SCHEDULES, keys_of(Section(SCHEDULES, Schedule))))
    order = [GENERAL, *(f.name for f in dataclasses.fields(Config)), SCHEDULES]
    return sorted(parts, key=lambda part: order.index(part.path.partition(".")[0]))


def select_parts(parts: Sequence[Part], asked: str) -> list[Part]:
    """The parts of a section, a plug-in or a key, such as "batching", "averagers.ema", "optim.lr_g" or "lr_g".

    Raises:
        UserError: there is none of this name.
    """
    inside = [part for part in parts if f"{part.path}.".startswith(f"{asked}.")]
    if inside:
        return inside
    plugin = [part for part in parts if part.address == asked]
    if plugin:  # together with the keys that it shares with the others
        return [part for part in parts if part.path == plugin[0].path and part.plugin is None and part.keys] + plugin
    keys = {part: [key for key in part.keys if asked in full_names(part, key)] for part in parts}
    found = [dataclasses.replace(part, keys=tuple(some)) for part, some in keys.items() if some]
    if not found:
        names = dict.fromkeys(part.address for part in parts)
        hint = did_you_mean(asked, [*names, *(full for part in parts for key in part.keys for full in full_names(part, key))])
        near = hint if "did you mean" in hint else did_you_mean(asked, sections_of(parts))  # all keys would be a page
        raise UserError(f"--keys: no section or key {asked!r}{near}")
    return found


def sections_of(parts: Sequence[Part]) -> list[str]:
    """Full keys of all sections."""
    return list(dict.fromkeys(part.path for part in parts))


def full_names(part: Part, key: Key) -> list[str]:
    """The names by which a key can be selected."""
    name = key.name.removeprefix("NAME.")
    return [name] if part.path == GENERAL else [f"{part.path}.{name}", f"{part.address}.{name}", name]


# ---- writing ---------------------------------------------------------------------------------------------------------


def as_text(parts: Sequence[Part], width: int = 100) -> str:
    """For a terminal: a block per part, and two lines or more per key."""
    blocks = []
    for part in parts:
        lines = [part.title, *textwrap.wrap(part.intro, width, initial_indent="  ", subsequent_indent="  "), ""]
        for key in part.keys:
            head = f"  {key.name}{MARKED if key.may_change else ''}: {key.default}"
            beside = f"{head:<{COLUMN}} ({allowed_values(key)})"
            if len(beside) <= width:
                lines += [beside, *indented(key.meaning, width)]
            else:
                lines += [head, *indented(f"({allowed_values(key)})", width), *indented(key.meaning, width)]
        blocks.append("\n".join(lines if part.keys else lines[:-1]))
    return "\n\n".join([*blocks, textwrap.fill(LEGEND, width)]) + "\n"


def indented(text: str, width: int) -> list[str]:
    """Lines under a key."""
    return textwrap.wrap(text, width, initial_indent=INDENT, subsequent_indent=INDENT)


def allowed_values(key: Key) -> str:
    """Type and range in one phrase, such as "a number above 0, or null"."""
    if not key.range:
        return key.type
    if key.range.startswith("one of") and key.type.startswith("a string"):
        return key.range + key.type.removeprefix("a string").replace(" or", ", or")
    if "must" in key.range or ";" in key.range or not key.range.startswith(("above", "at ", "between", "in ", "both ")):
        return f"{key.type}; {key.range}"
    allowed = re.sub("^at ", "of at ", key.range)
    if " or null" not in key.type:
        return f"{key.type} {allowed}"
    return f"{key.type.removesuffix(' or null')} {allowed}{'' if ' or null' in allowed else ', or null'}"


HEAD = """# Configuration

Every key with its type, default, range and meaning. This page is generated from the dataclasses of the code; edit those, then run

```shell
gantrain config --keys --markdown > docs/configuration.md
```

`gantrain config --keys` prints the same list on a terminal, and `gantrain config --keys batching`, `--keys averagers.ema` or
`--keys optim.lr_g` a part of it.
"""
NOTES = """Set a key in a YAML file, or on the command line as `SECTION.KEY=VALUE`. A section whose first key is `name` is a plug-in: `name`
chooses a class, and the other keys are that class's. Besides the names listed, `package.module:Class` chooses a class of your own
([plug-ins](plugins.md)).
"""


def as_markdown(parts: Sequence[Part]) -> str:
    """A page for GitHub: an index, and a table per part."""
    index = []
    for part in parts:
        bullet, word = ("-", part.title) if part.plugin is None else ("  -", part.plugin)
        index.append(f"{bullet} [{word}](#{anchor_of(part)})")
    blocks = [HEAD, f"{NOTES}\n{LEGEND.replace(MARKED, chr(92) + MARKED)}\n", "\n".join(index) + "\n"]
    for part in parts:
        table = []
        if part.keys:
            table = ["", "| key | type | default | range | meaning |", "|---|---|---|---|---|"]
        for key in part.keys:
            mark = f" \\{MARKED}" if key.may_change else ""
            cells = [f"`{key.name}`{mark}", escape(key.type), f"`{key.default}`", escape(key.range), escape(key.meaning)]
            table.append(f"| {' | '.join(cells)} |")
        nothing = [] if part.keys or part.plugin is None else ["", "No keys of its own."]
        level = "##" if part.plugin is None and "." not in part.path else "###"
        blocks.append("\n".join([f"{level} {part.title}", "", escape(part.intro), *nothing, *table]) + "\n")
    return "\n".join(blocks)


def escape(text: str) -> str:
    """Text for a cell of a table; within code, only the bar has a special meaning."""
    parts = text.split("`")
    return "`".join(part if i % 2 else part.replace("<", "&lt;").replace("*", r"\*") for i, part in enumerate(parts)).replace("|", r"\|")


def anchor_of(part: Part) -> str:
    """The anchor that GitHub gives a part's heading."""
    return re.sub(r"[^\w\- ]", "", part.title.lower()).replace(" ", "-")
