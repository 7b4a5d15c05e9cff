"""Evaluation in one process: no side effects on training, exact counts, the cached reference; `gantrain evaluate`, `gantrain sample`."""

from __future__ import annotations

import dataclasses
import json
import random
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, lines_of
from PIL import Image
from torch import Tensor, nn

import gantrain
from gantrain import cli, randomness
from gantrain.averaging import AverageBank, Ema, recalibrate
from gantrain.config import loading as configuration
from gantrain.config.config import Config
from gantrain.data import prepare
from gantrain.distributed import make_accelerator
from gantrain.errors import UserError
from gantrain.evaluation.evaluator import Evaluator
from gantrain.images import to_uint8
from gantrain.metrics import Extractor, feature_cache as reference
from gantrain.reporting.score_table import table
from gantrain.sampling.latents import draw
from gantrain.score_names import as_keys

DIGITS = ROOT / "configs" / "digits.yaml"
CPU = torch.device("cpu")


@pytest.fixture(scope="module", autouse=True)
def on_cpu():
    """All scores compared here are computed on the same device."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(torch.cuda, "is_available", lambda: False)
        patch.setenv("CUDA_VISIBLE_DEVICES", "")
        yield


# ---- the evaluator ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def images():
    return prepare(configuration.load(DIGITS, TINY).data, CPU)


def tiny(*overrides: str) -> Config:
    return configuration.load(DIGITS, [*TINY, *overrides])


def build(config: Config, seed: int = 1) -> nn.Module:
    """A generator whose BatchNorm statistics lag behind its weights, as in training."""
    torch.manual_seed(seed)
    generator, _ = config.model.build(16, 1, 10)
    with torch.no_grad():
        for _ in range(3):
            generator.train()(torch.randn(32, generator.dim_z) * 2, torch.randint(10, (32,)))
    return generator


def evaluator(config: Config, images) -> Evaluator:
    return Evaluator(config, images, make_accelerator(), show_progress=False)


def score(config: Config, images, generator: nn.Module | None = None) -> dict[str, float]:
    """Scores of one generator as "live"."""
    bank = AverageBank(generator or build(config), {})
    return evaluator(config, images).score(["live"], bank.materialize, build(config, seed=2))["live"]


@dataclass(frozen=True)
class Recorder:
    """An extractor that keeps its inputs; features are the first 8 pixels of the middle row, logits the first 4."""

    shown: list[Tensor] = field(default_factory=list)

    metric_prefix = "recorded_"

    def build(self, device: torch.device) -> Extractor:
        def extract(x: Tensor) -> tuple[Tensor, Tensor]:
            self.shown.append(x.clone())
            return x[:, 0, 8, :8].float(), x[:, 0, 8, :4].float() / 255

        return Extractor(extract, "recorder")


class Asked(nn.Module):
    """A generator of grey noise that keeps the latents and labels it receives."""

    dim_z, num_classes = 8, 10

    def __init__(self):
        super().__init__()
        self.z, self.y = [], []

    def forward(self, z: Tensor, y: Tensor) -> Tensor:
        self.z.append(z)
        self.y.append(y)
        return torch.tanh(z.repeat(1, 32)).view(-1, 1, 16, 16)


def with_recorder(config: Config) -> tuple[Config, Recorder]:
    recorder = Recorder()
    return dataclasses.replace(config, eval=dataclasses.replace(config.eval, features=recorder)), recorder


def asked_of(config: Config, images) -> Asked:
    generator = Asked()
    evaluator(with_recorder(config)[0], images).score(["live"], lambda name, into, averaged: None, generator)
    return generator


def test_scoring_leaves_no_trace_on_training(images):
    """Random states, weights, buffers, gradients, modes (also mixed ones) and averages are the same to the bit as before."""
    config = tiny()
    live = build(config)
    live(torch.randn(4, live.dim_z), torch.arange(4)).sum().backward()
    live.train()
    live.blocks[0].eval()  # modes are restored module by module
    bank = AverageBank(live, {"ema": Ema()})
    bank.update(16)
    averaged = build(config, seed=2)

    def everything() -> list:
        return [
            {k: v.clone() for k, v in live.state_dict().items()},
            {k: p.grad.clone() for k, p in live.named_parameters()},
            {k: v.clone() for k, v in bank.tensors()["ema"].items()},
            {"torch": torch.get_rng_state(), "numpy": torch.from_numpy(np.random.get_state()[1].astype(np.int64))},
            {"python": torch.tensor(random.getstate()[1])},
        ]

    modes, before = [m.training for m in live.modules()], everything()
    scores = evaluator(config, images).score(["live", "ema"], bank.materialize, averaged)
    assert set(scores) == {"live", "ema"}
    for a, b in zip(before, everything()):
        assert a.keys() == b.keys() and all(torch.equal(a[k], b[k]) for k in a)
    assert [m.training for m in live.modules()] == modes and not averaged.training


def test_scores_are_a_function_of_weights_and_configuration(images):
    """They are the same for any random state, and differ for other weights and other seeds."""
    config = tiny()
    first = score(config, images)
    torch.manual_seed(99)
    assert score(config, images) == first
    assert score(config, images, build(config, seed=5)) != first
    assert score(tiny("seed=1"), images, build(config)) != first


def test_scores_do_not_depend_on_how_samples_are_cut_into_batches(images):
    """Batches with one image left over, uneven batches and a single batch agree up to summation order.

    BatchNorm statistics are copied, because recalibration depends on the batch size.
    """
    scores = [score(tiny("eval.batchnorm=copy", "eval.num_samples=65", f"eval.batch_size={b}"), images) for b in (32, 9, 500)]
    for other in scores[1:]:
        assert other == pytest.approx(scores[0], rel=1e-4)


@pytest.mark.parametrize(("samples", "batch", "sizes"), [(50, 16, [16, 16, 16, 2]), (64, 32, [32, 32]), (17, 64, [17])])
def test_exactly_num_samples_images_are_scored(samples, batch, sizes, images):
    """The last batch is neither padded nor dropped."""
    config, recorder = with_recorder(tiny(f"eval.num_samples={samples}", f"eval.batch_size={batch}"))
    this = evaluator(config, images)
    this.reference()
    recorder.shown.clear()
    features = this.generate_features(Asked())
    assert [len(x) for x in recorder.shown] == sizes and len(features) == len(features.logits) == samples
    assert all(x.dtype == torch.uint8 and x.shape[1:] == (1, 16, 16) for x in recorder.shown)
    shown = torch.cat(recorder.shown)
    assert torch.equal(features.features, shown[:, 0, 8, :8].float())  # in order


def test_latents_and_labels_are_a_function_of_the_seed(images):
    """They are those of the stream "eval" for any batch size; another seed gives others, and truncation is respected."""
    asked = [asked_of(tiny("eval.num_samples=50", f"eval.batch_size={b}"), images) for b in (16, 50)]
    for generator in asked:  # what follows looks whether the generator has collapsed
        generator.z, generator.y = [torch.cat(generator.z)[:50]], [torch.cat(generator.y)[:50]]
    z, y = draw(0, "eval", 0, 50, 8, 10)
    for generator in asked:
        assert torch.equal(torch.cat(generator.z), z) and torch.equal(torch.cat(generator.y), y)
    other = asked_of(tiny("eval.num_samples=50", "seed=1"), images)
    assert not torch.equal(torch.cat(other.z), z) and not torch.equal(torch.cat(other.y), y)
    cut = asked_of(tiny("eval.num_samples=50", "eval.truncation=0.5"), images)
    assert torch.cat(cut.z).abs().max() <= 0.5 < z.abs().max()


def test_batchnorm_policy_is_recorded_and_makes_a_difference(images):
    """`copy` keeps the generator's statistics; `recalibrate` measures others, which give other scores."""
    scores = {}
    for policy in ("copy", "recalibrate"):
        config = tiny(f"eval.batchnorm={policy}", "eval.recalibration_batches=8")
        this, live, averaged = evaluator(config, images), build(config), build(config, seed=2)
        scores[policy] = this.score(["live"], AverageBank(live, {}).materialize, averaged)["live"]
        assert this.protocol()["eval/batchnorm"] == policy
        means = {k: v for k, v in averaged.state_dict().items() if k.endswith("running_mean")}
        assert all(torch.equal(v, live.state_dict()[k]) for k, v in means.items()) == (policy == "copy")
    assert scores["copy"]["digits_fid"] != pytest.approx(scores["recalibrate"]["digits_fid"], rel=1e-3)


