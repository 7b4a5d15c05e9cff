"""`gantrain sample` and `gantrain walk`: grids, folders, arrays, sheets and films of a tiny run."""

from __future__ import annotations

import builtins
import errno
import itertools
import math
import shutil
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
import spawning
import torch
from conftest import ROOT, TESTS, TINY, error_of, every_third, slow_but
from PIL import Image

import gantrain as library
from gantrain import randomness
from gantrain.commands.sample_sheets import MIDPOINTS, require_two_classes
from gantrain.data import Digits, permuted
from gantrain.errors import UserError
from gantrain.evaluation.neighbours import find_nearest, measure_memorisation
from gantrain.evaluation.of_runs import RunScorer
from gantrain.images import to_float, to_uint8
from gantrain.models import BigGAN
from gantrain.models.layers import Layers
from gantrain.sampling.choice import ImageSource
from gantrain.sampling.classes import Classes
from gantrain.sampling.generators import generate
from gantrain.sampling.interpolation import interpolate, mix_classes, rotate
from gantrain.sampling.output import CHUNK, draw_all
from gantrain.sampling.sheets import make_labelled_grid, read_side_by_side

DIGITS = ROOT / "configs" / "digits.yaml"
BRIEF = [
    "total_kimg=0.048",
    "eval.every_kimg=null",
    "eval.num_samples=16",
    "eval.metrics=[prc]",
    "tracking.samples_every_kimg=null",
    "averagers.swa.start_kimg=0",
    "averagers.swa.every_kimg=0.016",
]
ROUNDING = {"rtol": 1e-4, "atol": 1e-5}


def trained(gantrain, folder: Path, *overrides: str) -> Path:
    gantrain("train", DIGITS, f"run_dir={folder}", *TINY, *BRIEF, *overrides)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory, gantrain) -> Path:
    return trained(gantrain, tmp_path_factory.mktemp("drawing") / "run")


@pytest.fixture
def refused(gantrain):
    """Runs a command that must be refused, and returns its error."""

    def run(*arguments: object) -> str:
        return error_of(gantrain(*arguments, check=False))

    return run


def latents(generator, num: int, **kwargs) -> torch.Tensor:
    return randomness.normal(0, "sample/z", 0, num, generator.dim_z, **kwargs)


def cells(sheet: Image.Image, rows: int, columns: int, left: int, top: int) -> torch.Tensor:
    """The images in a sheet of 16x16 digits that were enlarged three times: uint8 `[rows, columns, 16, 16]`."""
    pixels = torch.from_numpy(np.array(sheet.convert("L")))
    return torch.stack([torch.stack([pixels[top + 50 * i :, left + 50 * j :][:48:3, :48:3] for j in range(columns)]) for i in range(rows)])


def near(a: torch.Tensor, b: torch.Tensor) -> bool:
    """Equal up to one level, which another summation order may change."""
    return a.shape == b.shape and int((a.int() - b.int()).abs().max()) <= 1


# ---- arrays and folders ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def drawn(run, gantrain, tmp_path_factory) -> Path:
    """150 images, two and a half chunks, as arrays and as a folder."""
    folder = tmp_path_factory.mktemp("drawn")
    for out in ("arrays.npz", "pngs/"):
        gantrain("sample", run, "--num", 150, "--labels", "3,8", "--batchnorm", "batch", "--out", f"{folder}/{out}")
    return folder


def test_arrays_and_folder_hold_the_generators_images(run, drawn):
    """Both hold what the library draws, to the bit; the arrays in guided-diffusion's layout, without pickles."""
    assert library.load_generator(run).class_names == tuple("0123456789")
    with np.load(drawn / "arrays.npz", allow_pickle=False) as arrays:
        images, labels = arrays["arr_0"], arrays["arr_1"]
        assert sorted(arrays) == ["arr_0", "arr_1"]
    assert images.dtype == np.uint8 and images.shape == (150, 16, 16, 1) and images.flags.c_contiguous
    assert labels.dtype == np.int64 and labels.tolist() == [3, 8] * 75
    files = sorted((drawn / "pngs").iterdir())
    assert [f.name for f in files] == [f"{i:06d}.png" for i in range(150)]
    assert np.array_equal(np.stack([np.array(Image.open(f)) for f in files])[..., None], images)
    generator = library.load_generator(run, batchnorm="batch")
    assert np.array_equal(generate(generator, latents(generator, 150), torch.tensor(labels)).permute(0, 2, 3, 1).numpy(), images)


