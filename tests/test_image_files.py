"""Which files of a folder or zip are images and what their classes are, what is passed over or left out, and what decoding changes."""

from __future__ import annotations

import json
import os
import shutil
import struct
import zipfile
import zlib
from collections import Counter
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from conftest import ROOT
from PIL import Image
from test_data import CPU, cats_and_dogs, noise, write_images, write_zip

from gantrain.commands.evaluate import holds_images
from gantrain.data import Archive, Folder, Packed, RealBatches, audit, decode_all, intake, listing as listings, pack, prepare
from gantrain.data.decoding import Traits, traits_of, words_of_traits
from gantrain.data.listing import list_folder
from gantrain.errors import UserError
from gantrain.evaluation.image_files import open_folder, open_zip
from gantrain.evaluation.references import open_reference


def folder(root: Path, **more) -> Folder:
    return Folder(root=str(root), resolution=8, **more)


def notes(root: Path, **more) -> str:
    return "\n".join(folder(root, **more).build().notes)


def files_of(root: Path) -> list[str]:
    return list_folder(root).files


# ---- links -----------------------------------------------------------------------------------------------------------

PETS = [*(f"cat/{i}.png" for i in range(3)), *(f"dog/{i}.png" for i in range(4))]


@pytest.mark.parametrize(
    "name, target",
    [
        ("cat/self", "."),  # to the folder that it lies in
        ("cat/up", ".."),
        ("loop", "."),
        ("above", "../.."),
        ("cat/dogs", "../dog"),  # to a folder that is counted anyway
        ("bird", "dog"),  # a class that is another one's folder
        ("cat/circle", "circle"),  # to itself
        ("cat/gone", "nowhere"),
    ],
)
def test_a_link_does_not_multiply_images(tmp_path, name, target):
    root = cats_and_dogs(tmp_path)
    os.symlink(target, root / name)
    assert files_of(root) == PETS
    images = folder(root).build()
    assert images.class_names == ["cat", "dog"] and images.labels.tolist() == [0] * 3 + [1] * 4
    whole = "linked to a folder that is read anyway or that contains the link"
    reason = "linked to nothing" if name in ("cat/circle", "cat/gone") else whole
    assert f"passed over: 1 {reason} ({name})" in audit(prepare(folder(root), CPU))
    assert len(prepare(folder(root, labels=False), CPU)) == 7 and len(open_folder(root)) == 7


def test_links_to_each_other_and_a_chain_of_links(tmp_path):
    root = cats_and_dogs(tmp_path)
    os.symlink("../dog", root / "cat" / "a")
    os.symlink("../cat", root / "dog" / "b")
    os.symlink("two", root / "one")
    os.symlink("cat", root / "two")
    assert files_of(root) == PETS and "passed over: 4 linked to a folder that is read anyway" in notes(root)


def test_folders_elsewhere_are_followed_once(tmp_path):
    """A set made of links to class folders, through a root that is itself a link; the image belongs to the first link."""
    store = cats_and_dogs(tmp_path / "store")
    root = tmp_path / "set"
    root.mkdir()
    for name, target in (("a", store / "dog"), ("b", store / "cat"), ("c", store / "cat")):
        os.symlink(target, root / name)
    os.symlink(root, tmp_path / "link")
    images = prepare(folder(tmp_path / "link"), CPU)
    assert images.class_names == ["a", "b"] and images.labels.tolist() == [0] * 4 + [1] * 3
    assert "followed 2 links to folders elsewhere" in audit(images) and "read anyway or that contains the link (c)" in audit(images)
    assert images.fingerprint == prepare(folder(root), CPU).fingerprint
    os.symlink(root, store / "cat" / "back")  # what is followed leads back
    assert len(folder(root).build()) == 7


def test_a_link_to_a_file_is_an_image_of_its_own_and_said_if_its_target_is_in_the_set(tmp_path):
    store, root = cats_and_dogs(tmp_path / "store"), cats_and_dogs(tmp_path)
    os.symlink(store / "cat" / "0.png", root / "cat" / "other.png")
    assert len(folder(root).build()) == 8 and not notes(root)
    os.symlink("0.png", root / "cat" / "again.png")
    os.symlink(store / "cat" / "0.png", root / "dog" / "third.png")
    os.link(root / "dog" / "1.png", root / "dog" / "hard.png")  # a file like any other
    assert len(folder(root).build()) == 11
    assert "links to a file that is also listed under another name: 2; each counts as an image" in notes(root)


@pytest.mark.parametrize("deep", ["sub", "sub/deeper"])
def test_a_folder_that_is_read_under_another_name_is_said(tmp_path, deep):
    """Class d loses the images of its sub-folder to class c, whichever is inside the other."""
    outside = write_images(tmp_path / "ext", ["0.png", *(f"{deep}/{i}.png" for i in range(4))])
    root = write_images(tmp_path / "set", ["a/0.png"])
    os.symlink(outside / "sub", root / "c")
    os.symlink(outside, root / "d")
    images = prepare(folder(root), CPU)
    assert images.class_counts == [1, 4, 1]
    assert "passed over: 4 in folders that are read under another name (d/sub, read as c 4)" in audit(images)


def test_hard_links_are_said(tmp_path):
    root = cats_and_dogs(tmp_path)
    os.link(root / "cat" / "0.png", root / "dog" / "again.png")
    os.link(root / "cat" / "0.png", root / "dog" / "third.png")
    os.link(root / "cat" / "1.png", tmp_path / "outside.png")  # only one name is in the set
    words = "further hard links to a file that is also listed under another name: 2; each counts as an image"
    assert words in notes(root) and any(words in line for line in open_folder(root).notes) and len(folder(root).build()) == 9
    (root / "dog" / "again.png").unlink()
    (root / "dog" / "third.png").unlink()
    assert not notes(root)


def test_an_image_that_is_a_broken_link_is_one_that_cannot_be_read(tmp_path):
    root = cats_and_dogs(tmp_path)
    os.symlink("/nowhere/9.png", root / "dog" / "9.png")
    with pytest.raises(UserError, match=r"dog/9\.png: does not decode as an image \(a link to /nowhere/9\.png, which does not exist\)"):
        prepare(folder(root), CPU)
    images = prepare(folder(root, on_error="skip"), CPU)
    assert len(images) == 7 and "left out: 1 image that cannot be read" in audit(images)