def test_batchnorm_is_fitted_to_latents_truncated_like_those_that_are_scored(images):
    """The statistics left in the module are those of forward passes with truncated latents."""
    config, found, fitted = tiny("eval.batchnorm=recalibrate", "eval.truncation=0.4"), build(tiny(), seed=2), {}
    evaluator(config, images).score(["live"], AverageBank(build(config), {}).materialize, found)
    size = config.eval.batch_size
    for cut in (0.4, None):
        fitted[cut] = build(config)
        z = [randomness.normal(config.seed, "calibration/z", i * size, size, 8, cut) for i in range(2)]
        y = [randomness.integers(config.seed, "calibration/y", i * size, size, 10) for i in range(2)]
        recalibrate(fitted[cut], list(enumerate(zip(z, y))), 2)
    statistics = {key: value for key, value in found.state_dict().items() if "running_" in key}
    assert statistics
    for key, value in statistics.items():
        torch.testing.assert_close(value, fitted[0.4].state_dict()[key], rtol=1e-4, atol=1e-6)
    assert not torch.allclose(found.last_norm.running_var, fitted[None].last_norm.running_var, rtol=0.05)


def test_protocol_says_what_a_score_must_be_quoted_with(images):
    this = evaluator(tiny("eval.num_samples=32", "eval.truncation=0.7"), images)
    this.reference()
    protocol = this.protocol()
    assert protocol["eval/num_samples"] == 32 and protocol["eval/truncation"] == 0.7 and protocol["eval/batchnorm"] == "recalibrate"
    assert protocol["eval/reference"] == "digits (64 images)"
    assert protocol["eval/reference_fingerprint"] == reference.fingerprint(images.fingerprint, 64, this.extractor.identity)
    assert protocol["eval/features"].startswith("digits-classifier/64/")


