"""`--average best`, `--scale`, and refusals that say what is wrong, on records and checkpoints made by hand."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import error_of

import gantrain as library
from gantrain.commands.arguments import listed_names
from gantrain.config.config import Config
from gantrain.errors import UserError
from gantrain.parser import hint_at_override
from gantrain.run_folder import checkpoint
from gantrain.run_folder.best_average import BestAverage, find_best, resolve_best
from gantrain.run_folder.contents import not_a_run
from gantrain.run_folder.ownership import look_into
from gantrain.run_folder.record import outline
from gantrain.run_folder.snapshots import require_name
from gantrain.sampling.sheets import enlarge, make_grid, require_scale

SCORES = {0: {"live": 1.0, "ema": 1.0}, 50: {"live": 8.0, "ema": 4.0}, 75: {"live": 2.5, "ema": 3.0}, 100: {"live": 9.0, "ema": 3.5}}


def line(kimg: int, scores: dict[str, float], **more) -> dict:
    return {"nimg": kimg * 1000, **{f"eval/{name}/fid": value for name, value in scores.items()}, "eval/num_samples": 64, **more}


def run_of(folder: Path, *lines: dict, averagers: tuple[str, ...] = ("ema",)) -> Path:
    """A run folder with a record and no checkpoint."""
    folder.mkdir()
    (folder / "config.yaml").write_text(f"total_kimg: 100\naveragers: {{{', '.join(f'{one}: {{name: ema}}' for one in averagers)}}}\n")
    (folder / "metrics.jsonl").write_text("".join(json.dumps(one) + "\n" for one in lines))
    return folder


def saved(run: Path, kimg: int, place: str = "checkpoints", scored_at: int | None = None, **more) -> None:
    """A checkpoint with the state that a run gives it after an evaluation at its time."""
    scores = [[name, [["fid", value]]] for name, value in SCORES.get(kimg, {}).items()]
    state = {"scores": scores, "scored_at": kimg * 1000 if scored_at is None else scored_at, "scores_of": kimg * 1000, "shape": [8, 1, 1]}
    checkpoint.write(run / place / f"{kimg * 1000:012d}", kimg * 1000, {}, {**state, **more})


@pytest.fixture
def run(tmp_path) -> Path:
    return run_of(tmp_path / "run", *(line(kimg, scores) for kimg, scores in SCORES.items()))


# ---- the best average ------------------------------------------------------------------------------------------------


def test_the_best_is_the_best_score_of_all_after_0_kimg(run):
    """Of the live weights too, as `gantrain runs` has it; `--kimg` chooses among the scores of its time."""
    for kimg in SCORES:
        saved(run, kimg)
    trained = {(value, name, 1000 * kimg) for kimg, row in SCORES.items() for name, value in row.items() if kimg}
    assert min(trained) == outline(run).best() == (2.5, "live", 75000)
    assert find_best(run) == BestAverage("live", 75000, "fid", 2.5) and find_best(run, 50.0) == BestAverage("ema", 50000, "fid", 4.0)
    said: list[str] = []
    assert resolve_best(run, ["ema", "best", "live"], None, said.append) == (["ema", "live"], 75.0)
    assert said == ["best: live at 75 kimg, fid 2.5000"] and resolve_best(run, ["ema"], None) == (["ema"], None)


def test_higher_is_better_where_it_is(tmp_path):
    run = run_of(tmp_path / "run", *({"nimg": n * 1000, "eval/ema/is": value} for n, value in ((50, 3.0), (75, 2.0))))
    saved(run, 50, scored_at=-2)
    saved(run, 75)
    shutil.rmtree(run / "checkpoints" / f"{50000:012d}")
    checkpoint.write(run / "best" / "eval.ema.is" / f"{50000:012d}", 50000, {}, {"scores": [], "scored_at": -1, "scores_of": -1})
    assert find_best(run) == BestAverage("ema", 50000, "is", 3.0)


def test_a_best_whose_weights_are_gone_is_refused_with_what_is_left(run):
    saved(run, 100)
    with pytest.raises(UserError) as caught:
        find_best(run)
    assert (
        "no longer has the weights of its best score, fid 2.5000 of live at 75 kimg; the best of what is left is fid 3.5000 of ema"
        in str(caught.value)
    )
    assert "use --average ema --kimg 100; checkpoint.keep_best=[eval/live/fid] keeps them" in str(caught.value)
    saved(run, 75, "best/eval.live.fid")
    assert find_best(run).nimg == 75000
    shutil.rmtree(run / "best")
    shutil.rmtree(run / "checkpoints")
    saved(run, 60, scores=[], scores_of=50000)
    with pytest.raises(UserError, match="checkpoints are left at 60 kimg, of which none was scored; checkpoint.keep_best="):
        find_best(run)


def test_weights_that_are_not_those_that_were_scored_are_not_the_best(run):
    """A swap has replaced the live weights after their score; or the checkpoint is of a path that a rollback abandoned."""
    with open(run / "metrics.jsonl", "a") as file:
        file.write(json.dumps({"nimg": 75000, "event": "swap", "swap_nimg": 75000, "moment": "at", "live": {"fid": 2.0}}) + "\n")
    saved(run, 100)
    saved(run, 75, "best/eval.live.fid")  # from before the swap
    assert find_best(run).average == "live"
    saved(run, 75, scored_at=-1)
    with pytest.raises(UserError, match="no longer has .* live at 75 kimg; the best of what is left is fid 3.5000 of ema at 100 kimg"):
        find_best(run)
    (run / "metrics.jsonl").write_text("".join(json.dumps(line(kimg, {"ema": SCORES[kimg]["ema"]})) + "\n" for kimg in (75, 100)))
    assert find_best(run).nimg == 75000  # a swap does not touch the averages
    saved(run, 75, scores=[["ema", [["fid", 3.25]]]])
    with pytest.raises(UserError, match="no longer has .* ema at 75 kimg"):
        find_best(run)


def test_a_run_without_scores_has_no_best(run, tmp_path):
    with pytest.raises(UserError, match="has no scores at 60 kimg, .*; it was scored at 50, 75, 100 kimg"):
        find_best(run, 60.0)
    early = run_of(tmp_path / "early", line(0, SCORES[0]))
    saved(early, 0)
    words = "average{}best{}: .*early has no scores yet to choose by; name an average, such as {}average{}ema"
    with pytest.raises(UserError, match=words.format(" ", "", "--", " ")):
        find_best(early)
    with pytest.raises(UserError, match=words.format('="', '"', "", '="')):
        library.load_generator(early, average="best")


def test_the_name_best_stays_with_older_runs_that_have_such_an_average(tmp_path):
    run = run_of(tmp_path / "run", line(50, {"best": 9.0, "ema": 1.0}), averagers=("ema", "best"))
    said: list[str] = []
    assert resolve_best(run, ["best"], None, said.append) == (["best"], None) and "the average of this name" in said[0]
    config = Config(averagers={"best": Config().averagers["ema"]})
    with pytest.raises(UserError, match="averagers.best: the name stands for the best average in `--average best`; use another name"):
        look_into(tmp_path / "new", config)
    with pytest.raises(UserError, match="--name: 'best' is not possible; .* none of live, all, best, ema"):
        require_name("best", ["ema"])


# ---- enlarging -------------------------------------------------------------------------------------------------------


def test_images_are_enlarged_by_whole_pixels():
    images = torch.arange(2 * 3 * 4 * 4, dtype=torch.uint8).view(2, 3, 4, 4)
    assert np.array_equal(enlarge(images, 3).numpy(), np.kron(images.numpy(), np.ones((1, 1, 3, 3), np.uint8)))
    assert enlarge(images, None) is images and enlarge(images, 1) is images
    grid = np.array(make_grid(images, 2, scale=5))
    assert grid.shape == (4 * 5 + 4, 2 * (4 * 5 + 2) + 2, 3)
    assert np.array_equal(grid[2:22, 24:44], np.kron(images[1].permute(1, 2, 0).numpy(), np.ones((5, 5, 1), np.uint8)))
    assert make_grid(images, 2).size == (2 * 50 + 2, 52)  # small ones are enlarged without being asked


def test_an_enlargement_has_bounds():
    """8 x 8 images of 16 pixels and gaps of 2 have a side of 8 (16 s + 2), which is at most 10,000 up to s = 78."""
    require_scale(None, 16, 500, 500)
    require_scale(78, 16, 8, 8)
    for scale, words in (
        (0, "must be at least 1, got 0"),
        (-3, "must be at least 1, got -3"),
        (79, "use at most 78, or draw fewer images"),
    ):
        with pytest.raises(UserError, match=f"--scale: .*{words}"):
            require_scale(scale, 16, 8, 8)
    with pytest.raises(UserError, match="--scale: 79 makes a picture of 10,128 x 10,128 pixels, which is too large"):
        require_scale(79, 16, 8, 8)
    with pytest.raises(UserError, match="use at most 6,"):  # 100 x 1 images: 100 (16 s + 2) <= 10,000
        require_scale(7, 16, 100, 1, most_side=10_000)
    with pytest.raises(UserError, match="which is too large; draw fewer images"):
        require_scale(1, 512, 100, 100)


# ---- refusals --------------------------------------------------------------------------------------------------------


def test_a_list_has_no_empty_name():
    assert listed_names("live, ema", "--average", "live,ema") == ["live", "ema"]
    for text in ("live,,ema", "", ",", "ema,", " "):
        with pytest.raises(UserError, match=f"--average: {text!r} has an empty name; write for example --average live,ema"):
            listed_names(text, "--average", "live,ema")


def test_a_path_that_is_no_run_is_told_what_it_is(run, tmp_path):
    (tmp_path / "file").touch()
    for name, words in (
        ("rum", f"rum: does not exist; did you mean {run}?"),
        ("elsewhere", "elsewhere: does not exist; pass the run_dir of a `gantrain train`"),
        ("no/where", "where: does not exist; pass the run_dir of a `gantrain train`"),
        ("file", "file: is a file, not a run folder; pass the run_dir"),
        (".", "is not a run folder (it has no config.yaml); pass the run_dir"),
    ):
        assert words in str(not_a_run(tmp_path / name))


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--seed", "1"], "seed=1"),
        (["--seed=1"], "seed=1"),
        (["--optim.lr_g", "1e-4", "seed=2"], "optim.lr_g=1e-4"),
        (["--total-kimg", "5"], "total_kimg=5"),
        (["seed=2", "--flip"], "flip=VALUE"),
        (["--flip", "--seed", "1"], "flip=VALUE"),
    ],
)
def test_a_key_written_as_an_option_is_shown_as_a_key(words, hint):
    assert hint_at_override(words) == f"; a configuration key is written without dashes: {hint}"


def test_only_commands_that_take_keys_hint_at_them(gantrain):
    line = error_of(gantrain("train", "configs/digits.yaml", "--seed", 1, check=False))
    assert "unrecognized arguments: --seed 1; a configuration key is written without dashes: seed=1; see" in line
    assert "configuration key" not in error_of(gantrain("sample", "run", "--sed", 1, check=False)) and hint_at_override(["-x", "--"]) == ""
