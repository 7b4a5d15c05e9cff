"""Lines of a record and of an orbit's record: files in pieces, lines of any content, and the path that rollbacks leave."""

from __future__ import annotations

import base64
import io
import itertools
import json
import math
import os
import random
import resource
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings, strategies as st

from gantrain.errors import UserError
from gantrain.orbit import recordings as orbits
from gantrain.orbit.analysis import read_scores
from gantrain.orbit.motion import TooFewRecordings, build_motion, read_record
from gantrain.orbit.picture import MOST_DRAWN, thin
from gantrain.orbit.recordings import Recordings
from gantrain.reporting.tracker import Tracker
from gantrain.run_folder import line_file, record_lines
from gantrain.run_folder.line_file import LineFile, end_of_lines, stream_back, stream_lines
from gantrain.run_folder.record import evaluation
from gantrain.run_folder.record_lines import Splitter, describe_unreadable, parse, split_abandoned, stream

texts = st.lists(st.binary(max_size=9).map(lambda line: line.replace(b"\n", b"")), max_size=9)


class Miser(io.RawIOBase):
    """A file that returns at most `most` bytes a read, as the system does with 2,147,479,552."""

    def __init__(self, data: bytes, most: int):
        self.inner, self.most = io.BytesIO(data), most

    def readable(self):
        return True

    def seekable(self):
        return True

    def seek(self, *to):
        return self.inner.seek(*to)

    def readinto(self, room):
        return self.inner.readinto(memoryview(room)[: self.most])


# ---- files in pieces -------------------------------------------------------------------------------------------------


@settings(max_examples=40, deadline=None)
@given(lines=texts, rest=st.binary(max_size=9), piece=st.integers(1, 8), most=st.integers(1, 7), keep=st.integers(0, 90))
def test_pieces_give_what_the_whole_file_gives(lines, rest, piece, most, keep):
    """However small the pieces are, and however few bytes a read returns."""
    data = b"".join(line + b"\n" for line in lines) + rest.replace(b"\n", b"")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(line_file, "PIECE", piece)
        raw, buffered = Miser(data, most), io.BufferedReader(Miser(data, most))
        assert end_of_lines(raw, min(keep, len(data))) == data[:keep].rfind(b"\n") + 1
        assert list(stream_back(Miser(data, most))) == data.split(b"\n")[::-1]
        found = list(stream_lines(buffered))
        *ended, last = data.split(b"\n")
        assert [line.data for line in found] == [line + b"\n" for line in ended] + [last] * bool(last)
        assert [line.whole for line in found] == [True] * len(lines) + [False] * bool(data and not data.endswith(b"\n"))
        assert sum(line.size for line in stream_lines(io.BufferedReader(Miser(data, most)), keep)) == min(keep, len(data))


@pytest.mark.parametrize("end", [b"\n", b""])
def test_a_line_that_is_too_long_is_empty_and_is_never_held(end, monkeypatch):
    monkeypatch.setattr(line_file, "LONGEST_LINE", 100)
    monkeypatch.setattr(line_file, "PIECE", 16)
    data = b"first\n" + b"x" * 1000 + end
    data += b"last\n" if end else b""
    found = list(stream_lines(io.BytesIO(data)))
    assert [(line.data, line.size, line.whole) for line in found[:2]] == [(b"first\n", 6, True), (b"", 1000 + len(end), bool(end))]
    assert sum(line.size for line in found) == len(data)
    back = list(stream_back(io.BytesIO(data)))
    assert back == ([b"", b"last", b"", b"first"] if end else [b"", b"first"])


def test_a_record_longer_than_a_read_is_kept_whole_at_a_resume(tmp_path, monkeypatch):
    """What one read returns is not the file: 2.4 GB were kept, and 264 MB of them were moved away."""
    monkeypatch.setattr(line_file, "PIECE", 8)
    kept, later = [b'{"nimg": %d}\n' % i for i in range(50)], [b'{"nimg": %d}\n' % i for i in range(100, 120)]
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b"".join(kept + later))
    tracker = Tracker(tmp_path)
    tracker.open(len(b"".join(kept)))
    tracker.close()
    assert path.read_bytes() == b"".join(kept) and (tmp_path / "metrics.superseded.jsonl").read_bytes() == b"".join(later)