@pytest.fixture
def own_cache(tmp_path, monkeypatch) -> Path:
    monkeypatch.setenv("GANTRAIN_CACHE", str(tmp_path))
    return tmp_path


def count_of_reals(config: Config, images) -> tuple[int, object]:
    """(number of real images that the extractor received, the reference)."""
    config, recorder = with_recorder(config)
    found = evaluator(config, images).reference()
    return sum(map(len, recorder.shown)), found


def test_reference_is_computed_once_and_kept_by_content(own_cache, images):
    """Another evaluator reads it for the same images under another name; other counts, other pixels and damaged files recompute it."""
    config = tiny()
    count, first = count_of_reals(config, images)
    assert count == 64
    count, again = count_of_reals(config, dataclasses.replace(images, name="other"))
    assert count == 0 and torch.equal(first.features, again.features) and torch.equal(first.logits, again.logits)
    assert count_of_reals(tiny("eval.reference_samples=65"), images)[0] == 65
    pixels = images.pixels.clone()
    pixels[5, 0, 0, 0] ^= 1
    assert count_of_reals(config, dataclasses.replace(images, pixels=pixels))[0] == 64
    files = list(own_cache.glob("reference-*"))
    assert len(files) == 3
    for path in files:
        path.write_bytes(path.read_bytes()[:-3])
    count, recomputed = count_of_reals(config, images)
    assert count == 64 and torch.equal(recomputed.features, first.features)
    assert count_of_reals(config, images)[0] == 0