@pytest.mark.parametrize("out", ["arrays.npz", pytest.param("pngs/", marks=pytest.mark.slow)])
def test_two_processes_draw_the_same_bytes(out, run, drawn, together, tmp_path):
    """Even with batchnorm=batch, where an image depends on the others in its chunk."""
    done = together(
        2, "-m", "gantrain", "sample", run, "--num", 150, "--labels", "3,8", "--batchnorm", "batch", "--out", f"{tmp_path}/{out}"
    )
    assert done.stdout == f"150 images of ema in {tmp_path}/{out}, on 2 processes\n"
    files = lambda folder: {f.name: f.read_bytes() for f in (folder / out).iterdir()} if out.endswith("/") else (folder / out).read_bytes()  # noqa: E731
    assert files(tmp_path) == files(drawn)


@pytest.mark.slow
def test_a_folder_with_pngs_is_refused_by_all_processes_before_any_writes(run, drawn, together):
    before = sorted((drawn / "pngs").iterdir())
    done = together(2, "-m", "gantrain", "sample", run, "--num", 200, "--out", f"{drawn}/pngs/", check=False)
    assert (
        done.returncode == 2
        and "already contains PNGs; empty it or choose another folder" in done.stderr
        and "Traceback" not in done.stderr
    )
    assert sorted((drawn / "pngs").iterdir()) == before


@dataclass
class Rank:
    """The part of an Accelerator that drawing uses, for two ranks on threads; fails if one communicates without the other."""

    process_index: int
    meeting: threading.Barrier
    said: dict = field(default_factory=dict)

    num_processes, device = 2, torch.device("cpu")

    @property
    def is_main_process(self) -> bool:
        return self.process_index == 0

    def _of_both(self, kind: str, tensor: torch.Tensor) -> list[torch.Tensor]:
        self.said[self.process_index] = kind, tensor
        self.meeting.wait()
        (one, first), (other, second) = self.said[0], self.said[1]
        self.meeting.wait()
        assert one == other, f"{one} here, {other} there"
        return [first, second]

    def gather(self, tensor: torch.Tensor) -> torch.Tensor:
        return torch.cat(self._of_both("gather", tensor))

    def reduce(self, tensor: torch.Tensor, reduction: str) -> torch.Tensor:
        return sum(self._of_both(reduction, tensor))


@pytest.mark.parametrize(("everywhere", "full"), [(False, 0), (True, 0), (True, 1)])
def test_a_disk_that_is_full_for_one_process_ends_both_at_once(everywhere, full):
    """Both end after the first of three chunks each; the other process neither continues nor hangs."""
    meeting, said, drawn = threading.Barrier(2, timeout=20), {}, [[], []]

    class Full:
        def __init__(self, rank: int):
            self.rank, self.everywhere = rank, everywhere

        def take(self, start: int, images: torch.Tensor) -> None:
            if self.rank == full:
                raise OSError(errno.ENOSPC, "No space left on device")

    def draw(rank: int) -> Exception | None:
        def images(start: int, count: int) -> torch.Tensor:
            drawn[rank].append(start)
            return torch.zeros(count, 1, 2, 2, dtype=torch.uint8)

        try:
            draw_all(images, 6 * CHUNK, Full(rank), Rank(rank, meeting, said))
        except Exception as error:
            return error

    with ThreadPoolExecutor(2) as pool:
        ended = list(pool.map(draw, range(2)))
    assert isinstance(ended[full], OSError) and ended[full].errno == errno.ENOSPC
    assert isinstance(ended[1 - full], UserError) and "another process failed" in str(ended[1 - full])
    assert drawn == [[0], [CHUNK]]


