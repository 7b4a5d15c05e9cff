"""README and docs: every snippet compiles, every YAML loads, every command parses, every link leads somewhere."""

from __future__ import annotations

import argparse
import ast
import contextlib
import dataclasses
import functools
import importlib
import io
import itertools
import re
import shlex
import textwrap
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple
from urllib.parse import unquote

import pytest
from conftest import ROOT

from gantrain import parser
from gantrain.config import Config
from gantrain.config.loading import ConfigError, load
from gantrain.config.plugins import find
from gantrain.metrics import METRICS, PROTOCOLS

DOCS = ROOT / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.glob("*.md"))]
MOST_LINES = 150  # of the README
FENCE = re.compile(r"^( *)```([\w-]*) *\n(.*?)^\1``` *$", re.M | re.S)
INLINE = re.compile(r"(`+)(?!`)(.+?)(?<!`)\1(?!`)", re.S)
SHELL = ("bash", "sh", "console", "")
BEGINNINGS = ("gantrain ", "$ gantrain ", "accelerate launch ", "python tools/", "pip install ")
KEY = re.compile(r"[a-z_]\w*(\.\w+)*=(?!=)")
NO_SUCH_KEY = re.compile(r"no such key|is no section|not a section")


class Block(NamedTuple):
    """A fenced or indented block of a page."""

    page: Path
    line: int
    kind: str  # the word after ```, "" for an indented one
    text: str


class Command(NamedTuple):
    """A command that a page shows."""

    page: Path
    line: int
    words: tuple[str, ...]
    refusal: str = ""  # the line of error that the page shows under it


@pytest.fixture(scope="module", autouse=True)
def my_plugins(tmp_path_factory) -> Iterator[None]:
    """The examples of docs/plugins.md as the module that its commands name."""
    folder = tmp_path_factory.mktemp("my_plugins")
    examples = re.findall(r"```python\n(.*?)```", (DOCS / "plugins.md").read_text(), re.S)
    (folder / "my_plugins.py").write_text("from __future__ import annotations\n" + "\n".join(examples))
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        yield


# ---- reading the pages -----------------------------------------------------------------------------------------------


def fenced(page: Path) -> Iterator[Block]:
    text = page.read_text()
    for found in FENCE.finditer(text):
        yield Block(page, text.count("\n", 0, found.start()) + 1, found[2], textwrap.dedent(found[3]))


def without_fences(page: Path) -> str:
    """The page with every fenced block blank, its lines kept."""
    return FENCE.sub(lambda found: re.sub(r"[^\n]", "", found[0]), page.read_text())


def indented(page: Path) -> Iterator[Block]:
    """Blocks of lines that begin with four spaces, after a blank line; blank lines do not end them."""
    lines, block, start = ["", *without_fences(page).split("\n"), "end"], [], 0
    for number, line in enumerate(lines):
        if line.startswith("    ") and (block or not lines[number - 1].strip()):
            start = start if block else number
            block.append(line)
        elif block and not line.strip():
            block.append("")
        elif block:
            yield Block(page, start, "", textwrap.dedent("\n".join(block)).rstrip("\n"))
            block = []


def prose(page: Path) -> str:
    """The page without its blocks, their lines kept blank."""
    lines = without_fences(page).split("\n")
    for block in indented(page):
        for number in range(block.line - 1, block.line + block.text.count("\n")):
            lines[number] = ""
    return "\n".join(lines)


def inline_code(page: Path) -> Iterator[tuple[int, str]]:
    """(line, text) of code within sentences and tables."""
    text = prose(page)
    for found in INLINE.finditer(text):
        yield text.count("\n", 0, found.start()) + 1, " ".join(found[2].split())


