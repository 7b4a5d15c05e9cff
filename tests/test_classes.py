"""Class names: from the data into a run, and back as labels, headings and attributes."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT, TINY, error_of, lines_of
from PIL import Image

import gantrain as library
from gantrain.data import Folder, ImageSet, Packed, pack, prepare
from gantrain.data.imageset import printable
from gantrain.errors import UserError
from gantrain.run_folder import checkpoint, record
from gantrain.run_folder.best_generator import candidates, export
from gantrain.run_folder.checkpoint import Snapshot
from gantrain.sampling.choice import Choice
from gantrain.sampling.classes import Classes
from gantrain.sampling.sheets import WIDEST, Sheet, can_draw, fit_words, make_grid, make_labelled_grid, read_side_by_side, save_side_by_side
from gantrain.training.inputs import Inputs

CPU = torch.device("cpu")
FLAGS = Classes(4, ("Birds", "Doe, John", "Flags", "café"), (3, 4, 5, 6), "runs/a")
NUMERALS = Classes(3, ("10", "2", "30"))  # sorted as text, like folders
PADDED = Classes(3, ("01", "02", "x"))


def set_of(names: list[str], **more) -> ImageSet:
    """Two images of each class."""
    labels = torch.arange(2 * len(names)) % len(names)
    return ImageSet("some", labels, names, 1, 8, torch.arange(len(labels) * 64, dtype=torch.uint8).view(-1, 1, 8, 8), **more)


def folder_of(root: Path, *names: bytes | str) -> Path:
    """Images of 16x16 pixels in one folder for each class."""
    generator = np.random.default_rng(0)
    for name in map(os.fsencode, names):
        folder = os.path.join(os.fsencode(root), name)
        os.makedirs(folder)
        for i in range(4):
            with open(os.path.join(folder, b"%d.png" % i), "wb") as file:
                Image.fromarray(generator.integers(0, 255, (16, 16, 3), dtype=np.uint8)).save(file, "PNG")
    return root


# ---- labels by name and number ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("classes", "given", "labels"),
    [
        (FLAGS, ["Flags,Birds"], [2, 0]),
        (FLAGS, ["flags, 3 ,BIRDS"], [2, 3, 0]),
        (FLAGS, ["cafe\u0301"], [3]),  # the accent as macOS writes it
        (FLAGS, ["Doe, John"], [1]),
        (FLAGS, ['"Doe, John",0'], [1, 0]),
        (FLAGS, ["Doe, John", "0,0"], [1, 0, 0]),
        (FLAGS, [1, 2], [1, 2]),  # from Python
        (FLAGS, ["number:2,name:Birds"], [2, 0]),
        (Classes(4), ["3,0"], [3, 0]),
        (Classes(10, tuple("0123456789")), ["3,8"], [3, 8]),
        (NUMERALS, ["10,30"], [0, 2]),  # no class has these numbers
        (NUMERALS, ["0,1"], [0, 1]),  # no class has these names
        (NUMERALS, ["name:2", "number:2"], [1, 2]),
        (NUMERALS, [2], [2]),
        (Classes(2, ("00", "01")), ["1,00"], [1, 0]),
        (Classes(2, ("name:x", "x")), ["name:x"], [0]),
    ],
)
def test_labels_are_names_numbers_or_both(classes, given, labels):
    assert classes.parse(given) == labels


@pytest.mark.parametrize(
    ("classes", "text", "words"),
    [
        (FLAGS, "Flegs", "no class 'Flegs'; did you mean 'Flags'?; `gantrain sample runs/a --classes` lists them"),
        (FLAGS, "trees", "no class 'trees'; `gantrain sample runs/a --classes` lists them"),
        (FLAGS, "Doe, John,0", "no class 'Doe'; quote a name that contains a comma;"),
        (FLAGS, "4", "there is no class 4; the run has classes 0 to 3"),
        (FLAGS, "-1", "there is no class -1; the run has classes 0 to 3"),
        (FLAGS, "0,,3", "'0,,3' has an empty class"),
        (FLAGS, "", "'' has an empty class"),
        (FLAGS, "name:4", "there is no class '4'"),
        (FLAGS, "number:Flags", "'Flags' is not a number"),
        (NUMERALS, "2", "2 is both the name of class 1 and the number of class '30'; write name:2 or number:2"),
        (PADDED, "1", "1 is both the name of class 0 and the number of class '02'; write name:01 or number:1"),
        (PADDED, "01", "01 is both the name of class 0 and the number of class '02'; write name:01 or number:1"),
        (Classes(3, ("US", "us", "x")), "Us", "'Us' could be any of the classes 0 ('US'), 1 ('us'); write number:0"),
        (Classes(3, ("x", "x", "y")), "x", "'x' could be any of the classes 0 ('x'), 1 ('x'); write number:0"),
        (Classes(4), "Flags", "no class 'Flags'; the run knows no class names, so use numbers from 0 to 3"),
        (Classes(1), "Flags", "no class 'Flags'; the run has no classes"),
        (Classes(1), "1", "there is no class 1; the run has no classes"),
    ],
)
def test_what_is_no_class_or_could_be_two_is_refused(classes, text, words):
    with pytest.raises(UserError) as caught:
        classes.parse([text])
    assert str(caught.value).startswith("--labels: ") and words in str(caught.value)


def test_the_list_of_classes():
    assert FLAGS.listed().splitlines()[:2] == ["number  images  name", "     0       3  Birds"]
    assert "class names are unknown" in Classes(2).listed() and Classes(1).listed() == "the run has no classes"


# ---- names that the data knows ---------------------------------------------------------------------------------------


def test_names_are_valid_text_of_one_line():
    """Bytes that are no UTF-8, line breaks and control characters are escaped; anything that can be printed stays."""
    assert printable(os.fsdecode(b"caf\xe9")) == "caf\\xe9" and printable("a\nb\x1b") == "a\\nb\\x1b"
    assert [printable(name) for name in ("café", "日本", "Doe, John")] == ["café", "日本", "Doe, John"]


def test_a_folder_knows_its_names_whatever_they_are(tmp_path):
    odd = folder_of(tmp_path / "odd", b"caf\xe9", "日本", "2", "10")
    assert prepare(Folder(root=str(odd), resolution=16), CPU).known_names == ("10", "2", "caf\\xe9", "日本")
    numbers = prepare(Folder(root=str(folder_of(tmp_path / "numbers", "0", "1")), resolution=16), CPU)
    assert numbers.known_names == ("0", "1") and numbers.class_counts == [4, 4]
    assert prepare(Folder(root=str(odd), resolution=16, labels=False), CPU).known_names is None


def test_numbers_in_place_of_names_are_no_names(tmp_path):
    """Those of a StyleGAN zip, say; a prepared set keeps the difference."""
    for folder, images, names in (("a", set_of(["0", "1"]), None), ("b", set_of(["0", "1"], named=True), ("0", "1"))):
        assert images.known_names == names
        pack(images, tmp_path / folder, "test")
        assert prepare(Packed(root=str(tmp_path / folder), resolution=8), CPU).known_names == names
    pack(set_of(["ant", "bee"]), tmp_path / "c", "test")
    assert prepare(Packed(root=str(tmp_path / "c"), resolution=8), CPU).known_names == ("ant", "bee")


class Plain(torch.utils.data.Dataset):
    """A map-style data set of two classes, with whatever names."""

    num_classes = 2

    def __init__(self, **names):
        self.__dict__.update(names)

    def __len__(self) -> int:
        return 4

    def __getitem__(self, index: int) -> tuple[torch.Tensor, int]:
        return torch.arange(64, dtype=torch.uint8).view(1, 8, 8) + index, index % 2


class Source:
    """A data set from outside."""

    def __init__(self, built: object, **more):
        self.built = built
        self.__dict__.update(more)

    def build(self) -> object:
        return self.built


def test_a_plain_data_set_may_name_its_classes():
    """In `class_names`, or in `classes` as torchvision has them; runs from before then resume, since the listing stays."""
    nameless = prepare(Source(Plain()), CPU)
    for source in (
        Source(Plain(class_names=("ant", "bee"))),
        Source(Plain(classes=["ant", "bee"])),
        Source(Plain(), class_names=["ant", "bee"]),
    ):
        images = prepare(source, CPU)
        assert images.known_names == ("ant", "bee") and images.listing == nameless.listing
    for classes in (["ant", "bee", "cow"], [1, 2], "ab", None):
        assert prepare(Source(Plain(classes=classes)), CPU).known_names is None
    with pytest.raises(UserError, match="data: Source has 2 classes, but class_names has 3; name each class once"):
        prepare(Source(Plain(class_names=["ant", "bee", "cow"])), CPU)
    with pytest.raises(UserError, match="class_names"):
        prepare(Source(Plain(), class_names="ab"), CPU)


# ---- a run under other names -----------------------------------------------------------------------------------------


def test_a_resume_under_other_names_is_refused():
    """Labels would mean something else. Where either side knows no names, as in older runs, there is nothing to compare."""

    def resume(now: list[str], then: list[str] | None, **more) -> None:
        images = set_of(now, **more)
        inputs = Inputs(SimpleNamespace(run_dir=Path("runs/a"), changed_data=False), None, images, None, None, None)
        inputs.load(Snapshot(0, {}, {**inputs.state(), **({} if then is None else {"class_names": then})}), False)

    resume(["ant", "bee"], ["ant", "bee"])
    resume(["ant", "bee"], None)
    resume(["0", "1"], ["ant", "bee"])
    with pytest.raises(UserError, match="data: some has class 0 named 'bee', and runs/a was trained with 'ant' there, so its labels would"):
        resume(["bee", "ant"], ["ant", "bee"])
    with pytest.raises(UserError, match="has 3 classes, and runs/a was trained on 2"):
        resume(["ant", "bee", "cow"], ["ant", "bee"])


# ---- sheets ----------------------------------------------------------------------------------------------------------


def test_words_fit_their_width():
    """Smaller letters first, then fewer; letters that Pillow's font lacks come from another, and what no font has is a number."""
    assert fit_words("cat", 100)[0] == "cat"
    for words in ("a very long class name", "wwwwwwwwwwwwwwwwwwwwwwww"):
        shown, font = fit_words(words, 40)
        assert shown.endswith("...") and words.startswith(shown[:-3].rstrip()) and font.getlength(shown) <= 40
    assert can_draw("café") and can_draw("Ж") and not can_draw("日本")
    classes = Classes(3, ("café", "日本", "a very long class name"))
    assert [classes.heading(i, 12) for i in range(3)] == ["café", "no. 1", "a very lo..."] and Classes(3).heading(1) == "1"
    images = torch.zeros(2, 1, 16, 16, dtype=torch.uint8)
    assert make_labelled_grid(images, 1, ["x" * 500, "y"]).width <= WIDEST + 100