def test_arrays_on_a_full_disk_leave_no_file(run, tmp_path):
    """The disk is full after 8 KiB; 64 images need 16."""
    environment = {
        "PYTHONPATH": f"{ROOT}:{TESTS}",
        "OMP_NUM_THREADS": "1",
        "ACCELERATE_USE_CPU": "true",
        "HOME": str(tmp_path),
        "PATH": "/usr/bin:/bin",
    }
    (tmp_path / "there").mkdir()
    done = spawning.run(["-m", "gantrain", "sample", run, "--out", f"{tmp_path}/there/x.npz"], environment, largest=8192)
    assert f"{tmp_path}/there/x.npz: File too large" in error_of(done)
    assert list((tmp_path / "there").iterdir()) == []


# ---- interpolation ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("t", [0.0, 0.2, 0.5, 0.9, 1.0])
def test_every_interpolated_point_is_standard_normal(t):
    """Mean, variance and fourth moment over 200,000 independent pairs; the ends are exact."""
    z0, z1 = randomness.normal(0, "test", 0, 400_000, 1).view(2, -1, 1)
    for z in (interpolate(z0, z1, t), rotate(z0, z1, t)):
        assert float(z.mean()) == pytest.approx(0, abs=0.01) and float(z.var()) == pytest.approx(1, abs=0.015)
        assert float((z**4).mean()) == pytest.approx(3, abs=0.1)
    assert torch.equal(interpolate(z0, z1, 0), z0) and torch.equal(interpolate(z0, z1, 1), z1)
    torch.testing.assert_close(interpolate(z0, z1, t), ((1 - t) * z0 + t * z1) / math.sqrt((1 - t) ** 2 + t**2))


def test_interpolated_points_stay_within_the_truncation():
    z0, z1 = (randomness.normal(0, f"{i}", 0, 1000, 8, 0.5) for i in range(2))
    assert interpolate(z0, z1, 0.5).abs().max() > 0.5  # without the argument
    assert interpolate(z0, z1, 0.5, 0.5).abs().max() == 0.5 and rotate(z0, z1, 0.125, 0.5).abs().max() == 0.5


def test_a_circle_closes_at_one_speed():
    z0, z1 = (randomness.normal(0, f"{i}", 0, 4, 256) for i in range(2))
    points = [rotate(z0, z1, i / 24) for i in range(25)]
    torch.testing.assert_close(points[24], points[0], rtol=0, atol=1e-5)
    steps = torch.stack([(b - a).norm(dim=1) for a, b in itertools.pairwise(points)])
    assert float(steps.min()) > 0.8 * float(steps.max())  # equal, except that two random vectors are not quite orthogonal
    torch.testing.assert_close(points[6], z1, rtol=0, atol=1e-5)
    torch.testing.assert_close(points[12], -z0, rtol=0, atol=1e-5)


@pytest.mark.parametrize("spectral_norm", [False, True])
def test_a_mixture_is_the_mean_of_the_embeddings_rows(spectral_norm):
    """With spectral norm, of the normalised weights."""
    table = Layers("orthogonal").embedding(5, 7, spectral_norm).eval()
    y = torch.tensor([0, 4, 2])
    rows = table(torch.arange(5))
    torch.testing.assert_close(table(torch.eye(5)[y]), rows[y], rtol=0, atol=1e-7)
    half = mix_classes(y, (y + 1) % 5, 0.5, 5)
    assert half.dtype == torch.float32 and torch.equal(half.sum(1), torch.ones(3))
    torch.testing.assert_close(table(half), (rows[y] + rows[(y + 1) % 5]) / 2)
    quarter = mix_classes(y, (y + 1) % 5, 0.25, 5)
    torch.testing.assert_close(table(quarter), 0.75 * rows[y] + 0.25 * rows[(y + 1) % 5])


@pytest.mark.parametrize(
    "config", [BigGAN(ch=2, dim_z=8), BigGAN(ch=2, dim_z=9, shared_embedding=4, hierarchical_z=True)], ids=["tables", "shared"]
)
def test_a_generator_takes_mixtures_for_labels(config):
    """A one-hot mixture equals the label; half of each class differs from both."""
    generator = config.build(16, 1, 4)[0].eval()
    generator.requires_grad_(False)
    z, y = torch.randn(6, config.dim_z, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1, 2, 3, 0, 1])
    torch.testing.assert_close(generator(z, mix_classes(y, (y + 1) % 4, 0.0, 4)), generator(z, y), **ROUNDING)
    torch.testing.assert_close(generator(z, mix_classes(y, (y + 1) % 4, 1.0, 4)), generator(z, (y + 1) % 4), **ROUNDING)
    halves = generator(z, mix_classes(y, (y + 1) % 4, 0.5, 4))
    assert not torch.allclose(halves, generator(z, y), **ROUNDING) and not torch.allclose(halves, generator(z, (y + 1) % 4), **ROUNDING)


