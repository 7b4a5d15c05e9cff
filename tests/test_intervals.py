"""FID at infinity against a closed form, intervals against the spread of independent draws, and the named protocols."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from conftest import ROOT

from gantrain.config.loading import load, to_yaml
from gantrain.config.yaml_files import ConfigError
from gantrain.errors import UserError
from gantrain.metrics import METRICS, PROTOCOLS, FeatureSet, half_widths
from gantrain.metrics.featureset import of_moments
from gantrain.reporting.score_table import list_scores, policy_tables, table
from gantrain.score_names import better_when_higher, doubts

DIGITS, CIFAR = ROOT / "configs" / "digits.yaml", ROOT / "configs" / "cifar10_biggan.yaml"


def normal(n: int, d: int, seed: int, shift: float = 0.0) -> FeatureSet:
    x = torch.from_numpy(np.random.default_rng(seed).standard_normal((n, d)) + shift).float()
    return FeatureSet(x, 2 * x)


def standard(d: int) -> FeatureSet:
    """The standard normal itself: no sample of it."""
    return of_moments({"mu": np.zeros(d), "sigma": np.eye(d)})


# ---- FID at infinity -------------------------------------------------------------------------------------------------


def test_fid_infinity_has_little_of_fids_bias():
    """FID from N(shift, 1) in d dimensions to N(0, 1) is d shift^2; of 1,000 images it is far above, and the line's end is near."""
    d, shift = 32, 0.05
    truth = d * shift**2
    fids, infinite = [], []
    for seed in range(4):
        fake = normal(1000, d, seed, shift)
        fids.append(METRICS["fid"]().compute(fake, standard(d))["fid"] - truth)
        infinite.append(METRICS["fid_infinity"]().compute(fake, standard(d))["fid_infinity"] - truth)
    assert min(fids) > 3 * truth  # the bias is most of what FID says
    assert abs(np.mean(infinite)) < 0.15 * np.mean(fids)


def test_fid_infinity_is_the_intercept_of_fids_against_one_over_n(monkeypatch):
    """Where FID is a + b / N, it is a; sizes go evenly from a tenth to all, and the whole set is one of them."""
    from gantrain.metrics import fid_infinity

    sizes = []

    def line(fake: dict, real: dict) -> float:
        sizes.append(fake["n"])
        return 3.0 + 40.0 / fake["n"]

    monkeypatch.setattr(fid_infinity, "distance", line)
    monkeypatch.setattr(FeatureSet, "moments", property(lambda self: {"n": len(self)}))
    found = METRICS["fid_infinity"]().compute(normal(700, 2, 0), normal(9, 2, 1))
    assert found == {"fid_infinity": pytest.approx(3.0, rel=1e-9), "fid_infinity_std": pytest.approx(0.09 * 40 / 700, rel=1e-6)}
    assert sizes == np.linspace(70, 700, 15).astype(int).tolist()
    sizes.clear()
    monkeypatch.setattr(fid_infinity, "SMALLEST", 50)
    METRICS["fid_infinity"](points=3).compute(normal(700, 2, 0), normal(9, 2, 1))
    assert sizes == [50, 375, 700]


