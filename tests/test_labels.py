"""How often each class is drawn for generated images: uniformly, or as in the data; what is said of it."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import math
import warnings
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, error_of, lines_of
from scipy.stats import chisquare

import gantrain as package
from gantrain import performance, randomness
from gantrain.commands.noise_scale import Bench
from gantrain.config.config import Config
from gantrain.config.loading import build, load, to_dict
from gantrain.data import ImageSet, pack
from gantrain.data.class_balance import describe_choice, describe_other_mixture
from gantrain.data.intake import audit
from gantrain.distributed import make_accelerator
from gantrain.errors import UserError
from gantrain.evaluation.evaluator import Evaluator
from gantrain.losses import Hinge
from gantrain.models.architecture import label_counts_of
from gantrain.reporting.comparison import require_comparable
from gantrain.reporting.page_tables import protocol_in_words
from gantrain.run_folder.record import Evaluation, stated
from gantrain.run_folder.trained_with import KEY, config_in, to_state
from gantrain.sampling import latents
from gantrain.sampling.latents import calibration_batches, choose_label_counts, choose_labels, draw, draw_labels, label_counts_at
from gantrain.training.facts import Facts
from gantrain.training.inputs import Inputs

DIGITS = ROOT / "configs" / "digits.yaml"
CPU = torch.device("cpu")
COUNTS = (50, 0, 5, 945)
UNIFORM_OF_OLD = [8, 5, 4, 4, 5, 4, 0, 1, 3, 3, 4, 5]  # d0/y of seed 0, before there was a choice


# ---- draws -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("counts", [COUNTS, (1, 1), (3, 1, 2, 2), (0, 7, 0, 1, 0), tuple(range(1, 101)), (10**12, 3 * 10**12)])
def test_draws_follow_the_counts(counts):
    """Pearson's chi-squared test on 20,000 draws; a class without images is never drawn."""
    y = draw_labels(0, "d/y", 0, 20_000, len(counts), counts)
    found = torch.bincount(y, minlength=len(counts)).numpy()
    there = np.array(counts) > 0
    assert y.dtype == torch.int64 and found.shape == (len(counts),) and not found[~there].any()
    assert chisquare(found[there], np.array(counts)[there] * 20_000 / sum(counts)).pvalue > 0.01


def test_any_split_of_the_positions_gives_the_same_labels():
    whole = draw(3, "g", 0, 300, 4, 4, label_counts=COUNTS)
    for cuts in ([0, 1, 300], [0, 128, 256, 300], list(range(0, 301, 50))):
        parts = [draw(3, "g", a, b - a, 4, 4, label_counts=COUNTS) for a, b in itertools.pairwise(cuts)]
        assert all(torch.equal(torch.cat(part), one) for part, one in zip(zip(*parts), whole))


def test_uniform_labels_are_what_they_always_were_and_latents_do_not_depend_on_labels():
    z, y = draw(0, "d0", 0, 12, 2, 10)
    assert y.tolist() == UNIFORM_OF_OLD
    assert torch.equal(y, randomness.integers(0, "d0/y", 0, 12, 10)) and torch.equal(
        z, draw(0, "d0", 0, 12, 2, 10, label_counts=range(10))[0]
    )
    balanced = draw_labels(0, "d0/y", 0, 5000, 10, [7] * 10)
    assert torch.equal(balanced, draw_labels(0, "d0/y", 0, 5000, 10))  # the same uniform number


def test_the_largest_uniform_number_gives_a_class_with_images(monkeypatch):
    monkeypatch.setattr(randomness, "uniform", lambda *a: torch.tensor([[1 - 2.0**-53], [2.0**-53]], dtype=torch.float64))
    for counts in ((0, 3, 0), (0, 2**40, 0), (0, 10**9 + 7, 0, 0)):
        assert draw_labels(0, "x", 0, 2, len(counts), counts).tolist() == [1, 1]


# ---- who draws -------------------------------------------------------------------------------------------------------


@functools.cache
def config_of(labels: str = "uniform") -> Config:
    return dataclasses.replace(load(DIGITS, TINY), labels=labels)


