"""References: files of statistics in every format, images as they are, `gantrain reference`, `--reference`, and refusals."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, TESTS, TINY, error_of, lines_of
from PIL import Image

from gantrain.config.loading import load
from gantrain.errors import UserError
from gantrain.evaluation.image_files import open_folder, open_zip, wrap_tensor
from gantrain.evaluation.references import open_reference, wrap_pictures
from gantrain.metrics import METRICS, DigitsFeatures, FeatureSet
from gantrain.metrics.statistics import read_statistics
from gantrain.sampling.sheets import to_pil

DIGITS = ROOT / "configs" / "digits.yaml"
CPU = torch.device("cpu")
ALL_FOUR = "eval.metrics=[fid,is,kid,prc]"


@pytest.fixture(scope="module", autouse=True)
def on_cpu():
    """Compute everything on one device, so that results are comparable."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        yield


@pytest.fixture(scope="module")
def run(gantrain, tmp_path_factory) -> Path:
    """A tiny run that has scored all four metrics against its data set."""
    folder = tmp_path_factory.mktemp("reference") / "run"
    gantrain("train", DIGITS, *TINY, ALL_FOUR, "total_kimg=0.16", "eval.every_kimg=null", f"run_dir={folder}")
    return folder


@pytest.fixture(scope="module")
def file(gantrain, run) -> Path:
    """The statistics of that run's data set, with features."""
    path = run.parent / "digits.npz"
    assert (
        f"{path}: mean, covariance, features and logits of digits (64 images), 64 features"
        in gantrain("reference", run, "--out", path).stdout
    )
    return path


def scores_at(path: Path) -> dict:
    return json.loads(path.read_text())


# ---- a file that gantrain writes -------------------------------------------------------------------------------------


@pytest.mark.slow
def test_scores_against_the_file_are_those_against_the_data(gantrain, run, file, tmp_path, monkeypatch):
    """Bit for bit, also with moments alone; the data set is not opened; the record names the reference."""
    gantrain("reference", run, "--out", tmp_path / "moments.npz", "--moments-only")
    gantrain("evaluate", run, "--average", "ema", "--out", tmp_path / "data.json")
    monkeypatch.setattr("gantrain.data.digits.Digits.build", lambda self: pytest.fail("read"))
    gantrain("evaluate", run, "--reference", file, "--average", "ema", "--out", tmp_path / "file.json")
    gantrain(
        "evaluate",
        run,
        "--reference",
        tmp_path / "moments.npz",
        "--average",
        "ema",
        "--out",
        tmp_path / "moments.json",
        "eval.metrics=[fid,is]",
    )
    data, whole, moments = (scores_at(tmp_path / f"{name}.json") for name in ("data", "file", "moments"))
    assert whole["scores"] == data["scores"] and set(data["scores"]["ema"]) == {
        f"digits_{m}" for m in ("fid", "is", "is_std", "kid", "kid_std", "precision", "recall")
    }
    assert moments["scores"] == {
        name: {k: v for k, v in row.items() if k in ("digits_fid", "digits_is", "digits_is_std")} for name, row in data["scores"].items()
    }
    assert [found["eval/reference"] for found in (data, whole, moments)] == [
        "digits (64 images)",
        "digits.npz (64 images)",
        "moments.npz (64 images)",
    ]
    prints = {found["eval/reference_fingerprint"] for found in (data, whole, moments)}
    assert len(prints) == 3 and all(len(p) == 16 and set(p) <= set("0123456789abcdef") for p in prints)
    assert (tmp_path / "moments.npz").stat().st_size < 50_000 < file.stat().st_size


