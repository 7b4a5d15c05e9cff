"""Whole commands at tiny size: train, resume, refuse."""

from __future__ import annotations

import json
import os
import random
import re
import resource
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import numpy as np
import pytest
import spawning
import torch
from conftest import ROOT, TINY, error_of, lines_of, slow_but
from PIL import Image
from safetensors.torch import load_file

DIGITS = ROOT / "configs" / "digits.yaml"


def train(gantrain, run: Path, *overrides: str, config: Path = DIGITS, **kwargs) -> subprocess.CompletedProcess:
    return gantrain("train", config, f"run_dir={run}", *TINY, *overrides, **kwargs)


def newest(run: Path) -> Path:
    return sorted((run / "checkpoints").iterdir())[-1]


def same_run(a: Path, b: Path) -> None:
    """Bit-identical weights, optimizers, averages and scores, and the same losses on the way."""
    files = sorted(p.name for p in newest(a).glob("*.safetensors"))
    assert newest(a).name == newest(b).name and files == sorted(p.name for p in newest(b).glob("*.safetensors"))
    for name in files:
        assert (newest(a) / name).read_bytes() == (newest(b) / name).read_bytes(), f"{name} differs"

    def told(run: Path, part: str) -> list[str]:
        lines = [line for line in (run / "metrics.jsonl").read_text().splitlines() if f'"{part}/' in line]
        return (
            lines
            if part == "eval"
            else [json.dumps({k: v for k, v in json.loads(x).items() if not k.startswith(("throughput", "memory"))}) for x in lines]
        )

    assert told(a, "eval") and told(a, "eval") == told(b, "eval")
    assert told(a, "loss") and told(a, "loss") == told(b, "loss")