@pytest.mark.parametrize("labels", ["uniform", "data"])
def test_training_draws_what_the_configuration_says(labels):
    """Each process its part of the stream, and in any number of rounds."""
    config = config_of(labels)
    images = ImageSet("some", torch.tensor([0] * 9 + [1]), ["a", "b"], 1, 16, torch.zeros(10, 1, 16, 16, dtype=torch.uint8))
    found = []
    for world, k, b in ((1, 1, 64), (2, 4, 8)):
        contexts = [SimpleNamespace(config=config, device=CPU, world=world, rank=rank) for rank in range(world)]
        rest = SimpleNamespace(nimg=1000), images, SimpleNamespace(dim_z=2, num_classes=2), SimpleNamespace(micro_batch=b)
        inputs = [Inputs(context, *rest, SimpleNamespace(watch=SimpleNamespace(skipped=0))) for context in contexts]
        rounds = [list(one.latents("d0", k)) for one in inputs]
        drawn = sorted((int(p), int(y)) for one in rounds for _, ys, ps in one for y, p in zip(ys, ps))
        found.append(drawn)
    counts = None if labels == "uniform" else (9, 1)
    assert found[0] == found[1] == list(enumerate(draw_labels(0, "d0/y", 1000, 64, 2, counts).tolist(), 1000))


def test_the_noise_scale_is_measured_with_the_labels_of_training():
    some = SimpleNamespace(dim_z=2, num_classes=2)
    bench = SimpleNamespace(
        config=config_of("data"), micro_batch=8, rounds=3, device=CPU, label_counts=(9, 1), G=SimpleNamespace(network=some)
    )
    drawn = torch.cat([y for _, y, _ in Bench.latents(bench, "g", 500)])
    assert torch.equal(drawn, draw_labels(0, "g/y", 500, 24, 2, (9, 1)))