def test_the_file_describes_its_content_and_is_readable_by_others(run, file):
    """Plain arrays: mu and sigma as numpy computes them from the features, names as text."""
    data = load(run / "config.yaml").data.build()
    with np.load(file, allow_pickle=False) as arrays:
        held = {key: arrays[key] for key in arrays.files}
    features = held["features"].astype(np.float64)
    np.testing.assert_allclose(held["mu"], features.mean(0), rtol=1e-6)
    np.testing.assert_allclose(held["sigma"], np.cov(features, rowvar=False), rtol=1e-6, atol=1e-9)
    assert held["mu"].dtype == held["sigma"].dtype == np.float64 and held["num_images"] == 64 and held["logits"].shape == (64, 10)
    assert (
        str(held["identity"]).startswith("digits-classifier/64/")
        and str(held["name"]) == "digits"
        and "torch" in json.loads(str(held["versions"]))
    )
    extracted = DigitsFeatures().build(CPU).extract(data.pixels)[0].numpy()
    assert all(np.abs(extracted - row).max(1).min() < 1e-5 for row in held["features"][:5])


@pytest.mark.slow
def test_training_against_the_file_scores_as_against_the_data(gantrain, run, file, tmp_path):
    """Saved in the configuration, found by whoever scores the run later; it may change at a resume."""
    gantrain(
        "train", DIGITS, *TINY, ALL_FOUR, "total_kimg=0.16", "eval.every_kimg=null", "--reference", file, f"run_dir={tmp_path / 'run'}"
    )
    a, b = (next(line for line in lines_of(folder) if "eval/num_samples" in line) for folder in (run, tmp_path / "run"))
    assert {k: v for k, v in a.items() if k.startswith("eval/ema/")} == {k: v for k, v in b.items() if k.startswith("eval/ema/")}
    assert b["eval/reference"] == "digits.npz (64 images)" and load(tmp_path / "run" / "config.yaml").eval.reference == str(file)
    gantrain("train", DIGITS, *TINY, ALL_FOUR, "total_kimg=0.17", "eval.every_kimg=null", f"run_dir={tmp_path / 'run'}")
    assert [line["eval/reference"] for line in lines_of(tmp_path / "run") if "eval/num_samples" in line] == [
        "digits.npz (64 images)",
        "digits (64 images)",
    ]


@pytest.mark.slow
def test_processes_share_the_work(together, run, file, tmp_path, gantrain):
    """Two processes write the same file and compute the same scores of a folder as one."""
    images = load(run / "config.yaml").data.build().pixels[:40]
    write_pngs(tmp_path / "fake", images)
    words = ["evaluate", tmp_path / "fake", "--reference", file, ALL_FOUR, "eval.batch_size=16", "eval.resamples=8"]
    gantrain(*words, "--out", tmp_path / "one.json")
    cases = [("reference", [run, "--out", tmp_path / "two.npz"]), ("evaluate", [*words[1:], "--out", tmp_path / "two.json"])]
    arguments = [word for name, rest in cases for word in ("command", tmp_path / name, name, *rest, "--")][:-1]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("GANTRAIN_CACHE", str(tmp_path / "cache"))  # nothing is found there
        done = together(2, TESTS / "workers.py", *map(str, arguments))
    assert [(tmp_path / name / f"world-{rank}").read_text() for name, _ in cases for rank in (0, 1)] == ["2"] * 4
    assert done.stdout.count("40 images against") == 1
    one, two = (read_statistics(path) for path in (file, tmp_path / "two.npz"))
    torch.testing.assert_close(one.features, two.features)
    a, b = (scores_at(tmp_path / f"{name}.json")["scores"]["fake"] for name in ("one", "two"))
    assert a == pytest.approx(b, rel=1e-4, abs=1e-6) and "digits_fid_ci95" in a


# ---- files of others -------------------------------------------------------------------------------------------------


def fid_against(path: Path, fake: FeatureSet) -> float:
    return METRICS["fid"]().compute(fake, read_statistics(path).featureset())["fid"]


