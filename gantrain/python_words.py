"""Messages for a caller in Python: remedies name arguments of `gantrain.evaluate` and `gantrain.load_generator`, not keys and options."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

from gantrain.errors import UserError

ARGUMENTS = "metrics|features|num_samples|batch_size|truncation|batchnorm|resamples|reference"  # of the section `eval`
OPTIONS = "average|kimg|batchnorm|truncation|reference"
IN_PYTHON = (
    (r"\bset (?=eval\.)", "pass "),
    (r"\beval\.features\.name=(\w+)", r'features="\1"'),
    (r"\beval\.features=\{name: inception, layer: '(\d+)'\}", r'features=InceptionFeatures(layer="\1")'),
    (r"\beval\.features\.(weights|layer)=(\w+)", r"features=InceptionFeatures(\1=\2)"),
    (r"\beval\.metrics=\[([\w,]*)\]", lambda found: f"metrics={found[1].split(',')}"),
    (rf"\beval\.(?=(?:{ARGUMENTS})\b)", ""),
    (r"\blabels=(uniform|data)\b", r'labels="\1"'),
    (r"--average best:", 'average="best":'),
    (r"--average (\w+)", r'average="\1"'),
    (r"--kimg (\d[\d.]*)", r"kimg=\1"),
    (rf"--(?=(?:{OPTIONS})\b)", ""),
)  # fmt: skip


def in_python(text: str) -> str:
    """A message of the command line with the arguments of the Python functions: `eval.features.name=digits` is `features="digits"`."""
    for pattern, words in IN_PYTHON:
        text = re.sub(pattern, words, text)
    return text


@contextmanager
def python_remedies() -> Iterator[None]:
    """Within this context, the text of a `UserError` is that of `in_python`."""
    try:
        yield
    except UserError as error:
        error.args = (in_python(str(error)),)
        raise