class Copier(torch.nn.Module):
    """Copies the one image that each class has, whatever z is."""

    dim_z = 2

    def __init__(self, images: torch.Tensor):
        super().__init__()
        self.images, self.num_classes = images, len(images)

    def forward(self, z: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        return self.images[y]


@pytest.fixture(scope="module")
def toy(digits):
    """(a generator that copies the data, the data: 95 % of one class, 5 % of another)."""
    pixels, labels = digits
    each = torch.stack([pixels[labels == 0][0], pixels[labels == 1][0]])
    of = torch.tensor([0] * 190 + [1] * 10)
    return Copier(each), torch.utils.data.TensorDataset(each[of], of)


def fid_of(generator, reference, **more) -> tuple[float, list[str]]:
    with warnings.catch_warnings(record=True) as said:
        warnings.simplefilter("always")
        scores = package.evaluate(generator, reference, num_samples=200, metrics=("fid",), features="digits", batch_size=200, **more)
    return scores["digits_fid"], [str(one.message) for one in said]


def test_a_copy_of_unbalanced_data_has_a_fid_of_0_under_labels_of_the_data_alone(toy):
    generator, data = toy
    uniform, said = fid_of(generator, data)
    by_data, nothing = fid_of(generator, data, labels="data")
    assert by_data < 0.2 and uniform > 8  # the first is that of 200 draws of the classes, not of the frequencies
    assert any("labels of generated images are uniform over 2 classes" in note for note in said)
    assert not any("labels of generated images" in note for note in nothing)


def test_a_generator_of_a_run_with_labels_of_the_data_says_so_itself(toy):
    generator = Copier(toy[0].images)
    assert [choose_labels(generator, asked) for asked in (None, "uniform", "data")] == ["uniform", "uniform", "data"]
    generator.label_counts = (95, 5)  # as `load_generator` sets it
    assert [choose_labels(generator, asked) for asked in (None, "uniform", "data")] == ["data", "uniform", "data"]
    assert choose_labels(toy[1].tensors[0], None) == "uniform"
    for counts in (torch.tensor([95, 5]), np.array([95.0, 5.0]), [95, 5]):
        generator.label_counts = counts
        assert label_counts_of(generator) == (95, 5) and choose_labels(generator, None) == "data"
    for counts in ([0.95, 0.05], [1, 2, 3], [0, 0], [-1, 2], [math.nan, 1], [math.inf, 1], torch.eye(2), 7, {"a": 1}, "ab"):
        generator.label_counts = counts
        with pytest.raises(UserError, match="label_counts: must be the number of images of each class, .* num_classes=2, got "):
            choose_labels(generator, None)


@pytest.mark.parametrize(
    ("labels", "what", "words"),
    [
        ("balanced", "G", "labels: must be uniform, data, or None, got 'balanced'"),
        ("data", "tensor", "labels: only applies to a generator G(z, y) with dim_z and num_classes, got 'data'; leave it out"),
        ("uniform", "function", "labels: only applies to a generator G(z, y) with dim_z and num_classes, got 'uniform'; leave it out"),
        ("data", "unknown", 'labels="data": needs the number of images of each class, and tensor does not say it; use labels="uniform"'),
        (
            "data",
            "three",
            "images of each class, and TensorDataset has 2 classes, and the generator 3; use",
        ),
    ],
)
def test_impossible_labels_of_python_are_refused(labels, what, words, toy):
    generator, data = toy
    images = data.tensors[0]
    three = Copier(torch.cat([generator.images, generator.images[:1]]))
    source = {"tensor": images, "function": lambda start, count: images[start : start + count], "three": three}.get(what, generator)
    with pytest.raises(UserError) as caught:
        package.evaluate(source, images if what == "unknown" else data, 100, features="digits", labels=labels)
    assert words in str(caught.value) and "\n" not in str(caught.value)


def test_scores_and_recalibration_of_a_run_draw_alike(toy):
    """An evaluator draws for scores and for BatchNorm what the configuration says, from the data or from given counts."""
    data = toy[1].tensors
    images = ImageSet("some", data[1], ["a", "b"], 1, 16, data[0])
    config = config_of("data")
    for counts, given in (((190, 10), None), ((1, 3), (1, 3))):
        one = Evaluator(config, images, make_accelerator(), show_progress=False, class_counts=given)
        g = SimpleNamespace(dim_z=2, num_classes=2, parameters=lambda: iter([torch.zeros(1)]))
        assert one.label_counts == counts and one.protocol()["eval/labels"] == "data"
        assert torch.equal(one.draw(g, 5, 50)[1], draw_labels(0, "eval/y", 5, 50, 2, counts))
        batches = dict(calibration_batches(config, g, None, label_counts=one.label_counts))
        assert torch.equal(batches[1][1], draw_labels(0, "calibration/y", 32, 32, 2, counts))
    plain = Evaluator(config_of(), images, make_accelerator(), show_progress=False)
    assert plain.label_counts is None and plain.protocol()["eval/labels"] == "uniform"
    flat = Evaluator(config, images.unlabelled(), make_accelerator(), show_progress=False)
    assert flat.label_counts is None and "eval/labels" not in flat.protocol()


def test_a_checkpoint_knows_the_counts_of_its_data(monkeypatch):
    """An older one does not, which only matters if labels are to be drawn from the data."""
    path, state = Path("run/checkpoints/000"), {"class_counts": [3, 1]}
    monkeypatch.setattr(latents, "read_state", lambda path: state)
    assert label_counts_at(config_of("data"), path, 2) == (3, 1) and label_counts_at(config_of(), path, 2) is None
    for old in ({}, {"class_counts": None}, {"class_counts": [0, 0]}, {"class_counts": [1, 2, 3]}):
        state.clear()
        state.update(old)
        assert label_counts_at(config_of(), path, 2) is None and label_counts_at(config_of("data"), path, 1) is None
        with pytest.raises(UserError, match="labels=data: needs the .* of each class, and the checkpoint .*; use labels=uniform"):
            label_counts_at(config_of("data"), path, 2)
    assert choose_label_counts("data", [5], 1, "x") is None


# ---- what is said ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("counts", "head"),
    [
        ((100, 100), ""), ((20, 10), ""), ((21, 10), "(32.26% to 67.74% a class, 2.1 to 1)"), ((5,), ""), ((0, 0), ""),
        ((9, 0), "(0.00% to 100.00% a class, 9 to 0)"), ((6000, 4000), "(40.00% to 60.00% a class, 1.5 to 1)"),
        ((500,) * 99 + (50,), "(0.10% to 1.01% a class, 10 to 1)"),
    ],
)  # fmt: skip
def test_a_run_says_how_it_draws_labels_where_classes_are_unbalanced(counts, head):
    uniform, data = describe_choice(counts, "uniform"), describe_choice(counts, "data")
    assert bool(uniform) is bool(data) is bool(head)
    if head:
        assert uniform.startswith(
            f"unbalanced classes {head}: labels=uniform draws the labels of generated images uniformly over {len(counts)}"
        )
        assert "would not reach a FID of 0, and averages are ranked by the balanced mixture; labels=data draws" in uniform
        assert data.startswith(
            f"unbalanced classes {head}: labels=data draws the labels of generated images with the frequencies of the data,"
        )
        assert "compare equal mixtures of classes" in data


