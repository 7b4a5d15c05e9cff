"""Scores of images and generators from outside: `gantrain evaluate FOLDER --reference` and `gantrain.evaluate` against torch-fidelity."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, error_of, lines_of
from fidelity import fidelity_scores, registered_digits
from PIL import Image
from torch import Tensor, nn

import gantrain as package
from gantrain.errors import UserError
from gantrain.evaluation.image_files import decode, sample_of, wrap_tensor
from gantrain.images import to_float, to_uint8
from gantrain.metrics import METRICS, DigitsFeatures, FeatureSet
from gantrain.python_words import in_python
from gantrain.sampling.latents import draw
from gantrain.sampling.sheets import to_pil

DIGITS = ROOT / "configs" / "digits.yaml"
SAMPLE = "a random sample of 200 without replacement, seed 0"
SAME = {"rel": 1e-6, "abs": 1e-9}  # KID may be next to nothing


@pytest.fixture(scope="module", autouse=True)
def on_cpu():
    """All scores compared here are computed on the same device."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        yield


@pytest.fixture(scope="module")
def halves(digits) -> tuple[Tensor, Tensor]:
    """(200 noisy digits that pass for generated images, 300 other digits)."""
    noise = torch.randn(200, 1, 16, 16, generator=torch.Generator().manual_seed(0))
    return (digits[0][:200] + 40 * noise).round().clamp(0, 255).to(torch.uint8), digits[0][200:500]


@pytest.fixture(scope="module")
def folders(halves, tmp_path_factory) -> tuple[Path, Path]:
    """The same as folders of PNGs."""
    at = tmp_path_factory.mktemp("folders")
    for name, images in zip(("fake", "real"), halves):
        (at / name).mkdir()
        for i, image in enumerate(images):
            to_pil(image).save(at / name / f"{i:06d}.png")
    return at / "fake", at / "real"


# ---- torch-fidelity --------------------------------------------------------------------------------------------------


def scores_of_command(gantrain, out: Path, *words: object) -> dict[str, float]:
    gantrain("evaluate", *words, "--out", out)
    ((_, scores),) = json.loads(out.read_text())["scores"].items()
    return scores


def test_digits_scores_of_folders_are_torch_fidelitys(gantrain, folders, tmp_path):
    fake, real = folders
    theirs = fidelity_scores(str(fake), str(real), 100, 10, feature_extractor=registered_digits(), batch_size=64)
    ours = scores_of_command(gantrain, tmp_path / "scores.json", fake, "--reference", real)
    assert {name.removeprefix("digits_"): value for name, value in ours.items()} == pytest.approx(theirs, **SAME)
    assert theirs["fid"] > 0.1 and 0 < theirs["precision"] < 1 and 0 < theirs["recall"] < 1 and theirs["precision"] != theirs["recall"]


@pytest.mark.slow
def test_inception_scores_of_folders_are_torch_fidelitys(gantrain, folders, inception_weights, tmp_path):
    """The published network and layer, with random weights."""
    for folder, name, count in zip(folders, ("fake", "real"), (16, 9)):
        (tmp_path / name).mkdir()
        for path in sorted(folder.iterdir())[:count]:
            (tmp_path / name / path.name).write_bytes(path.read_bytes())
    fake, real = tmp_path / "fake", tmp_path / "real"
    theirs = fidelity_scores(
        str(fake),
        str(real),
        4,
        10,
        feature_extractor="inception-v3-compat",
        feature_extractor_weights_path=str(inception_weights),
        batch_size=8,
    )
    features = f"eval.features={{name: inception, weights: {inception_weights}}}"
    ours = scores_of_command(gantrain, tmp_path / "scores.json", fake, "--reference", real, features, "eval.batch_size=8")
    assert ours == pytest.approx(theirs, **SAME)
    assert theirs["fid"] > 0.001 and theirs["is"] > 1 and theirs["kid"] != 0