def test_reference_is_a_sample_of_all_and_within_one_evaluator_held(own_cache, images):
    """64 of 1,797 images are not the first 64, and distinct; null uses all; the evaluator keeps the features."""
    config, recorder = with_recorder(tiny())
    this = evaluator(config, images)
    assert this.reference() is this.reference()
    shown = torch.cat(recorder.shown)
    assert len(shown) == 64 and not torch.equal(shown, images.pixels[:64])
    everything = {x.numpy().tobytes() for x in images.pixels}
    chosen = {x.numpy().tobytes() for x in shown}
    assert len(everything) == 1797 and len(chosen) == 64 and chosen <= everything
    config, recorder = with_recorder(tiny("eval.reference_samples=null"))
    assert len(evaluator(config, images).reference()) == 1797
    assert {x.numpy().tobytes() for x in torch.cat(recorder.shown)} == everything


@pytest.mark.parametrize("policy", ["copy", "recalibrate"])
def test_a_generator_of_nan_scores_nan(policy, images):
    """All scores of a diverged generator are nan, so that no table can call it the best."""
    config = tiny(f"eval.batchnorm={policy}", "eval.metrics=[fid,is,kid,prc]")
    live = build(config)
    whole = score(config, images, live)
    with torch.no_grad():
        live.first.bias.fill_(float("nan"))
    broken = score(config, images, live)
    assert broken.keys() == whole.keys() and all(v == v for v in whole.values())
    assert all(v != v for v in broken.values()), broken


def test_an_extractor_of_infinities_scores_nan(images):
    @dataclass(frozen=True)
    class Broken(Recorder):
        def build(self, device: torch.device) -> Extractor:
            return Extractor(lambda x: (torch.full((len(x), 8), torch.inf), torch.zeros(len(x), 4)), "broken")

    config = tiny("eval.metrics=[fid,is]")
    this = evaluator(with_recorder(config)[0], images)
    real = this.reference()
    this = evaluator(dataclasses.replace(config, eval=dataclasses.replace(config.eval, features=Broken())), images)
    scores = this.compute_metrics(this.generate_features(Asked()), real)
    assert set(scores) == {"recorded_fid", "recorded_is", "recorded_is_std"} and all(v != v for v in scores.values())


def test_scores_under_their_full_names():
    scores = {"live": {"fid": 2.0, "is": 3.0}, "my.ema": {"fid": 1.0}}
    assert as_keys(scores) == {"eval/live/fid": 2.0, "eval/live/is": 3.0, "eval/my.ema/fid": 1.0}


def test_table_marks_the_best_of_each_column_by_its_direction():
    """Lowest FID and KID, highest IS, precision and recall; spreads are omitted, nan is never the best, and columns are aligned."""
    nan = float("nan")
    scores = {
        "live": {"fid": 12.5, "is": 9.25, "is_std": 0.1, "kid": 0.004, "precision": 0.5, "recall": nan},
        "ema": {"fid": 101.0, "is": 2.0, "is_std": 0.1, "kid": -0.001, "precision": 0.75, "recall": 0.25},
        "a_long_name": {"fid": nan, "is": nan, "is_std": nan, "kid": nan, "precision": nan, "recall": nan},
    }
    head, *rows = table(scores).splitlines()
    assert head.split() == ["average", "fid", "is", "kid", "precision", "recall"]
    assert [row.split() for row in rows] == [
        ["live", "12.5000*", "9.2500*", "0.0040", "0.5000", "nan"],
        ["ema", "101.0000", "2.0000", "-0.0010*", "0.7500*", "0.2500*"],
        ["a_long_name", "nan", "nan", "nan", "nan", "nan"],
    ]
    for column in head.split()[1:]:
        end = head.index(column) + len(column)
        for row in rows:
            assert row[end - 1] not in " *" and row[end : end + 1] in ("", " ", "*")  # the last digit stands under the last letter
    assert not any(line.endswith(" ") for line in [head, *rows])