def test_the_audit_has_a_line_of_the_choice(toy):
    images = ImageSet("some", toy[1].tensors[1], ["a", "b"], 1, 16, toy[1].tensors[0])
    assert [audit(images, labels).splitlines()[1].split(" draws")[0].split(": ")[1] for labels in ("uniform", "data")] == [
        "labels=uniform", "labels=data",
    ]  # fmt: skip
    assert len(audit(images.unlabelled(), "data").splitlines()) == 1


@pytest.mark.parametrize(
    ("reference", "drawn", "said"),
    [
        ((190, 10), (190, 10), False),
        ((19, 1), (190, 10), False),
        ((200, 200), (190, 10), True),
        ((0, 9), (9, 0), True),
        ((0, 0), (1, 2), False),
    ],
)
def test_a_reference_of_another_mixture_than_the_data_is_said(reference, drawn, said):
    words = describe_other_mixture(reference, drawn)
    assert bool(words) is said
    assert not said or (
        "labels of generated images have the class frequencies of the data" in words and "the reference has others" in words
    )


def notes_of(loss, labels: str, counts: tuple[int, ...]) -> list[str]:
    of = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))
    images = ImageSet("some", of, list(map(str, range(len(counts)))), 1, 16, torch.zeros(len(of), 1, 16, 16, dtype=torch.uint8))
    facts = SimpleNamespace(notes=[], images=images, context=SimpleNamespace(config=SimpleNamespace(loss=loss, labels=labels)))
    Facts.note_loss(facts)
    return facts.notes


def test_a_loss_that_pairs_labels_leaves_scores_alone_to_the_choice():
    class Paired(Hinge):
        paired_labels = True

    said = "labels={}: in training, this loss gives each generated image the label of a real one; labels decides those of scores"
    assert [notes_of(Paired(), "data", (9, 9))[0][: len(said) - 2 + 4]] == [said.format("data")]
    assert notes_of(Paired(), "uniform", (90, 9))[0].startswith(said.format("uniform"))
    assert notes_of(Paired(), "uniform", (9, 9)) == notes_of(Hinge(), "data", (90, 9)) == notes_of(Paired(), "uniform", (9,)) == []
    assert notes_of(Hinge(), "data", (9,)) == ["labels=data has no effect: the images are all of one class"]


def test_scores_of_different_mixtures_are_not_compared(tmp_path):
    """Scores from before count as uniform."""
    same = {
        "num_samples": 64,
        "features": "x",
        "reference_fingerprint": "y",
        "truncation": None,
        "batchnorm": "recalibrate",
        "is_splits": 10,
    }
    old, uniform, data = ({**same, **more} for more in ({}, {"labels": "uniform"}, {"labels": "data"}))
    records = [SimpleNamespace(run=Path(name), evaluations=[Evaluation(0, {}, one)]) for name, one in zip("abc", (old, uniform, data))]
    require_comparable(records[:2])
    assert stated(records[0].evaluations[0]) == stated(records[1].evaluations[0])
    with pytest.raises(UserError, match="c: its scores are not comparable with those of a .eval/labels is 'data' here and 'uniform' there"):
        require_comparable(records)
    with pytest.raises(UserError, match="in the same way with `gantrain evaluate`, such as `gantrain evaluate c labels=uniform`$"):
        require_comparable(records)
    assert "; labels=data" in protocol_in_words(data) and "labels" not in protocol_in_words(old)