def command_lines(block: Block) -> Iterator[tuple[int, str, str]]:
    """(line, text, the error shown under it) of the commands in a block, continued lines joined."""
    lines, number = block.text.split("\n"), 0
    first = block.line + (0 if block in INDENTED else 1)
    while number < len(lines):
        start, line = number, lines[number].strip()
        while line.endswith("\\") and number + 1 < len(lines):
            number += 1
            line = f"{line[:-1].rstrip()} {lines[number].strip()}"
        number += 1
        if line.startswith(BEGINNINGS):
            after = lines[number] if number < len(lines) else ""
            yield first + start, line, after if after.startswith("gantrain: error: ") else ""


def words_of(text: str) -> Iterator[tuple[str, ...]]:
    """Each command of a line as words; `&&` parts commands, and `> FILE` and the ... of a synopsis are taken off."""
    words: list[str] = []
    for word in [*shlex.split(re.sub(r" > \S+", "", text), comments=True), "&&"]:
        if word == "&&":
            if words:
                yield tuple(words[1:] if words[0] == "$" else words)
            words = []
        elif word != "...":
            words.append(word)


INDENTED = [block for page in PAGES for block in indented(page)]
BLOCKS = [*INDENTED, *(block for page in PAGES for block in fenced(page))]
SHOWN = [(block.page, *found) for block in BLOCKS if block.kind in SHELL for found in command_lines(block)]
SHOWN += [(page, line, text, "") for page in PAGES for line, text in inline_code(page) if text.startswith(BEGINNINGS)]
COMMANDS = [Command(page, line, words, refusal) for page, line, text, refusal in SHOWN for words in words_of(text)]


def named(one: Block | Command) -> str:
    return f"{one.page.name}:{one.line}"


def these(*beginning: str) -> list[Command]:
    return [command for command in COMMANDS if command.words[: len(beginning)] == beginning]


def gantrain_commands() -> list[Command]:
    """What follows `gantrain`, behind a launcher too."""
    launched = [command for command in these("accelerate", "launch") if "-m" in command.words]
    behind = [command._replace(words=command.words[command.words.index("-m") + 1 :]) for command in launched]
    return [command._replace(words=command.words[1:]) for command in [*these("gantrain"), *behind]]


# ---- overrides -------------------------------------------------------------------------------------------------------


def is_stand_in(override: str) -> bool:
    """Whether a value stands for one that the reader has: PATH, `$seed`, ..."""
    return bool(re.search(r"\$|\.\.\.|\b[A-Z]{4,}\b", override.partition("=")[2]))


@functools.cache
def refusal(file: Path | None, overrides: tuple[str, ...]) -> str:
    """What is wrong with a configuration; "" where nothing is."""
    try:
        load(file, overrides)
    except ConfigError as error:
        return str(error)
    return ""


def require_keys(overrides: Iterable[str], file: Path | None = None) -> None:
    """All keys must be there. Values may need what a command has besides."""
    overrides = tuple(overrides)
    together = refusal(file, overrides)
    for said in [together, *(refusal(file, (one,)) for one in overrides if together)]:
        assert not NO_SUCH_KEY.search(said), said


def require_loads(overrides: Iterable[str], file: Path | None = None) -> None:
    """The overrides load; where a value is a stand-in, its key alone must be right."""
    overrides = tuple(overrides)
    real = tuple(one for one in overrides if not is_stand_in(one))
    assert not refusal(file, real)
    if real != overrides:
        require_keys(overrides, file)


def file_in(words: Iterable[str]) -> Path | None:
    """The configuration among a command's words that this project has, by path or by name."""
    files = {str(path.relative_to(ROOT)): path for path in (ROOT / "configs").glob("*.yaml")}
    files |= {path.stem: path for path in files.values()}
    return next((files[word] for word in words if word in files), None)


# ---- what the pages show ---------------------------------------------------------------------------------------------


