"""What stands beside scores: other pictures than the features were made for, class frequencies, few images, samples, collapse."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, lines_of
from PIL import Image
from torch import Tensor, nn

import gantrain as library
from gantrain.commands.evaluate import evaluate_images
from gantrain.commands.reference import write_reference
from gantrain.config.loading import load
from gantrain.config.sections import Guard
from gantrain.data import Digits, Folder, ImageSet, Packed, audit, pack, prepare
from gantrain.data.class_balance import describe_mixture, is_unbalanced
from gantrain.distributed import make_accelerator
from gantrain.errors import UserError, readable
from gantrain.evaluation.api import wrap_reference
from gantrain.evaluation.collapse import describe_collapse, describe_levels, in_one_line
from gantrain.evaluation.evaluator import Evaluator
from gantrain.evaluation.image_files import sample_of, wrap_tensor
from gantrain.evaluation.references import open_reference, wrap_dataset, wrap_pictures
from gantrain.evaluation.score_notes import resemble_digits, shows
from gantrain.metrics import METRICS, Counts, DigitsFeatures, FeatureSet
from gantrain.metrics.fid import distance, rounding
from gantrain.metrics.statistics import read_statistics
from gantrain.reporting.event_words import on_console, what_happened
from gantrain.run_folder import best_generator, record
from gantrain.training.guard import Watch

CPU = torch.device("cpu")
DIGITS = ROOT / "configs" / "digits.yaml"
COLOUR = torch.randint(0, 256, (40, 3, 16, 16), generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
FOREIGN = "digits_* scores are made for digits, and {} is not known to be digits; of other images they do not measure quality"


def evaluator_of(*overrides: str, images=None, **more) -> Evaluator:
    return Evaluator(load(DIGITS, [*TINY, *overrides]), images, make_accelerator(), show_progress=False, **more)


# ---- features made for other images ----------------------------------------------------------------------------------


def test_digits_are_known_by_their_pixels_wherever_they_come_from(digits, tmp_path):
    """The data set at any resolution, prepared, as a folder of colour pictures, as an array and as a file of statistics."""
    pack(Digits().build(), tmp_path / "packed", "digits at 16")
    (tmp_path / "pictures").mkdir()
    for i, one in enumerate(digits[0][:20]):
        Image.fromarray(one[0].numpy()).convert("RGB").save(tmp_path / "pictures" / f"{i}.png")
    np.savez(tmp_path / "some.npz", digits[0][:20].permute(0, 2, 3, 1).numpy())
    for path in ("packed", "pictures", "some.npz"):
        assert shows("digits", open_reference(tmp_path / path, None, CPU)), path
    assert shows("digits", wrap_dataset(prepare(Digits(resolution=32), CPU), None))
    (tmp_path / "digits").mkdir()  # by its name alone it is nothing
    for i, one in enumerate(COLOUR[:20]):
        Image.fromarray(one.permute(1, 2, 0).numpy()).save(tmp_path / "digits" / f"{i}.png")
    assert not shows("digits", open_reference(tmp_path / "digits", None, CPU))
    assert not shows("digits", wrap_pictures(wrap_tensor("digits", 255 - digits[0][:20])))


@pytest.mark.slow
def test_a_file_of_statistics_says_whether_it_is_of_digits(gantrain, digits, tmp_path):
    np.savez(tmp_path / "digits.npz", COLOUR.permute(0, 2, 3, 1).numpy())
    own, said = tmp_path / "own.npz", gantrain("reference", tmp_path / "digits.npz", "--out", tmp_path / "foreign.npz").stdout
    assert FOREIGN.format("digits.npz") in said
    assert "made for" not in gantrain("reference", DIGITS, "eval.reference_samples=32", "--out", own).stdout
    assert [shows("digits", open_reference(tmp_path / name, None, CPU)) for name in ("foreign.npz", "own.npz")] == [False, True]
    with np.load(own) as file:  # as of an older version
        np.savez(tmp_path / "old.npz", **{key: file[key] for key in file.files if key != "data"})
    assert shows("digits", open_reference(tmp_path / "old.npz", None, CPU))


@pytest.mark.slow
def test_scores_by_digits_of_other_images_have_a_note_everywhere(gantrain, digits, tmp_path):
    """At the start, below the tables, in the record, in the listing and the report; a run on digits has none."""
    for name in ("x", "y"):
        (tmp_path / "data" / name).mkdir(parents=True)
        for i, one in enumerate(COLOUR):
            Image.fromarray(one.permute(1, 2, 0).numpy()).save(tmp_path / "data" / name / f"{i}.png")
    run, words = tmp_path / "runs" / "run", ["total_kimg=0.032", "eval.every_kimg=null", "tracking.samples_every_kimg=null"]
    data = ["data.name=folder", f"data.root={tmp_path / 'data'}", "data.resolution=16"]
    said = gantrain("train", DIGITS, *TINY, *data, *words, f"run_dir={run}").stdout
    note = FOREIGN.format("folder/data")
    assert said.count(note) == 2 and said.index(note) < said.index("done:") < said.rindex(note)
    (line,) = [line for line in lines_of(run) if "eval/num_samples" in line]
    assert line["eval/features_made_for"] == "digits" and line["eval/notes"][0].startswith(note)
    assert note in gantrain("evaluate", run, "--average", "live").stdout
    listed = gantrain("runs", run.parent).stdout
    assert "digits_fid*" in listed and "* made for digits, and the images are not known to be: no measure of quality" in listed
    gantrain("report", run)
    assert note in (run / "report.html").read_text()


def test_the_protocol_names_features_that_were_made_for_other_images():
    """Those of the run's data, of the reference, or of both; a run on digits has none."""
    plain, colour = prepare(Digits(), CPU), ImageSet("photos", torch.zeros(40).long(), ["all"], 3, 16, COLOUR)
    found = evaluator_of(images=colour).protocol()
    assert found["eval/features_made_for"] == "digits" and found["eval/notes"][0].startswith(FOREIGN.format("photos"))
    assert "eval/features_made_for" not in evaluator_of(images=plain).protocol()
    against = evaluator_of(f"eval.reference={DIGITS}", images=colour)
    assert against.remarks.foreign == ["photos"] and evaluator_of(f"eval.reference={DIGITS}", images=plain).remarks.foreign == []