# ---- configuration ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("override", "words"),
    [
        ("labels=balanced", "labels must be one of uniform, data, got 'balanced'"),
        ("labels=false", "labels must be one of uniform, data, got False; data.labels=false trains without classes"),
        ("data.labels=data", "data.labels must be true or false, got 'data'; labels=data at the top level chooses the labels of"),
        ("label=data", "no such key; did you mean labels or data.labels?"),
        ("eval.labels=data", "no such key; did you mean data.labels or labels?"),
        ("class_balance=data", "no such key; did you mean labels?"),
        ("conditional=false", "no such key; did you mean data.labels?"),
    ],
)
def test_words_for_labels_lead_to_the_right_key(override, words):
    with pytest.raises(UserError) as caught:
        load(DIGITS, [override])
    assert words in str(caught.value)


def test_a_state_from_before_the_key_means_uniform():
    state = to_state(config_of())
    del state[KEY]["labels"]
    assert config_in(state) == config_of()
    values = to_dict(config_of())
    del values["labels"]
    assert build(values).labels == "uniform"


# ---- bfloat16 on a CPU -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("precision", "device", "flags", "said"),
    [
        ("bf16", "cpu", {"avx2", "avx512f", "avx512bw"}, True), ("bf16", "cpu", {"asimd", "sve"}, True),
        ("bf16", "cpu", {"avx512f", "avx512_bf16"}, False), ("bf16", "cpu", {"amx_bf16", "amx_tile"}, False),
        ("bf16", "cpu", {"asimd", "bf16"}, False), ("bf16", "cpu", {"svebf16"}, False), ("bf16", "cpu", {"neon", "sve_bf16"}, False),
        ("bf16", "cpu", None, False), ("bf16", "cpu", set(), False), ("bf16", "cuda", {"avx2"}, False), ("bf16", "mps", {"neon"}, False),
        ("fp32", "cpu", {"avx2"}, False), ("fp16", "cpu", {"avx2"}, False),
    ],
)  # fmt: skip
def test_a_cpu_without_units_for_bf16_is_named(precision, device, flags, said):
    words = performance.describe_slow_bf16(precision, torch.device(device), flags)
    assert bool(words) is said
    assert not said or ("14 s in fp32 took minutes" in words and words.endswith("set mixed_precision=fp32"))


@pytest.mark.parametrize(
    ("text", "flags"),
    [
        ("processor\t: 0\nflags\t\t: fpu avx2 avx512_bf16\nvmx flags\t: x\n", {"fpu", "avx2", "avx512_bf16"}),
        ("processor\t: 0\nFeatures\t: fp asimd bf16\n", {"fp", "asimd", "bf16"}), ("flags:\n", set()),
    ],
)  # fmt: skip
def test_the_flags_of_the_cpu_are_read(text, flags, tmp_path, monkeypatch):
    (tmp_path / "cpuinfo").write_text(text)
    monkeypatch.setattr(performance, "CPU_INFO", tmp_path / "cpuinfo")
    assert performance.read_cpu_flags() == flags


def test_without_cpuinfo_torch_is_asked_if_it_can_say(tmp_path, monkeypatch):
    monkeypatch.setattr(performance, "CPU_INFO", tmp_path / "nothing")
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: {"neon": True, "bf16": False, "architecture": "arm64"}, raising=False)
    assert performance.read_cpu_flags() == {"neon"}
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert performance.read_cpu_flags() is None


# ---- whole runs ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unbalanced(digits, tmp_path_factory) -> Path:
    """A prepared set of 200 zeros and ones, 9 to 1."""
    pixels, labels = digits
    folder, few = tmp_path_factory.mktemp("data"), torch.cat([torch.nonzero(labels == c)[:n, 0] for c, n in ((0, 170), (1, 30))])
    pack(ImageSet("some", labels[few], ["0", "1"], 1, 16, pixels[few]), folder / "packed", "some")
    return folder / "packed"


