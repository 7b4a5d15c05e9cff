"""Metrics against closed forms, brute force and torch-fidelity; extractors and what they refuse to load; the reference cache."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import os
import pickle
import subprocess
import sys
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from fidelity import fidelity_scores, registered_digits
from safetensors.torch import save_file
from torch import Tensor

from gantrain import torchvision_ops
from gantrain.cache import cache_folder
from gantrain.data import Digits
from gantrain.errors import UserError
from gantrain.metrics import (
    EXTRACTORS,
    HIGHER_IS_BETTER,
    METRICS,
    DigitsFeatures,
    FeatureSet,
    InceptionFeatures,
    feature_cache as reference,
    features,
    precision_recall,
)

CPU = torch.device("cpu")


# ---- material --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def digits_extract():
    """uint8 images to a `FeatureSet` of the digits classifier."""
    extract = DigitsFeatures().build(CPU).extract
    return lambda images: FeatureSet(*extract(images))


def gaussian(n: int, mean: np.ndarray, root: np.ndarray, seed: int) -> FeatureSet:
    """n features whose mean is `mean` and whose unbiased covariance is `root @ root.T`, both exactly (up to float32)."""
    x = np.random.default_rng(seed).standard_normal((n, len(mean)))
    x -= x.mean(0)
    x = x @ np.linalg.inv(np.linalg.cholesky(np.cov(x, rowvar=False))).T
    return plain_features(x @ root.T + mean)


def plain_features(x: np.ndarray | Tensor, logits: np.ndarray | Tensor | None = None) -> FeatureSet:
    x = torch.as_tensor(x).float()
    return FeatureSet(x, x if logits is None else torch.as_tensor(logits).float())


def random_features(n: int, d: int, seed: int, shift: float = 0.0) -> FeatureSet:
    rng = np.random.default_rng(seed)
    return plain_features(rng.standard_normal((n, d)) + shift, 3 * rng.standard_normal((n, 10)))


# ---- contract of a metric --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", METRICS)
def test_metric_is_a_frozen_dataclass_that_gives_finite_floats(name):
    """Hyper-parameters have defaults, scores are plain floats, and each score except spreads has a known direction."""
    cls = METRICS[name]
    metric = cls()
    assert dataclasses.is_dataclass(cls) and cls.__dataclass_params__.frozen and metric == cls()
    result = metric.compute(random_features(40, 6, 1), random_features(50, 6, 2))
    assert result and all(type(value) is float and np.isfinite(value) for value in result.values())
    assert {key for key in result if not key.endswith("_std")} <= HIGHER_IS_BETTER.keys() and set(
        cls.scores
    ) == result.keys() & HIGHER_IS_BETTER.keys()
    assert metric.needs in ("features", "moments", "nothing")


@pytest.mark.parametrize("name", METRICS)
def test_metric_prefers_real_images_to_noise(name, digits, digits_extract):
    """One half of the digits scores better against the other half than noise does, in the direction the table says."""
    images, _ = digits
    noise = torch.randint(0, 256, images[:400].shape, generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    real, half, noise = digits_extract(images[:400]), digits_extract(images[400:800]), digits_extract(noise)
    good, bad = METRICS[name]().compute(half, real), METRICS[name]().compute(noise, real)
    for key in good.keys() & HIGHER_IS_BETTER.keys():
        assert good[key] > bad[key] if HIGHER_IS_BETTER[key] else good[key] < bad[key]


@pytest.mark.parametrize("name", METRICS)
def test_metric_leaves_its_inputs_and_the_random_state_alone(name):
    fake, real = random_features(40, 6, 1), random_features(50, 6, 2)
    before = fake.features.clone(), real.features.clone(), torch.get_rng_state(), np.random.get_state()[1].copy()
    first = METRICS[name]().compute(fake, real)
    assert METRICS[name]().compute(fake, real) == first
    after = fake.features, real.features, torch.get_rng_state(), np.random.get_state()[1]
    assert all(np.array_equal(a, b) for a, b in zip(before, after))


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: METRICS["is"](splits=0), "splits: must be at least 1, got 0"),
        (lambda: METRICS["kid"](subsets=0), "subsets: must be at least 1, got 0"),
        (lambda: METRICS["kid"](subset_size=1), "subset_size: must be at least 2, got 1"),
        (lambda: METRICS["prc"](neighbors=0), "neighbors: must be at least 1, got 0"),
        (lambda: METRICS["prc"](batch_size=0), "batch_size: must be at least 1, got 0"),
        (lambda: InceptionFeatures(layer="logits"), "layer: must be one of 64, 192, 768, 2048, got 'logits'"),
    ],
)
def test_hyper_parameters_out_of_range_are_refused(build, words):
    with pytest.raises(UserError, match=words):
        build()


# ---- FID -------------------------------------------------------------------------------------------------------------


def test_fid_of_gaussians_whose_covariances_commute():
    """|m1 - m2|^2 + sum (sqrt a - sqrt b)^2 for covariances Q diag(a) Q' and Q diag(b) Q'."""
    rng = np.random.default_rng(0)
    d = 12
    q, _ = np.linalg.qr(rng.standard_normal((d, d)))
    a, b = rng.uniform(0.1, 4, d), rng.uniform(0.1, 4, d)
    m1, m2 = rng.standard_normal(d), rng.standard_normal(d)
    fake, real = gaussian(80, m1, q * np.sqrt(a), 1), gaussian(50, m2, q * np.sqrt(b), 2)
    expected = ((m1 - m2) ** 2).sum() + ((np.sqrt(a) - np.sqrt(b)) ** 2).sum()
    assert METRICS["fid"]().compute(fake, real)["fid"] == pytest.approx(expected, rel=1e-5)  # features are stored in float32


def test_fid_against_scipy_square_root():
    """The published formula with scipy's matrix square root, for covariances that do not commute."""
    from scipy.linalg import sqrtm

    rng = np.random.default_rng(3)
    x, y = (
        rng.standard_normal((200, 16)) @ rng.standard_normal((16, 16)) + 1,
        rng.standard_normal((150, 16)) @ rng.standard_normal((16, 16)),
    )
    fake, real = plain_features(x), plain_features(y)
    x, y = fake.features.double().numpy(), real.features.double().numpy()
    s, t = np.cov(x, rowvar=False), np.cov(y, rowvar=False)
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(s + t - 2 * sqrtm(s @ t).real)
    assert METRICS["fid"]().compute(fake, real)["fid"] == pytest.approx(expected, rel=1e-6)  # means are summed in float32