def strange_images(digits: Tensor) -> dict[str, Tensor]:
    """Images that are not digits: colour, grey noise, inverted, bright at the rim only, not square, constant."""
    noise = COLOUR[:, :1]
    rim = torch.full((40, 1, 16, 16), 200, dtype=torch.uint8)
    rim[:, :, 3:13, 3:13] = 0
    return {"colour": COLOUR, "grey noise": noise.expand(-1, 3, -1, -1), "inverted": 255 - digits, "rim": rim, "wide": digits[..., :12, :],
            "constant": torch.full_like(rim, 90)}  # fmt: skip


def test_scored_images_that_are_no_digits_have_a_note(digits, tmp_path):
    """By the function and the command, though the reference is digits; digits sorted by class, noisy or in colours of JPEG have none."""
    assert {name: resemble_digits(one) for name, one in strange_images(digits[0]).items()} == dict.fromkeys(
        strange_images(digits[0]), False
    )
    few = digits[0][digits[1] == 4][:20]
    tinted = (digits[0][:64].int().expand(-1, 3, -1, -1) + torch.tensor([0, 8, 3])[:, None, None]).clamp(0, 255).to(torch.uint8)
    assert all(resemble_digits(one) for one in (digits[0], few, tinted, *digits[0][:40].split(1)))
    note = "digits_* scores are made for digits, and the scored images are not known to be digits"
    with pytest.warns(UserWarning) as told:
        library.evaluate(COLOUR, digits[0][:100], metrics=["is"], features="digits")
    assert sum(str(one.message).startswith(f"{note}; of other images") for one in told) == 1
    with pytest.warns(UserWarning) as told:
        library.evaluate(digits[0][100:200], digits[0][:100], metrics=["is"], features="digits")
    assert not [one for one in told if "made for" in str(one.message)]
    with pytest.warns(UserWarning) as told:
        library.evaluate(lambda start, count: COLOUR[start : start + count], COLOUR, 40, ["is"], "digits")
    assert [one for one in told if "and tensor and the scored images are not known to be digits" in str(one.message)]
    np.savez(tmp_path / "colour.npz", COLOUR.permute(0, 2, 3, 1).numpy())
    np.savez(tmp_path / "digits.npz", digits[0][:40].permute(0, 2, 3, 1).numpy())
    words = ["eval.features.name=digits", "eval.metrics=[is]"]
    said = evaluate_images(tmp_path / "colour.npz", str(tmp_path / "digits.npz"), None, tmp_path / "out.json", words)[0]
    written = json.loads((tmp_path / "out.json").read_text())
    assert note in said and written["eval/notes"][0].startswith(note) and written["eval/features_made_for"] == "digits"


