"""Areas of the hunt in which what surrounds gantrain is odd: plug-ins from outside, and the variables of the environment."""

from __future__ import annotations

import random
import re
import shutil
from pathlib import Path

from areas_of_texts import SMALL, names_of_keys
from damages import odd_file
from material import ROOT
from mutations import mutate_bytes
from supervised import Case

# Classes of docs/plugins.md -> how a configuration names them, where {} is the name.
USES = {
    "Halves": "averagers.mine={{name: '{}'}}", "Margin": "loss={{name: '{}'}}", "Drift": "penalties.mine={{name: '{}'}}",
    "Ramp": "batching={{name: '{}', batch_size: 16, max_batch: 64}}", "Perceptrons": "model={{name: '{}'}}",
    "MeanDistance": "eval.metrics=['{}']", "Doubling": "batching={{name: '{}', batch_size: 16, max_batch: 64}}",
    "SquaresSource": "data={{name: '{}'}}", "Thumbnails": "eval.features={{name: '{}'}}",
}  # fmt: skip
STATEMENTS = (
    "raise KeyError('x')", "raise ValueError()", "raise SystemExit(0)", "import nosuch",
    "import sys; sys.exit()",
    "from gantrain import nosuch", "print('x')", "return None", "return 'x'", "return float('nan')", "return []", "yield 1", "assert False",
    "1 / 0", "x: dict = None", "x: 'nosuch' = 1", "x: complex = 1j", "x: object = object()", "x: int", "x: list = []", "def f(:", "pass",
    "name: str = 'x'", "networks = 3", "every = 'x'", "needs = None", "self.x = 1", "del weight", "@property", "class X: pass", "\tpass",
    "raise MemoryError", "raise RecursionError", "raise OSError(28, 'No space left on device')",
    "raise UnicodeDecodeError('a', b'', 0, 1, 'x')",
    "\u00e9 = 1", "x = '\ud800'.encode('utf-8')", "super().__init__(1)", "raise Exception('a\\nb')",
)  # fmt: skip


def sources() -> list[tuple[str, str]]:
    """(class, source) of the plug-ins that the docs show and that `USES` can name."""
    snippets = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "plugins.md").read_text(encoding="utf-8"), re.DOTALL)
    named = [(one, text) for text in snippets for one in re.findall(r"^class (\w+)", text, re.MULTILINE)]
    return [(one, text) for one, text in named if one in USES]


def plug_ins(dice: random.Random, world: Path, folder: Path) -> Case:
    """Plug-ins of the docs with statements inserted, removed and doubled, used by a training as far as its first update."""
    cls, text = dice.choice(sources())
    lines = text.splitlines()
    for _ in range(dice.choice([1, 1, 2, 3])):
        at, how = dice.randrange(len(lines) + 1), dice.randrange(6)
        indent = re.match(r"\s*", lines[min(at, len(lines) - 1)])[0]
        if how < 4:
            lines.insert(at, indent + dice.choice(STATEMENTS))
        elif how == 4 and at < len(lines):
            del lines[at]
        else:
            lines.insert(at, lines[dice.randrange(len(lines))])
    data = "\n".join(lines).encode("utf-8", "surrogatepass")
    module = f"plugin_{dice.randrange(10**12)}"
    path = folder / f"{module}.py"
    path.write_bytes(mutate_bytes(dice, data) if dice.random() < 0.1 else data)
    if dice.random() < 0.02:
        odd_file(dice, path)
    use = USES[cls].format(f"{module}:{cls}")
    if dice.random() < 0.5:
        return Case("load_config", {"path": str(ROOT / "configs" / "digits.yaml"), "overrides": [use]}, [module, *names_of_keys()])
    overrides = [*SMALL, use, "run_dir=run"]
    return Case("start", {"path": str(ROOT / "configs" / "digits.yaml"), "overrides": overrides}, [module, *names_of_keys()])


VARIABLES = ("HOME", "GANTRAIN_CACHE", "XDG_CACHE_HOME", "TMPDIR", "RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE",
             "MASTER_ADDR", "MASTER_PORT", "COLUMNS", "LINES", "TERM", "USER", "LOGNAME", "WANDB_MODE", "WANDB_API_KEY", "WANDB_DIR",
             "TORCH_HOME", "ACCELERATE_MIXED_PRECISION", "ACCELERATE_USE_CPU", "SLURM_PROCID", "SLURM_NTASKS", "SLURM_LOCALID",
             "NO_COLOR", "LANG",
             "GANTRAIN_TRACEBACK", "SOURCE_DATE_EPOCH", "CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "MPLCONFIGDIR",
             "PYTHONWARNINGS")  # fmt: skip
VALUES = ("", "0", "-1", "1", "x", "~", "~nosuch/x", "/dev/null", "/nosuch/x", "/proc", "nan", "1e9", "1" * 400, "a\nb", "\u00e9", "pipe",
          "file", "file/x", "\udcff", "x" * 5000, " ", "yes", "no", "fp8", "\u0661")  # fmt: skip


def environments(dice: random.Random, world: Path, folder: Path) -> Case:
    """Commands with odd variables in their environment, and with some of the usual ones gone."""
    shutil.copytree(world / "run", folder / "run")
    (folder / "file").touch()
    changes: dict[str, str | None] = {}
    for name in dice.sample(VARIABLES, dice.choice([1, 1, 2, 3])):
        changes[name] = None if dice.random() < 0.2 else dice.choice(VALUES)
    size = changes.get("WORLD_SIZE")
    if size is not None and size.isdecimal() and int(size[:10]) > 1:
        del changes["WORLD_SIZE"]  # it would wait for the others, as it should
    argv = dice.choice([["config", "digits"], ["runs", "."], ["watch", "run"], ["sample", "run", "--num", "1", "--out", "x.png"],
                        ["fork", "run", "--out", "new", "total_kimg=1"], ["orbit", "run"], ["configs"]])  # fmt: skip
    return Case(
        "command_in", {"argv": argv, "environment": changes}, [*VARIABLES, "ACCELERATE_", "run/", "run:", "command line", *names_of_keys()]
    )