def test_the_names_of_columns_are_above_a_sheet_and_not_in_it(tmp_path):
    images = torch.arange(4, dtype=torch.uint8).mul(60)[:, None, None, None].expand(4, 3, 16, 16)
    grid = make_grid(images, 2)
    sheets = [Sheet(name, f"{name} at 1 kimg", grid, ("ant", "a rather long name")) for name in ("live", "ema")]
    save_side_by_side(sheets, tmp_path / "a.png")
    found = read_side_by_side(tmp_path / "a.png")
    assert [(one.name, one.caption, one.heads) for one in found] == [(one.name, one.caption, one.heads) for one in sheets]
    for one in found:
        assert np.array_equal(np.array(one.picture), np.array(grid))
        headed = np.array(one.headed)
        above = headed.shape[0] - grid.height
        assert np.array_equal(headed[above:], np.array(grid)) and headed[:above, : grid.width // 2].min() < 100
        assert headed[:above, grid.width // 2 :].min() < 100 and headed[:above, [0, -1]].min() == 255
    save_side_by_side([Sheet("live", "", grid)], tmp_path / "b.png")
    plain = read_side_by_side(tmp_path / "b.png")[0]
    assert plain.heads == () and plain.headed is plain.picture


# ---- a whole run -----------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def run(tmp_path_factory, gantrain) -> Path:
    folder = tmp_path_factory.mktemp("classes")
    data = folder_of(folder / "data", "Birds", "Flags", b"caf\xe9")
    brief = ["total_kimg=0.016", "eval.metrics=[fid]"]
    gantrain(
        "train", ROOT / "configs" / "digits.yaml", f"run_dir={folder / 'run'}", *TINY, *brief,
        "data={name: folder, resolution: 16}", f"data.root={data}",
    )  # fmt: skip
    return folder / "run"


def forgetful(run: Path, old: Path) -> Path:
    """A copy of a run from before class names were kept."""
    shutil.copytree(run, old)
    for path in (old / "checkpoints").iterdir():
        snapshot = checkpoint.read(path)
        state = {key: value for key, value in snapshot.state.items() if not key.startswith("class_")}
        checkpoint.write(path, snapshot.nimg, snapshot.tensors, state)
    return old


@pytest.mark.slow
def test_a_run_knows_its_class_names_without_its_data(run, gantrain, tmp_path):
    """The generator, the record, the sheets, the list, labels, an exported generator, and a run from before names were kept."""
    names = ("Birds", "Flags", "caf\\xe9")
    assert library.load_generator(run, batchnorm="copy").class_names == names
    assert record.read(run).facts["class_names"] == lines_of(run)[0]["class_names"] == list(names)
    assert {sheet.heads for sheet in read_side_by_side(max((run / "samples").glob("*.png")))} == {names}
    assert gantrain("sample", run, "--classes").stdout.splitlines()[2] == "     1       4  Flags"
    assert Choice(run, labels=["flags,caf\\xe9", 0]).open().classes.tolist() == [1, 2, 0]
    exported = export(run, next(candidates(record.read(run))), tmp_path)
    assert library.load_generator(exported, average="best", batchnorm="copy").class_names == names
    assert "--scale: does not apply to --classes" in error_of(gantrain("sample", run, "--classes", "--scale", 2, check=False))
    old = forgetful(run, tmp_path / "old")
    assert library.load_generator(old, batchnorm="copy").class_names is None
    assert "class names are unknown" in gantrain("sample", old, "--classes").stdout
    assert "the run knows no class names" in error_of(gantrain("sample", old, "--labels", "Flags", check=False))


@pytest.mark.slow
def test_names_draw_what_their_numbers_draw_and_are_shown(run, gantrain, tmp_path):
    """In arrays, sheets and the report; a run from before resumes, and knows its names then."""
    for out, labels in (("names", ["--labels", "flags,caf\\xe9"]), ("numbers", ["--labels", "1", "--labels", "2"])):
        gantrain("sample", run, "--num", 6, *labels, "--out", tmp_path / f"{out}.npz")
    found, expected = (np.load(tmp_path / f"{out}.npz") for out in ("names", "numbers"))
    assert found["arr_1"].tolist() == [1, 2] * 3 and np.array_equal(found["arr_0"], expected["arr_0"])
    gantrain("report", run, "--out", tmp_path / "page.html")
    assert "3: Birds, Flags, caf\\xe9" in (tmp_path / "page.html").read_text()
    gantrain("sample", run, "--sheet", "averages", "--num", 6, "--out", tmp_path / "a.png")
    assert {sheet.heads for sheet in read_side_by_side(tmp_path / "a.png")} == {("Birds", "Flags", "caf\\xe9")}
    old = forgetful(run, tmp_path / "old")
    gantrain("train", old / "config.yaml", f"run_dir={old}", "total_kimg=0.032")
    assert library.load_generator(old).class_names == ("Birds", "Flags", "caf\\xe9")