@pytest.mark.slow
def test_a_run_on_other_images_has_the_note_against_digits_too(gantrain, tmp_path):
    """Its data are not read then, so that its own images say it; a run on digits has none."""
    data = write_classes(tmp_path / "data", {"a": 20, "b": 20})
    words = ["total_kimg=0.032", "eval.every_kimg=null", "tracking.samples_every_kimg=null"]
    gantrain("train", DIGITS, *TINY, "data.name=folder", f"data.root={data}", "data.resolution=16", *words, f"run_dir={tmp_path / 'run'}")
    gantrain("train", DIGITS, *TINY, *words, f"run_dir={tmp_path / 'own'}")
    said = [gantrain("evaluate", tmp_path / run, "--average", "live", "--reference", DIGITS).stdout for run in ("run", "own")]
    assert ["the scored images are not known to be digits" in one for one in said] == [True, False]


def test_the_function_has_no_extractor_of_its_own_accord(digits, tmp_path):
    with pytest.raises(UserError, match="features: pass features='inception' for FID as published .*, or features='digits' for images of"):
        library.evaluate(digits[0][:64], digits[0][64:128])
    (tmp_path / "my.yaml").write_text("data: {name: digits}\n")
    found = library.evaluate(digits[0][:400], tmp_path / "my.yaml", metrics=["fid"])
    assert list(found) == ["digits_fid"]


# ---- the best ---------------------------------------------------------------------------------------------------------


def test_an_evaluation_at_0_kimg_is_never_the_best(tmp_path):
    """Neither for checkpoints that are kept, nor in listings and reports, nor as the generator that is exported."""
    watch = Watch(Guard(), ("eval/ema/precision",))
    assert watch.scores(0, {"eval/ema/precision": 0.976})[0] == [] and watch.scores(1000, {"eval/ema/precision": 0.5})[0] == [*watch.names]
    old = watch.state() | {"best": [["eval/ema/precision", 0.976, 0]]}  # of a run that an older version began
    watch.load(old)
    assert watch.scores(2000, {"eval/ema/precision": 0.5})[0] == ["eval/ema/precision"]
    lines = [{"nimg": nimg, "eval/ema/precision": value, "eval/num_samples": 64} for nimg, value in ((0, 0.976), (1000, 0.5))]
    told = record.Record(tmp_path, record.Outline(1.0), lines)
    assert told.best("precision") == (0.5, "ema", 1000)
    assert dataclasses.replace(told, lines=lines[:1]).best("precision") is None
    for name in ("000000000000", "000000001000"):
        (tmp_path / "checkpoints" / name).mkdir(parents=True)
    assert {one.nimg for one in best_generator.candidates(told)} <= {1000}
    assert list(best_generator.candidates(dataclasses.replace(told, lines=lines[:1]))) == []


# ---- frequencies of classes ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "unbalanced"),
    [
        ([100, 100, 100], False), ([174, 178, 177, 183, 181, 182, 181, 179, 174, 188], False), ([60, 40], False), ([6000, 4000], True),
        ([5200, 4800], False), ([500, 50], True), ([3, 1, 2, 2], False), ([10, 0, 0], True), ([7], False), ([], False),
    ],
)  # fmt: skip
def test_classes_are_unbalanced_if_it_matters_and_is_no_accident(counts, unbalanced):
    """A twentieth of the images would have to change their class, and an even draw would hardly ever give that."""
    assert is_unbalanced(counts) is unbalanced and bool(describe_mixture(counts)) is unbalanced
    drawn = np.random.default_rng(0).multinomial(200, [0.1] * 10, size=50)
    assert not any(is_unbalanced(one.tolist()) for one in drawn)


