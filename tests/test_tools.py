"""The stand-alone scripts, run as their docstrings describe."""

from __future__ import annotations

import hashlib
import io
import json
import math
import os
import runpy
import subprocess
import sys
import threading
from collections import Counter
from contextlib import redirect_stdout
from statistics import median

import numpy as np
import pytest
import spawning
import torch
from accelerate.state import AcceleratorState
from conftest import ROOT, TINY, here, lines_of
from PIL import Image
from safetensors.torch import load_file

from gantrain.augment import AUGMENTATIONS, Ada, DiffAugment
from gantrain.data import Packed, prepare
from gantrain.losses import LOSSES, PENALTIES, R1
from gantrain.metrics.features import DigitsClassifier, InceptionFeatures
from gantrain.optimizers import OPTIMIZERS
from gantrain.palette import COLOURS, LIVE_COLOUR, PLAYERS, channels


def run(*arguments: object) -> str:
    done = subprocess.run([sys.executable, *map(str, arguments)], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def run_here(script: str, *arguments: object) -> str:
    """Run a script in this process from the project's root: starting Python and torch would take longer than the script."""
    before, folder, said = os.getcwd(), str(ROOT / "tools"), io.StringIO()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys, "argv", [script, *map(str, arguments)])
        patch.setattr(sys, "path", [folder, *sys.path])
        patch.delitem(sys.modules, "command", raising=False)
        AcceleratorState._reset_state(reset_partial_state=True)
        os.chdir(ROOT)
        try:
            with redirect_stdout(said):
                runpy.run_path(script, run_name="__main__")
        finally:
            os.chdir(before)
            AcceleratorState._reset_state(reset_partial_state=True)
    return said.getvalue()


PENALISED = "'penalties={r1: {name: r1, gamma: 0.1, every: 2}}' optim.orthogonal_g=1e-4"


@pytest.mark.slow
def test_benchmark_compares_variants(tmp_path):
    said = run_here(
        "tools/benchmark.py",
        "train",
        "configs/digits.yaml",
        "model.ch=2",
        "batching.batch_size=16",
        "--updates",
        1,
        "--turns",
        2,
        "--against",
        PENALISED,
        "--processes",
        2,
        "--threads",
        1,
        "--json",
        tmp_path / "b.json",
    )
    record = json.loads((tmp_path / "b.json").read_text())
    assert [row["variant"] for row in record["rows"]] == ["as configured", PENALISED, "2 processes"]
    plain, penalised, two = record["rows"]
    assert two["operators"] == plain["operators"]
    # A penalty every second D step: a forward, its gradient, and the gradient of both. Orthogonal regularisation is not the game.
    assert 1.1 < penalised["operators"] / plain["operators"] < 2
    for row in record["rows"]:
        assert len(row["seconds"]) == 2 and min(row["seconds"]) <= row["median"] <= max(row["seconds"]) and row["batch_size"] == 16
        assert f"{row['median'] * 1e3:.2f}" in said and row["operators"] > 50
        assert len(row["bound"]["seconds"]) == 2 and row["reached"] == pytest.approx(
            median([b / s for b, s in zip(row["bound"]["seconds"], row["seconds"])])
        )
        assert 0 < row["data_wait"] < 1 and row["first_update"] > 0 and row["peak_gib"] > 0.1
    assert record["versions"].keys() >= {"date", "python", "torch", "accelerate", "processor"} and record["rows"][0]["speed"] == 1


@pytest.mark.slow
def test_benchmark_reports_a_variants_mistake_in_one_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "tools/benchmark.py", "train", "configs/digits.yaml", "--against", "optim.lrg=1"],
        capture_output=True,
        text=True,
        cwd=ROOT,
    )
    assert done.returncode == 2 and done.stderr.splitlines()[-1].startswith("benchmark.py: error: command line: optim.lrg=1: no such key")