def test_the_pages_have_something_to_test():
    assert len(BLOCKS) > 50 and len(gantrain_commands()) > 60 and len(these("python")) > 30
    assert {block.kind for block in BLOCKS} >= {"", "python", "yaml", "bash"}


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.kind == "python"], ids=named)
def test_python_compiles_and_its_imports_are_there(block):
    tree = ast.parse(block.text)
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            for name in node.names:
                if name.name.split(".")[0] == "gantrain":
                    importlib.import_module(name.name)
        elif isinstance(node, ast.ImportFrom) and node.module.split(".")[0] == "gantrain":
            module = importlib.import_module(node.module)
            assert not [name.name for name in node.names if not hasattr(module, name.name)], ast.unparse(node)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "gantrain":
            assert hasattr(importlib.import_module("gantrain"), node.attr), ast.unparse(node)


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_names_in_gantrain_are_there(page):
    """`gantrain.module.name` within a sentence can be imported."""
    for line, text in inline_code(page):
        for dotted in re.findall(r"^gantrain((?:\.[A-Za-z_]\w*)+)(?:\(.*\))?$", text):
            found = importlib.import_module("gantrain")
            for i, part in enumerate(parts := dotted[1:].split(".")):
                with contextlib.suppress(ModuleNotFoundError):
                    importlib.import_module(".".join(["gantrain", *parts[: i + 1]]))
                assert hasattr(found, part), f"{page.name}:{line}: {text}"
                found = getattr(found, part)


@pytest.mark.parametrize("block", [b for b in BLOCKS if b.kind in ("yaml", "yml")], ids=named)
def test_yaml_loads_on_the_defaults(block, tmp_path):
    (tmp_path / "shown.yaml").write_text(block.text)
    load(tmp_path / "shown.yaml")


@pytest.mark.parametrize("command", gantrain_commands(), ids=named)
def test_a_gantrain_command_parses(command):
    """By the parser itself; its settings by the loader, on the configuration that it names."""
    if len(command.words) == 1 and not command.words[0].startswith("-"):  # `gantrain evaluate`, spoken of
        assert command.words[0] in verbs_of(parser.parser())
        return
    numbered = ["1" if re.fullmatch("[A-Z]", word) else word for word in command.words]  # --last N
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
            arguments = parser.parse(numbered)
    except SystemExit as end:
        assert end.code == 0, said.getvalue()  # --help, --version
        return
    overrides = [word for word in getattr(arguments, "overrides", []) if word != "KEY=VALUE"]
    if command.refusal:
        assert f"gantrain: error: {refusal(file_in(numbered), tuple(overrides))}" == command.refusal
    else:
        require_loads(overrides, file_in(numbered))


def verbs_of(parser: argparse.ArgumentParser) -> Iterable[str]:
    return next(action.choices for action in parser._actions if isinstance(action, argparse._SubParsersAction))


@pytest.mark.parametrize("command", these("accelerate", "launch"), ids=named)
def test_a_launched_command_says_gantrain(command):
    assert "-m" not in command.words or command.words[command.words.index("-m") + 1] == "gantrain"
    from accelerate.commands.launch import launch_command_parser

    known = launch_command_parser()._option_string_actions
    options = [word for word in command.words[2 : command.words.index("-m") if "-m" in command.words else None] if word.startswith("--")]
    assert not [option for option in options if option not in known]


@pytest.mark.parametrize("command", these("python"), ids=named)
def test_a_tool_is_there_and_has_the_options(command):
    path = ROOT / command.words[1]
    assert path.is_file()
    options, verbs = arguments_of(path)
    rest = command.words[2:]
    assert not [word for word in rest if word.startswith("--") and word.partition("=")[0] not in options]
    assert not rest or not verbs or rest[0] in verbs
    variants = [setting for before, word in itertools.pairwise(rest) if before == "--against" for setting in word.split()]
    require_keys([word for word in rest if KEY.match(word) and word.partition("=")[0] not in options] + variants, file_in(rest))


