"""The header of an array in the format .npy, which is read before the array: what it says may be anything."""

from __future__ import annotations

from typing import IO

import numpy as np

from gantrain.errors import brief


def read_header(file: IO[bytes]) -> tuple[tuple[int, ...], np.dtype]:
    """(shape, type) of an array, from the beginning of an open file; the array begins where the file then stands.

    Raises:
        ValueError: it is not an array, is damaged, or holds pickled objects, which can run code.
    """
    try:
        version = np.lib.format.read_magic(file)
        if version not in ((1, 0), (2, 0), (3, 0)):
            raise ValueError(f"an array of format {version}")
        read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0  # 3.0 differs in names
        shape, _, dtype = read(file)
    except Exception as error:  # numpy parses the header as Python's literals, which fails in many ways
        raise ValueError(brief(error)) from None
    if dtype.hasobject:
        raise ValueError("it contains pickled objects, which can run code")
    if not all(isinstance(n, int) and n >= 0 for n in shape):
        raise ValueError(f"an array of shape {shape}")
    return shape, dtype
