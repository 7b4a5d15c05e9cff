"""Only regular files of a bounded size are read; nothing blocks."""

from __future__ import annotations

import os
import socket

import pytest

from gantrain.regular_file import NotAFile, TooLarge, check_regular, open_regular, read_regular, read_text


def test_reads_a_file_and_a_link_to_it(tmp_path):
    (tmp_path / "a").write_bytes(b"x\r\ny")
    (tmp_path / "link").symlink_to(tmp_path / "a")
    assert read_regular(tmp_path / "link") == b"x\r\ny"
    assert read_regular(tmp_path / "a", at_most=4) == b"x\r\ny"
    assert read_text(tmp_path / "a") == "x\ny"
    with open_regular(tmp_path / "a") as file:
        assert file.read() == b"x\r\ny"


@pytest.mark.parametrize("read", [read_regular, check_regular, open_regular])
def test_refuses_what_blocks_or_never_ends(tmp_path, monkeypatch, read):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "link").symlink_to(tmp_path / "pipe")
    (tmp_path / "zero").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as bound:
        monkeypatch.chdir(tmp_path)  # a socket's path has at most 108 bytes
        bound.bind("s")
        for name, word in {"pipe": "a named pipe", "link": "a named pipe", "zero": "a device", "s": "a socket"}.items():
            with pytest.raises(NotAFile) as told:
                read(tmp_path / name)
            assert told.value.strerror == f"it is {word}, not a file" and told.value.filename == str(tmp_path / name)
    with pytest.raises(IsADirectoryError):
        read(tmp_path)
    with pytest.raises(FileNotFoundError):
        read(tmp_path / "nothing")


def test_refuses_a_file_that_is_too_large(tmp_path):
    with open(tmp_path / "sparse", "wb") as file:
        file.truncate(5 << 30)
    for read in (read_regular, check_regular, open_regular):
        with pytest.raises(TooLarge) as told:
            read(tmp_path / "sparse", 1 << 20)
        assert told.value.strerror == "it has 5.0 GiB or more, and 1 MiB is the most"


@pytest.mark.skipif(not os.path.exists("/proc/self/maps"), reason="needs Linux's /proc")
def test_the_bound_holds_where_the_system_says_that_a_file_is_empty():
    assert os.stat("/proc/self/maps").st_size == 0
    with pytest.raises(TooLarge):
        read_regular("/proc/self/maps", at_most=10)