@functools.cache
def arguments_of(path: Path) -> tuple[set[str], set[str]]:
    """(options, sub-commands) that a script's parser has, from its text."""
    options, verbs = {"--help"}, set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute) and node.func.attr in ("add_argument", "add_parser"):
            texts = {a.value for a in node.args if isinstance(a, ast.Constant) and isinstance(a.value, str)}
            if node.func.attr == "add_parser":
                verbs |= texts
            else:
                options |= {text for text in texts if text.startswith("-")}
    return options, verbs


@pytest.mark.parametrize("command", these("pip", "install"), ids=named)
def test_pip_installs_what_the_project_has(command):
    project = (ROOT / "pyproject.toml").read_text()
    constraints = (ROOT / "constraints.txt").read_text().splitlines()
    extras = project.partition("[project.optional-dependencies]")[2].partition("\n[")[0]
    for word in command.words[2:]:
        assert not word.endswith(".txt") or (ROOT / word).is_file()
        assert "==" not in word or word in constraints, "another version than the pinned one would be replaced"
        for extra in re.findall(r"^(?:\.|gantrain)\[([\w,]+)\]$", word):
            assert not [one for one in extra.split(",") if not re.search(rf"^{one} = ", extras, re.M)], word


@pytest.mark.parametrize("page", PAGES, ids=lambda p: p.name)
def test_settings_in_sentences_are_keys(page):
    """`eval.resamples=32` and its like."""
    shown = [[text] if "{" in text else text.split() for _, text in inline_code(page)]
    require_keys(word for words in shown if all(KEY.match(word) and "." in word.partition("=")[0] for word in words) for word in words)


# ---- the shape of the pages ------------------------------------------------------------------------------------------


def anchors(page: Path) -> set[str]:
    """The anchors that GitHub gives a page's headings."""
    found: set[str] = set()
    for heading in re.findall(r"^#{1,6} +(.*?) *#*$", without_fences(page), re.M):
        text = re.sub(r"\[([^]]*)\]\([^)]*\)", r"\1", heading).lower()
        slug = re.sub(r"[^\w\- ]", "", text).replace(" ", "-")
        found.add(slug if slug not in found else next(f"{slug}-{i}" for i in range(1, 99) if f"{slug}-{i}" not in found))
    return found


def links(page: Path) -> Iterator[str]:
    """Targets of links and pictures, those on the web left out."""
    text = INLINE.sub("", prose(page))
    targets = re.findall(r"\]\(\s*<?([^)\s>]+)", text)
    return (target for target in targets if not re.match(r"[a-z]+:", target))


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CHANGELOG.md"], ids=lambda p: p.name)
def test_links_lead_somewhere(page):
    lost = []
    for target in links(page):
        path, _, anchor = unquote(target).partition("#")
        there = (page.parent / path).resolve() if path else page
        if not there.exists() or (anchor and anchor not in anchors(there)):
            lost.append(target)
    assert not lost


def test_the_readme_is_short():
    assert len((ROOT / "README.md").read_text().splitlines()) <= MOST_LINES


def test_every_page_is_in_the_index():
    there = set(links(DOCS / "README.md"))
    assert not [page.name for page in DOCS.glob("*.md") if page.name != "README.md" and page.name not in there]


def tables(cls: type) -> Iterator[tuple[str, dict[str, type]]]:
    """(kind, table) of every plug-in that a section and those inside it choose."""
    for field in dataclasses.fields(cls):
        if "table" in field.metadata:
            yield field.metadata["kind"], field.metadata["table"]
        elif isinstance(field.default_factory, type) and dataclasses.is_dataclass(field.default_factory):
            yield from tables(field.default_factory)


TABLES = [*tables(Config), ("metric", METRICS), ("protocol", PROTOCOLS)]


@pytest.mark.parametrize("kind, table", TABLES, ids=[kind for kind, _ in TABLES])
def test_every_plugin_is_named(kind, table):
    text = "\n".join(page.read_text() for page in PAGES if page.name != "configuration.md")
    assert not [name for name in table if f"`{name}`" not in text]
    if kind != "protocol":
        assert all(find(kind, table, name) for name in table)
