"""The configurations that ship with gantrain, which every CONFIG argument accepts by name.

In a wheel they lie inside the package, in a clone beside it. The folder configs/ is the source of both.
"""

from __future__ import annotations

from pathlib import Path

from gantrain.errors import UserError, did_you_mean

PACKAGE = Path(__file__).parent
INSTALLED, CLONED = PACKAGE / "configs", PACKAGE.parent / "configs"


def list_shipped() -> dict[str, Path]:
    """Name -> file of every configuration that ships with gantrain, sorted by name."""
    folder = INSTALLED if INSTALLED.is_dir() or not (PACKAGE.parent / "pyproject.toml").is_file() else CLONED
    return {path.stem: path for path in sorted(folder.glob("*.yaml"))}


def shipped_file(name: str) -> Path:
    """The file of the configuration of this name.

    Raises:
        UserError: none of this name ships with gantrain.
    """
    files = list_shipped()
    if name not in files:
        raise UserError(f"{name}: no configuration of this name ships with gantrain{names_like(name)}")
    return files[name]


def find_config(config: str | Path) -> Path:
    """The file that a CONFIG means: the path itself, or the shipped configuration of that name if the path does not exist.

    A file or folder of that name in the working directory comes first. `explain_choice` says which one was taken.
    """
    path, files = Path(config), list_shipped()
    return files[path.name] if is_bare(path) and path.name in files and not path.exists() else path


def explain_choice(config: str | Path) -> str:
    """A line that says which file a CONFIG means, if it might mean two; otherwise ""."""
    path, files = Path(config), list_shipped()
    if not is_bare(path) or path.name not in files:
        return ""
    if path.exists():
        return f"configuration: {path.resolve()}, not the configuration {path} that ships with gantrain"
    own = path.with_suffix(".yaml")
    rest = f"; to use the file {own} of this folder, write {own}" if own.exists() else ""
    return f"configuration: {path}, which ships with gantrain ({files[path.name]}){rest}"


def similar_to(path: Path) -> str:
    """How a message about a missing file goes on: with a similar file, or with the configurations that ship with gantrain."""
    beside = Path("configs") / f"{path.name}.yaml"
    if beside.is_file():
        return f"; did you mean {beside}?"
    near = did_you_mean(path.name, [file.name for file in path.parent.glob("*.yaml")])
    return near if near.endswith("?") else hint_for(path) or (near if "known: " in near else "")


def hint_for(config: str | Path) -> str:
    """How the sentence "CONFIG: there is no such file" goes on if a shipped configuration may be meant; otherwise ""."""
    path = Path(config)
    if is_bare(path):
        return f", and no configuration of this name ships with gantrain{names_like(path.name)}"
    if path.stem in list_shipped() and path.parent in (Path(), Path("configs")):  # as in a clone
        return f"; did you mean {path.stem}, which ships with gantrain?"
    return ""


def instead_of(config: str | Path) -> str:
    """How the remedy "pass a YAML file" goes on if a shipped configuration is hidden by something of its name; otherwise ""."""
    path, files = Path(config), list_shipped()
    return f", such as {files[path.name]}, which ships with gantrain" if is_bare(path) and path.name in files else ""


def names_like(name: str) -> str:
    """The end of a message: a similar name, and the list of all."""
    files = list_shipped()
    if not files:
        return "; this installation has none: reinstall gantrain"
    near, known = did_you_mean(name, files), f"known: {', '.join(files)}"
    return f"{near} {known}" if near.endswith("?") else f"; {known}"


def is_bare(path: Path) -> bool:
    """Whether a path is a single word without a suffix, as the name of a configuration is."""
    return len(path.parts) == 1 and not path.suffix and path.name not in ("", "..")