def test_a_folder_that_cannot_be_listed_is_not_taken_for_empty(tmp_path, monkeypatch):
    root, whole = cats_and_dogs(tmp_path), os.scandir

    def closed(path):
        if str(path).endswith("dog"):
            raise PermissionError(13, "Permission denied")
        return whole(path)

    monkeypatch.setattr(listings.os, "scandir", closed)
    with pytest.raises(UserError, match=r"pets/dog: cannot be listed \(Permission denied\); make it readable or move it away"):
        folder(root).build()


def test_special_files_are_not_opened(tmp_path):
    root = cats_and_dogs(tmp_path)
    os.mkfifo(root / "cat" / "pipe.png")  # reading it would wait for ever
    assert files_of(root) == PETS and "passed over: 1 neither file nor folder (cat/pipe.png)" in notes(root)


def test_names_in_a_zip_that_occur_twice_count_once(tmp_path):
    path = write_zip(tmp_path / "a.zip", cats_and_dogs(tmp_path))
    (tmp_path / "new.png").write_bytes((tmp_path / "pets" / "dog" / "3.png").read_bytes())
    with zipfile.ZipFile(path, "a") as opened, pytest.warns(UserWarning, match="Duplicate name"):
        opened.write(tmp_path / "new.png", "cat/0.png")
    images = prepare(Archive(root=str(path), resolution=8), CPU)
    assert len(images) == 7 and torch.equal(images.pixels[0], images.pixels[6])  # the last one, as when it is unpacked
    assert "further entries of the zip under a name that it already has: 1; the last of each name counts" in audit(images)
    assert len(open_zip(path)) == 7


def test_links_in_a_zip_are_passed_over(tmp_path):
    path = write_zip(tmp_path / "a.zip", cats_and_dogs(tmp_path))
    link = zipfile.ZipInfo("cat/link.png")
    link.external_attr = 0o120777 << 16
    with zipfile.ZipFile(path, "a") as opened:
        opened.writestr(link, "0.png")
    images = prepare(Archive(root=str(path), resolution=8), CPU)
    assert len(images) == 7 and "passed over: 1 linked in the zip, which is not followed (cat/link.png)" in audit(images)


# ---- what is not an image --------------------------------------------------------------------------------------------

JUNK = {
    "__MACOSX/cat/._0.png": "__MACOSX",
    "__MACOSX/dog/x.png": "__MACOSX",
    "cat/.ipynb_checkpoints/0-checkpoint.png": ".ipynb_checkpoints",
    "cat/.thumbnails/0.png": ".thumbnails",
    "dog/@eaDir/0.png/SYNOPHOTO_THUMB_M.jpg": "@eaDir",
    ".git/objects/1.png": ".git",
}
LITTER = ["cat/.DS_Store", "cat/._1.png", "dog/Thumbs.db", "desktop.ini", ".hidden.png"]
OTHERS = ["cat/notes.txt", "README", "dog/list.csv", "dog/more.csv"]


def with_litter(root: Path) -> Path:
    for name in [*JUNK, *LITTER, *OTHERS]:
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        (root / name).write_bytes(b"not an image")
    return root


def test_what_other_programs_leave_behind_is_passed_over_and_counted(tmp_path, monkeypatch):
    monkeypatch.setattr(listings, "EXTENSIONS", frozenset(listings.PILLOW))
    root = with_litter(cats_and_dogs(tmp_path))
    (root / "cat" / "x.heic").write_bytes(b"of a telephone")
    images = prepare(folder(root), CPU)
    assert files_of(root) == PETS and images.class_names == ["cat", "dog"]
    found = list_folder(root).passed
    assert found["in folders of other programs"] == Counter(JUNK.values())
    assert found["hidden or left by other programs"] == Counter([".DS_Store", "._1.png", "Thumbs.db", "desktop.ini", ".hidden.png"])
    assert found["without the extension of an image"] == Counter({".txt": 1, "no extension": 1, ".csv": 2})
    text = audit(images)
    assert "passed over: 6 in folders of other programs (__MACOSX 2, " in text and "5 hidden or left by other programs (" in text
    assert "4 without the extension of an image (.csv 2, " in text
    assert "1 unreadable for this Pillow until you pip install 'pillow-heif' (.heic)" in text
    pictures = open_folder(root)
    assert len(pictures) == 7 and any("passed over: 6 in folders of" in line for line in pictures.notes)
    write_images(root, ["dog/7.png"])
    assert len(open_reference(root, None, CPU).take(0, 8)) == open_reference(root, None, CPU).count == 8


def test_a_zip_is_listed_as_its_folder_is(tmp_path):
    root = with_litter(cats_and_dogs(tmp_path))
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as opened:
        for file in sorted(root.rglob("*")):
            opened.write(file, file.relative_to(root))
    images = prepare(Archive(root=str(path), resolution=8), CPU)
    of_folder = prepare(folder(root), CPU)
    assert torch.equal(images.pixels, of_folder.pixels) and images.class_names == of_folder.class_names
    assert torch.equal(images.labels, of_folder.labels) and images.known_names == ("cat", "dog")
    assert "6 in folders of other programs" in audit(images) and "4 without the extension of an image (.csv 2" in audit(images)
    assert len(open_zip(path)) == 7


@pytest.mark.parametrize("around", ["pets/", "download/pets/", "./pets/"])
def test_a_folder_around_the_classes_in_a_zip_is_passed_through(tmp_path, around):
    root, path = cats_and_dogs(tmp_path), tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as opened:
        for file in sorted(root.rglob("*.png")):
            opened.writestr(around + str(file.relative_to(root)), file.read_bytes())
        opened.writestr("__MACOSX/pets/cat/._0.png", b"x")
    images = prepare(Archive(root=str(path), resolution=8), CPU)
    assert images.class_names == ["cat", "dog"] and images.labels.tolist() == [0] * 3 + [1] * 4
    assert "lies around the classes" in audit(images)