def test_every_kind_of_file_gives_its_moments(tmp_path):
    """TTUR's in either precision, StyleGAN's sums, features under both names: one FID, that of scipy's matrix square root."""
    from scipy.linalg import sqrtm

    random = np.random.default_rng(0)
    x, y = (random.standard_normal((n, 6)) @ random.standard_normal((6, 6)) + 1 for n in (300, 200))
    mu, sigma, n = y.mean(0), np.cov(y, rowvar=False), len(y)
    kinds = {
        "ttur": {"mu": mu, "sigma": sigma},
        "float32": {"mu": mu.astype(np.float32), "sigma": sigma.astype(np.float32)},
        "ours": {"features": y.astype(np.float32), "logits": y.astype(np.float32)},
        "clean-fid": {"feats": y.astype(np.float32)},
        "stylegan": {"raw_mean": y.sum(0), "raw_cov": y.T @ y, "num_items": n, "num_features": 6},
    }
    fake = FeatureSet(torch.from_numpy(x).float(), torch.from_numpy(x).float())
    s = np.cov(x, rowvar=False)
    for name, arrays in kinds.items():
        np.savez(tmp_path / f"{name}.npz", **arrays)
        t = sigma * (n - 1) / n if name == "stylegan" else sigma  # its covariance divides by N, and stays as it is
        expected = ((x.mean(0) - mu) ** 2).sum() + np.trace(s + t - 2 * sqrtm(s @ t).real)
        assert fid_against(tmp_path / f"{name}.npz", fake) == pytest.approx(expected, rel=1e-5), name
        found = read_statistics(tmp_path / f"{name}.npz")
        assert found.count == {"ttur": None, "float32": None, "stylegan": 200}.get(name, 200) and found.width == 6
    assert len({read_statistics(tmp_path / f"{name}.npz").content for name in kinds}) == len(kinds)


def test_a_batch_of_images_with_the_statistics_of_more_images(tmp_path):
    """guided-diffusion's format: FID uses the statistics, and metrics that need features use the images; without statistics, all do."""
    images = np.random.default_rng(0).integers(0, 256, (20, 16, 16, 3), dtype=np.uint8)
    np.savez(tmp_path / "batch.npz", images, mu=np.zeros(64), sigma=np.eye(64), mu_s=np.zeros(3), sigma_s=np.eye(3))
    np.savez(tmp_path / "alone.npz", images)
    whole, moments, alone = (
        open_reference(tmp_path / name, None, CPU, features)
        for name, features in (("batch.npz", True), ("batch.npz", False), ("alone.npz", False))
    )
    assert moments.take is None and moments.count is None and whole.count is None and alone.count == 20
    for reference in (whole, alone):
        assert torch.equal(reference.take(3, 4), torch.from_numpy(images[3:7]).permute(0, 3, 1, 2)) and reference.taken == 20
    assert whole.statistics.moments["sigma"].shape == (64, 64) and alone.statistics.moments is None


class Mischief:
    def __reduce__(self):
        return Path.touch, (Path("created"),)