@pytest.mark.parametrize("moment", ["half", "all"])
def test_a_kill_while_lines_are_moved_loses_none(tmp_path, monkeypatch, moment):
    """The next start moves them again; the other file then has them twice, with the cut line closed."""
    monkeypatch.setattr(line_file, "PIECE", 16)
    path, other = tmp_path / "lines", tmp_path / "others"
    path.write_bytes(b"kept\n" + b"".join(b"moved %d\n" % i for i in range(9)))
    write, calls = LineFile._write, []

    def killed(self, data):
        calls.append(data)
        if moment == "half" and len(calls) == 3:
            write(self, data[:5])
            raise KeyboardInterrupt
        return write(self, data)

    def cut(self):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(LineFile, "_write", killed)
        patch.setattr(LineFile, "cut", cut)
        LineFile(path, 5).move_rest(other)
    assert path.read_bytes().startswith(b"kept\nmoved 0\n") and path.read_bytes().endswith(b"moved 8\n")
    LineFile(path, 5).move_rest(other)
    assert path.read_bytes() == b"kept\n"
    whole = b"".join(b"moved %d\n" % i for i in range(9))
    assert other.read_bytes().endswith(b"\n" + whole) and other.read_bytes().startswith(whole if moment == "all" else whole[:16])


def test_a_full_disk_while_lines_are_moved_leaves_both_files(tmp_path, monkeypatch):
    path, other = tmp_path / "lines", tmp_path / "others"
    path.write_bytes(b"kept\nmoved\n")
    other.write_bytes(b"earlier\n")

    def full(self, data):
        os.write(self._file.fileno(), data[:3])
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch, pytest.raises(OSError):
        patch.setattr(LineFile, "_write", full)
        LineFile(path, 5).move_rest(other)
    assert path.read_bytes() == b"kept\nmoved\n" and other.read_bytes() == b"earlier\n"


def test_pipes_are_refused_and_never_waited_for(tmp_path):
    os.mkfifo(tmp_path / "metrics.jsonl")
    with pytest.raises(UserError, match=r"metrics\.jsonl: cannot be read \(it is a named pipe, not a file\); fix this, or omit this run"):
        list(stream(tmp_path))
    with pytest.raises(OSError, match="named pipe"):
        LineFile(tmp_path / "metrics.jsonl")
    (tmp_path / "orbit").mkdir()
    os.mkfifo(tmp_path / "orbit" / "record.jsonl")
    with pytest.raises(UserError, match=r"record\.jsonl: cannot be read \(it is a named pipe, not a file\)"):
        read_record(tmp_path)


@pytest.mark.slow
def test_a_record_of_more_than_two_gib(tmp_path):
    """A hole is one line of NULs, which is skipped; what stands behind it is kept, read and moved."""
    path, before = tmp_path / "metrics.jsonl", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    path.write_bytes(b'{"nimg": 0, "event": "start"}\n')
    os.truncate(path, 2**31 + 2**28)
    with open(path, "ab") as file:
        file.write(b'\n{"nimg": 5}\n')
    size = path.stat().st_size
    with open(path, "ab") as file:
        file.write(b'{"nimg": 6}\n{"nimg": ')
    assert list(stream(tmp_path)) == [{"nimg": 0, "event": "start"}, None, {"nimg": 5}, {"nimg": 6}]
    tracker = Tracker(tmp_path)
    tracker.open(size)
    assert tracker.position() == size == path.stat().st_size
    tracker.close()
    assert (tmp_path / "metrics.superseded.jsonl").read_bytes() == b'{"nimg": 6}\n{"nimg": \n'
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 2**16  # KiB


# ---- lines of any content --------------------------------------------------------------------------------------------

DEEP = "[" * 100_000 + "]" * 100_000