def test_extensions_in_any_case_and_those_of_jpeg(tmp_path):
    root = cats_and_dogs(tmp_path)
    for name in ("a.jfif", "b.JPE", "c.JPG", "d.JPeG"):
        Image.fromarray(noise(8, 8, 3)).save(root / "cat" / name, "JPEG")
    assert len(folder(root).build()) == 11 and len(prepare(folder(root), CPU)) == 11
    only = tmp_path / "only"
    only.mkdir()
    shutil.copy(root / "cat" / "a.jfif", only / "a.jfif")
    assert holds_images(only) and len(open_folder(only)) == 1


def test_avif_is_read_where_pillow_can(tmp_path, monkeypatch):
    from PIL import features

    (tmp_path / "a").mkdir()
    if features.check("avif"):
        Image.fromarray(np.full((16, 16, 3), 200, np.uint8)).save(tmp_path / "a" / "x.avif", quality=100)
        assert (folder(tmp_path, labels=False).build()[0][0].float() - 200).abs().max() <= 2
    else:
        (tmp_path / "a" / "x.avif").write_bytes(b"avif")
    monkeypatch.setattr(listings, "EXTENSIONS", frozenset(listings.PILLOW))
    words = r"contains no images \(.*\); passed over: 1 unreadable for this Pillow until you pip install 'pillow>=11.3' \(\.avif\)"
    with pytest.raises(UserError, match=words):
        folder(tmp_path).build()


def test_images_outside_the_class_folders_are_counted(tmp_path):
    """In a folder and in a zip; `labels: false` takes them."""
    root = write_images(cats_and_dogs(tmp_path), ["preview.png", "banner.png"])
    path = write_zip(tmp_path / "a.zip", root)
    for source in (folder(root), Archive(root=str(path), resolution=8)):
        images = prepare(source, CPU)
        assert len(images) == 7 and images.class_names == ["cat", "dog"]
        assert "passed over: 2 outside the class folders (banner.png, preview.png)" in audit(images)
    assert len(folder(root, labels=False).build()) == len(Archive(root=str(path), labels=False).build()) == 9


def test_names_that_are_not_utf8(tmp_path):
    root = cats_and_dogs(tmp_path)
    strange = os.fsencode(root) + b"/dog/caf\xe9.png"
    with open(strange, "wb") as file:
        file.write((root / "dog" / "0.png").read_bytes())
    images = prepare(folder(root), CPU)
    assert len(images) == 8
    with open(strange, "wb") as file:
        file.write(b"no image")
    with pytest.raises(UserError) as caught:
        prepare(folder(root), CPU)
    assert r"dog/caf\xe9.png: does not decode" in str(caught.value)
    audit(prepare(folder(root, on_error="skip"), CPU)).encode()


@pytest.mark.slow
def test_what_was_passed_over_stands_beside_scores(tmp_path):
    """In `gantrain evaluate`, `gantrain reference` and `gantrain.evaluate`, of both the images and the reference."""
    import gantrain as library
    from gantrain.commands.evaluate import evaluate_images
    from gantrain.commands.reference import write_reference

    fake, real = (write_images(tmp_path / name, [f"{i:02}.png" for i in range(20)]) for name in ("fake", "real"))
    (fake / ".DS_Store").write_bytes(b"x")
    os.symlink(".", real / "self")
    settings = ["eval.metrics=[is]", "eval.features.name=digits", "eval.is_splits=1"]
    text, _ = evaluate_images(fake, str(real), None, None, settings)
    of_fake = "passed over: 1 hidden or left by other programs (.DS_Store)"
    of_real = "reference: passed over: 1 linked to a folder that is read anyway or that contains the link (self)"
    assert f"{fake}: 20 images against real (20 images)\n{fake}: {of_fake}\n{of_real}\n" in text
    assert of_real in write_reference(real, tmp_path / "real.npz", True, settings)[0]
    with pytest.warns(UserWarning) as said:
        library.evaluate(fake, real, metrics=("is",), features="digits")
    assert {f"fake: {of_fake}", of_real} <= {str(one.message) for one in said}


# ---- folders that are not classes ------------------------------------------------------------------------------------


def tree(root: Path, *names: str) -> Path:
    return write_images(root, [f"{name}/{i}.png" for name in names for i in range(2)])


@pytest.mark.parametrize(
    "names, best",
    [
        (["train/cat", "train/dog", "val/cat", "val/dog"], "train"),
        (["Train/cat", "Train/dog", "Test/cat", "Test/dog"], "Train"),
        (["train/cat", "train/dog", "validation/cat", "test/dog", "extra"], "train"),  # beside another folder
        (["training_set/cats", "training_set/dogs", "test_set/cats", "test_set/dogs"], "training_set"),
        (["val/cat", "val/dog", "test/cat"], "val"),  # without train: the largest
        (["train/n01/images", "train/n02/images", "val/images", "test/images"], "train"),  # Tiny ImageNet
        (["ILSVRC/Data/CLS-LOC/train/n01", "ILSVRC/Data/CLS-LOC/train/n02", "ILSVRC/Data/CLS-LOC/val"], "ILSVRC/Data/CLS-LOC/train"),
        (["train2017/a", "val2017/a", "val2017/b"], "train2017"),
        (["images/train", "images/val"], "images/train"),  # of detectors, whose labels are files
        (["seg_train/cat", "seg_train/dog", "seg_test/cat", "seg_test/dog"], "seg_train"),
        (["cifar-train/cat", "cifar-train/dog", "cifar-test/cat"], "cifar-train"),
        (
            ["ILSVRC2012_img_val/cat", "ILSVRC2012_img_val/dog", "ILSVRC2012_img_train/cat", "ILSVRC2012_img_train/dog"],
            "ILSVRC2012_img_train",
        ),
        (["1_train/cat", "1_train/dog", "2_val/cat", "2_val/dog"], "1_train"),
        (["imagesTr/cat", "imagesTr/dog", "imagesTs/cat", "imagesTs/dog"], "imagesTr"),
        (["TestImages/cat", "TestImages/dog", "TrainImages/cat", "TrainImages/dog"], "TrainImages"),
        (["hold-out/cat", "hold-out/dog", "train/cat", "train/dog"], "train"),
        (["train/cat", "train/dog", "rest/cat", "rest/dog"], "train"),  # known by the same folders
    ],
)
def test_the_parts_of_a_data_set_are_not_its_classes(tmp_path, names, best):
    root = tree(tmp_path / "set", *names)
    (root / "Annotations").mkdir()
    with pytest.raises(UserError, match="are parts of a data set and not classes") as caught:
        folder(root).build()
    assert f"; set data.root={root / best}" in str(caught.value)
    assert prepare(folder(root / best, labels=False), CPU).num_classes == 1
    path = write_zip(tmp_path / "a.zip", root)
    with pytest.raises(UserError, match=f"are parts of a data set and not classes; make a zip of its folder '{best}' alone"):
        Archive(root=str(path)).build()