def test_files_that_torch_fidelity_reads_differently(tmp_path):
    """What docs/scores.md says: transparency on white here and dropped there, EXIF orientation, 16-bit grey."""
    from torch_fidelity.datasets import ImagesPathDataset

    clear = np.zeros((4, 4, 4), np.uint8)
    clear[..., 0], clear[..., 3] = 200, 64  # a quarter of red
    Image.fromarray(clear).save(tmp_path / "alpha.png")
    exif = Image.Exif()
    exif[274] = 3  # turned by 180 degrees
    ramp = np.repeat(np.arange(0, 160, 40, dtype=np.uint8)[:, None], 4, 1)
    Image.fromarray(ramp).save(tmp_path / "exif.png", exif=exif)
    Image.fromarray(np.full((4, 4), 100 * 257, np.uint16)).save(tmp_path / "grey16.png")
    found = {}
    for name in ("alpha", "exif", "grey16"):
        theirs = ImagesPathDataset([str(tmp_path / f"{name}.png")])[0]
        found[name] = decode((tmp_path / f"{name}.png").read_bytes(), name)[:, 0, 0].tolist(), theirs[:, 0, 0].tolist()
    assert found == {"alpha": ([241, 191, 191], [200, 0, 0]), "exif": ([120] * 3, [0] * 3), "grey16": ([100] * 3, [255] * 3)}


# ---- the command -----------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_evaluate_a_folder_says_what_it_was_scored_with(gantrain, folders, halves, tmp_path):
    """A row named after the folder, of a sample of N images; JSON only if asked for; an .npz of the images scores the same."""
    fake, real = folders
    said = gantrain(
        "evaluate", fake, "--reference", real, "--num", 50, "eval.metrics=[fid]", "--out", tmp_path / "new" / "some.json"
    ).stdout
    record = json.loads((tmp_path / "new" / "some.json").read_text())
    head, titles, *_ = said.splitlines()
    assert head == f"{fake}: 50 images, {SAMPLE}, against real (300 images); also in {tmp_path}/new/some.json"
    assert titles.split() == ["images", "digits_fid"]
    assert (
        record["images"] == str(fake)
        and record["eval/num_samples"] == 50
        and record["eval/reference"] == "real (300 images)"
        and "eval/truncation" not in record
    )
    assert record["eval/sample"] == f"50 images, {SAMPLE}"
    np.savez(tmp_path / "fake.npz", halves[0].permute(0, 2, 3, 1).numpy())
    words = ["--num", 50, "--reference", real, "eval.metrics=[fid]"]
    again = scores_of_command(gantrain, tmp_path / "again.json", tmp_path / "fake.npz", *words)
    assert again == pytest.approx(record["scores"]["fake"], rel=1e-6)
    gantrain("reference", real, "--out", tmp_path / "real.npz")
    assert (
        scores_of_command(gantrain, tmp_path / "file.json", fake, "--reference", tmp_path / "real.npz", "--num", 50, "eval.metrics=[fid]")
        == record["scores"]["fake"]
    )
    assert not (fake / "evaluations").exists() and len(list(fake.iterdir())) == 200


@pytest.mark.slow
def test_impossible_arguments_are_refused(gantrain, folders, tmp_path):
    fake, real = folders
    (tmp_path / "few").mkdir()
    to_pil(torch.zeros(1, 16, 16, dtype=torch.uint8)).save(tmp_path / "few" / "a.png")
    np.savez(tmp_path / "moments.npz", mu=np.zeros(64), sigma=np.eye(64))
    for words, said in [
        (
            [fake],
            "fake: scoring images needs a reference; add --reference with an .npz of statistics, a folder of real images,"
            " a run folder or a CONFIG.yaml",
        ),
        ([fake, "--reference", real, "--num", 201], "--num: must be between 16 and 200, the images in fake, got 201"),
        ([tmp_path / "few", "--reference", real], "few: has 1 images; scores need at least 16"),
        ([fake, "--reference", tmp_path / "few"], "few: has 1 images; scores need at least 8"),
        ([fake, "--reference", real, "--average", "ema"], "--average: only applies to runs, but "),
        ([fake, "--reference", real, "--batchnorm", "copy"], "--batchnorm: only applies to runs, but "),
        ([fake, "--reference", real, "data.root=x"], "data.root=x: images only take overrides of eval"),
        ([fake, "--reference", real, "--out", tmp_path], "must be a new .json file"),
        (
            [fake, "--reference", real, "eval.protocol=torch-fidelity"],
            "eval.num_samples is 50000 under protocol=torch-fidelity; remove one of them, got 200",
        ),
        ([tmp_path / "moments.npz", "--reference", real], "moments.npz: contains statistics but no images"),
        ([tmp_path / "none.npz", "--reference", real], "none.npz: is not a file"),
    ]:
        assert said in error_of(gantrain("evaluate", *words, check=False))


