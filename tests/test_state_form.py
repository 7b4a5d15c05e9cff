"""What a checkpoint's seal does not prove: that its state and its tensors are ones that this version wrote."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import pickle

import pytest
import torch
from conftest import slow_but

from gantrain import cache
from gantrain.averaging.average import Mismatch, match
from gantrain.averaging.posthoc import combine
from gantrain.data import block_record
from gantrain.data.unpacking import unpack
from gantrain.errors import UserError, in_words
from gantrain.evaluation import image_files
from gantrain.metrics import feature_cache
from gantrain.metrics.featureset import FeatureSet
from gantrain.parser import parse
from gantrain.run_folder import checkpoint
from gantrain.run_folder.contents import fitting, moment_of_rebuilt
from gantrain.run_folder.held import Held, find_held, keep_open
from gantrain.run_folder.manifest import LARGEST_MANIFEST, MANIFEST, Damaged, hold, verify
from gantrain.run_folder.ownership import read_rollback, write_rollback
from gantrain.run_folder.state_form import find_fault
from gantrain.sampling.sheets import MOST_PIXELS, require_scale
from gantrain.training.optimizer_state import require_entries

AVERAGE = {"first_nimg": 0, "previous_nimg": 16, "nimg": 16, "num_averaged": 1, "unseen": 0, "looks": [[16, 16, 2, 1]]}
ESTIMATE = {"trace": 1.0, "squared": 2.0, "low": None, "high": None, "measurements": 3}
NOISE = {"wanted": ["d"], "windows": {"d": [[[1.0], [2.0]]], "g": []}, "micro_batch": {"d": 16, "g": 16}, "fresh": {"d": 0, "g": -1},
         "checks": [{"d": ESTIMATE, "g": dict(ESTIMATE)}]}  # fmt: skip
BATCHING = {"batch_size": 32, "micro_batch": 16, "first_micro_batch": 16, "proposal": 32.0, "last_change": 16, "noise": NOISE}
GUARD = {"lr_scale": 1.0, "growth": 1.0, "skipped": 0, "rollbacks": 0, "attempts": 0, "obstacle": -1, "saturated_since": None,
         "scored_at": 16, "worse_since": None, "worse": 0, "skips": 0, "best": [["eval/ema/fid", 3.5, 16]], "warned": []}  # fmt: skip
STATE = {
    "gantrain": "0.1.0", "wandb_id": "x", "shape": [16, 1, 10], "averages": {"ema": AVERAGE}, "averages_d": {},
    "scalers": {"g": {}, "d": {}}, "previous_nimg": 0, "updates": 2, "batching": BATCHING, "guard": GUARD,
    "swaps": {"lr_scale": 1.0, "owed": False, "records": [{"nimg": 16, "batch": [16, 32], "scores": {"before": [["fid", "nan"]]}}]},
    "orbit": {"bytes": 0, "nimg": -1, "latest": []}, "scores": [["live", [["fid", 2.0]]]], "scored": 8, "scored_at": 16,
    "stats": [["loss/d", 0.5]], "stats_count": 1, "logged_at": 16, "data_fingerprint": "x", "data_listing": None, "class_names": None,
    "class_counts": [4, 5], "stats_counts": {"penalty/a": 3},
}  # fmt: skip
OPTIONAL = {"gantrain", "orbit", "class_names", "class_counts", "stats_counts"}
NAMES = {"averages", "windows", "micro_batch", "fresh", "checks"}  # what they hold has names that a run chooses


def places(value, path=()):
    yield path
    if isinstance(value, (dict, list)):
        for key, inner in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(inner, (*path, key))


def holder_of(state, path):
    for step in path[:-1]:
        state = state[step]
    return state


def test_a_key_that_is_missing_anywhere_in_a_state_is_named():
    assert find_fault(STATE, True) is None and find_fault({}, False) is None
    for path in places(STATE):
        parts = [step for step in path if isinstance(step, str)]
        chosen = parts[-1:] in (["before"], ["noise"]) or (len(parts) > 1 and parts[-2] in NAMES)
        if not path or isinstance(path[-1], int) or chosen or set(parts) & OPTIONAL:
            continue
        state = copy.deepcopy(STATE)
        del holder_of(state, path)[path[-1]]
        assert find_fault(state, True) == ".".join(parts), path
        assert find_fault(state, False) is None, "states of earlier versions and of other kinds lack keys"


def test_a_value_of_another_type_anywhere_in_a_state_is_named():
    assert find_fault([], True) == ""
    for wrong in (10**400, 0, -1, float("inf"), float("nan")):
        assert find_fault({"guard": {"lr_scale": wrong}}, False) == "guard.lr_scale"
    assert find_fault({"batching": {"proposal": 10**400}}, False) == "batching.proposal"
    for path in list(places(STATE))[1:]:
        was = holder_of(STATE, path)[path[-1]]
        likes = {str: (str, type(None)), float: (float, int, type(None)), bool: (bool,), int: (float, type(None))}
        for wrong in ({"a": {"b": 1}}, [[[1]]], "x\0", 1.5e308, 10**400, True, -(2**70)):
            state = copy.deepcopy(STATE)
            holder_of(state, path)[path[-1]] = wrong
            fault = find_fault(state, True)
            assert was == "nan" or isinstance(was, likes.get(type(wrong), ())) or str(path[0]) in (fault or ""), (path, wrong, fault)


def test_what_penalties_and_the_augmentation_remember_is_numbers():
    assert find_fault({**STATE, "terms": {"penalties": {"a": {"mean": "nan", "images": 3}}, "augment": {"p": 0.5}}}, True) is None
    for terms, key in (([], ""), ({"penalties": {"a": 1}}, ".penalties.a"), ({"augment": {"p": "x"}}, ".augment.p")):
        assert find_fault({**STATE, "terms": terms}, True) == f"terms{key}"


@pytest.fixture
def path(tmp_path):
    checkpoint.write(tmp_path / "run" / "checkpoints" / f"{16:012d}", 16, {"g": {"w": torch.ones(2)}}, {"gammas": {"p": 7.0}})
    return tmp_path / "run" / "checkpoints" / f"{16:012d}"


def refit(path, name, data):
    """Replace a file, with a seal that fits."""
    manifest = json.loads((path / MANIFEST).read_text())
    del manifest["seal"]
    (path / name).write_bytes(data)
    manifest["files"][name] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    (path / MANIFEST).write_bytes(checkpoint.seal(manifest))


def test_a_key_that_a_reader_asks_for_in_vain_is_damage_of_its_file(path):
    state = checkpoint.read_state(path)
    assert state["gammas"]["p"] == 7.0 and "x" not in state and state.get("x") is None
    for ask in (lambda: state["sigma_rel"], lambda: state["gammas"]["q"]):
        with pytest.raises(Damaged, match=r"000000000016/state.json: has no '\w+', which this version writes"):
            ask()
    assert type(pickle.loads(pickle.dumps(state))) is dict and copy.deepcopy(state) == state
    path.rename(path.parents[1] / "mine")
    (path.parents[1] / "averages").symlink_to(".")
    with pytest.raises(Damaged, match="averages/mine/state.json: has no 'sigma_rel'"):
        moment_of_rebuilt(path.parents[1], "mine")


@pytest.mark.parametrize(
    "wrong", [b'{"gammas": []}', b'{"gammas": {"p": "x"}}', b'{"gammas": {"p": -1}}', b"[]", b"[" * 9000, b'{"shape": [0]}']
)
def test_a_state_that_no_version_wrote_is_damage_however_it_is_sealed(path, wrong):
    refit(path, "state.json", wrong)
    for read in (checkpoint.read, checkpoint.read_state, verify):
        with pytest.raises(Damaged, match=r"000000000016/state.json: "):
            read(path)


def test_a_file_of_tensors_is_named_by_its_own_name_while_it_is_held(path):
    for wrong in (b'\x08\0\0\0\0\0\0\0{"w": 1}', b"x", b"\xff" * 8):
        refit(path, "g.safetensors", wrong)
        with pytest.raises(Damaged, match=r"000000000016/g.safetensors: is not a safetensors file") as told:
            held = keep_open(hold(path))
            verify(path)
        assert "/proc/" not in str(told.value) and held is not None


def test_a_complex_tensor_without_its_parts_and_a_group_that_is_missing(path):
    refit(path, "g.safetensors", checkpoint.to_bytes({"w:complex": torch.ones(3)}))
    with pytest.raises(Damaged, match="g.safetensors: w:complex is not a complex tensor"):
        checkpoint.read(path)
    refit(path, "g.safetensors", checkpoint.to_bytes({"w": torch.ones(3)}))
    with pytest.raises(Damaged, match="000000000016: does not contain optimizer_g.safetensors"):
        _ = checkpoint.read(path).tensors["optimizer_g"]


def test_a_manifest_of_holes_or_of_an_endless_moment_is_damage(path):
    manifest = json.loads((path / MANIFEST).read_text())
    (path / MANIFEST).write_bytes(checkpoint.seal({**{k: v for k, v in manifest.items() if k != "seal"}, "nimg": 10**400}))
    with pytest.raises(Damaged, match=r"manifest.json: names files outside this folder, or lacks"):
        verify(path)
    with open(path / MANIFEST, "r+b") as file:
        file.truncate(LARGEST_MANIFEST + 1)
    for hold_it in (lambda: None, lambda: keep_open(Held(path, [MANIFEST]))):
        held = hold_it()
        assert find_held(path) is held
        with pytest.raises(Damaged, match=r"manifest.json: the manifest cannot be read \(it has"):
            verify(path)


def test_a_rollback_of_other_values_is_damaged_however_it_is_sealed(tmp_path):
    body = {"to": 16, "guard": GUARD, "batching": BATCHING, "metrics_bytes": 3}
    write_rollback(tmp_path, body)
    assert body.items() <= read_rollback(tmp_path).items()
    for wrong in ({"to": "x"}, {"guard": []}, {"guard": {**GUARD, "growth": 0}}, {"batching": {"batch_size": 0}}, {"metrics_bytes": -1}):
        write_rollback(tmp_path, {**body, **wrong})
        with pytest.raises(UserError, match="rollback.json: is damaged; delete it"):
            read_rollback(tmp_path)
    write_rollback(tmp_path, {"to": 16})
    with pytest.raises(UserError, match="rollback.json: is damaged; delete it"):
        _ = read_rollback(tmp_path)["guard"]


# ---- tensors that do not fit -----------------------------------------------------------------------------------------


def test_tensors_that_do_not_fit_name_their_checkpoint(path):
    words = "000000000016: x: weight 'w' is int8, expected floating-point numbers; the checkpoint is damaged"
    with pytest.raises(UserError, match=words), fitting(path):
        match({"w": torch.ones(2)}, {"w": torch.ones(2, dtype=torch.int8)}, "x")
    for other in ({"w": torch.ones(3)}, {"v": torch.ones(2)}, {"w": torch.ones(2), "v": torch.ones(1)}):
        with pytest.raises(Mismatch, match="snapshots of one run"):
            combine([(1.0, {"w": torch.ones(2)}), (1.0, other)])


def test_a_state_of_adam_is_whole_and_of_these_parameters():
    parameters = {"w": torch.ones(2), "b": torch.ones(1)}
    saved = {f"{name}/{entry}": one.clone() for name, one in parameters.items() for entry in ("exp_avg", "exp_avg_sq")}
    saved |= {f"{name}/step": torch.tensor(3.0) for name in parameters}
    require_entries(parameters, saved)
    require_entries(parameters, {})
    for name, tensor in saved.items():
        others = [{**saved, name: tensor.to(torch.int8)}, {**saved, name: tensor[None]}, {**saved, f"no/{name}": tensor},
                  {key: one for key, one in saved.items() if key != name}]  # fmt: skip
        for wrong in others:
            with pytest.raises(Mismatch, match="optimizer: entry '.*' "):
                require_entries(parameters, wrong)


# ---- options, and pictures that are too large ------------------------------------------------------------------------


OF_NUMBERS = ("watch run --last", "prepare x --resolution", "sample run --seed", "walk run --frames", "evaluate run --num",
              "noise-scale run --updates")  # fmt: skip


NO_NUMBERS = ["1" * 400, "1" * 5000, "-" + "9" * 30, "\u0661", "\uff11", "nan", "1e3", "", "0x1"]


@pytest.mark.parametrize(
    ("words", "number"),
    slow_but(
        [(OF_NUMBERS[0], number) for number in NO_NUMBERS] + [(words, "nan") for words in OF_NUMBERS],
        itertools.product(OF_NUMBERS, NO_NUMBERS),
    ),
)
def test_an_option_takes_a_whole_number_of_64_bits_in_ascii(words, number, capsys):
    argv = words.split()
    with pytest.raises(SystemExit):
        parse([*argv[:-1], f"{argv[-1]}={number}"])
    said = capsys.readouterr().err
    if not number:
        assert f"{argv[-1]}= has an empty value; give it a value, or leave it out" in said
        return
    assert said.count("\n") == 1 and f"argument {argv[-1]}: " in said, said
    assert "must be a whole number of at most 9223372036854775807" in said or "invalid whole number value" in said


def test_an_option_takes_a_number_in_ascii(capsys):
    assert parse(["sample", "run", "--kimg", "1e1"]).kimg == 10
    for number in ("\u0661", "x", "1" * 400 + "x"):
        with pytest.raises(SystemExit):
            parse(["sample", "run", f"--kimg={number}"])
        assert "argument --kimg: invalid number value" in capsys.readouterr().err


def test_sizes_of_any_number_of_digits_have_words():
    assert [in_words(size) for size in (1, 2**30, 2**69, 2**70, 10**400)][2:] == ["549755813888.0 GiB", "over 1000 EiB", "over 1000 EiB"]


def test_a_picture_that_is_too_large_is_refused_before_it_is_drawn():
    require_scale(None, 16, 8, 8)
    columns = MOST_PIXELS // 16
    with pytest.raises(
        UserError, match=r"--num: [\d,]+ x 2 images make a picture of [\d,]+ x [\d,]+ pixels, which is too large; draw fewer"
    ):
        require_scale(None, 16, columns, 2)


# ---- the cache -------------------------------------------------------------------------------------------------------


def flipped(data):
    """Copies with one bit flipped: in the first line, behind it, in the middle, at the end; and shorter and longer ones."""
    for at in (0, cache.HEAD - 1, cache.HEAD, len(data) // 2, len(data) - 1):
        yield data[:at] + bytes([data[at] ^ 1]) + data[at + 1 :]
    yield from (data[:-1], data + b"x", data[cache.HEAD :], b"")


def test_what_a_cache_holds_is_what_was_kept_or_nothing(tmp_path, monkeypatch):
    monkeypatch.setenv("GANTRAIN_CACHE", str(tmp_path))
    features = FeatureSet(torch.randn(8, 4), torch.randn(8, 3))
    feature_cache.keep("0", features)
    cache.keep_file("seen", json.dumps("a" * 64).encode())
    assert torch.equal(feature_cache.cached("0").features, features.features) and image_files.kept_digest("seen") == "a" * 64
    for name, read in ((feature_cache.file_of("0"), lambda: feature_cache.cached("0")), ("seen", lambda: image_files.kept_digest("seen"))):
        data = (tmp_path / name).read_bytes()
        for wrong in flipped(data):
            (tmp_path / name).write_bytes(wrong)
            assert read() is None
    cache.keep_file("empty", b"")
    assert cache.kept_file("empty") == b"" and cache.kept_file("nosuch") is None
    cache.keep_file("large", b"x" * 10)
    assert cache.kept_file("large", 9) is None and cache.kept_file("large", 10) == b"x" * 10


def test_a_line_of_a_finished_block_that_was_altered_is_not_believed(tmp_path):
    lines = [block_record.line_of(i, f"{i}" * 64, {"3": "x.png: cut"} if i == 1 else {}) for i in range(3)]
    path = tmp_path / "done.jsonl"
    path.write_text("".join(lines))
    assert list(block_record.read_done(path)) == [0, 1, 2] and block_record.read_gaps(path)[1] == {"3": "x.png: cut"}
    for wrong in (lines[1].replace('"3"', '"4"'), lines[1].replace('"block": 1', '"block": 2'), '{"block": 1, "sha256": "x"}\n', "[1]\n"):
        path.write_text(lines[0] + wrong + lines[2])
        assert list(block_record.read_done(path)) == [0, 2] and not block_record.read_gaps(path)[1]


def test_an_archive_of_holes_is_refused_at_once(tmp_path):
    for name in ("x.tar", "x.tar.gz"):
        with open(tmp_path / name, "wb") as file:
            file.truncate(1 << 33)
        with pytest.raises(UserError, match=f"{name}: is an archive without files; delete it and download it again"):
            unpack(tmp_path / name, tmp_path)