def test_images_of_several_parts_without_classes_are_said(tmp_path):
    root = tree(tmp_path / "set", "train/cat", "train/dog", "val/cat", "val/dog")
    words = "warning: images of 'train' and 'val' are used together"
    assert words in notes(root, labels=False) and any(words in line for line in open_folder(root).notes)
    flat = tree(tmp_path / "flat", "train", "val")  # they may be classes
    assert "warning: classes are named 'train' and 'val'; if these are parts of a data set, use the folder of one" in notes(flat)


def test_a_folder_around_the_classes_is_named(tmp_path):
    """Also where the only part of a data set is `train`."""
    for around in ("pets", "train", "a/b"):
        root = tree(tmp_path / around.replace("/", "_"), f"{around}/cat", f"{around}/dog")
        with pytest.raises(UserError, match="has only one class") as caught:
            folder(root).build()
        assert f"set data.root={root / around}, whose sub-folders look like the classes, or set data.labels=false" in str(caught.value)


@pytest.mark.parametrize(
    "names, words",
    [
        (["bus", "car", "train"], ""),  # a class may be called train
        (["bus/red", "bus/blue", "train/steam", "train/diesel"], "all images lie deeper, in 4 folders inside the 2 class folders"),
        (["cat/train", "cat/test", "dog/train", "dog/test"], "warning: the classes contain 'test' and 'train'; images of all these parts"),
        (["images", "masks"], "warning: a class is named 'images' and 'masks'; the outermost folders are the classes"),
        (["cat/images", "dog/images"], ""),
        (["cat/front", "cat/side", "dog/front", "dog/side"], "the class folders 'cat' and 'dog' contains 'front' and 'side'; if those are"),
        (["fold1/cat", "fold1/dog", "fold2/cat", "fold2/dog"], "warning: each of the class folders 'fold1' and 'fold2' contains 'cat' and"),
        (
            ["bus/front", "bus/side", "car/front", "car/side", "train/front", "train/side"],
            "warning: each of the class folders 'bus', 'car' and",
        ),
        (
            ["test_tube/day", "test_tube/night", "train_station/day", "train_station/night"],
            "warning: each of the class folders 'test_tube' and",
        ),
        (["a/train/cat", "a/train/dog", "b/train/cat", "b/train/dog"], "warning: the classes contain 'train'; images of all these parts"),
        (["tr/x", "te/x"], ""),  # languages
    ],
)
def test_doubtful_classes_are_said(tmp_path, names, words):
    root = tree(tmp_path, *names)
    images = prepare(folder(root), CPU)
    assert images.class_names == sorted({name.split("/")[0] for name in names})
    assert (words in audit(images)) if words else not images.notes


def stylegan(root: Path, labels: object) -> Path:
    write_images(root, [f"0000{i}/img0000{i}{j}.png" for i in range(2) for j in range(4)])
    (root / "dataset.json").write_text(json.dumps({"labels": labels}))
    return root


LABELS = [[f"0000{i}/img0000{i}{j}.png", (i + j) % 3] for i in range(2) for j in range(4)]


def test_a_folder_of_stylegans_tool_has_its_own_labels(tmp_path):
    """As the same files in a zip, and in a prepared set."""
    root = stylegan(tmp_path / "set", LABELS)
    images = prepare(folder(root), CPU)
    assert images.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1] and images.class_names == ["0", "1", "2"] and images.known_names is None
    assert "labels come from dataset.json" in audit(images) and "passed over" not in audit(images)
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as opened:
        for file in sorted(root.rglob("*.*")):
            opened.write(file, Path("around") / file.relative_to(root))
    zipped = prepare(Archive(root=str(tmp_path / "a.zip"), resolution=8), CPU)
    assert torch.equal(zipped.labels, images.labels) and torch.equal(zipped.pixels, images.pixels)
    pack(folder(root).build(), tmp_path / "p", "set")
    packed = prepare(Packed(root=str(tmp_path / "p"), resolution=8), CPU)
    assert torch.equal(packed.labels, images.labels) and "labels come from dataset.json" in audit(packed)


@pytest.mark.parametrize(
    "content, words",
    [
        (
            '{"labels": [["00000/img00000.png", 0],]}',
            r"dataset\.json: is not valid JSON \(.*line 1 column.*\); fix it, or set data\.labels",
        ),
        ('{"labels": null}', r"has no labels \(dataset\.json contains null\); set data\.labels=false"),
        (
            '{"license": "MIT"}',
            r'dataset\.json: has no "labels", .*delete the file if the folders are the classes, or set data\.labels=false',
        ),
        ("[1]", 'has no "labels"'),
        (json.dumps({"labels": LABELS[1:]}), "1 images have no label in dataset.json, for example '00000/img000000.png'"),
        (json.dumps({"labels": [*LABELS, [LABELS[0][0], 2]]}), "gives '00000/img000000.png' two classes, 0 and 2; keep one of them"),
    ],
)
def test_labels_that_do_not_fit_are_refused_in_folder_and_zip_alike(tmp_path, content, words):
    root = stylegan(tmp_path / "set", LABELS)
    (root / "dataset.json").write_text(content)
    path = tmp_path / "a.zip"
    with zipfile.ZipFile(path, "w") as opened:
        for file in sorted(root.rglob("*.*")):
            opened.write(file, file.relative_to(root))
    for source in (folder(root), Archive(root=str(path))):
        with pytest.raises(UserError, match=words) as caught:
            source.build()
        assert "cannot be read as a zip" not in str(caught.value)
    assert len(folder(root, labels=False).build()) == len(Archive(root=str(path), labels=False).build()) == len(open_zip(path)) == 8


def zip_whole(path: Path, root: Path) -> Archive:
    """A zip of all files of a folder."""
    with zipfile.ZipFile(path, "w") as opened:
        for file in sorted(root.rglob("*.*")):
            opened.write(file, file.relative_to(root))
    return Archive(root=str(path), resolution=8)