@pytest.mark.parametrize(
    "against, words",
    [
        ("performance.auto=false'", 'argument --against: "performance.auto=false\'": no closing quotation'),
        (" ", "argument --against: is empty; write for example --against performance.channels_last=false"),
    ],
)
def test_an_unreadable_variant_is_reported(against, words, capsys):
    with pytest.raises(SystemExit) as ended:
        run_here("tools/benchmark.py", "train", "configs/digits.yaml", "--against", against)
    assert ended.value.code == 2 and capsys.readouterr().err.splitlines()[-1] == f"benchmark.py train: error: {words}"


@pytest.mark.slow
def test_benchmark_compares_scores_with_sampling_on_one_process_and_on_two(tmp_path):
    small = [
        "model.ch=2",
        "batching.batch_size=16",
        "eval.num_samples=64",
        "eval.batch_size=16",
        "eval.reference_samples=64",
        "eval.recalibration_batches=1",
    ]
    words = ["--averages", 3, "--processes", 2, "--threads", 1, "--turns", 2, "--images", 64, "--channels", 1]
    run_here("tools/benchmark.py", "evaluate", "configs/digits.yaml", *small, *words, "--json", tmp_path / "b.json")
    record = json.loads((tmp_path / "b.json").read_text())
    one, two = record["rows"]
    assert (one["variant"], two["variant"], record["averages"]) == ("one process", "2 processes", 3) and one["speed"] == 1
    for row in (one, two):
        assert row["samples"] == row["references"] == 64 and row["reference"] > 0
        assert row["ratio"] == pytest.approx(median([s / (3 * o) for s, o in zip(row["scored"]["seconds"], row["one"]["seconds"])]))
    assert two["speed"] == pytest.approx(median([a / b for a, b in zip(one["scored"]["seconds"], two["scored"]["seconds"])]))


@pytest.mark.slow
def test_benchmark_compares_images_with_a_copy(tmp_path):
    words = ["--images", 200, "--channels", 1, "--turns", 2, "--batches", 4, "--against", "data.flip=true"]
    run_here("tools/benchmark.py", "data", "configs/digits.yaml", "batching.batch_size=16", *words, "--json", tmp_path / "b.json")
    record = json.loads((tmp_path / "b.json").read_text())
    assert record["micro_batch"] == 16 and [row["variant"] for row in record["rows"]] == [
        "as configured",
        "data.flip=true",
        "copying as many bytes",
    ]
    for row in record["rows"]:
        assert row["img_per_s"] == pytest.approx(16 / row["median"]) and row["bytes_per_s"] == pytest.approx(16 * 16 * 16 / row["median"])


@pytest.mark.slow
def test_benchmark_samples_and_starts(tmp_path):
    run_here(
        "tools/benchmark.py",
        "sample",
        "configs/digits.yaml",
        "model.ch=2",
        "--channels",
        1,
        "--num",
        32,
        "--batch",
        16,
        "--turns",
        2,
        "--json",
        tmp_path / "s.json",
    )
    sampled = json.loads((tmp_path / "s.json").read_text())
    assert sampled["images"] == 32 and sampled["reached"] == pytest.approx(
        median([b / s for b, s in zip(sampled["bound"]["seconds"], sampled["seconds"])])
    )
    run_here(
        "tools/benchmark.py",
        "startup",
        "configs/digits.yaml",
        "model.ch=2",
        "batching.batch_size=16",
        "--turns",
        1,
        "--json",
        tmp_path / "t.json",
    )
    started = json.loads((tmp_path / "t.json").read_text())
    assert 0 < started["gantrain --help"]["median"] < started["first update"]["median"]