def test_the_audit_and_the_protocol_name_the_mixture(digits, tmp_path):
    """Of a data set, a prepared one and a CONFIG.yaml; not if the generator has no classes."""
    pixels, labels = digits
    few = torch.cat([torch.nonzero(labels == 0)[:100, 0], torch.nonzero(labels == 1)[:10, 0]])
    images = ImageSet("some", labels[few], ["0", "1"], 1, 16, pixels[few])
    words = "labels of generated images are uniform over 2 classes, while the real images keep the frequencies of the data"
    assert "\n  unbalanced classes (9.09% to 90.91% a class, 10 to 1): labels=uniform draws" in audit(images)
    notes = evaluator_of(images=images).protocol()["eval/notes"]
    assert [note for note in notes if note.startswith(words)]
    pack(images, tmp_path / "packed", "some")
    (tmp_path / "my.yaml").write_text(f"data: {{name: packed, root: {tmp_path / 'packed'}, resolution: 16}}\n")
    for reference in (tmp_path / "packed", tmp_path / "my.yaml"):
        for classes, said in ((2, 1), (1, 0)):
            some = evaluator_of(f"eval.reference={reference}", shape=(1, 16, 16), num_classes=classes)
            assert sum(note.startswith(words) for note in some.remarks.notes) == said
    assert "unbalanced" not in audit(prepare(Digits(), CPU))
    assert prepare(Packed(root=str(tmp_path / "packed"), resolution=16, labels=False), CPU).num_classes == 1


def write_classes(folder: Path, counts: dict[str, int], size: int = 8) -> Path:
    """Grey noise as PNGs in folders."""
    for name, count in counts.items():
        (folder / name).mkdir(parents=True)
        for i, one in enumerate(torch.randint(0, 256, (count, size, size), dtype=torch.uint8)):
            Image.fromarray(one.numpy()).save(folder / name / f"{i}.png")
    return folder


def said_of(reference: Path, num_classes: int = 2) -> list[str]:
    """The notes on classes, of digits' features against a reference."""
    notes = evaluator_of(f"eval.reference={reference}", shape=(1, 8, 8), num_classes=num_classes).remarks.notes
    return [note for note in notes if "class" in note]


UNBALANCED = (
    "labels of generated images are uniform over 2 classes, while the real images keep the frequencies of the data (10.00% to 90.00% a"
    " class, 9 to 1); a perfect generator of every class would not reach a FID of 0"
)
UNKNOWN = (
    "the class frequencies of the reference are unknown, while labels of generated images are uniform over 2 classes; unless its classes"
    " are balanced too, a perfect generator of every class would not reach a FID of 0"
)


def test_the_classes_of_any_reference_are_counted(tmp_path):
    """A folder or zip of class folders, also inside another folder or with dataset.json, and labels beside images."""
    folder = write_classes(tmp_path / "uneven", {"a": 36, "b": 4})
    shutil.make_archive(str(tmp_path / "uneven"), "zip", folder)
    shutil.make_archive(str(tmp_path / "around"), "zip", tmp_path, "uneven")
    assert [said_of(tmp_path / name) for name in ("uneven", "uneven.zip", "around.zip")] == [[UNBALANCED]] * 3
    listed = write_classes(tmp_path / "listed", {"x": 40})
    labels = [[f"x/{i}.png", int(i >= 36)] for i in range(40)]
    (listed / "dataset.json").write_text(json.dumps({"labels": labels}))
    shutil.make_archive(str(tmp_path / "listed"), "zip", listed)
    assert [said_of(tmp_path / name) for name in ("listed", "listed.zip")] == [[UNBALANCED]] * 2
    images = COLOUR[:, :1, :8, :8].permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "labelled.npz", images, np.array([0] * 36 + [1] * 4))
    assert said_of(tmp_path / "labelled.npz") == [UNBALANCED]
    assert said_of(write_classes(tmp_path / "even", {"a": 20, "b": 20})) == []
    assert said_of(tmp_path / "uneven", 1) == []
    assert said_of(tmp_path / "uneven", 10) == [
        "the reference has 2 classes, while labels of generated images are uniform over 10 classes; a perfect generator of every class may"
        " not reach a FID of 0"
    ]