@pytest.fixture(scope="module")
def finished(tmp_path_factory) -> tuple[Path, str]:
    """A run of 60 updates that nothing disturbed, and what it said."""
    run = tmp_path_factory.mktemp("finished") / "run"
    command = [sys.executable, "-m", "gantrain", "train", str(DIGITS), f"run_dir={run}", *TINY, "total_kimg=0.96"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return run, done.stdout


def test_a_run_leaves_what_the_design_says(finished):
    run, said = finished
    assert {p.name for p in run.iterdir()} == {".lock", ".saved", "config.yaml", "metrics.jsonl", "checkpoints", "samples", "orbit"}
    assert [p.name for p in sorted((run / "checkpoints").iterdir())] == ["000000000880", "000000000960"]
    lines = lines_of(run)
    assert all("nimg" in line for line in lines)
    assert lines[0]["event"] == "start" and lines[-1].items() >= {"nimg": 960, "event": "end"}.items()
    training = [line for line in lines if "loss/d" in line]
    assert [line["nimg"] for line in training] == [80 * i for i in range(1, 13)]
    for line in training:
        assert {
            "loss/g",
            "logits/real",
            "logits/fake",
            "batch/size",
            "batch/rounds",
            "throughput/img_per_s",
            "reals_seen",
            "lr/g",
            "lr/d",
        } <= line.keys()
        assert line["batch/size"] == 16 and line["batch/rounds"] == 1 and line["reals_seen"] == 2 * line["nimg"]
    scores = [line for line in lines if "eval/live/digits_fid" in line]
    assert [line["nimg"] for line in scores] == [160 * i for i in range(7)]
    assert "eval/ema/digits_fid" not in scores[0] and "eval/ema/digits_fid" in scores[1]
    assert "eval/swa/digits_fid" in scores[1]
    for line in scores:
        assert line["eval/num_samples"] == 64 and line["eval/reference"] == "digits (64 images)" and line["eval/batchnorm"] == "recalibrate"
        assert len(line["eval/reference_fingerprint"]) == 16 and line["eval/features"].startswith("digits-classifier/64/")
    assert "data: digits: 1,797 images, 10 classes" in said
    assert "batch 16 = 16 images x 1 process x 1 round" in said
    assert "scoring live, ema, ema_short, swa at 0.96 kimg (64 samples each)" in said


def test_samples_show_every_average_side_by_side(finished):
    """Four sheets of 2 x 10 digits, 16 pixels enlarged three times, and none of them blank."""
    pictures = sorted((finished[0] / "samples").glob("*.png"))
    assert [p.stem for p in pictures] == [f"{160 * i:012d}" for i in range(7)]
    picture = np.asarray(Image.open(pictures[-1]).convert("L"))
    sheet = 10 * (16 * 3 + 2) + 2
    assert picture.shape[1] == 4 * sheet + 5 * 12
    for i in range(4):
        part = picture[40:, 12 + i * (sheet + 12) :][:, :sheet]
        assert part.std() > 10 and len(np.unique(part)) > 50


@pytest.mark.slow
def test_the_same_command_on_a_finished_run_repeats_its_table(finished, gantrain):
    run, said = finished
    before = {p: p.stat().st_mtime_ns for p in (run / "checkpoints").rglob("*")}
    again = train(gantrain, run, "total_kimg=0.96")
    assert "resumed at 0.96 of 0.96 kimg" in again.stdout
    assert again.stdout.split("done:")[1] == said.split("done:")[1]
    assert {p: p.stat().st_mtime_ns for p in (run / "checkpoints").rglob("*")} == before


def kill_when(run: Path, ready, *overrides: str) -> bool:
    """Start the run and SIGKILL it when `ready(run)`; False when it ended before."""
    process = spawning.Spawned(["-m", "gantrain", "train", DIGITS, f"run_dir={run}", *TINY, *overrides], os.environ)
    while process.poll() is None:
        if ready(run):
            process.send_signal(signal.SIGKILL)
            break
    return process.wait() == -signal.SIGKILL


@pytest.mark.slow
def test_killed_at_any_moment_it_ends_as_if_nothing_had_happened(finished, gantrain, tmp_path):
    """SIGKILL before the first line, while training, scoring, drawing and writing; then the run goes on to the same bits."""
    run, dice = tmp_path / "run", random.Random(0)

    def lines(n: int):
        wanted = [n]

        def ready(run: Path) -> bool:
            path = run / "metrics.jsonl"
            if not path.is_file() or path.read_text().count("\n") < wanted[0]:
                time.sleep(0.001)
                return False
            time.sleep(dice.random() * 0.05)
            return True

        return ready

    def writing(run: Path) -> bool:
        return any(run.glob("checkpoints/.writing-*/*"))

    def drawing(run: Path) -> bool:
        return (run / "samples" / "000000000480.png").exists()

    kills = [
        kill_when(run, ready, "total_kimg=0.96") for ready in (lambda run: run.exists(), lines(1), lines(9), writing, drawing, lines(22))
    ]
    assert sum(kills) >= 5, "the run ended before it could be killed"
    train(gantrain, run, "total_kimg=0.96")
    same_run(finished[0], run)
    assert (run / "metrics.superseded.jsonl").read_text().strip()
    events = [line["event"] for line in lines_of(run) if "event" in line]
    assert events[0] == "start" and events[-1] == "end" and "resume" in events


@pytest.mark.slow
def test_two_trainings_in_one_folder_are_refused_and_a_dead_one_holds_nothing(gantrain, tmp_path):
    run, before = tmp_path / "run", []

    def second(run: Path) -> bool:
        if not (run / "metrics.jsonl").is_file() or "loss/d" not in (run / "metrics.jsonl").read_text():
            time.sleep(0.01)
            return False
        before.append(error_of(train(gantrain, run, "total_kimg=100", check=False)))
        return True

    assert kill_when(run, second, "total_kimg=100")
    assert re.search(r"is being trained by process \d+ on .*; wait for it, stop it, or use another run_dir", before[0])
    train(gantrain, run, "total_kimg=0.16")


@pytest.mark.slow
def test_a_run_may_be_made_longer_and_is_the_longer_run(finished, gantrain, tmp_path):
    run = tmp_path / "run"
    train(gantrain, run, "total_kimg=0.48")
    longer = train(gantrain, run, "total_kimg=0.96")
    assert "resumed at 0.48 of 0.96 kimg" in longer.stdout
    same_run(finished[0], run)
    resumed = next(line for line in lines_of(run) if line.get("event") == "resume")
    assert resumed["changed"] == {"total_kimg": [0.48, 0.96]}


@pytest.mark.slow
def test_a_damaged_checkpoint_is_named_and_the_one_before_goes_on(finished, gantrain, tmp_path):
    run = tmp_path / "run"
    train(gantrain, run, "total_kimg=0.48")
    broken = newest(run) / "average.ema.safetensors"
    broken.write_bytes(broken.read_bytes()[:-9])
    done = train(gantrain, run, "total_kimg=0.96")
    assert f"{broken}: has" in done.stdout and "skipped" in done.stdout and "resumed at 0.4 of 0.96 kimg" in done.stdout
    same_run(finished[0], run)


def test_a_run_folder_of_another_configuration_is_refused(finished, gantrain):
    run, _ = finished
    before = (run / "config.yaml").read_text(), (run / "metrics.jsonl").read_text()
    line = error_of(train(gantrain, run, "total_kimg=0.96", "optim.lr_g=1e-5", "averagers.ema.half_life_kimg=3", check=False))
    assert "contains a run of another configuration" in line and "use another run_dir" in line
    assert "optim.lr_g (0.0004 there, 1e-05 now)" in line and "averagers.ema.half_life_kimg (10.0 there, 3.0 now)" in line
    assert before == ((run / "config.yaml").read_text(), (run / "metrics.jsonl").read_text())


@pytest.mark.slow
def test_a_full_disk_while_writing_a_checkpoint_loses_nothing(finished, gantrain, tmp_path):
    """The system refuses files over a size; the checkpoint before stays whole, and with room the run goes on to the same bits."""
    run = tmp_path / "run"
    train(gantrain, run, "total_kimg=0.48")
    kept = newest(run)
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))  # noqa: E731
    line = error_of(train(gantrain, run, "total_kimg=0.96", check=False, preexec_fn=limit))
    assert "checkpoints/000000000560: the checkpoint could not be written (File too large; it needs " in line
    assert "the one at 0.48 kimg is intact; free some space and run the same command again" in line
    assert newest(run) == kept and not list(run.glob("checkpoints/.writing-*"))
    train(gantrain, run, "total_kimg=0.96")
    same_run(finished[0], run)