def test_benchmark_compares_averages_with_an_update(tmp_path):
    said = run_here(
        "tools/benchmark.py",
        "averaging",
        "configs/digits.yaml",
        "model.ch=2",
        "batching.batch_size=16",
        "--turns",
        2,
        "--repeats",
        2,
        "--averages",
        3,
        "--channels",
        1,
        "--json",
        tmp_path / "b.json",
    )
    record = json.loads((tmp_path / "b.json").read_text())
    rows = {row["variant"]: row for row in record["rows"]}
    assert list(rows) == ["3 averages in the bank", "3 averages by a naive loop", "3 copies of the weights", "one update of the game"]
    whole = rows["one update of the game"]["median"]
    for row in rows.values():
        assert len(row["seconds"]) == 2 and row["share"] == pytest.approx(row["median"] / whole)
        assert f"{row['share']:.2%}" in said


@pytest.mark.slow
def test_benchmark_compares_a_recording_of_the_orbit_with_an_update(tmp_path):
    words = [
        "tools/benchmark.py",
        "orbit",
        "configs/digits.yaml",
        "model.ch=2",
        "--channels",
        1,
        "--turns",
        2,
        "--repeats",
        2,
        "--averages",
        2,
    ]
    said = run_here(*words, "--json", tmp_path / "b.json")
    assert "one recording, 2 averages each" in said and "of an update" in said
    record = json.loads((tmp_path / "b.json").read_text())
    rows = record["rows"]
    assert record["recordings"] == 2 * 2  # turns and repeats: each was made and written
    assert [row["variant"] for row in rows] == ["one recording, 2 averages each", "one update of the game"]
    assert all(len(row["seconds"]) == 2 and min(row["seconds"]) > 0 for row in rows) and rows[1]["share"] == 1


@pytest.mark.slow
def test_benchmark_compares_the_guard_with_an_update(tmp_path):
    words = ["tools/benchmark.py", "guard", "configs/digits.yaml", "model.ch=2", "--channels", 1, "--turns", 2, "--repeats", 2]
    run_here(*words, "--json", tmp_path / "b.json")
    rows = json.loads((tmp_path / "b.json").read_text())["rows"]
    assert [row["variant"] for row in rows] == ["looking at one update", "one update of the game"] and all(
        min(row["seconds"]) > 0 for row in rows
    )


@pytest.mark.slow
def test_benchmark_compares_words_with_the_update_as_configured(tmp_path):
    """Every loss, penalty, augmentation and optimizer that gantrain has; lazy ones over the updates that they take to come round."""
    words = ["tools/benchmark.py", "words", "configs/digits.yaml", "model.ch=2", "--channels", 1, "--turns", 2, "batching.batch_size=8"]
    said = run_here(*words, "--json", tmp_path / "b.json")
    record = json.loads((tmp_path / "b.json").read_text())
    plain, *rows = record["rows"]
    found = {row["variant"]: row for row in rows}
    assert plain["variant"] == "as configured" and len(plain["seconds"]) == 2 * math.ceil(len(rows) / 4) and not record["left_out"]
    for kind, registry in (("loss", LOSSES), ("penalty", PENALTIES), ("augmentation", AUGMENTATIONS), ("optimizer", OPTIMIZERS)):
        texts = [str(row["overrides"]) for row in rows if row["kind"] == kind]
        assert all(any(f"name: {name}" in text for text in texts) for name in registry.keys() - {"hinge", "none", "adam"})
    assert {row["kind"] for row in rows} == {"loss", "penalty", "augmentation", "model", "optimizer", "clipping"}
    assert [found[f"r1, every {n}"]["updates"] for n in (1, 16)] == [1, 16]  # of three D steps
    assert [found[f"path_length, every {n}"]["updates"] for n in (1, 4)] == [1, 4]
    for row in rows:
        assert len(row["seconds"]) == 2 and row["more"]["min"] <= row["more"]["median"] <= row["more"]["max"]
        assert f"{row['variant']} " in said and f"{row['more']['median']:+.1%}" in said