def test_unknown_classes_of_a_reference_are_said(tmp_path):
    """Images without classes, parts of a data set, images outside the class folders, other programs' statistics, wrong labels."""
    flat, parts = write_classes(tmp_path / "flat", {".": 9}), write_classes(tmp_path / "parts", {"train/a": 5, "test/a": 5})
    loose = write_classes(tmp_path / "loose", {"a": 5, "b": 5})
    shutil.copy(loose / "a" / "0.png", loose / "0.png")
    images = COLOUR[:, :1, :8, :8].permute(0, 2, 3, 1).numpy()
    np.savez(tmp_path / "short.npz", images, np.zeros(3, int))
    np.savez(tmp_path / "part.npz", images, np.array([0] * 36 + [1] * 4), mu=np.zeros(64), sigma=np.eye(64))
    np.savez(tmp_path / "wrong.npz", mu=np.zeros(64), sigma=np.eye(64), class_counts=np.array([-1, 5]))
    files = [tmp_path / f"{name}.npz" for name in ("short", "part", "wrong")]
    assert {one: said_of(one) for one in (flat, parts, loose, *files)} == {one: [UNKNOWN] for one in (flat, parts, loose, *files)}
    assert said_of(tmp_path / "wrong.npz", 1) == []


def test_a_file_by_reference_knows_the_classes_and_an_old_one_loads_as_before(tmp_path):
    """The counts do not change the fingerprint of the content."""
    folder = write_classes(tmp_path / "uneven", {"a": 36, "b": 4})
    write_reference(folder, tmp_path / "new.npz", True, ["eval.features.name=digits"])
    assert said_of(tmp_path / "new.npz") == [UNBALANCED]
    with np.load(tmp_path / "new.npz") as file:
        assert file["class_counts"].tolist() == [36, 4]
        np.savez(tmp_path / "old.npz", **{key: file[key] for key in file.files if key != "class_counts"})
    assert said_of(tmp_path / "old.npz") == [UNKNOWN]
    assert read_statistics(tmp_path / "old.npz").content == read_statistics(tmp_path / "new.npz").content


def test_labels_of_a_torch_data_set_are_counted():
    items = [(one[:1], int(i >= 36)) for i, one in enumerate(COLOUR)]
    assert wrap_reference(items).class_counts == (36, 4)
    assert wrap_reference([(one, torch.tensor(label)) for one, label in items]).class_counts == (36, 4)
    for strange in ([(one, 0.5) for one, _ in items], [(one, -1) for one, _ in items], [one for one, _ in items]):
        assert wrap_reference(strange).class_counts == ()


# ---- few images ------------------------------------------------------------------------------------------------------


def test_metrics_say_what_few_images_do():
    few, many = Counts(500, 300, 2048, 1008), Counts(50_000, 50_000, 2048, 1008)
    said = {name: list(METRICS[name]().caveats(few)) for name in METRICS}
    assert said["fid"] == ["fid: 500 generated and 300 real images have a singular covariance of 2,048 features, which raises it a lot"]
    assert said["is"] == ["is: 10 parts of 50 images each score lower than parts of many images"]
    assert said["kid"] == ["kid: subsets of 150 images instead of 1,000, so kid_std is larger"]
    assert METRICS["is"]().caveats(Counts(7, 300, 64, 10)) == [
        "is: 7 parts (instead of 10) of 1 images each score lower than parts of many images"
    ]
    assert all(not METRICS[name]().caveats(many) for name in METRICS)
    assert METRICS["fid"]().caveats(dataclasses.replace(many, real=None)) == []
    assert METRICS["fid_infinity"]().fewest(2048) == 10_000 and METRICS["prc"]().fewest(2048) == 4
    x = torch.randn(4, 3)
    found = METRICS["prc"](neighbors=4).compute(FeatureSet(x, x), FeatureSet(x, x))
    assert math.isnan(found["precision"]) and math.isnan(found["recall"])


def test_shipped_digits_scores_have_no_notes():
    config = load(DIGITS)
    assert Evaluator(config, prepare(Digits(), CPU), make_accelerator(), show_progress=False).remarks.notes == []