def test_table_of_one_row_has_no_best_and_of_none_is_empty():
    assert "*" not in table({"live": {"digits_fid": 1.0, "digits_is": 2.0}})
    prefixed = table({"live": {"digits_fid": 1.0, "other": 1.0}, "ema": {"digits_fid": 0.5, "other": 2.0}})
    assert prefixed.count("*") == 1 and "0.5000*" in prefixed  # found by the end of the name; scores without a direction have no best
    assert table({}).split() == ["average"]


def test_table_of_rows_that_lack_a_metric():
    """Checkpoints keep scores without nan, and a finished run prints them again: missing ones are nan and never the best."""
    head, live, ema = table({"live": {}, "ema": {"fid": 1.0}}).splitlines()
    assert (
        head.split() == ["average", "fid"]
        and live.split() == ["live", "nan"]
        and ema.split()[0] == "ema"
        and ema.split()[1].startswith("1.0000")
    )
    _, live, ema = table({"live": {"fid": 1.0, "is": 2.0}, "ema": {"is": 3.0}}).splitlines()
    assert live.split() == ["live", "1.0000*", "2.0000"] and ema.split() == ["ema", "nan", "3.0000*"]


# ---- a trained run ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory, gantrain) -> Path:
    """A tiny run with all of its checkpoints."""
    folder = tmp_path_factory.mktemp("evaluation") / "tiny"
    gantrain("train", DIGITS, f"run_dir={folder}", *TINY, "checkpoint.keep_last=9")
    return folder


@pytest.fixture
def command(capsys):
    """Runs the command in this process: (exit status, its output, its errors)."""

    def run(*arguments: object) -> tuple[int, str, str]:
        status = cli.run([str(a) for a in arguments])
        captured = capsys.readouterr()
        return status, captured.out, captured.err

    return run


@pytest.fixture
def refused(command):
    """Runs a command that must be refused with one line, which is returned."""

    def run(*arguments: object) -> str:
        status, out, err = command(*arguments)
        assert status == 2 and out == "" and err.startswith("gantrain: error: ") and err.count("\n") == 1, (status, out, err)
        return err

    return run


def last_scores(run: Path) -> dict:
    return next(line for line in reversed(lines_of(run)) if any(key.startswith("eval/") for key in line))


# ---- gantrain evaluate -----------------------------------------------------------------------------------------------


def test_evaluate_gives_the_scores_of_training_again(command, run, tmp_path, monkeypatch):
    """All averages, every metric and the protocol, up to rounding, from any working directory."""
    monkeypatch.chdir(tmp_path)
    status, said, _ = command("evaluate", run)
    record = json.loads((run / "evaluations" / "000000000320.json").read_text())
    logged = last_scores(run)
    assert record["nimg"] == logged["nimg"] == 320 and list(record["scores"]) == ["live", "ema", "ema_short", "swa"]
    found = as_keys(record["scores"])
    assert found == pytest.approx({key: logged[key] for key in found}, rel=1e-4)
    rest = {key: value for key, value in record.items() if key not in ("nimg", "scores")}
    assert rest == {key: value for key, value in logged.items() if key not in ("nimg", *found)}
    assert status == 0 and f"{run} at 0.32 kimg, 64 samples" in said and table(record["scores"]) in said


def test_evaluate_chosen_averages_count_checkpoint_and_file(command, run, tmp_path):
    out = tmp_path / "new" / "scores.json"
    status, said, _ = command(
        "evaluate", run, "--average", "ema,live", "--num", 48, "--kimg", 0.16, "--out", out, "eval.metrics=[prc]", "eval.truncation=0.5"
    )
    record = json.loads(out.read_text())
    assert status == 0 and str(out) in said and "48 samples" in said and "0.16 kimg" in said
    assert record["nimg"] == 160 and list(record["scores"]) == ["ema", "live"]
    assert all(set(row) == {"digits_precision", "digits_recall"} for row in record["scores"].values())
    assert record["eval/num_samples"] == 48 and record["eval/truncation"] == 0.5
    assert configuration.load(run / "config.yaml").eval.num_samples == 64  # the run itself has not changed