@pytest.mark.parametrize(("falling", "shares"), [(0.0, (-0.02, 0.16)), (1.0, (-0.1, 0.12))])
def test_fid_infinity_does_not_start_where_covariances_are_singular(falling, shares):
    """At the fewest images, for Gaussians whose FID is known: N(0, 1.21 S) against N(0, S) has 0.01 tr S.

    A line that starts below the number of features, at a tenth of the images as before, takes off half as much again as there is.
    """
    d = 64
    scale = np.arange(1.0, d + 1) ** (-falling / 2)
    real, truth = of_moments({"mu": np.zeros(d), "sigma": np.diag(scale**2)}), 0.01 * (scale**2).sum()
    metric, found, old, of_all = METRICS["fid_infinity"](), [], [], []
    count = metric.fewest(d)
    assert count == 314 and metric.smallest(d) == 157
    for seed in range(8):
        x = np.random.default_rng(seed).standard_normal((count, d)) * 1.1 * scale
        fake = FeatureSet(torch.from_numpy(x).float(), torch.zeros(count, 1))
        found.append(metric.compute(fake, real)["fid_infinity"])
        of_all.append(METRICS["fid"]().compute(fake, real)["fid"])
        sizes = np.linspace(count // 10, count, 5).astype(int)
        fids = [METRICS["fid"]().compute(fake.part(np.arange(n)), real)["fid"] for n in sizes]
        old.append(np.polynomial.polynomial.polyfit(1 / sizes, fids, 1)[0])
    bias = np.mean(of_all) - truth
    assert shares[0] < (truth - np.mean(found)) / bias < shares[1]
    assert (truth - np.mean(old)) / bias > 0.35


def test_fid_infinity_of_too_few_images_is_nan_and_has_no_interval():
    metric, real = METRICS["fid_infinity"](), standard(64)
    assert np.isnan(metric.compute(normal(313, 64, 0), real)["fid_infinity"])
    score = lambda fake: {**metric.compute(fake, real), **METRICS["fid"]().compute(fake, real)}  # noqa: E731
    assert np.isfinite(score(normal(400, 64, 0))["fid_infinity"]) and list(half_widths(score, normal(400, 64, 0), 8)) == ["fid_ci95"]


def test_fid_infinity_takes_random_parts_of_features_in_any_order():
    """Sorted, the first tenth of a standard normal is its tail, at an FID of some 3; a random tenth is like all of it."""
    fake = normal(2000, 4, 0)
    order = fake.features[:, 0].argsort()
    ascending = FeatureSet(fake.features[order], fake.logits[order])
    assert METRICS["fid"]().compute(ascending.part(np.arange(200)), standard(4))["fid"] > 2
    for features in (fake, ascending):
        assert abs(METRICS["fid_infinity"]().compute(features, standard(4))["fid_infinity"]) < 0.02


@pytest.mark.parametrize(("falling", "count"), [(0.0, 314), (0.0, 628), (0.5, 628), (1.0, 314)])
def test_fid_infinity_says_how_far_off_it_is(falling, count):
    """For Gaussians whose FID is known: the root mean square error is that of `fid_infinity_std`, from flat to falling spectra.

    Scores below four times that error carry a note, and so do all negative ones; at ten times that error there is none.
    """
    d, metric = 64, METRICS["fid_infinity"]()
    scale = np.arange(1.0, d + 1) ** -falling
    real = of_moments({"mu": np.zeros(d), "sigma": np.diag(scale**2)})
    for shift, certain in ((0.04, False), (1.0, True)):
        found, errors, truth = [], [], shift**2 * (scale**2).sum()
        for seed in range(8):
            x = (np.random.default_rng(seed).standard_normal((count, d)) + shift) * scale
            row = metric.compute(FeatureSet(torch.from_numpy(x).float(), torch.zeros(count, 1)), real)
            found.append(row["fid_infinity"] - truth)
            errors.append(row["fid_infinity_std"])
            assert (doubts({"ema": row}) == []) is certain
        assert 0.4 < np.sqrt(np.mean(np.square(found)) / np.mean(np.square(errors))) < 1.8


def test_doubts_about_fid_infinity_stand_below_tables():
    sure, unsure = (
        {"digits_fid_infinity": 0.8, "digits_fid_infinity_std": 0.1},
        {"digits_fid_infinity": 0.3, "digits_fid_infinity_std": 0.1},
    )
    below, nan = {"fid_infinity": -0.1, "fid_infinity_std": 0.2}, {"fid_infinity": float("nan"), "fid_infinity_std": float("nan")}
    words = "\nnote: digits_fid_infinity of ema: 0.3000 with a standard error of 0.1000 is uncertain: smaller differences mean nothing;"
    assert table({"live": sure, "ema": unsure}).endswith(f"{words} use more images") and "note" not in table({"live": sure, "ema": nan})
    assert policy_tables({"copy": {"ema": unsure}, "batch": {"ema": sure}}).endswith(f"{words} use more images (policy copy)")
    negative = "of swa: -0.1000{} is negative, which no distance is: noise and the bias removed in excess outweigh it; use more images"
    assert doubts({"swa": below}) == ["fid_infinity " + negative.format(" with a standard error of 0.2000")]
    assert doubts({"swa": {"fid_infinity": -0.1}, "kid": {"kid": -0.1, "kid_std": 0.2}}) == ["fid_infinity " + negative.format("")]


def test_fid_infinity_has_its_own_direction():
    assert better_when_higher("eval/ema/digits_fid_infinity") is False and better_when_higher("eval/ema/fid_infinity") is False
    assert [better_when_higher(f"eval/ema/digits_{name}_ci95") for name in ("fid", "is", "recall", "fid_infinity")] == [None] * 4


# ---- intervals -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "shift"), [("fid", 0.3), ("is", 0.0), ("precision", 0.3)])
def test_half_width_is_that_of_independent_draws(name, shift):
    """Within 30% of 1.96 standard deviations of the score over sets that have nothing in common."""
    d, n = 6, 400
    metric, real = METRICS["prc" if name == "precision" else name](), normal(300, d, 1000)
    score = lambda fake: metric.compute(fake, real)  # noqa: E731
    draws = [normal(n, d, seed, shift) for seed in range(60)]
    spread = np.std([score(fake)[name] for fake in draws], ddof=1)
    widths = [half_widths(score, fake, 24, seed)[f"{name}_ci95"] for seed, fake in enumerate(draws[:6])]
    assert np.mean(widths) == pytest.approx(1.96 * spread, rel=0.3)


def test_half_widths_are_of_scores_and_repeat():
    fake, real = normal(100, 4, 0, 0.5), normal(90, 4, 1)
    score = lambda some: {"is_std": 7.0, **METRICS["fid"]().compute(some, real)}  # noqa: E731
    found = half_widths(score, fake, 8, 3)
    assert list(found) == ["fid_ci95"] and found["fid_ci95"] > 0
    assert half_widths(score, fake, 8, 3) == found != half_widths(score, fake, 8, 4)


def test_the_parts_are_halves_without_repeated_images():
    fake = FeatureSet(torch.arange(41.0)[:, None], torch.zeros(41, 1))
    seen = []
    found = half_widths(lambda part: seen.append(part.features[:, 0].tolist()) or {"mean": part.features.mean().item()}, fake, 8)
    assert all(len(set(part)) == len(part) == 20 for part in seen) and len({tuple(part) for part in seen}) == 8
    means = [np.mean(part) for part in seen]
    assert found["mean_ci95"] == pytest.approx(1.959964 * np.sqrt(20 / 21 * np.var(means, ddof=1)), rel=1e-5)  # r / (N - r) of Shao and Wu


def test_tables_show_intervals_beside_the_scores():
    scores = {
        "live": {"fid": 12.5, "fid_ci95": 1.25, "is": 2.0, "is_std": 0.1},
        "ema": {"fid": 3.0, "fid_ci95": 0.5, "is": 1.0, "is_std": 0.1},
    }
    head, live, ema = table(scores).splitlines()
    assert (
        head.split() == ["average", "fid", "is"]
        and live.split() == ["live", "12.5000", "±1.2500", "2.0000*"]
        and ema.split() == ["ema", "3.0000*±0.5000", "1.0000"]
    )
    for row in (live, ema):
        assert row[head.index("fid") + 2] == "0" and row[head.index(" is") + 2] == "0"  # the last digit stands under the last letter
    assert "ci95" not in policy_tables({"copy": scores}) and list_scores(scores["live"]) == ["fid", "is"]


# ---- protocols -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", PROTOCOLS)
def test_a_protocol_sets_its_counts_and_reads_back(name, tmp_path):
    """On the command line it overrides the file's values; the saved configuration contains both and loads equal."""
    config = load(CIFAR, [f"eval.protocol={name}"])
    assert (config.eval.num_samples, config.eval.reference_samples) == (50_000, None)
    assert config.eval.is_splits == {"torch-fidelity": 10, "studiogan": 1, "biggan": 10}[name] and config.data.split == "train"
    (tmp_path / "saved.yaml").write_text(to_yaml(config))
    assert load(tmp_path / "saved.yaml") == config
    assert load(DIGITS, [f"eval.protocol={name}"]).eval.num_samples == 50_000  # where the file has 1,797
    assert load(tmp_path / "saved.yaml", ["eval.protocol=null", "eval.num_samples=64"]).eval.num_samples == 64
    assert PROTOCOLS[name].source


def test_what_contradicts_a_protocol_is_refused(tmp_path):
    contradicting = tmp_path / "run.yaml"
    contradicting.write_text("eval: {protocol: studiogan, num_samples: 64}\n")
    for path, words, text in [
        (contradicting, [], r"run.yaml: eval.num_samples is 50000 under protocol=studiogan; remove one of them, got 64"),
        (
            DIGITS,
            ["eval.protocol=studiogan", "eval.is_splits=10"],
            "command line: eval.is_splits is 1 under protocol=studiogan; remove one of them, got 10",
        ),
        (DIGITS, ["eval.protocol=biggan", "eval.reference_samples=500"], "eval.reference_samples is null under protocol=biggan"),
        (DIGITS, ["eval.protocol=bigan"], "eval.protocol must be one of torch-fidelity, studiogan, biggan, or null, got 'bigan'"),
        (
            CIFAR,
            ["eval.protocol=studiogan", "data.split=test"],
            "data.split is test, and eval.protocol=studiogan scores against train; set data.split=train",
        ),
        (DIGITS, ["eval.resamples=4"], "eval.resamples must be at least 8, or null, got 4"),
        (DIGITS, ["eval.is_splits=0"], "eval.is_splits must be at least 1, got 0"),
    ]:
        with pytest.raises(ConfigError, match=text):
            load(path, words)
    assert load(CIFAR, ["eval.protocol=studiogan", "data.split=test", "eval.reference=train.npz"]).eval.protocol == "studiogan"
    with pytest.raises(UserError, match="is_splits: is 1 under protocol=studiogan"):  # from Python, where nothing fills in
        type(load(DIGITS).eval)(protocol="studiogan", num_samples=50_000, reference_samples=None)


def test_splits_of_the_configuration_reach_the_inception_score():
    from gantrain.evaluation.evaluator import build_metric

    fake = normal(100, 4, 0)
    one, ten = (build_metric("is", load(DIGITS, [f"eval.is_splits={n}"]).eval).compute(fake, fake) for n in (1, 10))
    assert one == METRICS["is"](splits=1).compute(fake, fake) and ten == METRICS["is"](splits=10).compute(fake, fake) and one != ten