def test_fid_is_symmetric_and_zero_for_the_same_set():
    a, b = random_features(60, 8, 1), random_features(70, 8, 2, shift=0.5)
    fid = METRICS["fid"]()
    assert fid.compute(a, b)["fid"] == pytest.approx(fid.compute(b, a)["fid"], rel=1e-9)
    assert fid.compute(a, a)["fid"] == pytest.approx(0, abs=1e-9)


def test_moments_are_float64_and_unbiased():
    """The mean is accurate to float32 sums, the covariance more, even far from zero; it divides by N - 1; both are computed only once."""
    some = random_features(1000, 4, 5, shift=1000.0)
    x = some.features.double().numpy()
    assert some.moments["mu"].dtype == some.moments["sigma"].dtype == np.float64
    np.testing.assert_allclose(some.moments["mu"], x.mean(0), rtol=1e-5)
    np.testing.assert_allclose(some.moments["sigma"], (x - x.mean(0)).T @ (x - x.mean(0)) / 999, rtol=1e-9, atol=1e-12)
    assert some.moments is some.moments


# ---- KID -------------------------------------------------------------------------------------------------------------


def unbiased_mmd(x: np.ndarray, y: np.ndarray) -> float:
    """Unbiased squared MMD with the kernel (x.y / d + 1)^3, pair by pair (Gretton et al. 2012, Eq. 3)."""

    def kernel(u: np.ndarray, v: np.ndarray) -> float:
        return (float(u @ v) / len(u) + 1) ** 3

    def within(z: np.ndarray) -> float:
        return sum(kernel(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j) / (len(z) * (len(z) - 1))

    return within(x) + within(y) - 2 * sum(kernel(u, v) for u in x for v in y) / (len(x) * len(y))


def test_kid_of_one_subset_is_the_unbiased_mmd_of_its_members():
    """Half of each set is drawn at most; the draw is torch-fidelity's (RandomState 2020: first fakes, then reals)."""
    fake, real = random_features(24, 5, 1, shift=0.3), random_features(20, 5, 2)
    rng = np.random.RandomState(2020)
    x, y = (s.features.double().numpy()[rng.choice(len(s), 10, replace=False)] for s in (fake, real))
    result = METRICS["kid"](subsets=1, subset_size=1000).compute(fake, real)
    assert result["kid"] == pytest.approx(unbiased_mmd(x, y), rel=1e-4) and result["kid_std"] == 0  # kernels are float32


def test_kid_over_many_subsets_estimates_the_mmd_of_the_whole_sets():
    """A random subset's unbiased MMD has the whole sets' as its expectation, so the mean comes within its standard error."""
    fake, real = random_features(40, 5, 3, shift=1.0), random_features(40, 5, 4)
    subsets = 2000
    result = METRICS["kid"](subsets=subsets, subset_size=10).compute(fake, real)
    whole = unbiased_mmd(fake.features.double().numpy(), real.features.double().numpy())
    assert abs(result["kid"] - whole) < 4 * result["kid_std"] / subsets**0.5
    assert 4 * result["kid_std"] / subsets**0.5 < 0.2 * whole  # and that says something


# ---- inception score -------------------------------------------------------------------------------------------------


def inception_score(logits: np.ndarray) -> float:
    """exp E_x KL(p(y|x) || p(y)), in numpy."""
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    return float(np.exp((p * (np.log(p) - np.log(p.mean(0)))).sum(1).mean()))


@pytest.mark.parametrize("splits", [1, 7])
def test_inception_score_against_numpy(splits):
    """Mean and spread over parts of the shuffled set (torch-fidelity's shuffle, RandomState 2020), parts of unequal size included."""
    fake = random_features(100, 4, 6)
    shuffled = fake.logits.double().numpy()[np.random.RandomState(2020).permutation(100)]
    parts = [inception_score(shuffled[i * 100 // splits : (i + 1) * 100 // splits]) for i in range(splits)]
    result = METRICS["is"](splits=splits).compute(fake, fake)
    assert result["is"] == pytest.approx(np.mean(parts), rel=1e-9)
    assert result["is_std"] == pytest.approx(np.std(parts), rel=1e-6, abs=1e-12)


def test_inception_score_at_its_ends():
    """Sure of evenly many of each of C classes scores C; the same answer to everything scores 1; fewer images than parts is no nan."""
    sure = plain_features(np.zeros((60, 2)), 100 * np.eye(6).repeat(10, axis=0))
    assert METRICS["is"](splits=1).compute(sure, sure)["is"] == pytest.approx(6, rel=1e-9)
    same = plain_features(np.zeros((60, 2)), np.tile(np.arange(6.0), (60, 1)))
    assert METRICS["is"]().compute(same, same) == {"is": pytest.approx(1, rel=1e-12), "is_std": pytest.approx(0, abs=1e-12)}
    few = random_features(3, 4, 1)
    assert METRICS["is"](splits=10).compute(few, few)["is"] == pytest.approx(1, rel=1e-12)  # parts of one image each


# ---- precision and recall --------------------------------------------------------------------------------------------


def within_reach(x: np.ndarray, of: np.ndarray, k: int) -> float:
    """Share of x that lies within some point's distance to its k-th neighbour, by brute force."""
    hits = 0
    for point in x:
        for centre in of:
            radius = np.sort([np.linalg.norm(centre - other) for other in of])[k]  # [0] is the centre itself
            if np.linalg.norm(point - centre) <= radius:
                hits += 1
                break
    return hits / len(x)


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_against_brute_force(k):
    fake, real = random_features(45, 3, 7, shift=0.8), random_features(60, 3, 8)
    x, y = fake.features.double().numpy(), real.features.double().numpy()
    result = METRICS["prc"](neighbors=k).compute(fake, real)
    assert result == {"precision": pytest.approx(within_reach(x, y, k), abs=1e-6), "recall": pytest.approx(within_reach(y, x, k), abs=1e-6)}
    assert 0 < result["recall"] < 1 and result["recall"] != result["precision"]  # so that an exchange would show


def test_precision_and_recall_piece_by_piece(monkeypatch):
    """Above the size of which the whole matrix is held, rows are taken in pieces that need not divide it: same numbers."""
    fake, real = random_features(150, 4, 9, shift=0.5), random_features(110, 4, 10)
    whole = METRICS["prc"]().compute(fake, real)
    monkeypatch.setattr(precision_recall, "WHOLE_MATRIX", 100)
    assert METRICS["prc"](batch_size=17).compute(fake, real) == pytest.approx(whole, abs=1e-6)


def test_precision_and_recall_see_what_is_missing_and_what_is_foreign():
    """Fakes on one of two clusters: all precise, half recalled. Fakes on three: all recalled, two thirds precise."""
    rng = np.random.default_rng(0)
    cluster = [rng.standard_normal((60, 2)) + centre for centre in ((0, 0), (1000, 0), (0, 1000))]
    metric = METRICS["prc"](neighbors=20)
    two = plain_features(np.concatenate(cluster[:2]))
    one = metric.compute(plain_features(cluster[0]), two)
    assert one == {"precision": pytest.approx(1, abs=1e-6), "recall": pytest.approx(0.5, abs=1e-6)}
    three = metric.compute(plain_features(np.concatenate(cluster)), two)
    assert three == {"precision": pytest.approx(2 / 3, abs=1e-6), "recall": pytest.approx(1, abs=1e-6)}


# ---- all four against torch-fidelity on the same images --------------------------------------------------------------


class Bare(torch.utils.data.Dataset):
    """Images as torch-fidelity expects them: only uint8 `[3, H, W]`, without labels."""

    def __init__(self, images: Tensor):
        self.images = images

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> Tensor:
        return self.images[index]


def our_scores(extract, fake: Tensor, real: Tensor, subset_size: int, splits: int, batch: int) -> dict[str, float]:
    """All metrics of uint8 images, extracted in batches of `batch`."""
    sets = [FeatureSet(*(torch.cat(part) for part in zip(*(extract(piece) for piece in images.split(batch))))) for images in (fake, real)]
    metrics = [METRICS["fid"](), METRICS["is"](splits), METRICS["kid"](subset_size=subset_size), METRICS["prc"]()]
    return {key: value for metric in metrics for key, value in metric.compute(*sets).items()}


# torch-fidelity squares the distance of the means in float32; all else is the same function of the same features.
SAME = {"rel": 1e-6, "abs": 1e-7}


def with_noise(images: Tensor, strength: float, seed: int = 0) -> Tensor:
    """uint8 images with Gaussian noise of so many of their range, rounded and clipped."""
    noise = torch.randn(images.shape, generator=torch.Generator().manual_seed(seed))
    return (images + 255 * strength * noise).round().clamp(0, 255).to(torch.uint8)


def test_digits_scores_are_torch_fidelitys(digits):
    """The digits extractor, registered with torch-fidelity, gives there what gantrain computes of the same tensors."""
    extract = DigitsFeatures().build(CPU).extract
    images, _ = digits
    fake, real = (x.expand(-1, 3, -1, -1).contiguous() for x in (with_noise(images[:200], 0.2), images[200:500]))
    theirs = fidelity_scores(Bare(fake), Bare(real), 50, 10, feature_extractor=registered_digits(), batch_size=64)
    assert our_scores(extract, fake, real, 50, 10, 64) == pytest.approx(theirs, **SAME)
    assert theirs["fid"] > 0.1 and 0 < theirs["precision"] < 1 and 0 < theirs["recall"] < 1


# ---- contract of an extractor ----------------------------------------------------------------------------------------


def plugin_of(name: str, inception_weights: Path):
    """An extractor of the table, with our weights if it takes any."""
    cls = EXTRACTORS[name]
    return cls(weights=str(inception_weights)) if "weights" in {f.name for f in dataclasses.fields(cls)} else cls()


@pytest.mark.parametrize("name", EXTRACTORS)
def test_extractor_contract(name, inception_weights, digits):
    """uint8 of one or three channels to float32 (features, logits), image by image, for ever the same."""
    plugin = plugin_of(name, inception_weights)
    assert dataclasses.is_dataclass(plugin) and type(plugin).__dataclass_params__.frozen
    assert isinstance(plugin.metric_prefix, str)
    plugin.fetch()
    built = plugin.build(CPU)
    images = digits[0][:3]
    kept = images.clone()
    f, logits = built.extract(images)
    assert f.dtype == logits.dtype == torch.float32 and f.ndim == logits.ndim == 2 and len(f) == len(logits) == 3
    assert not f.requires_grad and not logits.requires_grad and torch.equal(images, kept)
    colour, _ = built.extract(images.expand(-1, 3, -1, -1))
    torch.testing.assert_close(colour, f)
    alone, _ = built.extract(images[1:2])
    torch.testing.assert_close(alone[0], f[1], rtol=1e-3, atol=1e-4)
    assert f.std(dim=0).max() > 0.01  # different images, different features
    assert built.identity and plugin_of(name, inception_weights).build(CPU).identity == built.identity


def test_only_the_published_inception_features_have_bare_names():
    """FID is Inception's 2048 features; whatever else is computed says so in its name."""
    assert InceptionFeatures().metric_prefix == ""
    assert InceptionFeatures(layer="192").metric_prefix == "inception192_"
    assert DigitsFeatures().metric_prefix == "digits_"


# ---- Inception's weights ---------------------------------------------------------------------------------------------


def test_inception_weights_as_pth_and_as_safetensors(inception_weights, tmp_path, digits):
    """Both are accepted and give the same features, but have different identities."""
    state = torch.load(inception_weights, weights_only=True)
    save_file({key: value.contiguous() for key, value in state.items()}, tmp_path / "random.safetensors")
    pth, safe = (
        InceptionFeatures(weights=str(path), layer="64").build(CPU) for path in (inception_weights, tmp_path / "random.safetensors")
    )
    images = digits[0][:2]
    assert all(torch.equal(a, b) for a, b in zip(pth.extract(images), safe.extract(images)))
    assert pth.extract(images)[0].shape == (2, 64)
    assert pth.identity == f"inception-v3-compat/64/{hashlib.sha256(inception_weights.read_bytes()).hexdigest()}" != safe.identity


def test_missing_weights_file():
    missing = r"'nowhere/inception.pth' is not a file of weights \(No such file or directory\)"
    with pytest.raises(UserError, match=f"^eval.features.weights: {missing}; pass the path of the weights, or null"):
        InceptionFeatures(weights="nowhere/inception.pth").build(CPU)


def test_no_network_and_no_weights(tmp_path, monkeypatch):
    """One line with the URL, the target folder and the key to set."""

    def download(*args, **kwargs):
        raise URLError("[Errno -2] Name or service not known")

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", download)
    for call in (InceptionFeatures().fetch, lambda: InceptionFeatures().build(CPU)):
        with pytest.raises(UserError) as caught:
            call()
        words = str(caught.value)
        assert "\n" not in words and "Name or service not known" in words
        assert "https://" in words and "weights-inception-2015-12-05-6726825d.pth" in words
        assert str(tmp_path / "hub" / "checkpoints") in words and "eval.features.weights=PATH" in words


def test_existing_weights_are_not_downloaded(tmp_path, monkeypatch):
    """The file in torch's hub folder is used as it is; nothing is asked of the network."""
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    monkeypatch.setattr(torch.hub, "download_url_to_file", lambda *args, **kwargs: pytest.fail("downloaded"))
    there = tmp_path / "hub" / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth"
    there.parent.mkdir(parents=True)
    there.write_bytes(b"here")
    InceptionFeatures().fetch()
    assert features.inception_weights_path(None) == there


class Mischief:
    """A pickle that would create a file when it is loaded."""

    def __init__(self, target: Path):
        self.target = target

    def __reduce__(self):
        return Path.touch, (self.target,)


@pytest.mark.parametrize("suffix", [".pth", ".pt", ".safetensors"])
@pytest.mark.parametrize("writer", ["torch", "pickle"])
def test_a_hostile_file_is_refused_without_being_run(writer, suffix, tmp_path):
    weights, target = tmp_path / f"weights{suffix}", tmp_path / "created"
    content = {"fc.weight": torch.zeros(2), "payload": Mischief(target)}
    torch.save(content, weights) if writer == "torch" else weights.write_bytes(pickle.dumps(Mischief(target), protocol=2))
    with pytest.raises(
        UserError, match=f"weights{suffix}: contains no weights that can be read safely .*; use torch-fidelity's .pth or a .safetensors"
    ):
        InceptionFeatures(weights=str(weights)).build(CPU)
    assert not target.exists()
    if writer == "pickle":  # it would have worked
        pickle.loads(weights.read_bytes())
        assert target.exists()


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ([torch.zeros(2)], "is not a dictionary of weights"),
        ({"state_dict": {"fc.weight": torch.zeros(2)}}, "is not a dictionary of weights"),
        ({}, "these are not the weights of inception-v3-compat"),
        ({"fc.weight": torch.zeros(2)}, "these are not the weights of inception-v3-compat"),
        ({0: torch.zeros(2)}, "is not a dictionary of weights|these are not the weights of inception-v3-compat"),
    ],
    ids=["list", "nested", "empty", "other", "numbered"],
)
def test_other_content_is_refused_as_inception_weights(content, words, tmp_path):
    torch.save(content, tmp_path / "other.pth")
    with pytest.raises(UserError, match=f"other.pth: ({words})") as caught:
        InceptionFeatures(weights=str(tmp_path / "other.pth")).build(CPU)
    assert "\n" not in str(caught.value)


def test_safetensors_of_another_network_or_cut_short_are_refused(tmp_path):
    with pytest.raises(UserError, match="these are not the weights of inception-v3-compat"):
        InceptionFeatures(weights=str(features.DIGITS_WEIGHTS)).build(CPU)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(features.DIGITS_WEIGHTS.read_bytes()[:-10])
    with pytest.raises(UserError, match="cut.safetensors: contains no weights that can be read safely"):
        InceptionFeatures(weights=str(cut)).build(CPU)


# ---- the digits classifier -------------------------------------------------------------------------------------------


def test_digits_classifier_is_the_recorded_one():
    record = json.loads(features.DIGITS_RECORD.read_text())
    digest = hashlib.sha256(features.DIGITS_WEIGHTS.read_bytes()).hexdigest()
    assert digest == record["sha256"] and digest in DigitsFeatures().build(CPU).identity
    assert sum(p.numel() for p in features.DigitsClassifier().parameters()) == record["parameters"]


@pytest.mark.parametrize(("resolution", "channels"), [(16, 1), (16, 3), (32, 1), (32, 3)])
def test_digits_classifier_recognises_the_digits(resolution, channels):
    """More than 99 of 100, at both sizes and as grey or colour; 64 features and 10 logits an image."""
    data = Digits(resolution=resolution).build()
    f, logits = DigitsFeatures().build(CPU).extract(data.pixels.expand(-1, channels, -1, -1))
    assert f.shape == (1797, 64) and logits.shape == (1797, 10)
    assert (logits.argmax(1) == data.labels).float().mean() > 0.99


def test_damaged_digits_classifier_is_refused(tmp_path, monkeypatch):
    """A single altered bit."""
    data = bytearray(features.DIGITS_WEIGHTS.read_bytes())
    data[-1] ^= 1
    (tmp_path / "altered.safetensors").write_bytes(data)
    monkeypatch.setattr(features, "DIGITS_WEIGHTS", tmp_path / "altered.safetensors")
    with pytest.raises(
        UserError, match="altered.safetensors: is damaged: its SHA-256 is [0-9a-f]{64}, not [0-9a-f]{64}; reinstall gantrain"
    ):
        DigitsFeatures().build(CPU)


def blurred(images: Tensor, sigma: float) -> Tensor:
    """uint8 images convolved with a Gaussian of `sigma` pixels."""
    reach = int(4 * sigma + 1)
    kernel = torch.exp(-(torch.arange(-reach, reach + 1).float() ** 2) / (2 * sigma**2))
    kernel = kernel / kernel.sum()
    x = F.pad(images.float(), (reach,) * 4, mode="replicate")
    return F.conv2d(F.conv2d(x, kernel.view(1, 1, 1, -1)), kernel.view(1, 1, -1, 1)).round().to(torch.uint8)


def test_digits_scores_increase_with_the_strength_of_faults(digits, digits_extract):
    """Against one half of the digits: the other half is best, and each fault costs more the stronger it is."""
    images, labels = digits
    real = digits_extract(images[:898])
    half, half_labels = images[898:1796], labels[898:1796]
    random = torch.randint(0, 256, half.shape, generator=torch.Generator().manual_seed(1), dtype=torch.uint8)
    faulty = {
        "none": half,
        **{f"noise {s}": with_noise(half, s) for s in (0.1, 0.2, 0.4)},
        **{f"blur {s}": blurred(half, s) for s in (0.5, 1.0, 2.0)},
        **{f"classes 0 to {c - 1}": half[half_labels < c] for c in (8, 5, 3)},
        "one image": half[:1].expand(len(half), -1, -1, -1),
        "black": torch.zeros_like(half),
        "uniform": random,
    }
    sets = {fault: digits_extract(x) for fault, x in faulty.items()}
    fid = {fault: METRICS["fid"]().compute(s, real)["fid"] for fault, s in sets.items()}
    prc = {fault: METRICS["prc"]().compute(s, real) for fault, s in sets.items()}
    for chain in (
        ["none", "noise 0.1", "noise 0.2", "noise 0.4", "uniform", "black"],
        ["none", "blur 0.5", "blur 1.0", "blur 2.0", "black"],
        ["none", "classes 0 to 7", "classes 0 to 4", "classes 0 to 2", "one image", "black"],
        ["none", "noise 0.1", "blur 1.0", "classes 0 to 4", "one image"],
    ):
        assert [fid[fault] for fault in chain] == sorted(fid[fault] for fault in chain), {fault: fid[fault] for fault in chain}
    # Missing classes cost recall and no precision; one image is precise and recalls nothing; black and noise are neither.
    missing = ["none", "classes 0 to 7", "classes 0 to 4", "classes 0 to 2", "one image"]
    recalls = [prc[fault]["recall"] for fault in missing]
    assert recalls == sorted(recalls, reverse=True) and recalls[-1] < 0.05
    assert all(prc[fault]["precision"] > prc["none"]["precision"] - 0.03 for fault in missing)
    assert prc["black"] == prc["uniform"] == {"precision": 0, "recall": 0}


# ---- torchvision beside a CPU torch ----------------------------------------------------------------------------------


@pytest.mark.slow
def test_torch_fidelity_imports_behind_torchvision_ops():
    """In a fresh process, whichever wheel of torchvision is installed."""
    code = "import gantrain.torchvision_ops as o, torch_fidelity, torchvision; print(o._declared is None, o.torchvision_is_whole())"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    untouched, whole = done.stdout.split()
    assert untouched == whole  # declared exactly where torchvision's own library does not load


def test_nothing_is_declared_if_torchvision_is_complete_or_absent(monkeypatch):
    monkeypatch.setattr(torchvision_ops, "_declared", None)
    with monkeypatch.context() as patch:
        patch.setattr(torchvision_ops, "torchvision_is_whole", lambda: True)
        torchvision_ops.declare_missing()
    assert torchvision_ops._declared is None
    monkeypatch.setattr(torchvision_ops.importlib.util, "find_spec", lambda name: None)
    assert torchvision_ops.torchvision_is_whole()
    torchvision_ops.declare_missing()
    assert torchvision_ops._declared is None


# ---- the cache of references -----------------------------------------------------------------------------------------


@pytest.fixture
def cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("GANTRAIN_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def same(a: FeatureSet | None, b: FeatureSet) -> bool:
    return a is not None and torch.equal(a.features, b.features) and torch.equal(a.logits, b.logits)


def test_fingerprint_changes_with_each_ingredient():
    prints = [reference.fingerprint(*of) for of in (("a", 10, "x"), ("b", 10, "x"), ("a", 11, "x"), ("a", 10, "y"))]
    assert len(set(prints)) == 4 and reference.fingerprint("a", 10, "x") == prints[0]
    assert all(len(p) == 16 and set(p) <= set("0123456789abcdef") for p in prints)


def test_reference_is_kept_and_found_again(cache):
    some = random_features(30, 5, 1)
    assert reference.cached("abc") is None
    reference.keep("abc", FeatureSet(some.features.t().contiguous().t(), some.logits))  # in any memory order
    assert same(reference.cached("abc"), some) and reference.cached("abd") is None
    assert [p.name for p in cache.iterdir()] == [reference.file_of("abc")]


@pytest.mark.parametrize("damage", ["cut", "garbage", "empty", "other tensors", "folder"])
def test_damaged_cache_file_counts_as_absent_and_is_replaced(damage, cache):
    some = random_features(30, 5, 1)
    reference.keep("abc", some)
    path = cache / reference.file_of("abc")
    if damage == "other tensors":
        save_file({"features": some.features}, path)
    elif damage == "folder":
        path.unlink()
        path.mkdir()
    else:
        path.write_bytes({"cut": path.read_bytes()[:-7], "garbage": os.urandom(200), "empty": b""}[damage])
    assert reference.cached("abc") is None
    reference.keep("abc", some)
    assert same(reference.cached("abc"), some) or damage == "folder"


@pytest.mark.parametrize("where", ["a file", "below a file", "the system's"])
def test_cache_that_cannot_be_written_is_no_error(where, tmp_path, monkeypatch):
    """If the variable is wrong or the folder is read-only, the reference is computed each time."""
    (tmp_path / "file").write_text("")
    folder = {"a file": tmp_path / "file", "below a file": tmp_path / "file" / "cache", "the system's": Path("/proc/gantrain")}[where]
    monkeypatch.setenv("GANTRAIN_CACHE", str(folder))
    assert reference.cached("abc") is None
    reference.keep("abc", random_features(30, 5, 1))
    assert reference.cached("abc") is None


def test_cache_folder_by_default_and_by_variable(monkeypatch, tmp_path):
    monkeypatch.setenv("GANTRAIN_CACHE", str(tmp_path))
    assert cache_folder() == tmp_path
    monkeypatch.setenv("GANTRAIN_CACHE", "")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    assert cache_folder() == tmp_path / "home" / ".cache" / "gantrain"