@pytest.mark.parametrize(
    "spell", [lambda name: f"./{name}", lambda name: name.replace("/", "\\"), lambda name: ".\\" + name, lambda n: f"/{n}"]
)
@pytest.mark.parametrize("called", ["dataset.json", "DATASET.JSON"])
def test_other_spellings_of_the_labels_are_read(tmp_path, spell, called):
    root = stylegan(tmp_path / "set", [[spell(name), label] for name, label in LABELS])
    (root / "dataset.json").rename(root / called)
    for source in (folder(root), zip_whole(tmp_path / "a.zip", root)):
        images = source.build()
        assert images.labels.tolist() == [0, 1, 2, 0, 1, 2, 0, 1] and images.notes == ["labels come from dataset.json"]


def test_folders_of_stylegans_tool_without_labels_are_not_classes_without_a_word(tmp_path):
    root = stylegan(tmp_path / "set", LABELS)
    (root / "dataset.json").unlink()
    words = "warning: the classes are folders such as '00000' with 'img00000.png', as StyleGAN's data set tool numbers them, and those are"
    for source in (folder(root), zip_whole(tmp_path / "a.zip", root)):
        assert any(line.startswith(words.replace("img00000", "img000000")) for line in source.build().notes)
    plain = tree(tmp_path / "plain", "00000", "00001")  # classes may be called so
    assert not notes(plain)


def test_labels_that_are_not_used_are_said(tmp_path):
    """One folder down, in a folder that must be named; of two sets in one folder; and inside a set that has its own."""
    stylegan(tmp_path / "one" / "mydata", LABELS)
    with pytest.raises(UserError) as caught:
        folder(tmp_path / "one").build()
    assert "has its labels one folder or more below, in mydata/dataset.json; set data.root=" in str(caught.value)
    assert zip_whole(tmp_path / "one.zip", tmp_path / "one").build().class_names == ["0", "1", "2"]
    for name in ("x", "y"):
        stylegan(tmp_path / "two" / name, LABELS)
    words = "warning: 'x/dataset.json' and 'y/dataset.json' are not used for labels, because they are not beside the folders of all images"
    for source in (folder(tmp_path / "two"), zip_whole(tmp_path / "two.zip", tmp_path / "two")):
        images = source.build()
        assert images.class_names == ["x", "y"] and words in images.notes
    root = stylegan(tmp_path / "inner", LABELS)
    shutil.copy(root / "dataset.json", root / "00000" / "dataset.json")
    for source in (folder(root), zip_whole(tmp_path / "inner.zip", root)):
        assert "warning: '00000/dataset.json' is not used for labels, because it is not beside the folders of all" in "\n".join(
            source.build().notes
        )


def test_labels_without_images_are_said(tmp_path):
    root = stylegan(tmp_path / "set", [*LABELS, ["00001/gone.png", 2]])
    assert "warning: dataset.json has 1 label without an image" in notes(root)


@pytest.mark.parametrize("root", [".", "../pets", "a/.."])
def test_a_folder_has_its_name_however_it_is_written(root, tmp_path, monkeypatch):
    at = tmp_path / "pets"
    (at / "a").mkdir(parents=True)
    Image.new("L", (8, 8)).save(at / "a" / "0.png")
    monkeypatch.chdir(at)
    assert folder(root, labels=False).build().name == "folder/pets"


