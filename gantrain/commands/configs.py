"""`gantrain configs`: list the configurations that ship with gantrain, or print one."""

from __future__ import annotations

import argparse
import shutil
import textwrap

from gantrain.shipped import list_shipped, shipped_file

WIDEST = 100  # characters per line
FIELDS = ("Hardware", "Duration")  # of a file's head


def call(arguments: argparse.Namespace) -> None:
    """Run the command.

    Raises:
        UserError: there is no configuration of this name.
    """
    if arguments.shipped is not None:
        print(shipped_file(arguments.shipped).read_text(encoding="utf-8"), end="")
        return
    width = min(WIDEST, max(40, shutil.get_terminal_size((WIDEST, 24)).columns))
    for name, path in list_shipped().items():
        print("\n".join([name, *describe(path.read_text(encoding="utf-8"), width)]), end="\n\n")
    print("gantrain train NAME              train one; KEY=VALUE changes a setting")
    print("gantrain configs NAME > my.yaml  copy one, to edit it and run `gantrain train my.yaml`")


def describe(text: str, width: int) -> list[str]:
    """What a file trains, on which hardware and for how long, as lines of at most `width` characters."""
    title, fields = read_head(text)
    lines = textwrap.wrap(title, width, initial_indent="    ", subsequent_indent="    ")
    for field in FIELDS:
        lines += textwrap.wrap(fields.get(field, ""), width, initial_indent=f"    {field.lower():10}", subsequent_indent=" " * 14)
    return lines


def read_head(text: str) -> tuple[str, dict[str, str]]:
    """(what it trains, field -> text) of a configuration's head.

    The head is the comment at the top: a title, an empty line, then fields. A field begins with its name at the margin, such as
    "Hardware   one GPU", and its further lines are indented.
    """
    comment = []
    for line in text.splitlines():
        if not line.startswith("#"):
            break
        comment.append(line[1:].removeprefix(" ").rstrip())
    end = comment.index("") if "" in comment else len(comment)
    fields: dict[str, str] = {}
    last = ""
    for line in comment[end + 1 :]:
        word, gap, rest = line.partition("  ")
        if line.startswith(" ") and last:
            fields[last] += f" {line.strip()}"
        elif gap:
            last = word
            fields[last] = rest.strip()
        else:
            last = ""
    return " ".join(comment[:end]), fields