# ---- gantrain.evaluate -----------------------------------------------------------------------------------------------


class Noisy(nn.Module):
    """Draws z as grey pixels, through a BatchNorm whose running statistics lag behind."""

    dim_z, num_classes = 16, 10

    def __init__(self):
        super().__init__()
        self.norm, self.drop, self.scale = nn.BatchNorm1d(16), nn.Dropout(0.5), nn.Parameter(torch.tensor(0.5))

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        x = self.drop(self.norm(z * self.scale + y[:, None] / 5))
        return torch.tanh(x.repeat(1, 16)).view(-1, 1, 16, 16)


def by_hand(fake: Tensor, real: Tensor, names: tuple[str, ...]) -> dict[str, float]:
    """Scores of uint8 images, computed by the metrics directly."""
    extract = DigitsFeatures().build(torch.device("cpu")).extract
    a, b = (FeatureSet(*extract(images)) for images in (fake, real))
    return {f"digits_{key}": value for name in names for key, value in METRICS[name]().compute(a, b).items()}


def test_a_module_is_scored_as_it_stands_and_left_as_it_was(halves):
    """It runs in evaluation mode with z and y of the seed; modes, buffers, gradients, random state and grad mode are restored."""
    torch.manual_seed(3)
    module = Noisy()
    module(torch.randn(8, 16), torch.zeros(8, dtype=torch.int64)).sum().backward()
    module.drop.eval()
    before = [torch.get_rng_state(), module.scale.grad.clone(), *(v.clone() for v in module.state_dict().values())]
    found = package.evaluate(module, halves[1], num_samples=100, metrics=("fid", "kid"), features="digits", seed=5, truncation=1.5)
    after = [torch.get_rng_state(), module.scale.grad, *module.state_dict().values()]
    assert all(torch.equal(a, b) for a, b in zip(before, after)) and torch.is_grad_enabled()
    assert [m.training for m in module.modules()] == [True, True, False]
    z, y = draw(5, "eval", 0, 100, 16, 10, truncation=1.5)
    with torch.no_grad():
        assert found == pytest.approx(by_hand(to_uint8(module.eval()(z, y)), halves[1], ("fid", "kid")), rel=1e-5, abs=1e-7)
        module.train()
    measured = package.evaluate(
        module, halves[1], num_samples=100, metrics=["fid"], features="digits", seed=5, truncation=1.5, batchnorm="recalibrate"
    )
    assert measured["digits_fid"] != pytest.approx(found["digits_fid"], rel=1e-3)
    assert all(torch.equal(a, b) for a, b in zip(before[2:], module.state_dict().values()))


def test_all_forms_of_the_same_images_score_the_same(halves, folders):
    """Generated images as tensor, function and folder, and real ones as tensor, data set and folder, score the same."""
    fake, real = halves
    asked = []

    def sample(start: int, count: int) -> Tensor:
        asked.append((start, count, torch.is_grad_enabled()))
        return to_float(fake[start : start + count])

    whole = package.evaluate(fake, real, features="digits")
    assert whole == pytest.approx(by_hand(fake, real, ("fid", "is", "kid", "prc")), rel=1e-5, abs=1e-7) and set(whole) >= {
        "digits_fid",
        "digits_recall",
    }
    assert package.evaluate(sample, torch.utils.data.TensorDataset(real, torch.zeros(300)), 200, features="digits") == whole
    assert asked[1:] == [(0, 64, False), (64, 64, False), (128, 64, False), (192, 8, False)]
    assert package.evaluate(folders[0], str(folders[1]), features=DigitsFeatures()) == pytest.approx(whole, rel=1e-6, abs=1e-9)
    fewer = package.evaluate(fake, real, num_samples=150, metrics=("fid",), features="digits", resamples=8)
    some = sample_of(wrap_tensor("fake", fake), 150, 0)(0, 150)
    assert fewer["digits_fid"] == pytest.approx(by_hand(some, real, ("fid",))["digits_fid"], rel=1e-5) and fewer["digits_fid_ci95"] > 0