def data_of(folder: Path) -> list[str]:
    return ["data={name: packed, flip: false}", f"data.root={folder}", "data.resolution=16"]


@pytest.mark.slow
def test_a_run_with_labels_of_the_data(gantrain, unbalanced, tmp_path):
    """In the run, in the background, after the fact and from Python the scores are the same; the mixture stands beside each."""
    run, twin = tmp_path / "run", tmp_path / "twin"
    settings = [
        *TINY,
        "data={name: packed, flip: false}",
        f"data.root={unbalanced}",
        "data.resolution=16",
        "labels=data",
        "total_kimg=0.16",
    ]
    said = gantrain("train", DIGITS, f"run_dir={run}", *settings).stdout
    gantrain("train", DIGITS, f"run_dir={twin}", *settings, "eval.async=true")
    assert "unbalanced classes (15.00% to 85.00% a class, 5.67 to 1): labels=data draws" in said
    logged, beside = ([line for line in lines_of(one) if "eval/num_samples" in line][-1] for one in (run, twin))
    assert logged["eval/labels"] == "data" and "eval/notes" not in {k for k in logged if "uniform" in str(logged[k])}
    assert {k: v for k, v in logged.items() if k.startswith("eval/")} == {k: v for k, v in beside.items() if k.startswith("eval/")}
    text = gantrain("evaluate", run, "--out", tmp_path / "scores.json").stdout
    assert "BatchNorm recalibrate, labels=data; also in" in text
    body = json.loads((tmp_path / "scores.json").read_text())
    assert body["eval/labels"] == "data" and body["scores"]["ema"]["digits_fid"] == pytest.approx(logged["eval/ema/digits_fid"], rel=1e-5)
    generator = package.load_generator(run, "ema")
    assert generator.label_counts == (170, 30)
    real = {"num_samples": 64, "metrics": ("fid",), "batch_size": 32}
    gantrain("reference", run, "--out", tmp_path / "real.npz")
    found = package.evaluate(generator, tmp_path / "real.npz", **real)["digits_fid"]
    assert found == pytest.approx(logged["eval/ema/digits_fid"], rel=1e-4)
    other = gantrain("evaluate", run, "labels=uniform", "--out", tmp_path / "other.json").stdout
    assert "labels=uniform; also in" in other and "uniform over 2 classes, while the real images keep" in other
    assert json.loads((tmp_path / "other.json").read_text())["scores"]["ema"] != body["scores"]["ema"]
    words = error_of(gantrain("train", DIGITS, f"run_dir={run}", *settings, "labels=uniform", check=False))
    assert "labels (data there, uniform now)" in words
    assert "labels=data" in gantrain("truncation", run, "--sweep", "1:2:2", "--num", 48, "eval.metrics=[fid,is,prc]").stdout
    gantrain("noise-scale", run, "--updates", 8)
    gantrain("fork", run, "--out", tmp_path / "fork", "labels=uniform", "total_kimg=0.24")
    assert "labels=uniform draws" in gantrain("train", tmp_path / "fork" / "config.yaml").stdout
    assert [line for line in lines_of(tmp_path / "fork") if "eval/num_samples" in line][-1]["eval/labels"] == "uniform"


@pytest.mark.slow
def test_a_run_with_labels_of_the_data_resumes_to_the_bit(gantrain, unbalanced, tmp_path):
    settings = [
        *TINY,
        "data={name: packed, flip: false}",
        f"data.root={unbalanced}",
        "data.resolution=16",
        "labels=data",
        "eval.every_kimg=null",
    ]
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    gantrain("train", DIGITS, f"run_dir={whole}", *settings)
    gantrain("train", DIGITS, f"run_dir={cut}", *settings, "total_kimg=0.16")
    gantrain("train", DIGITS, f"run_dir={cut}", *settings)
    newest = [sorted((run / "checkpoints").iterdir())[-1] for run in (whole, cut)]
    assert newest[0].name == newest[1].name
    for file in newest[0].glob("*.safetensors"):
        assert file.read_bytes() == (newest[1] / file.name).read_bytes(), file.name