def test_a_relative_root_says_where_it_was_looked_for(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    where = f"in {tmp_path}, where relative paths start"
    for source, words in (
        (Packed(root="data/p"), f"data.root: 'data/p' does not exist {where}; pass the folder of a prepared data set, or make one with"),
        (Folder(root="data/p"), f"data.root: 'data/p' is not a folder {where}; pass the folder that contains the images"),
        (Archive(root="p.zip"), f"data.root: 'p.zip' is not a file {where}; pass the path of a zip of images"),
    ):
        with pytest.raises(UserError) as caught:
            source.build()
        assert words in str(caught.value)
    (tmp_path / "p").mkdir()
    with pytest.raises(UserError, match="'p' is not a prepared data set .it has no head.json."):
        Packed(root="p").build()


# ---- images that cannot be read --------------------------------------------------------------------------------------


def with_broken(root: Path, cats: int = 90, first: int = 10, last: int = 70) -> Path:
    """A class with a row of unreadable files, and one of ten that are whole."""
    write_images(root, [*(f"cat/{i:03}.png" for i in range(cats)), *(f"dog/{i}.png" for i in range(10))])
    for i in range(first, last):
        (root / "cat" / f"{i:03}.png").write_bytes(b"no image")
    return root


@pytest.mark.parametrize("keep_in", ["host", "disk"])
def test_files_that_are_unreadable_before_a_run_are_left_out(tmp_path, monkeypatch, keep_in):
    """Sixty in a row, of which the next one used to stand 61 times in the set."""
    monkeypatch.setenv("GANTRAIN_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("gantrain.cache.FRESH", 0)  # nothing is kept of files that have just been written
    root = with_broken(tmp_path / "set")
    for _ in range(2):  # the second time, on disk, from the cache
        images = prepare(folder(root, on_error="skip", keep_in=keep_in), CPU)
        whole = [*range(10), *range(70, 100)]
        assert len(images) == 40 and images.labels.tolist() == [0] * 30 + [1] * 10 and images.left_out == list(range(10, 70))
        assert torch.equal(decode_all(images, range(40)) if keep_in == "disk" else images.pixels, decode_all(folder(root).build(), whole))
    text = audit(images)
    assert text.startswith("folder/set: 40 images, 2 classes (smallest 'dog' 10, largest 'cat' 30)")
    assert "left out: 60 images that cannot be read (" in text and "cat/010.png: does not decode" in text and "; and 57 more)" in text
    assert len(list((tmp_path / "cache").glob("looked-*"))) == 1 and intake.is_unchanged(images)
    reference = open_reference_of(images)
    assert len(torch.unique(reference.flatten(1), dim=0)) == 40
    whole_set = folder(root).build()
    assert images.listing == whole_set.listing  # so a run resumes once the files are repaired


def open_reference_of(images) -> torch.Tensor:
    from gantrain.evaluation.references import wrap_dataset

    return wrap_dataset(images, None).take(0, len(images))


def test_stand_ins_are_spread_over_the_class(tmp_path):
    """Files that break in a run: no image takes the place of more than a few, and always the same one of the same file."""
    root = with_broken(tmp_path / "set", last=10)
    images = prepare(folder(root, on_error="skip", keep_in="disk", workers=0), CPU)
    assert len(images) == 100 and not images.left_out
    for i in range(10, 40):
        (root / "cat" / f"{i:03}.png").unlink()
    readable = {decode_all(images, [i])[0].numpy().tobytes(): i for i in [*range(10), *range(40, 100)]}
    stands = [readable[images.fetch(i)[0].numpy().tobytes()] for i in range(10, 40)]
    assert all(i < 90 for i in stands) and max(Counter(stands).values()) <= 4  # 30 draws of 60; five of one have probability 5e-3
    assert len(set(stands)) > 15 and stands == [readable[images.fetch(i)[0].numpy().tobytes()] for i in range(10, 40)]
    of_reference = Counter(one.numpy().tobytes() for one in open_reference_of(images))
    assert max(of_reference.values()) <= 5


def test_a_run_keeps_to_the_images_that_it_began_with(tmp_path):
    """Order and labels stay, whether files are repaired or break after its beginning. A run of an earlier version left none out."""
    root = with_broken(tmp_path / "set")
    source = folder(root, on_error="skip", keep_in="disk", workers=0)
    began = prepare(source, CPU)
    state = {"data_listing": began.listing, "data_left_out": began.left_out}
    Image.fromarray(noise(8, 8, 3, seed=99)).save(root / "cat" / "010.png")  # repaired
    (root / "dog" / "3.png").write_bytes(b"broken now")
    again = prepare(source, CPU, run_state=state)
    assert again.left_out == began.left_out and torch.equal(again.labels, began.labels) and again.listing == began.listing
    words = "left out: 60 images that could not be read when the run began; 1 can be now, and a new run would use it; still 59 images that"
    text = audit(again)
    assert f"{words} cannot be read ({root}/cat/011.png" in text and "and 56 more)" in text
    assert "replaced by other images of their classes: 1 image" in text
    same = [i for i in range(40) if i != 33]
    assert torch.equal(decode_all(again, same), decode_all(began, same))
    in_memory = prepare(folder(root, on_error="skip"), CPU, run_state=state)
    assert torch.equal(in_memory.pixels, decode_all(again, range(40))) and in_memory.fingerprint == again.fingerprint
    assert len({began.fingerprint, again.fingerprint, prepare(source, CPU).fingerprint}) == 3
    earlier = prepare(source, CPU, run_state={"data_listing": began.listing})
    assert len(earlier) == 100 and earlier.replaced == [*range(11, 70), 93]
    assert prepare(source, CPU, run_state={"data_listing": "of other images", "data_left_out": [1, 2]}).left_out == [*range(11, 70), 93]


def test_left_out_images_that_have_all_been_repaired(tmp_path):
    root = with_broken(tmp_path / "set", cats=12, first=10, last=12)
    began = prepare(folder(root, on_error="skip"), CPU)
    for name in ("010.png", "011.png"):
        shutil.copy(root / "cat" / "000.png", root / "cat" / name)
    again = prepare(folder(root, on_error="skip"), CPU, run_state={"data_listing": began.listing, "data_left_out": began.left_out})
    assert again.notes == ["left out: 2 images that could not be read when the run began; all can be now, and a new run would use them"]


def test_an_unreadable_image_is_named_once_in_the_record_of_a_run(tmp_path):
    """Also by a later start, and even if other lines are in the record, or its end is torn."""
    from gantrain.training.inputs import Inputs

    said, events = [], []

    def record(nimg: int, event: str, image: str) -> dict:
        events.append(image)
        return {"nimg": nimg, "event": event, "image": image}

    tracker = SimpleNamespace(say=said.append, event=record)

    def start(*found: str) -> None:
        run = SimpleNamespace(nimg=0)
        Inputs(SimpleNamespace(tracker=tracker, run_dir=tmp_path), run, None, None, None, None).name_unreadable(list(found))

    start("a: broken", "b: broken", "a: broken")
    assert events == ["a: broken", "b: broken"] and len(said) == 2
    lines = [json.dumps({"nimg": 0, "event": "skipped", "image": one}) for one in events]
    (tmp_path / "metrics.jsonl").write_text("\n".join(['{"nimg": 0, "data/skipped": 2}', *lines, '{"event": "skipped", "ima']))
    start("a: broken", "c: broken", "b: broken")
    start()
    assert events[2:] == ["c: broken"] and said[2:] == ["data: skipped: c: broken"]


def test_the_stream_of_a_set_with_images_left_out(tmp_path):
    """Every epoch has each readable image once."""
    root = with_broken(tmp_path / "set")
    images = prepare(folder(root, on_error="skip", keep_in="disk"), CPU)
    batches = RealBatches(images, 0, 8, 0, 1, 0, CPU, workers=0)
    x = torch.cat([batches.next()[0] for _ in range(5)])
    batches.close()
    assert len(torch.unique(x.flatten(1), dim=0)) == 40 and not batches.skipped


@pytest.mark.parametrize("labels", [True, False])
def test_a_class_without_a_readable_image_is_an_error(tmp_path, labels):
    root = cats_and_dogs(tmp_path)
    for path in root.glob("dog/*" if labels else "*/*"):
        path.write_bytes(b"no image")
    count, of_class = (4, " of class 'dog'") if labels else (7, "")
    with pytest.raises(UserError, match=f"data: folder/pets: none of the {count} images{of_class} can be read \\(.*\\); replace them, or"):
        prepare(folder(root, on_error="skip", labels=labels), CPU)


@pytest.mark.parametrize("block", [8, pytest.param(512, marks=pytest.mark.slow)])
def test_a_prepared_set_leaves_out_what_cannot_be_read(tmp_path, monkeypatch, block):
    """Also if it is interrupted anywhere, and with the first and last images broken."""
    from gantrain.data import packed as packing

    for module in (packing, intake):
        monkeypatch.setattr(module, "BLOCK", block)
    root = with_broken(tmp_path / "set", cats=60, first=0, last=20)
    (root / "dog" / "9.png").write_bytes(b"no image")
    whole = decode_all(folder(root).build(), [*range(20, 60), *range(60, 69)])

    def source():
        images = folder(root).build()
        images.skips = True
        return images

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(packing, "settle", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        pack(source(), tmp_path / "p", "set")
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):  # the gaps are closed already
        patch.setattr(Path, "rename", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        assert pack(source(), tmp_path / "p", "set") == 0
    stopping = source()
    stopping.skips = False
    with pytest.raises(UserError, match="cat/000.png: does not decode"):
        pack(stopping, tmp_path / "p", "set")
    images = source()
    made = pack(images, tmp_path / "p", "set")
    assert 0 < made <= 49 and len(images) == 49 and len(images.skipped) == 21
    packed = prepare(Packed(root=str(tmp_path / "p"), resolution=8), CPU)
    assert torch.equal(packed.pixels, whole) and packed.labels.tolist() == [0] * 40 + [1] * 9
    assert (tmp_path / "p" / "images.npy").stat().st_size == 128 + 49 * 192
    assert "left out: 21 images that cannot be read" in audit(packed)
    packing.verify(tmp_path / "p", packed, packing.read_head(tmp_path / "p"), lambda it, total: it, always=True)


# ---- what decoding changes -------------------------------------------------------------------------------------------

GREY = np.arange(16, dtype=np.uint16).reshape(4, 4) * 4000  # 0 .. 60,000
TURNED = {  # EXIF's orientations, by NumPy: what is displayed of what is stored
    1: lambda x: x,
    2: lambda x: x[:, ::-1],
    3: lambda x: x[::-1, ::-1],
    4: lambda x: x[::-1],
    5: lambda x: x.T,
    6: lambda x: np.rot90(x, -1),
    7: lambda x: x[::-1, ::-1].T,
    8: lambda x: np.rot90(x),
}


def png16(path: Path, pixels: np.ndarray, colour: int) -> None:
    """Pillow cannot write PNGs with 16 bits a channel, so the chunks are written one by one."""
    height, width = pixels.shape[:2]
    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in pixels)
    chunks = ((b"IHDR", struct.pack(">IIBBBBB", width, height, 16, colour, 0, 0, 0)), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    parts = [struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks]
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))


def decoded(path: Path, channels: int = 1) -> np.ndarray:
    with Image.open(path) as opened:
        size = opened.size
    images = Folder(root=str(path.parent), resolution=size[0], channels=channels, labels=False).build()
    index = [images.decode.path(i).name for i in range(len(images))].index(path.name)
    return images.decode(index).numpy()[0 if channels == 1 else slice(None)]


@pytest.mark.parametrize("orientation", TURNED)
def test_the_orientation_of_16_bit_grey_is_obeyed_as_that_of_8_bit(tmp_path, orientation):
    exif = Image.Exif()
    exif[0x0112] = orientation
    eight = (GREY // 257).astype(np.uint8)
    Image.fromarray(GREY).save(tmp_path / "16.png", exif=exif)
    Image.fromarray(eight).save(tmp_path / "8.png", exif=exif)
    Image.fromarray(eight).convert("RGB").save(tmp_path / "8.webp", exif=exif, lossless=True)
    for name, compression in (("raw", None), ("lzw", "tiff_lzw")):
        Image.fromarray(GREY).save(tmp_path / f"16{name}.tif", tiffinfo={0x0112: orientation}, compression=compression)
        Image.fromarray(eight).save(tmp_path / f"8{name}.tif", tiffinfo={0x0112: orientation}, compression=compression)
    wide, narrow = TURNED[orientation](np.rint(GREY / 257)), TURNED[orientation](eight)
    for path in tmp_path.iterdir():
        assert np.array_equal(decoded(path), wide if path.name.startswith("16") else narrow), path.name
    assert np.array_equal(open_folder(tmp_path).take([0]).numpy()[0, 0], wide)


def test_16_bit_files_of_every_kind_keep_their_greys(tmp_path):
    """PGM of 16 and of 12 bits, big-endian TIFF, 12-bit TIFF, colour PNG."""
    eight = np.rint(GREY / 257).astype(np.uint8)
    (tmp_path / "a.pgm").write_bytes(b"P5\n4 4\n65535\n" + GREY.astype(">u2").tobytes())
    Image.frombytes("I;16B", (4, 4), GREY.astype(">u2").tobytes()).save(tmp_path / "b.tif")
    png16(tmp_path / "c.png", np.stack([GREY] * 3, -1), 2)
    twelve = np.rint(GREY * (4095 / 65535)).astype(np.uint16)
    (tmp_path / "d.pgm").write_bytes(b"P5\n4 4\n4095\n" + twelve.astype(">u2").tobytes())
    assert np.array_equal(decoded(tmp_path / "a.pgm"), eight) and np.array_equal(decoded(tmp_path / "b.tif"), eight)
    assert np.abs(decoded(tmp_path / "c.png").astype(int) - eight).max() <= 1
    assert np.abs(decoded(tmp_path / "d.pgm").astype(int) - eight).max() <= 1
    Image.new("F", (4, 4), 0.5).save(tmp_path / "e.tif")
    with pytest.raises(UserError, match=r"e\.tif: does not decode as an image \(32-bit pixels\)"):
        decoded(tmp_path / "e.tif")


@pytest.mark.parametrize("bits, factor", [(8, 256), (10, 64), (12, 16), (14, 4), (15, 2), (16, 0)])
@pytest.mark.parametrize("kind", ["grey", "colour", "zip", "picture"])
def test_16_bit_files_that_hold_fewer_bits_are_said(tmp_path, bits, factor, kind):
    root = tmp_path / "set"
    for name in ("a/x.png", "b/y.png"):
        (root / name).parent.mkdir(parents=True)
        values = (np.arange(64).reshape(8, 8) * (2**bits - 1) // 63).astype(np.uint16)
        png16(root / name, values, 0) if kind != "colour" else png16(root / name, np.stack([values] * 3, -1), 2)
    if kind == "picture":
        text = "\n".join(open_folder(root).notes)
    elif kind == "zip":
        text = "\n".join(prepare(Archive(root=str(write_zip(tmp_path / "a.zip", root)), resolution=8, channels=1), CPU).notes)
    else:
        text = "\n".join(prepare(folder(root, channels=1 if kind == "grey" else 3), CPU).notes)
    assert f"of 2 files looked at: 2 of 16 bits, divided by 257 (highest value {2**bits - 1:,} of 65,535)" in text
    words = (
        f"warning: the 16-bit files seem to hold {bits}-bit values, 0..{2**bits - 1:,}, so the images come out dark; multiply the values by"
    )
    assert (f"{words} {factor}, which spreads them over 16 bits" in text) if factor else "warning" not in text


@pytest.mark.parametrize(
    "highest, words",
    [
        ([4095] * 10 + [65535], "warning: 10 of 11 16-bit files stay below 4,096, as 12-bit values do, and come out dark; if they"),
        ([900, 3000, 4000, 65535, 65535], "3 of 5 16-bit files stay below 4,096, as 12-bit values do"),
        ([1023] * 3 + [20000], "3 of 4 16-bit files stay below 1,024, as 10-bit values do"),  # and not: all hold 15 bits
        ([900, 3000, 4000], "the 16-bit files seem to hold 12-bit values, 0..4,000"),
        ([20000, 65535], ""),  # a dark picture
        ([], ""),
    ],
)
def test_some_files_of_fewer_bits_are_counted(highest, words):
    text = "\n".join(words_of_traits([Traits(one, False, False) for one in highest]))
    assert words in text and ("warning" in text) == bool(words)


@pytest.mark.parametrize("bits, colour", [(1, 0), (2, 0), (4, 0), (8, 0), (16, 0), (8, 2), (16, 2)])
def test_a_value_that_a_png_declares_transparent_is_white(tmp_path, bits, colour):
    """Values 0 to 7 (of one bit: 0 and 1) of which one is transparent; the others by the rule of PNG, value / (2^bits - 1)."""
    levels = np.arange(8) % 2**bits
    clear = 1 if bits < 3 else 5
    values = levels * (2**bits // 8) if bits > 4 else levels
    stored, width = values, values.max() // 7 or 1
    if bits == 16:
        packed = np.repeat(stored[:, None], 3 if colour else 1, 1).astype(">u2").tobytes()
    elif bits == 8:
        packed = np.repeat(stored[:, None], 3 if colour else 1, 1).astype(np.uint8).tobytes()
    else:
        packed = np.packbits(np.unpackbits(stored.astype(np.uint8)[:, None], axis=1)[:, -bits:].reshape(-1)).tobytes()
    one = struct.pack(">H", int(clear * width if bits > 4 else clear)) * (3 if colour else 1)
    chunks = (
        (b"IHDR", struct.pack(">IIBBBBB", 8, 8, bits, colour, 0, 0, 0)), (b"tRNS", one),
        (b"IDAT", zlib.compress((b"\0" + packed) * 8)), (b"IEND", b""),
    )  # fmt: skip
    parts = [struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data)) for kind, data in chunks]
    (tmp_path / "a.png").write_bytes(b"\x89PNG\r\n\x1a\n" + b"".join(parts))
    expected = np.where(levels == clear, 255, np.rint(values * 255 / (2**bits - 1)))
    assert np.abs(decoded(tmp_path / "a.png")[0].astype(int) - expected).max() <= (1 if bits == 16 and colour else 0)
    assert np.array_equal(open_folder(tmp_path).take([0]).numpy()[0, 0], decoded(tmp_path / "a.png"))
    assert "1 with transparency, placed on white" in "\n".join(open_folder(tmp_path).notes)


def test_transparency_and_orientation_are_counted_in_the_audit(tmp_path):
    root = cats_and_dogs(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.new("RGBA", (8, 8), (255, 0, 0, 64)).save(root / "cat" / "a.png")
    Image.new("LA", (8, 8), (0, 128)).save(root / "cat" / "b.png")
    Image.new("P", (8, 8)).save(root / "cat" / "c.png", transparency=0)
    Image.new("RGB", (8, 8), (1, 2, 3)).save(root / "cat" / "d.png", exif=exif)
    text = audit(prepare(folder(root), CPU))
    assert "of 11 files looked at: 3 with transparency, placed on white; 1 turned upright as their EXIF data says" in text
    images = folder(root).build()
    soft = decode_all(images, [3, 4])[:, :, 0, 0].tolist()
    # Over white: red at 64/255 gives 255 in red and 191 in the others; black at 128/255 gives 127.
    assert soft == [[255, 191, 191], [127, 127, 127]]


def test_modes_that_become_rgb(tmp_path):
    """CMYK, one bit and a palette, by their known colours; in training and in scoring alike."""
    Image.new("CMYK", (8, 8), (0, 255, 255, 0)).save(tmp_path / "cmyk.tif")
    Image.new("1", (8, 8), 1).save(tmp_path / "one.png")
    palette = Image.new("P", (8, 8), 1)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.save(tmp_path / "palette.png")
    colours = [[255, 0, 0], [255, 255, 255], [10, 20, 30]]
    assert decode_all(folder(tmp_path, labels=False).build(), range(3))[:, :, 0, 0].tolist() == colours
    assert open_folder(tmp_path).take(range(3))[:, :, 0, 0].tolist() == colours
    assert words_of_traits([one for path in tmp_path.iterdir() if (one := traits_of(path.read_bytes()))]) == []


def test_the_listing_of_an_ordinary_folder_is_what_it_was(tmp_path):
    """Its digest is part of every checkpoint: the value is that of version 1's listing, computed here from its definition."""
    import hashlib

    root = write_images(tmp_path / "set", ["b/2.png", "b/deep/1.png", "b-c/x.PNG", "B/1.jpg", "b/deep.png"])
    images = folder(root).build()
    names = [b"B/1.jpg", b"b/2.png", b"b/deep/1.png", b"b/deep.png", b"b-c/x.PNG"]  # per class, sorted as paths
    inner = hashlib.sha256(b"RGB 8 LANCZOS" + b"\n".join(names)).hexdigest()
    outer = hashlib.sha256(b"3x8x8 ['B', 'b', 'b-c']" + np.array([0, 1, 1, 1, 2]).astype(np.int64).tobytes() + inner.encode())
    assert images.listing == outer.hexdigest() and ROOT.is_dir()