# ---- sheets ----------------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_a_sheet_of_classes_has_a_class_per_row(run, gantrain, tmp_path, monkeypatch):
    """A class has the same latents whichever others are shown; many classes fill several sheets, or are evenly spaced in one."""
    done = gantrain("sample", run, "--sheet", "classes", "--labels", "7,2", "--per-class", 3, "--out", tmp_path / "two.png")
    assert f"2 classes, one per row, 3 images of ema each, in {tmp_path}/two.png" in done.stdout
    sheet = Image.open(tmp_path / "two.png")
    generator = library.load_generator(run)
    expected = torch.stack([to_uint8(generator(latents(generator, 100)[3 * y : 3 * y + 3], torch.full((3,), y)))[:, 0] for y in (7, 2)])
    assert near(cells(sheet, 2, 3, sheet.width - 12 - 150, 12 + 2), expected)
    assert np.array(sheet.convert("L"))[:, : sheet.width - 164].min() < 100  # labels beside the rows
    monkeypatch.setattr("gantrain.commands.sample_sheets.CLASSES_PER_SHEET", 4)
    done = gantrain("sample", run, "--sheet", "classes", "--per-class", 1, "--out", f"{tmp_path}/all/")
    assert "10 classes, one per row" in done.stdout and f"in {tmp_path}/all/, 3 sheets" in done.stdout
    found = {f.name: Image.open(f).height for f in (tmp_path / "all").iterdir()}
    assert found == {"classes-0-3.png": 2 * 12 + 2 + 50 * 4, "classes-4-7.png": 2 * 12 + 2 + 50 * 4, "classes-8-9.png": 2 * 12 + 2 + 50 * 2}
    done = gantrain("sample", run, "--sheet", "classes", "--per-class", 1, "--out", tmp_path / "few.png")
    assert "4 of 10 classes, evenly spaced" in done.stdout
    expected = torch.cat([to_uint8(generator(latents(generator, 10)[y : y + 1], torch.tensor([y]))) for y in (0, 2, 5, 7)])
    few = Image.open(tmp_path / "few.png")
    assert near(cells(few, 4, 1, few.width - 12 - 50, 12 + 2), expected)


@pytest.mark.slow
def test_a_sheet_of_averages_shows_the_same_latents_through_all(run, gantrain, tmp_path):
    done = gantrain("sample", run, "--sheet", "averages", "--num", 4, "--out", tmp_path / "all.png")
    assert "4 images of each of live, ema, ema_short, swa in" in done.stdout
    sheets = read_side_by_side(tmp_path / "all.png")
    assert [s.caption for s in sheets] == [f"{name} at 0.048 kimg" for name in ("live", "ema", "ema_short", "swa")]
    for sheet in sheets:
        generator = library.load_generator(run, sheet.name)
        assert near(cells(sheet.picture, 1, 4, 2, 2)[0], to_uint8(generator(latents(generator, 4), torch.arange(4)))[:, 0]), sheet.name
    gantrain("sample", run, "--sheet", "averages", "--average", "swa,live", "--out", tmp_path / "two.png")
    two = read_side_by_side(tmp_path / "two.png")
    assert [s.name for s in two] == ["swa", "live"] and two[0].picture.size == (502, 302)  # full rows, one class per column


@pytest.mark.parametrize("kind", slow_but(["both"], ["z", "class", "both"]))
def test_a_sheet_of_interpolations_goes_from_end_to_end(kind, run, gantrain, tmp_path):
    """The ends of a row are images of their latents and labels, with eight images in smaller steps between them."""
    gantrain("sample", run, "--sheet", kind, "--labels", "1,8", "--num", 3, "--out", tmp_path / "ways.png")
    sheet = Image.open(tmp_path / "ways.png")
    found = cells(sheet, 3, MIDPOINTS + 2, sheet.width - 12 - 500, 12 + 2)
    generator = library.load_generator(run)
    y0, y1 = torch.tensor([1, 8, 1]), torch.tensor([8, 1, 8])
    z0, z1 = (latents(generator, 6)[i::2] for i in range(2)) if kind != "class" else [latents(generator, 3)] * 2
    ends = [to_uint8(generator(z, y))[:, 0] for z, y in ((z0, y0), (z1, y0 if kind == "z" else y1))]
    assert near(found[:, 0], ends[0]) and near(found[:, -1], ends[1])
    moved = (found[:, 1:].float() - found[:, :-1].float()).flatten(2).norm(dim=2)
    assert moved.min() > 0 and moved.max() < (ends[0].float() - ends[1].float()).flatten(1).norm(dim=1).max()