def test_a_runs_generator_scores_as_in_its_run(gantrain, tmp_path):
    run = tmp_path / "run"
    gantrain("train", DIGITS, *TINY, "total_kimg=0.08", "eval.every_kimg=null", f"run_dir={run}")
    gantrain("reference", run, "--out", tmp_path / "real.npz", "--moments-only")
    logged = next(line for line in lines_of(run) if "eval/num_samples" in line)
    scores = package.evaluate(
        package.load_generator(run, "ema"), tmp_path / "real.npz", num_samples=64, metrics=("fid", "is"), batch_size=32
    )
    assert scores == pytest.approx({key: logged[f"eval/ema/{key}"] for key in scores}, rel=1e-4)


@pytest.mark.parametrize(
    ("generator", "arguments", "words"),
    [
        (nn.Linear(2, 2), {}, "generator: Linear has no dim_z or no num_classes; set both, or pass a function sample.start, count."),
        (7, {}, "generator: must be G.z, y. with dim_z and num_classes, sample.start, count., a tensor or a path, got int"),
        (
            lambda start, count: torch.zeros(count, 3),
            {},
            r"generator: must return images \[1, C, H, W\], uint8 or float in \[-1, 1\], got float32 \[1, 3\]",
        ),
        (
            torch.zeros(20, 1, 16, 16),
            {},
            r"images: images as a tensor must be uint8 \[N, C, H, W\] with C of 1 or 3, got float32 \[20, 1, 16, 16\]",
        ),
        (Noisy(), {"batchnorm": "average"}, "batchnorm: must be one of recalibrate, copy, batch, or None, got 'average'"),
        (Noisy(), {"metrics": ("fdi",)}, "metrics: must name metrics .no metric 'fdi'; did you mean"),
        (Noisy(), {"features": "digit"}, "no feature extractor 'digit'; did you mean 'digits'"),
        (Noisy(), {"num_samples": 3}, "num_samples: must be at least 16, got 3"),
        (Noisy(), {"reference": 7}, "reference: must be a path, a uint8 tensor .* or a data set of .image, label., got int"),
        (Noisy(), {"reference": "nowhere"}, "nowhere: there is no such file or folder"),
        (
            Noisy(),
            {"reference": "nowhere", "features": None},
            "nowhere: there is no such file or folder; pass an .npz of statistics or images, a folder or zip of images,",
        ),
        (Noisy(), {"features": None}, "features: pass features='inception' for FID as published .*, or features='digits' for images of"),
    ],
)
def test_impossible_calls_are_refused(generator, arguments, words, halves):
    with pytest.raises(UserError, match=words) as caught:
        package.evaluate(generator, **{"reference": halves[1], "features": "digits", **arguments})
    assert "\n" not in str(caught.value)


BYTES = torch.zeros(20, 3, 8, 8, dtype=torch.uint8)
ITEM = "reference: list must give uint8 tensors [C, H, W], but its image {} is {}; {}"