def test_evaluate_refuses_what_it_cannot_score(refused, run, tmp_path):
    """Each mistake is one line that names it and the remedy."""
    assert (
        "--average: " in (words := refused("evaluate", run, "--average", "live,emma"))
        and "no average 'emma' at 0.32 kimg; did you mean 'ema'?" in words
    )
    assert "no average 'swa' at 0.08 kimg; " in refused("evaluate", run, "--average", "swa", "--kimg", 0.08)  # it begins at 0.16
    assert "has no checkpoint at 0.1 kimg; it has 0, 0.08, 0.16, 0.24, 0.32" in refused("evaluate", run, "--kimg", 0.1)
    assert "is not a run folder (it has no config.yaml); pass the run_dir of a `gantrain train`" in refused("evaluate", tmp_path)
    assert "--num: must be at least 16, got 8" in refused("evaluate", run, "--num", 8)
    assert "eval.batchnrm" in (words := refused("evaluate", run, "eval.batchnrm=copy")) and "did you mean 'batchnorm'?" in words
    (tmp_path / "begun").mkdir()
    (tmp_path / "begun" / "config.yaml").write_text((run / "config.yaml").read_text())
    assert "begun: has no checkpoint yet" in refused("evaluate", tmp_path / "begun")


@pytest.mark.parametrize("kimg", ["nan", "inf"])
@pytest.mark.parametrize("verb", ["evaluate", "sample"])
def test_a_checkpoint_at_nan_or_infinity_is_refused(verb, kimg, refused, run):
    words = refused(verb, run, "--kimg", kimg)
    assert "kimg" in words and kimg in words


# ---- gantrain sample -------------------------------------------------------------------------------------------------


def latents(generator: nn.Module, num: int, seed: int = 0, truncation: float | None = None) -> Tensor:
    return randomness.normal(seed, "sample/z", 0, num, generator.dim_z, truncation)


def expected_images(run: Path, num: int, labels: list[int], average: str = "ema", seed: int = 0, truncation: float | None = None) -> Tensor:
    """The images that the command should draw, from the library: uint8 `[num, H, W]`."""
    generator = gantrain.load_generator(run, average=average, truncation=truncation)
    y = torch.tensor([labels[i % len(labels)] for i in range(num)])
    return to_uint8(generator(latents(generator, num, seed, truncation), y))[:, 0]


def close(picture: Image.Image, image: Tensor) -> bool:
    """Equal up to one level, which another summation order may change."""
    return picture.mode == "L" and int((torch.from_numpy(np.array(picture)).int() - image.int()).abs().max()) <= 1


def test_sample_draws_a_grid(command, run, tmp_path, monkeypatch):
    """One class per column, enlarged three times with gaps of two pixels; each cell is the image of its latent and label."""
    monkeypatch.chdir(tmp_path)
    status, said, _ = command("sample", run, "--num", 23, "--out", "grids/all.png")
    assert status == 0 and "23 images of ema in grids/all.png" in said
    sheet = Image.open(tmp_path / "grids" / "all.png")
    assert sheet.size == (10 * (16 * 3 + 2) + 2, 3 * (16 * 3 + 2) + 2) and sheet.mode == "L"
    images = expected_images(run, 23, list(range(10)))
    for i, image in enumerate(images):
        left, top = 2 + i % 10 * 50, 2 + i // 10 * 50
        cell = sheet.crop((left, top, left + 48, top + 48))
        assert close(cell, image.repeat_interleave(3, 0).repeat_interleave(3, 1))
    assert len({x.numpy().tobytes() for x in images}) == 23 and images.float().std() > 1  # neither blank nor all the same
    assert np.array(sheet.crop((2 + 3 * 50, 102, 502, 150))).min() == 255  # the rest of the last row is white