def test_fid_infinity_of_too_few_images_is_refused_or_said(digits, gantrain, tmp_path):
    """New runs and images are refused before anything is computed; a run that exists gets nan, and the number that would do."""
    words = "eval.metrics: fid_infinity of 64 features needs at least 314 generated images, got {}; use 314, or leave fid_infinity out"
    with pytest.raises(UserError, match="^" + words.format(100).removeprefix("eval.")):
        library.evaluate(digits[0][:100], digits[0][100:300], metrics=["fid_infinity"], features="digits")
    done = gantrain("train", DIGITS, *TINY, "eval.metrics=[fid,fid_infinity]", f"run_dir={tmp_path / 'run'}", check=False)
    assert done.returncode == 2 and words.format(64) in done.stderr and not (tmp_path / "run" / "metrics.jsonl").exists()
    this = evaluator_of("eval.metrics=[fid,fid_infinity]", images=prepare(Digits(), CPU))
    assert words.format(64) in this.remarks.notes
    x = torch.randn(64, 64)
    scores = this.compute_metrics(FeatureSet(x, x[:, :10]), FeatureSet(x, x[:, :10]))
    assert math.isnan(scores["digits_fid_infinity"]) and math.isfinite(scores["digits_fid"])


def test_an_uncertain_fid_infinity_is_a_warning_of_the_library(digits):
    """One random part of the data against another: the distance is all but 0, and the standard error is not."""
    mixed = digits[0][torch.randperm(len(digits[0]), generator=torch.Generator().manual_seed(0))]
    with pytest.warns(UserWarning, match=r"digits_fid_infinity of images: \S+ with a standard error of \S+ is (uncertain|negative)"):
        scores = library.evaluate(mixed[:400], mixed[400:], metrics=["fid_infinity"], features="digits")
    assert scores["digits_fid_infinity_std"] > abs(scores["digits_fid_infinity"]) / 4


# ---- rounding --------------------------------------------------------------------------------------------------------


def test_fid_of_a_set_against_itself_is_not_negative_and_a_real_negative_is_not_hidden():
    """Within the bound of rounding a negative becomes 0; the formula of a matrix that is no covariance stays as it is."""
    negative = 0
    for seed in range(20):
        x = torch.randn(40, 24, generator=torch.Generator().manual_seed(seed)) * torch.arange(1, 25)
        some = FeatureSet(x[: 10 + seed], x)
        raw, found = distance(some.moments, some.moments), METRICS["fid"]().compute(some, some)["fid"]
        negative += raw < 0
        assert abs(raw) <= rounding(some.moments, some.moments) and found == max(raw, 0) and str(found)[0] != "-"
    assert negative > 0
    wrong = {"mu": np.zeros(2), "sigma": -np.eye(2)}
    assert METRICS["fid"]().compute(*[FeatureSet(torch.empty(0, 2), torch.empty(0, 0), wrong)] * 2)["fid"] == pytest.approx(-8)
    one = {"mu": np.zeros(64), "sigma": np.eye(64)}
    assert rounding(one, one) < 2e-5


# ---- samples of images that exist ------------------------------------------------------------------------------------


def test_a_number_of_images_is_a_sample_of_all(digits, tmp_path):
    """Sorted by class, the first 180 digits are a few zeros; a sample of 180 scores about as the data. Each image stands once."""
    order = digits[1].argsort(stable=True)
    pictures = wrap_tensor("some", digits[0][order])
    taken = sample_of(pictures, 180, 0)(0, 180)
    assert len({one.numpy().tobytes() for one in taken}) == 180
    classes = [digits[1][order][(pictures.take(range(1797)) == one).flatten(1).all(1).nonzero()[0, 0]].item() for one in taken[::6]]
    assert len(set(classes)) >= 8 and classes == sorted(classes)  # of all classes, in their order
    extract = DigitsFeatures().build(CPU).extract
    fid = lambda x: METRICS["fid"]().compute(FeatureSet(*extract(x)), FeatureSet(*extract(digits[0][:400])))["fid"]  # noqa: E731
    assert fid(taken) < 1 < 5 < fid(digits[0][order][:180])
    np.savez(tmp_path / "sorted.npz", digits[0][order].permute(0, 2, 3, 1).numpy())
    np.savez(tmp_path / "real.npz", digits[0][:400].permute(0, 2, 3, 1).numpy())
    scores = [
        library.evaluate(tmp_path / "sorted.npz", tmp_path / "real.npz", 180, ["fid"], "digits", seed=seed)["digits_fid"] for seed in (0, 1)
    ]
    assert scores[0] == pytest.approx(fid(taken), rel=1e-4) and scores[1] != scores[0] and scores[1] < 1
    with pytest.raises(UserError, match="num_samples: must be between 16 and 1797, the images in sorted.npz, got 1798"):
        library.evaluate(tmp_path / "sorted.npz", tmp_path / "real.npz", 1798, ["fid"], "digits")