@pytest.mark.parametrize(
    "more",
    [
        {"event": None}, {"event": 7}, {"event": ["end"]}, {"loss/d": "1.0"}, {"loss/d": True}, {"loss/d": None}, {"lr/g": [1]},
        {"batch/size": 0}, {"batch/size": 64.0}, {"batch/size": 10**30}, {"noise_scale/D/b_simple": {}}, {"throughput/left_excludes": 3},
        {"eval/notes": "one"}, {"eval/notes": [1]}, {"eval/truncation": "half"}, {"eval/num_samples": -1}, {"eval/batchnorm": ["copy"]},
        {"event": "growth", "to": 32}, {"event": "growth", "from": 16, "to": "32"}, {"event": "growth", "from": 16, "to": 0},
        {"event": "growth", "from": 16, "to": 32, "rounds": "2"}, {"event": "rollback"}, {"event": "rollback", "to": -1},
        {"event": "rollback", "to": 10**30}, {"event": "rollback", "to": 16, "lr_scale": None}, {"event": "swap", "moment": "at"},
        {"event": "swap", "moment": "at", "swap_nimg": 5, "live": [1]},
        {"event": "swap", "moment": "at", "swap_nimg": 5, "live": {"fid": "a"}},
        {"event": "swap", "moment": "at", "swap_nimg": 5, "grown": 0}, {"event": "start", "versions": []}, {"event": "start", "time": 5},
        {"event": "resume", "parameters": {"g": 5}}, {"event": "resume", "parameters": {"g": 5, "d": "5"}}, {"event": "fork", "from": 3},
        {"event": "fork", "changed": {"a": 1}}, {"event": "average_added", "settings": {}}, {"event": "end", "collapsed": True},
        {"event": "collapse", "averages": ["ema"]}, {"event": "skipped", "image": None}, {"event": "start", "class_names": "cat"},
    ],
)  # fmt: skip
def test_a_known_key_of_another_type_makes_a_line_unreadable(more):
    assert parse(json.dumps({"nimg": 16, **more})) is None


@pytest.mark.parametrize(
    "text",
    [
        '{"nimg": nan}', '{"nimg": "nan"}', '{"nimg": -1}', '{"nimg": 1e400}', '{"nimg": 9223372036854775808}', '{"a": 1}', "\ufeff",
        '{"nimg": 1, "a": ' + DEEP + "}", '{"nimg": 1, "a": 1' + "0" * 5000 + "}", '{"nimg": 1}{"nimg": 2}', '{"nimg": 1, }', DEEP,
        '{"nimg": 1, "nimg": "2"}', "\x00" * 300, '\x00\x00{"nimg": 1}', "{'nimg': 1}", '{"nimg": [1]}', '{"nimg": {"nimg": 1}}', "-", "\r",
    ],
)  # fmt: skip
def test_no_text_is_a_traceback(text):
    assert parse(text) is None and parse(text.encode()) is None


def test_what_older_versions_and_other_programs_wrote_is_read():
    """Lines without newer keys; with a byte order mark, with the ends of lines of Windows, with keys that come twice or are unknown."""
    for more in (
        {"loss/d": 1}, {"event": "start"}, {"event": "growth", "from": 16, "to": 32}, {"event": "rollback", "to": 0},
        {"event": "swap", "moment": "at", "swap_nimg": 7}, {"event": "unheard of", "from": [], "to": {}}, {"eval/a/fid": None, "x": [[]]},
        {"event": "rollback", "to": 0, "lr_scale": 0.5, "from": 7}, {"eval/live/fid": 3, "eval/truncation": None, "eval/new": {}},
    ):  # fmt: skip
        assert parse(json.dumps({"nimg": 5, **more})) == {"nimg": 5, **more}
    assert parse(b'\xef\xbb\xbf{"nimg": 1}\r\n') == {"nimg": 1} and parse('{"nimg": 1, "nimg": 2}') == {"nimg": 2}