@pytest.mark.parametrize(
    ("reference", "words"),
    [
        (
            BYTES.permute(0, 2, 3, 1).numpy(),
            "reference: is a NumPy array, uint8 [20, 8, 8, 3]; pass a uint8 tensor [N, C, H, W]: torch.from_numpy(x).permute(0, 3, 1, 2)",
        ),
        (BYTES.numpy(), "reference: is a NumPy array, uint8 [20, 3, 8, 8]; pass a uint8 tensor [N, C, H, W]: torch.from_numpy(x)"),
        (
            BYTES.double().numpy(),
            "reference: is a NumPy array, float64 [20, 3, 8, 8]; pass a uint8 tensor [N, C, H, W] (values 0..255, as uint8):"
            " torch.from_numpy(x)",
        ),
        (
            [(to_pil(x), 0) for x in BYTES],
            ITEM.format(0, "a PIL image", "give the data set transform=torchvision.transforms.PILToTensor()"),
        ),
        (
            [BYTES[0], BYTES[0].permute(1, 2, 0).numpy()],
            ITEM.format(1, "a NumPy array, uint8 [8, 8, 3]", "convert it: torch.from_numpy(x).permute(2, 0, 1)"),
        ),
        (
            [(x / 255, 0) for x in BYTES],
            ITEM.format(
                0,
                "a tensor, float32 [3, 8, 8]",
                "use torchvision.transforms.PILToTensor() instead of ToTensor(), or convert it to 0..255 and uint8",
            ),
        ),
        ([*BYTES.permute(0, 2, 3, 1)], ITEM.format(0, "a tensor, uint8 [8, 8, 3]", "convert it: x.permute(2, 0, 1)")),
        ([*BYTES[:, 0]], ITEM.format(0, "a tensor, uint8 [8, 8]", "add the channels: x[None]")),
        ([{"image": x} for x in BYTES], ITEM.format(0, "of type dict", "write a data set whose items are (image, label)")),
        (["a.png"] * 20, ITEM.format(0, "of type str", "write a data set whose items are (image, label)")),
        (
            [BYTES[0], BYTES[0, :, :4]],
            "reference: list must give images of one size, but its image 1 is [3, 4, 8] and image 0 [3, 8, 8]; resize them to one size",
        ),
        ({"x": BYTES}, "reference: dict has no items 0, 1, 2, ...; pass a uint8 tensor [N, C, H, W] of its images"),
    ],
)
def test_images_of_another_kind_are_refused_with_the_conversion(reference, words):
    with pytest.raises(UserError) as caught:
        package.evaluate(BYTES, reference, features="digits")
    assert str(caught.value) == words
    if isinstance(reference, np.ndarray):
        with pytest.raises(UserError) as caught:
            package.evaluate(reference, BYTES, features="digits")
        assert str(caught.value) == words.replace("reference", "generator")


@pytest.mark.parametrize(
    ("command", "python"),
    [
        ("do not measure quality: set eval.features.name=inception", 'do not measure quality: pass features="inception"'),
        ("eval.metrics: kid of 64 features needs 100, got 20; use 100", "metrics: kid of 64 features needs 100, got 20; use 100"),
        ("need features; set eval.metrics=[fid,is], or write a file", "need features; pass metrics=['fid', 'is'], or write a file"),
        (
            "set eval.features.name=digits or eval.features={name: inception, layer: '64'}, or use another file",
            'pass features="digits" or features=InceptionFeatures(layer="64"), or use another file',
        ),
        ("put it into hub, or set eval.features.weights=PATH", "put it into hub, or pass features=InceptionFeatures(weights=PATH)"),
        ("but eval.features is inception", "but features is inception"),
        ("use --average ema --kimg 2.5", 'use average="ema" kimg=2.5'),
        ("--kimg: short was rebuilt at 2 kimg; omit --kimg", "kimg: short was rebuilt at 2 kimg; omit kimg"),
        ("checkpoint.keep_best=[eval/ema/fid] keeps them", "checkpoint.keep_best=[eval/ema/fid] keeps them"),  # of training
    ],
)
def test_remedies_are_those_of_the_language_of_the_call(command, python):
    assert in_python(command) == python


def test_warnings_and_errors_of_evaluate_name_its_arguments(halves, tmp_path):
    with pytest.warns(UserWarning) as said:
        package.evaluate(255 - halves[0][:32], 255 - halves[1][:32], metrics=("fid",), features="digits")
    words = [str(one.message) for one in said]
    assert any('not measure quality: pass features="inception"' in one for one in words) and not any("eval." in one for one in words)
    np.savez(tmp_path / "wide.npz", mu=np.zeros(2048), sigma=np.eye(2048))
    with pytest.raises(UserError, match='but features has .*; pass features="inception", or use another file'):
        package.evaluate(halves[0], tmp_path / "wide.npz", metrics=("fid",), features="digits")