def good(d: int = 64) -> dict:
    return {"mu": np.zeros(d), "sigma": np.eye(d)}


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        (
            {**good(), "mu": np.zeros((64, 1))},
            r"mu must be \[d\] and sigma \[d, d\], got \[64, 1\] and \[64, 64\]; create the file again",
        ),
        ({**good(), "sigma": np.eye(63)}, r"mu must be \[d\] and sigma \[d, d\], got \[64\] and \[63, 63\]"),
        ({**good(), "sigma": np.full((64, 64), np.nan)}, "mu or sigma contains nan or infinity"),
        ({**good(), "sigma": np.triu(np.ones((64, 64)))}, "sigma is not a covariance .not symmetric"),
        ({"mu": np.zeros(64)}, "contains mu but no sigma"),
        ({"raw_mean": np.zeros(4), "raw_cov": np.eye(4)}, "lacks num_items, which StyleGAN's sums require"),
        ({"raw_mean": np.zeros(4), "raw_cov": np.eye(4), "num_items": 0}, "num_items must be a number of images, got 0"),
        ({"features": np.zeros((9, 4, 1), np.float32)}, r"features must be floats \[N, d\], got float32 \[9, 4, 1\]"),
        (
            {"features": np.zeros((9, 4), np.float32), "logits": np.zeros((8, 4), np.float32)},
            r"logits must be floats \[9, c\], one row per row of features, got float32 \[8, 4\]",
        ),
        ({**good(5), "features": np.ones((9, 4), np.float32)}, "mu has 5 dimensions, but features has 4"),
        (
            {"arr_0": np.zeros((9, 3, 8, 8), np.uint8)},
            r"arr_0 must be uint8 images \[N, H, W, C\] with 1 or 3 channels, got uint8 \[9, 3, 8, 8\]",
        ),
        ({"arr_0": np.zeros((9, 8, 8, 3), np.float32)}, "arr_0 must be uint8 images"),
        (
            {"weights": np.zeros(3)},
            "contains weights, but a reference must contain mu and sigma; raw_mean, raw_cov and num_items; features; or arr_0",
        ),
        ({"mu": np.array([Mischief()], dtype=object), "sigma": np.eye(1)}, "it contains pickled objects, which can run code"),
        (b"PK\x03\x04 no zip", "cannot be read as an .npz of statistics"),
        (b"", "cannot be read as an .npz of statistics"),
    ],
)
def test_an_invalid_reference_file_is_refused(arrays, words, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    if isinstance(arrays, bytes):
        Path("bad.npz").write_bytes(arrays)
    else:
        np.savez("bad.npz", **arrays)
    with pytest.raises(UserError, match=f"^bad.npz: .*{words}") as caught:
        open_reference("bad.npz", None, CPU)
    assert "\n" not in str(caught.value) and not Path("created").exists()


def test_a_pickle_is_refused_with_the_way_to_convert_it(tmp_path):
    (tmp_path / "stats.pkl").write_bytes(pickle.dumps({"raw_mean": np.zeros(3)}))
    with pytest.raises(UserError, match="stats.pkl: is a pickle, which can run code, so gantrain does not load it; .* numpy.savez"):
        open_reference(tmp_path / "stats.pkl", None, CPU)


# ---- refused by commands ---------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_reference_that_does_not_fit_is_refused_before_training(gantrain, file, tmp_path):
    """One line with the dimensions, the metrics or the extractors; the run folder is not begun."""
    np.savez(tmp_path / "wide.npz", **good(2048))
    np.savez(tmp_path / "moments.npz", **good())
    with np.load(file) as arrays:
        np.savez(
            tmp_path / "other.npz",
            **{key: np.array("inception-v3-compat/64/aa") if key == "identity" else arrays[key] for key in arrays.files},
        )
    for name, words in [
        ("wide.npz", "wide.npz: its statistics have 2048 dimensions, but eval.features has 64 (digits-classifier/64/"),
        ("wide.npz", "; set eval.features.name=inception, or use another file"),
        (
            "moments.npz",
            "moments.npz: holds only mean and covariance, but kid, prc need features of the real images;"
            " set eval.metrics=[fid,is], or write a file",
        ),
        ("other.npz", "other.npz: its statistics are those of inception-v3-compat/64/aa, but eval.features is digits-classifier/64/"),
        ("none.npz", "none.npz: is not a file; pass an .npz of statistics, or write one with `gantrain reference`"),
        (
            "none",
            "none: there is no such file or folder; pass an .npz of statistics, a folder or zip of images, a run folder or a CONFIG.yaml",
        ),
    ]:
        metrics = "eval.metrics=[fid,is]" if name == "wide.npz" else ALL_FOUR
        said = error_of(
            gantrain("train", DIGITS, *TINY, metrics, f"run_dir={tmp_path / 'run'}", "--reference", tmp_path / name, check=False)
        )
        assert words in said and not (tmp_path / "run").exists()


@pytest.mark.slow
def test_an_invalid_target_for_a_reference_is_refused(gantrain, run, file, tmp_path):
    for words, said in [
        ([run, "--out", tmp_path / "x.npy"], "must be an .npz file"),
        ([run, "--out", file / "x.npz"], "must be an .npz file"),
        ([tmp_path / "none", "--out", tmp_path / "x.npz"], "none: there is no such file or folder"),
        ([file, "--out", tmp_path / "x.npz"], "digits.npz: already contains statistics; pass it as --reference"),
        ([file, "--out", tmp_path / "x.npz", "data.root=x"], "data.root=x: images only take overrides of eval"),
    ]:
        assert said in error_of(gantrain("reference", *words, check=False))
    assert not (tmp_path / "x.npz").exists()
    assert "--reference: only applies to --sweep" in error_of(
        gantrain("average", run, "--sigma-rel", 0.1, "--reference", file, check=False)
    )


# ---- images as they are ----------------------------------------------------------------------------------------------


def write_pngs(folder: Path, images: torch.Tensor) -> None:
    folder.mkdir(parents=True)
    for i, image in enumerate(images):
        to_pil(image).save(folder / f"{i:06d}.png")


def test_a_folder_a_zip_and_a_tensor_of_the_same_images(digits, tmp_path):
    """Including sub-folders, in the order of their paths; images need not be square, and grey ones are converted to RGB."""
    images = digits[0][:12, :, :, :10]
    write_pngs(tmp_path / "all" / "a", images[4:])
    write_pngs(tmp_path / "all" / "a-b", images[:4])  # as text, a-b/ comes before a/
    with zipfile.ZipFile(tmp_path / "all.zip", "w") as packed:
        for path in sorted((tmp_path / "all").rglob("*.png")):
            packed.write(path, f"{path.parent.name}/{path.name}")
    found = [
        wrap_pictures(made)
        for made in (open_folder(tmp_path / "all"), open_zip(tmp_path / "all.zip"), wrap_tensor("t", images.expand(-1, 3, -1, -1)))
    ]
    assert all(one.count == 12 and one.shape == (3, 16, 10) and torch.equal(one.take(0, 12), images.expand(-1, 3, -1, -1)) for one in found)
    some = wrap_pictures(open_folder(tmp_path / "all"), 9)
    assert (
        some.count == 9
        and not torch.equal(some.take(0, 9), images[:9].expand(-1, 3, -1, -1))
        and torch.equal(some.take(2, 3), some.take(0, 9)[2:5])
    )
    before = open_folder(tmp_path / "all").fingerprint
    assert before == open_folder(tmp_path / "all").fingerprint
    to_pil(images[3]).save(tmp_path / "all" / "a" / "000000.png")
    assert open_folder(tmp_path / "all").fingerprint != before


def test_images_that_cannot_be_scored_are_refused(digits, tmp_path):
    write_pngs(tmp_path / "sizes", digits[0][:9])
    Image.new("L", (20, 16)).save(tmp_path / "sizes" / "000005.png")
    with pytest.raises(
        UserError, match="sizes/000005.png: differs in size from .*sizes/000000.png, 20x16 and 16x16; images are not resized"
    ):
        wrap_pictures(open_folder(tmp_path / "sizes")).take(0, 9)
    (tmp_path / "sizes" / "000000.png").write_bytes(b"none")
    with pytest.raises(UserError, match="000000.png: does not decode as an image .not a format that Pillow knows.; replace or remove it"):
        open_folder(tmp_path / "sizes")
    (tmp_path / "empty").mkdir()
    with pytest.raises(UserError, match="empty: contains no images"):
        open_reference(tmp_path / "empty", None, CPU)
    with pytest.raises(UserError, match="tensor: has 7 images; scores need at least 8"):
        wrap_pictures(wrap_tensor("tensor", digits[0][:7]))


def test_configurations_runs_and_prepared_sets_are_their_data(run, tmp_path):
    """One content under each name, so one fingerprint and one cache."""
    from gantrain.data import pack

    data = load(run / "config.yaml").data
    by_run, by_file = (open_reference(path, 64, CPU) for path in (run, run / "config.yaml"))
    assert by_run.content == by_file.content == data.build().fingerprint and by_run.count == by_file.count == 64
    pack(data.build(), tmp_path / "packed", "digits")
    packed = open_reference(tmp_path / "packed", 64, CPU)
    assert torch.equal(packed.take(0, 64), by_run.take(0, 64)) and packed.name == "packed/packed"