def test_a_sample_is_not_the_one_that_references_take(digits):
    """Images against a sample of themselves are not scored against the very same ones."""
    pictures = wrap_tensor("some", digits[0])
    mine, real = sample_of(pictures, 100, 0)(0, 100), wrap_pictures(pictures, 100).take(0, 100)
    both = {one.numpy().tobytes() for one in mine} & {one.numpy().tobytes() for one in real}
    assert len(both) < 20


# ---- collapse --------------------------------------------------------------------------------------------------------


COMPARED = "; 4 of 10 classes compared"


class Given(nn.Module):
    """A generator of pictures that depend on z and y as far as it is told, in levels of 255."""

    dim_z, num_classes, channels, resolution = 4, 10, 1, 8

    def __init__(self, of_z: float, of_y: float, base: float = 0.0):
        super().__init__()
        self.of_z, self.of_y, self.base = of_z, of_y, base
        self.weight = nn.Parameter(torch.zeros(1))

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        level = self.base + self.of_z * z[:, :1].sign() + self.of_y * (y[:, None] % 2) + self.weight
        return (level / 127.5).clamp(-1, 1)[:, :, None, None].expand(-1, 1, 8, 8)


@pytest.mark.parametrize(
    ("of_z", "of_y", "base", "words"),
    [
        (50, 50, 0, ""), (2, 2, 0, ""), (1.5, 30, 0, ""),
        (0, 0, 0, f"the output is constant (the same picture for every z and y{COMPARED})"),
        (0.3, 0.3, 0, f"the output is constant (the same picture for every z and y{COMPARED})"),
        (0, 50, 0, f"the output does not depend on z (one picture per class{COMPARED})"),
        (50, 0, 0, f"the output does not depend on y (the same picture for every class{COMPARED})"),
        (1e6, 0, 0, f"the output does not depend on y (the same picture for every class{COMPARED}) and saturated (every value is -1 or 1)"),
        (0, 0, 1e9, f"the output is constant (the same picture for every z and y{COMPARED}) and saturated (every value is -1 or 1)"),
        (math.nan, 0, 0, ""),
    ],
)  # fmt: skip
def test_what_has_collapsed_is_said(of_z, of_y, base, words):
    """One level of 255, which rounding alone can give, is none; two are."""
    assert describe_collapse(Given(of_z, of_y, base), 0, CPU, 64) == words
    assert describe_collapse(Given(of_z, of_y, base), 0, CPU, 5) == words


def test_saturated_pictures_are_no_collapse_where_the_real_ones_are():
    levels = torch.randint(0, 2, (8, 4, 64)) * 255
    black_and_white, grey = torch.tensor([0, 255] * 50), torch.arange(100)
    assert describe_levels(levels, lambda: grey) == "the output is saturated (every value is -1 or 1)"
    assert describe_levels(levels, lambda: black_and_white) == describe_levels(levels, None) == ""


def test_without_classes_nothing_is_said_of_y():
    class Single(Given):
        num_classes = 1

    assert describe_collapse(Single(50, 0), 0, CPU, 64) == ""
    assert describe_collapse(Single(0, 0), 0, CPU, 64) == "the output is constant (the same picture for every z)"


def test_the_check_says_how_many_classes_it_compares_and_what_it_does_not_see():
    """With 10 classes, 0, 2, 5 and 7 are compared; with up to 4 classes, all."""

    class Only(Given):
        def __init__(self, different: int, num_classes: int = 10):
            super().__init__(50, 0)
            self.different, self.num_classes = different, num_classes

        def forward(self, z: Tensor, y: Tensor) -> Tensor:
            return super().forward(z, torch.where(y == self.different, 1, 0)) + (y == self.different)[:, None, None, None] * 0.5

    seen = [different for different in range(10) if not describe_collapse(Only(different), 0, CPU, 64)]
    assert seen == [0, 2, 5, 7]
    words = "the output does not depend on y (the same picture for every class{})"
    assert describe_collapse(Only(1), 0, CPU, 64) == words.format(COMPARED)
    assert describe_collapse(Only(5, 4), 0, CPU, 64) == words.format("")
    assert describe_collapse(Only(1, 2000), 0, CPU, 64) == words.format("; 4 of 2,000 classes compared")
    text = " ".join((ROOT / "docs" / "scores.md").read_text().split())
    assert "Eight latents are compared, each with up to 4 of the classes, spread evenly over all of them (0, 2, 5 and 7 of 10)" in text
    assert "The check does not see a single class that ignores z" in text