def test_numbers_are_numbers_again_and_texts_stay_texts():
    """A class may be called "nan"."""
    line = parse('{"nimg": 0, "event": "start", "class_names": ["nan", "inf"], "loss/d": "nan", "eval/a/fid": "-inf", "notes": ["inf"]}')
    assert line["class_names"] == ["nan", "inf"] and line["notes"] == ["inf"]
    assert math.isnan(line["loss/d"]) and line["eval/a/fid"] == -math.inf
    swap = parse('{"nimg": 0, "event": "swap", "moment": "nan", "swap_nimg": 0, "live": {"fid": "inf"}}')
    assert swap["live"] == {"fid": math.inf} and swap["moment"] == "nan"


def test_a_score_is_a_number():
    line = parse(
        '{"nimg": 5, "eval/a/fid": true, "eval/b/fid": 1' + "0" * 400 + ', "eval/c/fid": 1e999, "eval/d/fid": 2, "eval/e/fid": [3]}'
    )
    assert evaluation(line).scores == {"c": {"fid": math.inf}, "d": {"fid": 2}}


def test_half_of_a_surrogate_pair_can_be_printed():
    """A name of a file may have one, as JSON spells it; no terminal and no page takes it. A whole pair is a letter."""
    line = parse(r'{"nimg": 5, "event": "skipped", "image": "a\udcff b\ud83d\ude00", "\ud800": {"x": ["\udfff"]}}')
    assert line["image"] == "a\\udcff b\U0001f600" and line["\\ud800"] == {"x": ["\\udfff"]}
    json.dumps(line, ensure_ascii=False).encode()


def test_mutated_lines_are_read_or_counted(tmp_path):
    """Every line of real kinds, with bytes changed at random: `parse` never raises, and what it returns has the types that it promises."""
    rng = random.Random(0)
    kinds = [
        {"nimg": 16, "loss/d": 1.5, "batch/size": 64, "batch/rounds": 1, "lr/g": "nan", "throughput/left_excludes": "x"},
        {"nimg": 16, "eval/live/fid": 2.5, "eval/notes": ["a"], "eval/truncation": None},
        {"nimg": 16, "event": "swap", "moment": "at", "swap_nimg": 16, "live": {"fid": 1.0}, "grown": 2.0},
    ]
    for _ in range(1500):
        data = bytearray(json.dumps(rng.choice(kinds)).encode())
        for _ in range(rng.randint(1, 4)):
            data[rng.randrange(len(data))] = rng.choice(b'0123456789-+.eE"\\{}[]:,nulltruefals \x00\xff\xed\x80')
        line = parse(bytes(data))
        if line is not None:
            assert type(line["nimg"]) is int and type(line.get("loss/d", 0.0)) in (int, float) and type(line.get("event", "")) is str
            assert type(line.get("live", {})) is dict
            evaluation(line)


def test_a_reader_counts_and_says_once(tmp_path):
    (tmp_path / "metrics.jsonl").write_bytes(b'\x00\x00\n{"nimg": 1}\n{"nimg": 2, "event": "growth"}\n{"nimg": 3}\n{"nim')
    assert [line and line["nimg"] for line in stream(tmp_path)] == [None, 1, None, 3]
    assert describe_unreadable(2, tmp_path) == f"{tmp_path}: 2 lines of metrics.jsonl cannot be read and are left out"
    assert (
        describe_unreadable(1, tmp_path).endswith("1 line of metrics.jsonl cannot be read and is left out")
        and describe_unreadable(0, tmp_path) == ""
    )


def test_the_checks_of_keys_are_bounded(monkeypatch):
    """A damaged record may have any number of keys."""
    monkeypatch.setattr(record_lines, "MOST_KEYS", 50)
    for i in range(200):
        assert parse(f'{{"nimg": 1, "key{i}": 1, "loss/{i}": 1}}')
    assert len(record_lines.CHECKS) <= 50


# ---- rollbacks -------------------------------------------------------------------------------------------------------