@pytest.mark.slow
def test_what_is_timed_is_an_update_with_the_word(monkeypatch, tmp_path):
    """Three D steps and one of G: a lazy penalty as often as in the long run, the augmentation at real and at generated images."""
    called = Counter()

    def counted(cls, name, key):
        method = getattr(cls, name)
        monkeypatch.setattr(cls, name, lambda self, *rest: called.update([key(self)]) or method(self, *rest))

    counted(R1, "term", lambda penalty: f"r1, every {penalty.every}")
    counted(DiffAugment, "apply", lambda augmentation: "diffaugment")
    counted(Ada, "transform", lambda augmentation: f"ada, p {augmentation.p}")
    words = ["tools/benchmark.py", "words", "configs/digits.yaml", "model.ch=2", "--channels", 1, "--turns", 2, "batching.batch_size=8"]
    run_here(*words, "batching.micro_batch=4", "--only", "r1", "--only", "augmentation", "--json", tmp_path / "b.json")
    # One update to warm up, and in each of two turns as many as the word needs; each of two rounds.
    assert called == {"r1, every 16": 2 * (1 + 2 * 3), "r1, every 1": 2 * 3 * 3} | dict.fromkeys(
        ["diffaugment", "ada, p 0.2", "ada, p None"], 2 * 7 * 3
    )


@pytest.mark.slow
def test_benchmark_says_which_words_it_leaves_out(tmp_path, capsys):
    words = ["tools/benchmark.py", "words", "configs/digits.yaml", "model.ch=2", "--channels", 1, "--turns", 1, "batching.batch_size=8"]
    said = run_here(*words, "loss.name=relativistic", "--only", "san", "--only", "augmentation", "--json", tmp_path / "b.json")
    record = json.loads((tmp_path / "b.json").read_text())
    assert [row["variant"] for row in record["rows"]] == ["as configured", "diffaugment", "ada, p 0.2"]
    assert (
        set(record["left_out"]) == {"san", "ada, adaptive at p 0.2"}
        and "does not work with loss.name=relativistic" in record["left_out"]["san"]
    )
    assert "san: left out: " in said
    with pytest.raises(SystemExit) as ended:
        run_here(*words, "--only", "r3")
    assert ended.value.code == 2 and "--only: there is nothing of this name to add" in capsys.readouterr().err


@pytest.mark.slow
def test_benchmark_compares_failing_trackers_with_none(tmp_path):
    small = ["model.ch=2", "batching.batch_size=16", "eval.reference_samples=16"]
    said = run_here(
        "tools/benchmark.py", "tracker", "configs/digits.yaml", *small, "--turns", 2, "--updates", 2, "--json", tmp_path / "b.json"
    )
    rows = json.loads((tmp_path / "b.json").read_text())["rows"]
    assert [row["variant"] for row in rows] == ["without W&B", "every call raises", "every call hangs"] and "every call hangs" in said
    assert all(len(row["seconds"]) == 2 and min(row["seconds"]) > 0 for row in rows) and rows[0]["ratio"] == 1


@pytest.mark.slow
def test_benchmark_compares_measured_updates_with_others(tmp_path):
    words = [
        "tools/benchmark.py",
        "noise-scale",
        "configs/digits.yaml",
        "model.ch=2",
        "--channels",
        1,
        "--turns",
        3,
        "--json",
        tmp_path / "b.json",
    ]
    said = run_here(*words, "batching.batch_size=16", "--every", 5)
    record = json.loads((tmp_path / "b.json").read_text())
    plain, measured = (record[name]["seconds"] for name in ("plain", "measured"))
    more = sorted(m - p for p, m in zip(plain, measured))[1]
    assert record["share"] == pytest.approx(more / 5 / sorted(plain)[1]) and record["rounds"] == 1
    assert (
        "batch 16 = 1 x 16, measured in two halves" in said and f"one update in 5 measured: {record['share']:+.2%} of training time" in said
    )