def test_every_evaluation_looks_and_scores_stay_as_they_are():
    """Of the live weights and of each average; the digits' generator is healthy at its start in either of BatchNorm's policies."""
    this, generator = evaluator_of(images=prepare(Digits(), CPU)), Given(0, 0)
    this.score(["live", "ema"], lambda *words: None, generator)
    assert in_one_line(this.collapsed) == f"live, ema: the output is constant (the same picture for every z and y{COMPARED})"
    torch.manual_seed(0)
    network, _ = load(DIGITS, TINY).model.build(16, 1, 10)
    for mode in (network.eval, network.train):
        mode()
        assert describe_collapse(network, 0, CPU, 64) == ""


@pytest.mark.slow
def test_a_run_that_collapses_says_so_and_ends_as_ordered(gantrain, tmp_path):
    """Learning rates of 1e6: an event at each evaluation after 0 kimg, and the last line; the exit status stays 0."""
    words = ["optim.lr_g=1e6", "optim.lr_d=1e6", "tracking.samples_every_kimg=null", "total_kimg=0.048", "eval.every_kimg=0.032"]
    said = gantrain("train", DIGITS, *TINY, *words, f"run_dir={tmp_path}").stdout
    events = [line for line in lines_of(tmp_path) if line.get("event") == "collapse"]
    assert [line["nimg"] for line in events] == [32, 48] and set(events[-1]["averages"]) >= {"live", "ema"}
    assert said.rstrip().splitlines()[-1].startswith("warning: the run has collapsed: live, ema")
    assert "warning: at 0.032 kimg, live, ema" in said and "at 0 kimg, live" not in said
    assert what_happened(events[0]).startswith("live, ema") and on_console(events[0]).startswith("warning: at 0.032 kimg, live")
    end = next(line for line in lines_of(tmp_path) if line.get("event") == "end")
    assert "the run has collapsed: live" in what_happened(end)
    record_of = json.loads(next((tmp_path / "checkpoints").glob("*048")).joinpath("state.json").read_text())
    assert set(record_of["collapsed"]) >= {"live", "ema"}
    assert "note: collapsed: live: the output is constant" in gantrain("evaluate", tmp_path, "--average", "live").stdout


def test_the_function_warns_of_a_collapsed_generator(digits):
    with pytest.warns(UserWarning, match="the generator has collapsed: the output does not depend on z"):
        library.evaluate(Given(0, 50), digits[0][:400], 100, ["is"], "digits")


# ---- file names ------------------------------------------------------------------------------------------------------


def test_names_that_are_not_utf8_are_written_with_their_bytes(gantrain, digits, tmp_path):
    """In references, as what is scored, in messages and in records; half a surrogate pair of a JSON file is no traceback either."""
    assert readable(os.fsdecode(b"caf\xe9/\xc3\xa9.png")) == "caf\\xe9/é.png" and readable("\ud800x") == "\\ud800x"
    folder = Path(os.fsdecode(bytes(tmp_path) + b"/r\xe9al"))
    folder.mkdir()
    for i, one in enumerate(digits[0][:20]):
        Image.fromarray(one[0].numpy()).save(folder / os.fsdecode(b"%03d\xff.png" % i))
    words = ["--reference", folder, "eval.metrics=[fid]", "--out", tmp_path / "scores.json"]
    said = gantrain("evaluate", folder, *words).stdout
    written = json.loads((tmp_path / "scores.json").read_text())
    assert (
        "against r\\xe9al (20 images)" in said and written["eval/reference"] == "r\\xe9al (20 images)" and "r\\xe9al" in written["scores"]
    )
    said.encode()
    (folder / os.fsdecode(b"000\xff.png")).write_bytes(b"spoilt")
    with pytest.raises(UserError, match=r"r\\xe9al/000\\xff.png: does not decode as an image"):
        open_reference(folder, None, CPU)
    with pytest.raises(UserError, match=r"000\\xff.png"):
        prepare(Folder(root=str(folder), resolution=16, labels=False), CPU)