def split_plainly(lines):
    """What a rollback abandons, decided for each line anew at each rollback."""
    kept, left = [], []
    for line in lines:
        if line.get("event") == "rollback":
            to = line["to"]
            saved = max((i for i, one in enumerate(kept) if one["nimg"] == to and one.get("event") == "checkpoint"), default=len(kept))
            stays = [
                one.get("event") in ("start", "resume", "rollback") or one["nimg"] < to
                or (one["nimg"] == to and (i <= saved or record_lines.has_scores(one)))
                for i, one in enumerate(kept)
            ]  # fmt: skip
            left += [one for one, stay in zip(kept, stays) if not stay]
            kept = [one for one, stay in zip(kept, stays) if stay]
        kept.append(line)
    return kept, left


moments = st.integers(0, 4)
some_lines = st.one_of(
    st.builds(lambda nimg, name: {"nimg": nimg, "event": name}, moments, st.sampled_from(["checkpoint", "growth", "resume", "start"])),
    st.builds(lambda nimg, key: {"nimg": nimg, key: 1.0}, moments, st.sampled_from(["loss/d", "eval/a/fid"])),
    st.builds(lambda nimg, to: {"nimg": nimg, "event": "rollback", "to": to}, moments, moments),
)


@pytest.mark.slow
@settings(max_examples=60, deadline=None)
@given(st.lists(some_lines, max_size=25))
def test_lines_are_split_at_rollbacks_without_being_held(lines):
    lines = [{**line, "index": i} for i, line in enumerate(lines)]
    kept, left = split_plainly(lines)
    assert split_abandoned(lines) == (kept, sorted(left, key=lambda line: line["index"]))
    splitter = Splitter()
    for line in lines:
        splitter.add(line)
    assert list(itertools.compress(lines, splitter.mask)) == kept


# ---- the orbit -------------------------------------------------------------------------------------------------------


def recording(nimg: int, names: tuple[str, ...] = ("live", "ema"), size: int = 8, **more) -> dict:
    def code(key: str, name: str) -> str:
        numbers = np.random.default_rng([nimg, *f"{key}{name}".encode()]).normal(size=size)
        return base64.b64encode(numbers.astype("<f4").tobytes()).decode()

    return {
        "nimg": nimg, "batch_size": 64 + nimg // 500, "lr": {"g": 2e-4, "d": 1e-4},
        "distances": {key: {name: "nan" if nimg % 7 == 0 else nimg / 3 for name in names if name != "live"} for key in "gd"},
        "sketch": {key: {name: code(key, name) for name in names} for key in "gd"}, **more,
    }  # fmt: skip


def same(one, other) -> None:
    """Whether two motions are equal in every bit."""
    for key in ("nimg", "regime", "batch_size"):
        assert getattr(one, key).tobytes() == getattr(other, key).tobytes()
    for key in ("sketches", "distances"):
        some, others = getattr(one, key), getattr(other, key)
        assert list(some) == list(others) and all(some[name].tobytes() == others[name].tobytes() for name in some)
        assert all(some[name].dtype == others[name].dtype for name in some)
    assert one.swaps == other.swaps


def read_plainly(data: bytes, player: str):
    """The arrays of one player, from all lines at once."""
    lines = [json.loads(text) for text in data.split(b"\n")[:-1]]
    decode = lambda code: np.frombuffer(base64.b64decode(code), "<f4")  # noqa: E731
    names = list(dict.fromkeys(name for line in lines for name in line["sketch"][player]))
    unknown = base64.b64encode(np.full(8, np.nan, "<f4")).decode()
    sketches = {name: np.stack([decode(line["sketch"][player].get(name, unknown)) for line in lines]) for name in names}
    distances = {n: np.array([float(line["distances"][player].get(n, "nan")) for line in lines]) for n in names if n != "live"}
    return [line["nimg"] for line in lines], sketches, distances