@pytest.mark.slow
def test_the_lab_draws_its_pictures(tmp_path):
    """The two quickest pictures are not blank and are reproducible by seed; a mistyped name lists the pictures."""
    words = ["tools/ou_lab.py", "--only", "forces", "swap", "--out", tmp_path]
    run(*words)
    first = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    assert sorted(first) == ["ou_forces.png", "ou_swap.png"]
    for name in first:
        assert np.asarray(Image.open(tmp_path / name).convert("L")).std() > 10
    run_here(*words[:2], "swap", *words[4:])
    assert (tmp_path / "ou_swap.png").read_bytes() == first["ou_swap.png"]


@pytest.mark.slow
def test_benchmark_compares_numbers_of_rounds(tmp_path):
    words = [
        "tools/benchmark.py",
        "rounds",
        "configs/digits.yaml",
        "model.ch=2",
        "--channels",
        1,
        "--turns",
        2,
        "--rounds",
        4,
        "--json",
        tmp_path / "b.json",
    ]
    said = run_here(*words, "batching.batch_size=16")
    rows = json.loads((tmp_path / "b.json").read_text())["rows"]
    assert [(row["rounds"], row["batch_size"]) for row in rows] == [(1, 16), (4, 64)]
    for row in rows:
        assert row["peak_mib"] > 100 and len(row["an_image"]["seconds"]) == 2 and f"{row['peak_mib']:.0f}" in said