def test_sample_writes_a_folder_of_numbered_images(command, run, tmp_path):
    """As many as asked for, of the run's size, with the labels in turn; another seed draws others."""
    status, said, _ = command("sample", run, "--num", 7, "--labels", "3,7", "--average", "live", "--seed", 5, "--out", f"{tmp_path}/pngs/")
    assert status == 0 and f"7 images of live in {tmp_path}/pngs/" in said
    files = sorted((tmp_path / "pngs").iterdir())
    assert [p.name for p in files] == [f"{i:06d}.png" for i in range(7)]
    pictures = [Image.open(p) for p in files]
    assert all(p.size == (16, 16) for p in pictures)
    assert all(map(close, pictures, expected_images(run, 7, [3, 7], "live", seed=5)))
    assert not all(map(close, pictures, expected_images(run, 7, [7, 3], "live", seed=5)))
    assert not all(map(close, pictures, expected_images(run, 7, [3, 7], "live", seed=6)))


def test_sample_with_truncation_of_an_older_checkpoint(command, run, tmp_path):
    status, _, _ = command("sample", run, "--num", 3, "--truncation", 0.4, "--labels", "1", "--out", f"{tmp_path}/cut/")
    pictures = [Image.open(p) for p in sorted((tmp_path / "cut").iterdir())]
    assert status == 0 and all(map(close, pictures, expected_images(run, 3, [1], truncation=0.4)))
    assert latents(gantrain.load_generator(run), 3, truncation=0.4).abs().max() <= 0.4
    status, _, _ = command("sample", run, "--num", 3, "--kimg", 0.08, "--labels", "1", "--out", f"{tmp_path}/old/")
    assert status == 0 and not all(map(close, [Image.open(p) for p in sorted((tmp_path / "old").iterdir())], expected_images(run, 3, [1])))


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--truncation", "0"], "--truncation: must be above 0, got 0"),
        (["--truncation", "-1"], "--truncation: must be above 0, got -1"),
        (["--truncation", "nan"], "--truncation: must be above 0, got nan"),
        (["--labels", "3,x"], "--labels: there is no class 'x'; `gantrain sample"),
        (["--labels", "0,,3"], "--labels: '0,,3' has an empty class; write for example --labels 0,3"),
        (["--labels", "10"], "--labels: there is no class 10; the run has classes 0 to 9"),
        (["--labels", "0,-1"], "--labels: there is no class -1; the run has classes 0 to 9"),
        (["--num", "0"], "--num: must be at least 1, got 0"),
        (["--seed", "-1"], "--seed: must be at least 0, got -1"),
        (
            ["--out", "picture"],
            "--out: 'picture' is not a .png, an .npz or a folder/; use 'picture.png' for a grid, 'picture/' for numbered files",
        ),
        (["--out", "picture.jpg"], "--out: 'picture.jpg' is not a .png, an .npz or a folder/"),
        (["--average", "swaa"], "no average 'swaa' at 0.32 kimg; did you mean 'swa'?"),
        (["--average", "swa", "--kimg", "0.08"], "average 'swa' has not started at 0.08 kimg; there are live, ema, ema_short"),
        (["--kimg", "3"], "has no checkpoint at 3 kimg; it has 0, 0.08, 0.16, 0.24, 0.32"),
    ],
)
def test_sample_refuses(arguments, words, refused, run, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert words in refused("sample", run, *arguments)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("out", ["taken/", "taken/picture.png"])
def test_sample_refuses_a_folder_that_is_a_file(out, refused, run, tmp_path):
    """The error is one line that names the file."""
    (tmp_path / "taken").write_text("")
    assert "taken" in refused("sample", run, "--num", 1, "--out", f"{tmp_path}/{out}")


# ---- load_generator --------------------------------------------------------------------------------------------------


def test_load_generator_is_ready_to_sample(run):
    """Evaluation mode, no gradients, the documented attributes, images in [-1, 1]; the caller's random state does not change."""
    before = torch.get_rng_state()
    generator = gantrain.load_generator(str(run))
    assert torch.equal(torch.get_rng_state(), before)
    assert (generator.dim_z, generator.num_classes, generator.resolution, generator.channels) == (8, 10, 16, 1)
    assert not any(m.training for m in generator.modules()) and not any(p.requires_grad for p in generator.parameters())
    z, y = torch.randn(5, generator.dim_z, generator=torch.Generator().manual_seed(0)), torch.arange(5)
    x = generator(z, y)
    assert x.shape == (5, 1, 16, 16) and x.dtype == torch.float32 and not x.requires_grad
    assert -1 <= x.min() < x.max() <= 1
    torch.testing.assert_close(generator(z[2:3], y[2:3])[0], x[2], rtol=1e-4, atol=1e-5)  # an image depends on its own latent alone
    assert not torch.equal(generator(z, y.flip(0)), x)


def test_load_generator_gives_the_named_weights(run):
    """They are those in the checkpoint's files, for live weights and every average; the default is ema of the newest checkpoint."""
    from safetensors.torch import load_file

    newest = run / "checkpoints" / "000000000320"
    loaded = {name: dict(gantrain.load_generator(run, average=name).named_parameters()) for name in ("live", "ema", "ema_short", "swa")}
    for name, weights in loaded.items():
        stored = load_file(newest / ("g.safetensors" if name == "live" else f"average.{name}.safetensors"))
        assert all(torch.equal(weight, stored[key]) for key, weight in weights.items())
    assert not torch.equal(loaded["live"]["first.bias"], loaded["ema"]["first.bias"])
    default = dict(gantrain.load_generator(run).named_parameters())
    assert all(torch.equal(default[key], weight) for key, weight in loaded["ema"].items())
    older = dict(gantrain.load_generator(run, kimg=0.16).named_parameters())
    assert not torch.equal(older["first.bias"], default["first.bias"])


def test_load_generator_batchnorm_policies(run):
    """`copy` takes the live statistics, `recalibrate` measures those of the average under a truncation; the default is the run's."""

    def statistics(**kwargs) -> dict[str, Tensor]:
        return {k: v for k, v in gantrain.load_generator(run, average="swa", **kwargs).named_buffers() if "running" in k}

    def equal(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
        return all(torch.equal(a[k], b[k]) for k in a)

    live = {k: v for k, v in gantrain.load_generator(run, "live", batchnorm="copy").named_buffers() if "running" in k}
    copied, measured = statistics(batchnorm="copy"), statistics(batchnorm="recalibrate")
    assert equal(copied, live) and not equal(copied, measured)
    assert equal(statistics(), measured) and not equal(statistics(truncation=0.3), measured)
    generator = gantrain.load_generator(run, "swa")
    seen = []
    norm = generator.blocks[0].norm1.norm
    norm.register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    generator(*draw(3, "own", 0, 2000, generator.dim_z, generator.num_classes))
    torch.testing.assert_close(norm.running_mean, seen[0].mean((0, 2, 3)), rtol=0, atol=0.2 * float(seen[0].std()))
    torch.testing.assert_close(norm.running_var, seen[0].var((0, 2, 3)), rtol=0.3, atol=0)


def test_load_generator_refuses(run, tmp_path):
    for arguments, words in (
        ({"average": "emma"}, "no average 'emma' at 0.32 kimg; did you mean 'ema'"),
        ({"kimg": 5}, "has no checkpoint at 5 kimg; it has 0, 0.08, 0.16, 0.24, 0.32"),
        ({"batchnorm": "standing"}, "batchnorm: must be one of recalibrate, copy, average, batch, got 'standing'"),
    ):
        with pytest.raises(UserError, match=words):
            gantrain.load_generator(run, **arguments)
    with pytest.raises(UserError, match="is not a run folder .it has no config.yaml.; pass the run_dir of a `gantrain train`"):
        gantrain.load_generator(tmp_path)
    with pytest.raises(ValueError, match="nowhere: does not exist; pass the run_dir"):  # what a library's user catches
        gantrain.load_generator(tmp_path / "nowhere")