@pytest.mark.parametrize("seed", range(4))
def test_a_record_that_grows_is_read_once_and_gives_what_the_whole_gives(tmp_path, monkeypatch, seed):
    """In steps that end anywhere, also in the middle of a line; averages start later; a swap has two recordings of one time."""
    monkeypatch.setattr(orbits, "FEWEST_ROWS", 4)
    rng, path, parsed = random.Random(seed), tmp_path / "orbit" / "record.jsonl", []
    path.parent.mkdir()
    names = [("live",), ("live", "ema"), ("live", "ema", "swa")]
    lines = [json.dumps(recording(16 * i, names[min(2, i // 9)], swap=i % 5 == 0)) for i in range(40)]
    data, at = ("\n".join(lines) + "\n").encode(), 0
    loads = json.loads
    monkeypatch.setattr(orbits.json, "loads", lambda text: parsed.append(text) or loads(text))
    growing = Recordings(path)
    growing.read_new()
    assert len(growing) == 0
    while at < len(data):
        more = min(len(data) - at, rng.randint(1, 4000))
        with open(path, "ab") as file:
            file.write(data[at : at + more])
        at += more
        growing.read_new()
        assert len(growing) == data[:at].count(b"\n")
    assert len(parsed) == 40
    for player in "gd":
        motion = build_motion(growing, player)
        same(motion, build_motion(read_record(tmp_path), player))
        nimg, sketches, distances = read_plainly(data, player)
        assert motion.nimg.tolist() == nimg and list(motion.sketches) == list(sketches) and list(motion.distances) == list(distances)
        assert all(np.array_equal(motion.sketches[name], sketches[name], equal_nan=True) for name in sketches)
        assert all(np.array_equal(motion.distances[name], distances[name], equal_nan=True) for name in distances)


def test_a_record_that_was_cut_is_read_anew(tmp_path):
    """A run that resumes has removed its last lines."""
    path = tmp_path / "record.jsonl"
    lines = [json.dumps(recording(16 * i)) + "\n" for i in range(9)]
    path.write_text("".join(lines))
    found = Recordings(path)
    found.read_new()
    path.write_text("".join(lines[:4]))
    found.read_new()
    assert found.column("nimg").tolist() == [0, 16, 32, 48] and found.unreadable == 0
    path.unlink()
    found.read_new()
    assert len(found) == 0


BROKEN = {
    "garbage": b"\xff\x00garbage", "null": b"null", "list": b"[1]", "deep": DEEP.encode(), "digits": b'{"nimg": 1' + b"0" * 5000 + b"}",
    "half": json.dumps(recording(48)).encode()[:300], "empty": b"",
}  # fmt: skip


@pytest.mark.parametrize(
    "more",
    [
        *BROKEN, {"nimg": "48"}, {"nimg": True}, {"nimg": -5}, {"nimg": 10**30}, {"nimg": None}, {"batch_size": 0}, {"batch_size": 64.5},
        {"lr": [1, 2]}, {"lr": {"g": 1.0}}, {"lr": {"g": "fast", "d": 1.0}}, {"lr": {"g": "nan", "d": 1.0}}, {"lr": {"g": -1.0, "d": 1.0}},
        {"distances": None}, {"distances": {"g": {}}}, {"distances": {"g": {"ema": "far"}, "d": {}}}, {"distances": {"g": [], "d": {}}},
        {"distances": {"g": {"ema": [1]}, "d": {}}}, {"distances": {"g": {"ema": 10**400}, "d": {}}},
        {"sketch": {}}, {"sketch": {"g": {}, "d": {}}}, {"sketch": {"g": {"live": 5}, "d": {"live": 5}}},
        {"sketch": {"g": {"live": ""}, "d": {"live": ""}}},
        {"sketch": recording(48, size=9)["sketch"]}, {"sketch": {"g": {"live": "AAAA!"}, "d": {"live": "AAAA"}}},
    ],
    ids=str,
)  # fmt: skip
def test_a_damaged_recording_is_left_out_and_counted(tmp_path, more):
    path = tmp_path / "record.jsonl"
    lines = [json.dumps(recording(16 * i)).encode() for i in range(6)]
    lines[3] = BROKEN[more] if isinstance(more, str) else json.dumps({**recording(48), **more}).encode()
    path.write_bytes(b"\n".join(lines) + b"\n")
    found = Recordings(path)
    found.read_new()
    assert found.column("nimg").tolist() == [0, 16, 32, 64, 80] and found.unreadable == 1
    assert found.describe_unreadable(tmp_path) == f"{tmp_path}: 1 line of orbit/record.jsonl cannot be read and is left out"


@pytest.mark.parametrize("wrong", [0, 1, 7, 10**15])
def test_a_recording_with_a_wrong_time_takes_no_other_with_it(tmp_path, wrong):
    lines = [recording(16 * i) for i in range(9)]
    lines[4]["nimg"] = wrong
    (tmp_path / "record.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    found = Recordings(tmp_path / "record.jsonl")
    found.read_new()
    assert found.column("nimg").tolist() == [0, 16, 32, 48, 80, 96, 112, 128] and found.unreadable == 1


def test_a_record_without_a_readable_line_is_one_line(tmp_path):
    (tmp_path / "orbit").mkdir()
    (tmp_path / "orbit" / "record.jsonl").write_bytes(b"garbage\n" * 3)
    with pytest.raises(TooFewRecordings, match=r"record\.jsonl: no line can be read; restore the file"):
        read_record(tmp_path)


def test_a_recording_takes_as_many_bytes_as_it_says(tmp_path):
    """4 for each number and 8 for each distance, and at most a quarter more for what comes."""
    (tmp_path / "record.jsonl").write_text("".join(json.dumps(recording(i, size=128)) + "\n" for i in range(300)))
    found = Recordings(tmp_path / "record.jsonl")
    found.read_new()
    arrays = [*found._sketches.values(), *found._distances.values(), *found._heads.values()]
    assert sum(one.nbytes for one in arrays) <= 1.25 * 300 * (4 * 128 * 4 + 2 * 8 + 5 * 8)


@pytest.mark.slow
@settings(max_examples=40, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 30), st.sampled_from(["scores", "losses", "garbage", "other"])), max_size=20), st.integers(1, 40))
def test_the_last_scores_of_a_stretch_are_found_from_the_end(tmp_path_factory, kinds, piece):
    run = tmp_path_factory.mktemp("scores")
    make = {
        "scores": lambda i, nimg: json.dumps({"nimg": nimg, "eval/live/fid": float(i), "eval/ema/fid": 2.0 * i, "eval/num_samples": 5}),
        "losses": lambda i, nimg: json.dumps({"nimg": nimg, "loss/d": 1.0}),
        "garbage": lambda i, nimg: '{"nimg": 7, "eval/live/fid": ',
        "other": lambda i, nimg: json.dumps({"nimg": nimg, "eval/live/fid": "high", "eval/ema/fid": None}),
    }
    (run / "metrics.jsonl").write_text("".join(make[kind](i, nimg) + "\n" for i, (nimg, kind) in enumerate(kinds)))
    wanted = [(i, nimg) for i, (nimg, kind) in enumerate(kinds) if kind == "scores" and 5 < nimg <= 20]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(line_file, "PIECE", piece)
        found = read_scores(run, 5, 20)
    assert found == (("fid", {"live": float(wanted[-1][0]), "ema": 2.0 * wanted[-1][0]}, wanted[-1][1]) if wanted else ("", {}, None))


def test_a_long_path_is_thinned_for_its_picture():
    """The first, the last and those around a swap stay; a path of up to `MOST_DRAWN` recordings is drawn whole."""
    rows = np.arange(10 * MOST_DRAWN + 3)
    drawn = thin(rows, [777, 778])
    assert len(drawn) <= MOST_DRAWN + 4 and {0, 777, 778, rows[-1]} <= set(drawn.tolist()) and (np.diff(drawn) > 0).all()
    assert thin(rows[:MOST_DRAWN]) is not None and len(thin(rows[:MOST_DRAWN])) == MOST_DRAWN


@pytest.mark.skipif(not Path("/proc/self/mem").exists(), reason="a file of Linux")
def test_a_file_that_cannot_be_appended_to_is_named(tmp_path):
    (tmp_path / "lines.txt").symlink_to("/proc/self/mem")
    with pytest.raises(OSError, match=r"lines\.txt"):
        LineFile(tmp_path / "lines.txt", 10)