def test_interpolation_between_classes_needs_two_and_a_generator_that_mixes_them(run, refused, monkeypatch, tmp_path):
    out = tmp_path / "x.png"
    assert "--labels: 'both' interpolates between classes; pass at least two, got only 3" in refused(
        "sample", run, "--sheet", "both", "--labels", "3,3", "--out", out
    )
    monkeypatch.setattr("gantrain.models.biggan.Generator.accepts_mixtures", False)
    assert "but Generator takes labels only; choose --sheet z, or set accepts_mixtures = True" in refused(
        "sample", run, "--sheet", "class", "--out", out
    )
    assert not out.exists()
    for kind in ("class", "both"):
        with pytest.raises(
            UserError, match=f"--sheet: '{kind}' interpolates between classes, but the run has no classes; use --sheet z for latents"
        ):
            require_two_classes(kind, None, Classes(1))


@pytest.mark.slow
def test_sheets_of_a_run_without_classes(gantrain, refused, tmp_path):
    run = trained(gantrain, tmp_path / "run", "data.labels=false")
    assert "the run has no classes" in refused("sample", run, "--sheet", "class", "--out", tmp_path / "x.png")
    for kind, size in (("z", (10 * 50 + 2 + 2 * 12, 8 * 50 + 2 + 2 * 12)), ("averages", None), ("classes", None), ("neighbours", None)):
        gantrain("sample", run, "--sheet", kind, "--out", tmp_path / f"{kind}.png")
        assert size is None or Image.open(tmp_path / f"{kind}.png").size == size  # no labels without classes
    gantrain("walk", run, "--frames", 2, "--out", tmp_path / "walk.gif")


def test_labels_are_beside_and_above_the_images_within_the_picture():
    """Images are in their places, the first column is framed, and no label is clipped."""
    images = torch.arange(6)[:, None, None, None].mul(40).expand(6, 1, 16, 16).to(torch.uint8)
    sheet = make_labelled_grid(images, 3, ["0.123", "one"], ["generated", "nearest", "2."], apart=True)
    pixels = np.array(sheet)
    left = next(x for x in range(sheet.width) if (pixels[:, x] == (194, 65, 12)).all(axis=1).any()) + 2  # inside the frame
    assert near(cells(sheet, 2, 1, left + 2, 32)[:, 0, 0, 0], torch.tensor([0, 120]))
    assert near(cells(sheet, 2, 2, left + 52 + 12 + 2, 32)[:, :, 0, 0], torch.tensor([[40, 80], [160, 200]]))
    assert (pixels[:, :4] == 255).all() and (pixels[:4] == 255).all() and (pixels[:, -4:] == 255).all() and (pixels[-4:] == 255).all()
    assert pixels[5:25].min() < 100 and pixels[:, 4 : left - 8].min() < 100


# ---- neighbours ------------------------------------------------------------------------------------------------------