@pytest.mark.slow
def test_the_noise_scale_of_a_run_is_drawn(tmp_path, gantrain):
    """One column per run, with both players' colours in both panels; a run without measurements is a one-line error."""
    for name, more in (("a", ["noise_scale.measure_every=1"]), ("b", ["noise_scale.measure_every=2", "batching.micro_batch=8"]), ("c", [])):
        settings = [*TINY, "eval.every_kimg=null", "tracking.samples_every_kimg=null", "eval.metrics=[fid]"]
        gantrain("train", "configs/digits.yaml", f"run_dir={tmp_path / name}", *settings, *more)
    run_here("tools/plot_noise_scale.py", tmp_path / "a", tmp_path / "b", "--out", tmp_path / "n.png")
    picture = np.asarray(Image.open(tmp_path / "n.png").convert("RGB")).astype(int)
    for half in np.array_split(picture, 2, axis=0):
        for part in np.array_split(half, 2, axis=1):
            for colour in PLAYERS.values():
                assert (abs(part - channels(colour)).sum(-1) < 30).sum() > 60
    done = subprocess.run([sys.executable, "tools/plot_noise_scale.py", str(tmp_path / "c")], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 2 and "has not measured the noise scale; train with noise_scale.measure_every=10" in done.stderr


@pytest.mark.slow
def test_the_profiles_of_all_averages_are_drawn(tmp_path):
    """A picture with a curve for every averager in the table."""
    from gantrain.averaging import AVERAGERS

    run("tools/weight_profiles.py", "--out", tmp_path / "profiles.png")
    picture = np.asarray(Image.open(tmp_path / "profiles.png").convert("RGB")).astype(int)
    blue = abs(picture - channels(COLOURS[0])).sum(-1) < 30
    cells = [half for row in np.array_split(blue, 2, axis=0) for half in np.array_split(row, 4, axis=1)]
    assert sum(cell.sum() > 300 for cell in cells) == len(AVERAGERS)


@pytest.mark.slow
def test_the_table_of_the_digits_metrics_is_up_to_date():
    """Compares docs/digits_metrics.md with the output of its command; the last digit may depend on the machine."""
    documented = [line for line in (ROOT / "docs" / "digits_metrics.md").read_text().splitlines() if line.startswith("|")]
    found = run("tools/digits_metrics.py").splitlines()
    assert documented[:2] == found[:2] and len(documented) == len(found)
    for one, other in zip(documented[2:], found[2:]):
        (name, *numbers), (same, *again) = ([cell.strip() for cell in line.strip("|").split("|")] for line in (one, other))
        assert name == same
        assert [float(x) for x in again] == pytest.approx([float(x) for x in numbers], rel=1e-2, abs=5e-3)


@pytest.mark.slow
def test_the_digits_classifier_can_be_trained_again(tmp_path):
    """With a fifth of the epochs it is nearly as good; the shipped weights are not overwritten."""
    run("tools/train_digits_classifier.py", "--epochs", 6, "--out", tmp_path / "again.safetensors")
    record = json.loads((tmp_path / "digits_classifier.json").read_text())
    shipped = json.loads((ROOT / "gantrain" / "metrics" / "digits_classifier.json").read_text())
    assert record["sha256"] == hashlib.sha256((tmp_path / "again.safetensors").read_bytes()).hexdigest()
    assert record["held_out_accuracy"] > 0.95 and record["parameters"] == shipped["parameters"]
    DigitsClassifier().load_state_dict(load_file(tmp_path / "again.safetensors"))


@pytest.mark.slow
def test_the_swap_study_trains_its_arms_and_compares_them(tmp_path, monkeypatch):
    """One seed at tiny size; options may stand before overrides. Two of the arms train in processes of their own, as all do."""
    from test_swapping import TINY as SWAPS

    alone, one_at_a_time, own = subprocess.run, threading.Lock(), []

    def trained(words, stdout, **kwargs):
        assert words[:4] == [sys.executable, "-m", "gantrain", "train"] and kwargs["env"]["OMP_NUM_THREADS"] == "1"
        if any(word.endswith(("no_swap-0", "swap_G_and_D_batch_x2-0")) for word in words):
            own.append(alone(words, stdout=stdout, **kwargs))
            return own[-1]
        with one_at_a_time:
            done = here(words)
        stdout.write(done.stdout + done.stderr)
        return done

    monkeypatch.setattr(subprocess, "run", trained)

    words = [
        "tools/swap_study.py",
        "configs/digits_swap.yaml",
        "--seeds",
        1,
        "--jobs",
        2,
        "--folder",
        tmp_path / "runs",
        "--out",
        tmp_path / "s.png",
    ]
    words += [*SWAPS, "eval.metrics=[fid]", "eval.every_kimg=0.16", "total_kimg=0.48"]
    said = run_here(*words)
    assert [done.returncode for done in own] == [0, 0]
    rows = [line.split("|") for line in said.splitlines() if line.startswith(("| swap", "| no swap"))]
    assert [row[1].strip() for row in rows[:7]] == [
        "no swap",
        "no swap, batch x2",
        "no swap, batch by noise",
        "swap G and D",
        "swap G, batch x2",
        "swap G and D, batch x2",
        "swap G and D, batch auto",
    ]
    of = {arm: lines_of(tmp_path / "runs" / f"{arm}-0") for arm in ("no_swap_batch_x2", "no_swap_batch_by_noise", "swap_G_and_D_batch_x2")}
    growths = [[(line["nimg"], line["to"]) for line in lines if line.get("event") == "growth"] for lines in of.values()]
    assert growths[0] == growths[2] == [(320, 32)]  # the same growth at the same image, with and without the swap
    assert any("noise_scale/G/measurements" in line for line in of["no_swap_batch_by_noise"])
    last = of["swap_G_and_D_batch_x2"]
    scores = [line for line in last if "eval/live/digits_fid" in line][-1]
    assert rows[5][2].strip() == "32" and rows[5][3].strip() == f"{scores['eval/live/digits_fid']:.3f}"
    before, at, after = (line["live"]["digits_fid"] for line in last if line.get("event") == "swap")
    assert [cell.strip() for cell in rows[9][2:5]] == [f"{before:.3f}", f"{at:.3f}", f"{after:.3f}"]
    picture = np.asarray(Image.open(tmp_path / "s.png").convert("RGB")).astype(int)
    line = round(0.8 * int(LIVE_COLOUR[1:3], 16) + 0.2 * 255)  # the live weights' grey, drawn over white at alpha 0.8
    assert all((abs(part - line).max(axis=2) <= 2).sum() > 50 for part in np.array_split(picture, 7, axis=1))  # in every panel


@pytest.mark.parametrize(
    "words, error",
    [
        (["tools/swap_study.py", "configs/digits.yaml"], "swap_study.py: error: configs/digits.yaml: swap.source is null"),
        (
            ["tools/swap_study.py", "configs/digits_swap.yaml", "batching.max_batch=null", "swap.growth=1"],
            "batching.max_batch is null; set it to the largest batch",
        ),
        (["tools/plot_noise_scale.py", "nowhere"], "plot_noise_scale.py: error: nowhere: is not a run folder (it has no metrics.jsonl)"),
        (["tools/ou_lab.py", "--out", "nowhere"], "ou_lab.py: error: nowhere: is not a folder; create it first"),
        (["tools/benchmark.py", "train", "nope.yaml"], "benchmark.py: error: nope.yaml: there is no such file"),
        (
            ["tools/benchmark.py", "averaging", "configs/digits.yaml", "--turns", "0", "--json", "/nowhere/x.json"],
            "must be a whole number of at least 1, got '0'",
        ),
    ],
)
def test_a_scripts_mistake_is_one_line(words, error):
    done = spawning.run(words, os.environ)
    assert done.returncode == 2 and "Traceback" not in done.stderr and error in done.stderr.splitlines()[-1]


def test_a_script_that_is_interrupted_says_so_in_one_line():
    code = (
        "import command, os, signal, sys; sys.argv[0] = 'any.py'; signal.signal(signal.SIGINT, signal.default_int_handler);"
        " command.run(lambda: os.kill(os.getpid(), signal.SIGINT))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, env={**os.environ, "PYTHONPATH": f"{ROOT}:{ROOT / 'tools'}"}
    )
    assert done.returncode == 130 and done.stderr == "any.py: interrupted\n"


def test_random_images_are_prepared_for_measuring(tmp_path):
    run_here("tools/random_images.py", "--num", 20, "--resolution", 8, "--classes", 5, "--out", tmp_path / "r")
    images = prepare(Packed(root=str(tmp_path / "r"), resolution=8), torch.device("cpu"))
    assert len(images) == 20 and images.num_classes == 5 and images.channels == 3


@pytest.mark.slow
def test_random_inception_weights_are_inceptions(tmp_path):
    """They load, and their features differ between images and have a reasonable scale."""
    run_here("tools/random_inception.py", tmp_path / "random.pth")
    extract = InceptionFeatures(weights=str(tmp_path / "random.pth")).build(torch.device("cpu")).extract
    features, logits = extract(torch.randint(256, (3, 3, 32, 32), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)))
    assert features.shape == (3, 2048) and logits.shape == (3, 1008) and 1e-3 < features.std(0).mean() < 1e3


@pytest.mark.slow
def test_the_old_name_of_prepare_works(tmp_path):
    done = spawning.run(["tools/prepare_dataset.py", "digits", "--out", tmp_path / "p", "--resolution", "16"], os.environ)
    assert done.returncode == 0 and "1,797 images, 1,797 of them prepared by this command" in done.stdout, done.stderr
    done = spawning.run(["tools/prepare_dataset.py", "digits"], os.environ)
    assert done.returncode == 2 and done.stderr == "gantrain: error: missing: --out, --resolution; see `gantrain prepare --help`\n"


@pytest.mark.slow
def test_the_coverage_of_the_noise_scale_is_tabulated():
    """Three tables, in which the intervals of many equal directions hold the true value as often as they say."""
    said = run_here("tools/noise_scale_coverage.py", "--repeats", 300, "--measurements", 16)
    tables = said.strip().split("\n\n")
    assert len(tables) == 3
    row = next(line for line in tables[0].splitlines() if line.startswith("| 300 equal directions | 2 | 16 |"))
    assert all(91 <= float(cell.split()[0]) <= 100 for cell in row.strip("| ").split("|")[3:])