# ---- other data ------------------------------------------------------------------------------------------------------


@pytest.fixture
def pictures(tmp_path) -> Path:
    """Two classes of eight noisy pictures."""
    dice = np.random.default_rng(0)
    for name in ("cats", "dogs"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for i in range(8):
            Image.fromarray(dice.integers(0, 256, (20, 24, 3), dtype=np.uint8)).save(tmp_path / "pictures" / name / f"{i}.png")
    return tmp_path / "pictures"


def folder(root: Path) -> list[str]:
    return [f"data={{name: folder, root: '{root}', resolution: 16}}", "eval.reference_samples=16", "total_kimg=0.16"]


@pytest.mark.parametrize("keep_in", slow_but([], ["auto", "disk"]))
def test_a_folder_of_pictures_trains(gantrain, pictures, tmp_path, keep_in):
    done = train(gantrain, tmp_path / "run", *folder(pictures), f"data.keep_in={keep_in}", "data.flip=true", "data.workers=1")
    assert "folder/pictures: 16 images, 2 classes (8 each), 3 x 16 x 16" in done.stdout
    assert ("on disk" if keep_in == "disk" else "in memory") in done.stdout


def test_a_corrupt_image_is_named(gantrain, pictures, tmp_path):
    (pictures / "dogs" / "3.png").write_bytes(b"no picture")
    (pictures / "cats" / "5.png").write_bytes((pictures / "cats" / "5.png").read_bytes()[:100])
    line = error_of(train(gantrain, tmp_path / "run", *folder(pictures), check=False))
    assert (
        str(pictures / "dogs" / "3.png") in line
        and str(pictures / "cats" / "5.png") in line
        and line.endswith("; replace or delete them, or set data.on_error=skip")
    )


def test_an_empty_class_folder_is_named(gantrain, pictures, tmp_path):
    (pictures / "emus").mkdir()
    line = error_of(train(gantrain, tmp_path / "run", *folder(pictures), check=False))
    assert "has no images of class emus; fill or delete the empty class folders" in line


def test_a_folder_above_the_classes_is_recognised(gantrain, pictures, tmp_path):
    """The mistake that turned every label to 0 elsewhere: root one folder too high."""
    (pictures.parent / "above").mkdir()
    pictures.rename(pictures.parent / "above" / "train")
    line = error_of(train(gantrain, tmp_path / "run", *folder(pictures.parent / "above"), check=False))
    assert "has only one class, 'train'" in line and "set data.labels=false" in line


@pytest.mark.slow
def test_other_pictures_under_the_same_name_are_refused(gantrain, pictures, tmp_path):
    train(gantrain, tmp_path / "run", *folder(pictures))
    (pictures / "dogs" / "3.png").unlink()
    line = error_of(train(gantrain, tmp_path / "run", *folder(pictures), "total_kimg=0.32", check=False))
    assert "is not what" in line and "was trained on (other images or labels: " in line and "; class 'dogs' has " in line


# ---- other ways to train ---------------------------------------------------------------------------------------------

WAYS = {
    "unconditional": ["data.labels=false"],
    "relativistic": ["loss.name=relativistic", "batching.micro_batch=8"],
    "orthogonal": ["optim.orthogonal_g=1e-4", "optim.orthogonal_d=1e-4"],
    "bf16": ["mixed_precision=bf16"],
    "hierarchical": ["model={name: biggan, ch: 8, dim_z: 9, shared_embedding: 4, hierarchical_z: true, attention_resolution: 8}"],
    "no averages, no scores": ["eval.every_kimg=null", "eval.batchnorm=copy"],
    "inception truncation": ["eval.truncation=0.7"],
}


@pytest.mark.slow
@pytest.mark.parametrize("way", slow_but([], WAYS))
def test_other_ways_train_and_resume(gantrain, tmp_path, way):
    """Each trains, is killed by a shorter total, and goes on to finite weights."""
    run = tmp_path / "run"
    train(gantrain, run, *WAYS[way], "total_kimg=0.16")
    train(gantrain, run, *WAYS[way], "total_kimg=0.24")
    assert newest(run).name == "000000000240"
    assert all(bool(t.isfinite().all()) for f in newest(run).glob("*.safetensors") for t in load_file(f).values())


@pytest.mark.slow
def test_orthogonal_regularisation_reaches_the_weights(gantrain, tmp_path):
    for weight in (0, 1):
        train(gantrain, tmp_path / str(weight), f"optim.orthogonal_g={weight}", "total_kimg=0.016", "eval.every_kimg=null")
    a, b = (load_file(newest(tmp_path / w) / "g.safetensors") for w in "01")
    assert not a["blocks.0.conv1.parametrizations.weight.original"].equal(b["blocks.0.conv1.parametrizations.weight.original"])


@pytest.mark.slow
def test_a_refused_run_leaves_its_folder_free(gantrain, pictures, tmp_path):
    """The remedy that the error names works in the same run_dir."""
    one = pictures / "cats"
    assert "set data.labels=false" in error_of(
        train(gantrain, tmp_path / "run", *folder(one.parent), "data.root=" + str(nested(one)), check=False)
    )
    assert not (tmp_path / "run").exists()
    train(gantrain, tmp_path / "run", *folder(one.parent), "data.root=" + str(nested(one)), "data.labels=false")


def nested(folder: Path) -> Path:
    """A folder that holds the given one as its only class."""
    above = folder.parent.parent / "nested"
    if not above.exists():
        above.mkdir()
        (above / folder.name).symlink_to(folder)
    return above


@pytest.mark.slow
def test_a_file_replaced_ends_the_run_unless_told(gantrain, pictures, tmp_path):
    """Other bytes under the same names are refused; told of it, the run goes on, and its record says so."""
    train(gantrain, tmp_path / "run", *folder(pictures), "data.keep_in=disk", "data.workers=0")
    Image.new("RGB", (20, 20), (90, 10, 200)).save(pictures / "cats" / "0.png")
    more = [*folder(pictures), "total_kimg=0.24", "data.keep_in=disk", "data.workers=0"]
    assert "(other contents under the same names); restore the original images" in error_of(
        train(gantrain, tmp_path / "run", *more, check=False)
    )
    done = train(gantrain, tmp_path / "run", "--changed-data", *more)
    scored = {line["eval/reference_fingerprint"] for line in lines_of(tmp_path / "run") if "eval/reference_fingerprint" in line}
    changed = [line["data"] for line in lines_of(tmp_path / "run") if line.get("event") == "data_changed"]
    assert len(scored) == 2 and changed == ["folder/pictures"]
    assert "note: the content of folder/pictures has changed since 000000000160; its names and labels have not" in done.stdout
    assert any(
        "has changed since" in note for line in lines_of(tmp_path / "run") if line.get("event") == "resume" for note in line["notes"]
    )


@pytest.mark.parametrize("out", ["folder.png", "file/x.png", "file/"])
def test_a_place_that_cannot_be_written_is_one_line(finished, gantrain, tmp_path, out):
    (tmp_path / "folder.png").mkdir()
    (tmp_path / "file").write_text("")
    assert "--out" in error_of(gantrain("sample", finished[0], "--num", 1, "--out", f"{tmp_path}/{out}", check=False))
    if not out.endswith("/"):
        assert "--out" in error_of(gantrain("evaluate", finished[0], "--out", f"{tmp_path}/{out}", check=False))


@pytest.mark.parametrize("name", ["file/run", "x" * 300])
def test_a_run_dir_that_cannot_be_is_one_line(gantrain, tmp_path, name):
    (tmp_path / "file").write_text("")
    assert str(tmp_path) in error_of(train(gantrain, tmp_path / name, check=False))


def test_evaluate_takes_no_other_model(finished, gantrain):
    assert "only eval, data and labels can be overridden here" in error_of(gantrain("evaluate", finished[0], "model.ch=4", check=False))


def test_a_closed_pipe_is_no_error(finished):
    command = f"{sys.executable} -m gantrain config {DIGITS} | head -n 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert "Traceback" not in done.stderr and done.stdout.startswith("run_dir")


def test_fp16_on_a_cpu_is_refused(gantrain, tmp_path):
    line = error_of(train(gantrain, tmp_path / "run", "mixed_precision=fp16", check=False))
    assert "mixed_precision: fp16 does not run on cpu; use fp32 or bf16" in line


@pytest.mark.slow
def test_bf16_computes_in_bf16(gantrain, tmp_path):
    """Losses near fp32's, and off by more than fp32 rounds and less than bf16 does."""
    losses = {}
    for precision in ("fp32", "bf16"):
        train(
            gantrain,
            tmp_path / precision,
            f"mixed_precision={precision}",
            "total_kimg=0.016",
            "tracking.every_kimg=0.016",
            "eval.every_kimg=null",
        )
        losses[precision] = next(line["loss/d"] for line in lines_of(tmp_path / precision) if "loss/d" in line)
    assert 1e-5 < abs(losses["bf16"] / losses["fp32"] - 1) < 2e-2


@pytest.mark.slow
def test_the_tail_lowers_the_rates(gantrain, tmp_path):
    train(gantrain, tmp_path / "run", "optim.lr_tail={kind: constant, start_kimg: 0.16, high: 0.5}")
    for rate in ("lr/g", "lr/d"):
        rates = {line["nimg"]: line[rate] for line in lines_of(tmp_path / "run") if rate in line}
        assert rates == {80: 4e-4, 160: 4e-4, 240: 2e-4, 320: 2e-4}


def test_the_help_does_not_wait_for_torch():
    """Nor for other modules that only other commands need; those that the environment imports by itself do not count."""
    check = (
        "import sys\nbefore = {*sys.modules}\nfrom gantrain.cli import run\ntry:\n    run(['--help'])\nexcept SystemExit:\n    pass\n"
        "late = {'torch', 'numpy', 'pathlib', 'traceback', 'difflib', 'urllib.parse', 'inspect'} & ({*sys.modules} - before)\n"
        "assert not late, late"
    )
    done = subprocess.run([sys.executable, "-c", check], capture_output=True, text=True)
    assert done.returncode == 0 and "follow, score and sample many averages" in done.stdout, done.stderr


def test_small_commands_do_not_wait_for_torch():
    check = "import sys\nfrom gantrain.cli import run\nassert run(sys.argv[1:]) == 0 and 'torch' not in sys.modules"
    for words in (["configs"], ["configs", "digits"]):
        done = subprocess.run([sys.executable, "-c", check, *words], capture_output=True, text=True)
        assert done.returncode == 0 and "digits" in done.stdout, done.stderr


NAMES = sorted(path.stem for path in (ROOT / "configs").glob("*.yaml"))


def test_a_shell_completes_commands_options_configurations_and_paths(gantrain, tmp_path):
    pytest.importorskip("shtab", reason="shtab is not installed")
    (tmp_path / "script").write_text(gantrain("completion", "bash").stdout)
    (tmp_path / "here" / "runs" / "one").mkdir(parents=True)
    (tmp_path / "here" / "dig.yaml").write_text("")
    (tmp_path / "here" / "runs" / "note.txt").write_text("")
    wanted = {
        "gantrain tr": ["train", "truncation"],
        "gantrain pre": ["prepare"],
        "gantrain train dig": ["dig.yaml", "digits", "digits_noise_scale", "digits_swap"],
        "gantrain train digits --ref": ["--reference"],
        "gantrain config --k": ["--keys"],
        "gantrain configs ": NAMES,
        "gantrain configs dig": ["digits", "digits_noise_scale", "digits_swap"],
        "gantrain report runs/": ["runs/one"],
        "gantrain sample runs/one --out runs/n": ["runs/note.txt"],
        "gantrain prepare --filter b": ["bicubic", "bilinear", "box"],
        "gantrain completion ": ["bash", "zsh"],
    }
    lines = [f"source {tmp_path / 'script'}", f"cd {tmp_path / 'here'}"]
    for typed in wanted:
        words = typed.split(" ")
        quoted = " ".join(f"'{word}'" for word in words)
        lines.append(f"COMP_WORDS=({quoted}); COMP_CWORD={len(words) - 1}; _shtab_gantrain 2>/dev/null; echo ${{COMPREPLY[*]}}")
    done = subprocess.run(["bash", "-c", "\n".join(lines)], capture_output=True, text=True)
    assert [sorted(line.split()) for line in done.stdout.splitlines()] == list(wanted.values()), done.stderr
    assert f"compadd {' '.join(NAMES)}; _files" in gantrain("completion", "zsh").stdout


def test_completion_without_shtab_is_refused_in_one_line(gantrain, monkeypatch):
    monkeypatch.setitem(sys.modules, "shtab", None)
    assert error_of(gantrain("completion", "bash", check=False)).endswith(
        "completion: needs shtab, which is not installed; pip install shtab"
    )


@pytest.mark.parametrize(
    "arguments, words",
    [
        (["trian", "digits"], "invalid choice: 'trian'; did you mean 'train'? See `gantrain --help`"),
        (["evalaute", "runs/none"], "invalid choice: 'evalaute'; did you mean 'evaluate'? See `gantrain --help`"),
        (["runs", "--sort", "scroe"], "argument --sort: invalid choice: 'scroe'; did you mean 'score'? See `gantrain runs --help`"),
        (["zzz"], "invalid choice: 'zzz' (choose from "),
        ([], "the following arguments are required: COMMAND"),
        (
            ["train", "configs/digits.yaml", "--seed", "3"],
            "--seed 3; a configuration key is written without dashes: seed=3; see `gantrain --help`",
        ),
        (["sample", "runs/none", "lr=3"], "unrecognized arguments: lr=3"),
        (["reference", "", "--out", "x.npz"], "an argument is empty (after reference); give it a value, or leave it out; see"),
        (["sample", "runs/none", "--out="], "--out= has an empty value; give it a value, or leave it out; see"),
    ],
)
def test_a_wrong_command_line_is_one_line(gantrain, arguments, words):
    assert words in error_of(gantrain(*arguments, check=False))


def python_blocks() -> list[str]:
    """The Python that the docs show."""
    pages = sorted((ROOT / "docs").glob("*.md"), key=lambda page: page.name != "samples.md")
    return [textwrap.dedent(block) for page in pages for block in re.findall(r"```python\n(.*?)```", page.read_text(), re.S)]


def test_the_documented_sampling_runs(finished, tmp_path, monkeypatch):
    (tmp_path / "runs").mkdir()
    (tmp_path / "runs" / "digits").symlink_to(finished[0])
    monkeypatch.chdir(tmp_path)
    names: dict = {}
    exec(next(block for block in python_blocks() if "load_generator" in block), names)
    assert names["x"].shape == (16, 1, 16, 16) and names["x"].abs().max() <= 1


@pytest.mark.slow
def test_the_documented_batch_policy_grows_the_batch(gantrain, tmp_path):
    (tmp_path / "my_module.py").write_text(next(block for block in python_blocks() if "class Ramp" in block))
    policy = "batching={name: 'my_module:Ramp', batch_size: 16, micro_batch: 16, max_batch: 48, until_kimg: 0.2}"
    train(gantrain, tmp_path / "run", policy, cwd=tmp_path)
    grown = [(line["nimg"], line["to"], line["reason"]) for line in lines_of(tmp_path / "run") if line.get("event") == "growth"]
    assert grown == [
        (112, 32, "the ramp is at 0.112 of 0.2 kimg, cut to max_batch and whole rounds"),
        (208, 48, "the ramp is at 0.208 of 0.2 kimg"),
    ]


def test_the_documented_loop_averages():
    """The plain PyTorch loop of docs/averages.md, with a game of two small networks instead of the reader's."""
    from gantrain.averaging import AverageBank

    block = next(block for block in python_blocks() if "train_step(" in block)
    torch.manual_seed(0)
    make = lambda: torch.nn.Sequential(torch.nn.Linear(4, 6), torch.nn.BatchNorm1d(6), torch.nn.Linear(6, 2))  # noqa: E731
    generator, averaged, seen = make(), make(), []

    def train_step(generator, discriminator, x_real):
        with torch.no_grad():
            for p in generator.parameters():
                p.add_(torch.randn_like(p))
        seen.append({n: p.detach().clone() for n, p in generator.named_parameters()})

    names: dict = {
        "generator": generator,
        "discriminator": None,
        "averaged": averaged,
        "train_step": train_step,
        "torch": torch,
        "dim_z": 4,
    }
    exec(
        block.replace("Swa(start_kimg=50)", "Swa(start_kimg=0.02, every_kimg=0.01)"),
        {**names, "loader": [torch.zeros(10, 2)] * 5},
        space := {},
    )
    assert isinstance(space["bank"], AverageBank) and space["nimg"] == 50
    mean = {n: torch.stack([step[n] for step in seen[1:]]).mean(0) for n in seen[0]}
    for name, p in generator.named_parameters():
        torch.testing.assert_close(p, mean[name])  # the SWA of the last four stands in the live weights
    assert not torch.equal(averaged[0].weight, generator[0].weight) and averaged[1].running_mean.abs().sum() > 0


def test_the_documented_accelerate_loop_averages_saves_and_resumes(tmp_path):
    """One update of the average per optimizer step, in images; what `save_state` wrote, `load_state` goes on from."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState, GradientState

    block = next(block for block in python_blocks() if "accelerator.prepare" in block)

    def session(batches: int) -> dict:
        AcceleratorState._reset_state(reset_partial_state=True)
        GradientState._reset_state()
        torch.manual_seed(0)
        generator = torch.nn.Linear(3, 2)
        names: dict = {
            "accelerator": Accelerator(cpu=True, gradient_accumulation_steps=2),
            "generator": generator,
            "optimizer": torch.optim.SGD(generator.parameters(), lr=0.1),
            "loader": torch.utils.data.DataLoader(torch.arange(3.0 * 4 * batches).reshape(-1, 3) / 50, batch_size=4),
            "loss_of": lambda network, x: network(x).square().mean(),
        }
        head, _, rest = block.partition("images = 0")
        exec("from gantrain.averaging import AverageBank, Ema\n" + head, names)
        names["loop"] = "images = 0" + rest
        return names

    one = session(4)
    exec(one["loop"], one)
    average = one["bank"]["ema"]
    assert one["bank"].nimg == 16 and average.num_averaged == 2 and average.previous_nimg == 16  # two steps of two batches of four
    one["accelerator"].save_state(str(tmp_path / "state"))
    shadows = {n: t.clone() for n, t in average.shadows.items()}
    two = session(4)
    two["accelerator"].load_state(str(tmp_path / "state"))
    assert two["bank"]["ema"].previous_nimg == 16 and all(torch.equal(t, two["bank"]["ema"].shadows[n]) for n, t in shadows.items())
    for names in (one, two):
        exec(names["loop"], names)
        assert names["bank"].nimg == 32
    for name, tensor in one["bank"]["ema"].shadows.items():
        assert torch.equal(tensor, two["bank"]["ema"].shadows[name]) and not torch.equal(tensor, shadows[name])