def test_find_nearest_equals_an_exhaustive_search(digits):
    """Distances and indices are those that numpy finds; a copy is at distance 0."""
    from gantrain.metrics import DigitsFeatures

    extract = DigitsFeatures().build(torch.device("cpu")).extract
    features = extract(digits[0][:300])[0] + 1000.0  # a matrix product alone would round small distances away
    real, fake = features[:250], torch.cat([features[250:], features[17:18]])
    between_all = np.sqrt(((fake.double().numpy()[:, None] - real.double().numpy()[None]) ** 2).sum(2))
    distances, indices = find_nearest(fake, real, 8)
    assert np.array_equal(indices.numpy(), np.argsort(between_all, axis=1, kind="stable")[:, :8])
    np.testing.assert_allclose(distances.numpy(), np.sort(between_all, axis=1)[:, :8], rtol=1e-12)
    assert distances[-1, 0] == 0 and indices[-1, 0] == 17
    among = np.sqrt(((real.double().numpy()[:, None] - real.double().numpy()[None]) ** 2).sum(2)) + np.diag([np.inf] * 250)
    found = measure_memorisation(fake, real)
    np.testing.assert_allclose(found.between_real.numpy(), among.min(1), rtol=1e-12)
    assert found.threshold == pytest.approx(np.percentile(among.min(1), 5)) and found.share == np.mean(
        between_all.min(1) <= np.percentile(among.min(1), 5)
    )
    assert found.medians[0] == np.sort(between_all.min(1))[25] and found.medians[1] == pytest.approx(np.sort(among.min(1))[124])


def test_five_percent_of_an_independent_sample_are_as_close():
    """For normal samples the share is 5%, as the check states; all copies are found."""
    generator = torch.Generator().manual_seed(0)
    real, fake = torch.randn(3000, 4, generator=generator), torch.randn(4000, 4, generator=generator)
    assert measure_memorisation(fake, real).share == pytest.approx(0.05, abs=0.015)
    assert measure_memorisation(torch.cat([fake[:1000], real[:1000]]), real).share == pytest.approx(0.525, abs=0.02)


@pytest.fixture(scope="module")
def reference(run):
    """(all training digits in the reference's shuffle, the extractor); the run is scored against only some of them."""
    scorer = RunScorer(run)
    scorer.prepare()
    return Digits(resolution=16).build().pixels[permuted(0, np.arange(1797), 1797)], scorer.evaluator.extractor


def test_neighbours_are_found_and_drawn(run, gantrain, reference, tmp_path):
    """Rows start with the generated image, closest first, followed by the neighbours that the library finds."""
    done = gantrain("sample", run, "--sheet", "neighbours", "--num", 100, "--out", tmp_path / "one.png")
    generator = library.load_generator(run)
    images = generate(generator, latents(generator, 100), torch.arange(100) % 10)
    real, extractor = reference
    found = measure_memorisation(extractor.extract(images)[0], extractor.extract(real)[0])
    assert f"100 images of ema against 1797 of digits, L2 in {extractor.identity}: median distance {found.medians[0]:.4g}" in done.stdout
    assert f"{found.medians[1]:.4g} from a real image to its nearest other; {found.share:.1%} of them" in done.stdout
    sheet, order = Image.open(tmp_path / "one.png"), found.distances[:, 0].argsort(stable=True)[:8]
    right = sheet.width - 12 - 402
    assert near(cells(sheet, 8, 1, right - 12 - 52 + 2, 32)[:, 0], images[order, 0])
    assert torch.equal(cells(sheet, 8, 8, right + 2, 32), real[found.indices[order], 0])


@pytest.mark.slow
def test_two_processes_find_the_same_neighbours(run, gantrain, together, tmp_path):
    done = gantrain("sample", run, "--sheet", "neighbours", "--num", 100, "--out", tmp_path / "one.png")
    again = together(2, "-m", "gantrain", "sample", run, "--sheet", "neighbours", "--num", 100, "--out", tmp_path / "two.png")
    assert again.stdout.replace("two.png", "one.png") == done.stdout
    assert (tmp_path / "two.png").read_bytes() == (tmp_path / "one.png").read_bytes()


def test_a_generator_that_repeats_the_data_is_detected(run, gantrain, reference, monkeypatch, tmp_path):
    real = to_float(reference[0])
    monkeypatch.setattr(
        ImageSource, "float_sampler", lambda self, generator: lambda start, count: real[torch.arange(start, start + count) % len(real)]
    )
    done = gantrain("sample", run, "--sheet", "neighbours", "--num", 64, "--out", tmp_path / "copies.png")
    assert "median distance 0 to the nearest real image" in done.stdout and "100.0% of them" in done.stdout


def test_a_generator_of_nan_has_no_neighbours(run, refused, monkeypatch, tmp_path):
    monkeypatch.setattr(ImageSource, "float_sampler", lambda self, generator: lambda start, count: torch.full((count, 1, 16, 16), math.nan))
    assert "ema generates nan or infinity, so it has no neighbours" in refused(
        "sample", run, "--sheet", "neighbours", "--num", 4, "--out", tmp_path / "x.png"
    )


# ---- walks -----------------------------------------------------------------------------------------------------------


def tiles(frame: torch.Tensor) -> torch.Tensor:
    return torch.stack([frame[2 + 50 * (i // 2) :, 2 + 50 * (i % 2) :][:48:3, :48:3] for i in range(3)])


def test_a_walk_is_a_loop_of_frames_as_gif(run, gantrain, tmp_path):
    """Exact grey levels and duration, looping forever; the last frame is one step from the first."""
    done = gantrain("walk", run, "--num", 3, "--frames", 12, "--labels", "4,9", "--out", tmp_path / "walk.gif")
    assert f"a loop of 12 frames, 0.5 s, of 3 walks of ema in {tmp_path}/walk.gif" in done.stdout
    film, frames, durations = Image.open(tmp_path / "walk.gif"), [], []
    assert film.n_frames == 12 and film.info["loop"] == 0 and film.size == (102, 102)
    for i in range(12):
        film.seek(i)
        frames.append(torch.from_numpy(np.array(film.convert("L"))))
        durations.append(film.info["duration"])
    assert sum(durations) == 500 and set(durations) == {40, 50}  # a GIF counts in hundredths of a second
    generator = library.load_generator(run)
    z = latents(generator, 6)
    for i, frame in enumerate(frames):
        angle = 2 * math.pi * i / 12
        assert near(tiles(frame), to_uint8(generator(math.cos(angle) * z[::2] + math.sin(angle) * z[1::2], torch.tensor([4, 9, 4])))[:, 0])
    steps = torch.stack([(a.float() - b.float()).norm() for a, b in zip(frames, [*frames[1:], frames[0]])])
    assert steps.min() > 0 and steps[-1] <= steps[:-1].max() * 1.5


def test_a_walk_as_mp4_is_read_back(run, gantrain, tmp_path):
    """H.264 in yuv420p with all frames, close to their grey levels."""
    import av

    gantrain("walk", run, "--num", 3, "--frames", 6, "--fps", 12, "--labels", "4,9", "--out", tmp_path / "walk.mp4")
    with av.open(str(tmp_path / "walk.mp4")) as film:
        stream = film.streams.video[0]
        frames = [frame.to_ndarray(format="gray") for frame in film.decode(stream)]
        assert stream.codec_context.name == "h264" and stream.codec_context.pix_fmt == "yuv420p" and stream.average_rate == 12
    assert len(frames) == 6 and frames[0].shape == (102, 102)
    generator = library.load_generator(run)
    z = latents(generator, 6)
    expected = to_uint8(generator(z[::2], torch.tensor([4, 9, 4])))[:, 0]
    assert (tiles(torch.from_numpy(frames[0])).float() - expected.float()).abs().mean() < 6


def test_films_of_colours_and_odd_sizes(tmp_path):
    """Colours are preserved approximately, and an odd side is padded with one pixel of white."""
    import av

    from gantrain.commands.walk import write_gif, write_mp4

    pictures = [Image.new("RGB", (33, 17), colour) for colour in ((200, 30, 30), (30, 30, 200))]
    write_gif(iter(pictures), 2, 10, tmp_path / "a.gif")
    write_mp4(av, iter(pictures), 10, tmp_path / "a.mp4")
    film = Image.open(tmp_path / "a.gif")
    for i, picture in enumerate(pictures):
        film.seek(i)
        assert np.abs(np.array(film.convert("RGB")).astype(int) - np.array(picture)).max() <= 3
    with av.open(str(tmp_path / "a.mp4")) as video:
        frames = [frame.to_ndarray(format="rgb24").astype(int) for frame in video.decode(video=0)]
    assert len(frames) == 2 and frames[0].shape == (18, 34, 3)
    for frame, picture in zip(frames, pictures):
        assert np.abs(frame[2:14, 2:30] - np.array(picture)[2:14, 2:30]).max() < 12


# ---- refusals --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "arguments, words",
    every_third(
        [
            (["sample", "--sheet", "clases"], "--sheet: there is no sheet 'clases'; did you mean 'classes'?"),
            (["sample", "--sheet", "z", "--out", "there/"], "--out: a sheet of kind z must be a .png, got 'there/'"),
            (["sample", "--sheet", "classes", "--out", "x.npz"], "--out: a sheet of kind classes must be a .png or a folder/, got 'x.npz'"),
            (["sample", "--sheet", "classes", "--num", "3"], "--num: 3 does not apply to --sheet classes; use --per-class"),
            (["sample", "--sheet", "classes", "--per-class", "0"], "--per-class: must be at least 1, got 0"),
            (["sample", "--sheet", "z", "--num", "0"], "--num: must be at least 1, got 0"),
            (["sample", "--per-class", "3"], "--per-class: 3 only applies to --sheet classes"),
            (["sample", "--sheet", "averages", "--average", "ema,emma"], "no average 'emma' at 0.048 kimg; did you mean 'ema'?"),
            (["sample", "--sheet", "neighbours", "--labels", "10"], "--labels: there is no class 10; the run has classes 0 to 9"),
            (["sample", "--sheet", "z", "--truncation", "inf"], "--truncation: must be above 0, got inf"),
            (
                ["sample", "--out", "x.gif"],
                "--out: 'x.gif' is not a .png, an .npz or a folder/; use 'x.png' for a grid, 'x/' for numbered files, 'x.npz' for arrays",
            ),
            (["walk", "--truncation", "0"], "--truncation: must be above 0, got 0"),
            (["walk", "--truncation", "nan"], "--truncation: must be above 0, got nan"),
            (["walk", "--frames", "1"], "--frames: must be at least 2, got 1"),
            (["walk", "--num", "0"], "--num: must be at least 1, got 0"),
            (["walk", "--fps", "0"], "--fps: must be at least 1, got 0"),
            (["walk", "--fps", "60"], "--fps: a .gif plays at most 50 frames per second, got 60; use a lower value, or an .mp4"),
            (["walk", "--labels", "0,10"], "--labels: there is no class 10; the run has classes 0 to 9"),
            (["walk", "--average", "swaa"], "no average 'swaa' at 0.048 kimg; did you mean 'swa'?"),
            (["walk", "--out", "walk.avi"], "--out: must be a .gif or .mp4, got 'walk.avi'; use 'walk.gif'"),
            (["walk", "--out", "there/walk"], "--out: must be a .gif or .mp4, got 'there/walk'; use 'there/walk.gif'"),
        ]
    ),
)
def test_impossible_arguments_are_refused_in_one_line(arguments, words, run, tmp_path, monkeypatch, refused):
    monkeypatch.setattr("conftest.ROOT", tmp_path)  # the working directory of commands
    verb, *rest = arguments
    assert words in refused(verb, run, *rest)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("verb", ["sample", "walk"])
def test_a_folder_that_is_not_a_run_is_refused(verb, refused, tmp_path):
    assert "is not a run folder (it has no config.yaml); pass the run_dir of a `gantrain train`" in refused(verb, tmp_path)


def test_an_mp4_without_pyav_says_what_to_install(run, refused, monkeypatch, tmp_path):
    real = builtins.__import__

    def without(name, *arguments, **kwargs):
        if name == "av":
            raise ImportError("No module named 'av'")
        return real(name, *arguments, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without)
    words = refused("walk", run, "--out", tmp_path / "walk.mp4")
    assert "--out: an .mp4 needs PyAV (No module named 'av'); run pip install 'gantrain[video]', or use a .gif" in words
    assert list(tmp_path.iterdir()) == []


def test_an_older_picture_survives_a_failed_write(run, refused, monkeypatch, tmp_path):
    """Files are written under another name until they are complete."""
    shutil.copy(ROOT / "docs" / "digits_samples.png", tmp_path / "walk.gif")
    monkeypatch.setattr(
        "gantrain.commands.walk.make_grid", lambda images, columns, scale: (_ for _ in ()).throw(OSError(28, "No space left on device"))
    )
    assert "walk.gif: No space left on device" in refused("walk", run, "--out", tmp_path / "walk.gif")
    assert [p.name for p in tmp_path.iterdir()] == ["walk.gif"] and (tmp_path / "walk.gif").read_bytes() == (
        ROOT / "docs" / "digits_samples.png"
    ).read_bytes()
