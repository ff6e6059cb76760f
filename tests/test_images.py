"""`python -m jaxunpool train --images` and `predict`: a user's own images, good and bad."""

import argparse
import contextlib
import dataclasses
import itertools
import json
import os
import pathlib
import sys
import threading

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import sklearn.metrics

for package in ("optax", "orbax.checkpoint", "grain", "dm_pix", "safetensors", "skimage", "PIL"):
    pytest.importorskip(package)
import safetensors.numpy  # noqa: E402
import skimage  # noqa: E402
from flax import nnx  # noqa: E402
from PIL import Image  # noqa: E402
from strategies import only  # noqa: E402

from jaxunpool import models  # noqa: E402
from jaxunpool.__main__ import main  # noqa: E402
from jaxunpool.apps.command import UsageError  # noqa: E402
from jaxunpool.training import (  # noqa: E402
    checkpoints,
    dataset,
    images,
    loop,
    metrics,
    options,
    segment,
    session,
    shards,
)

IGNORED = metrics.IGNORED
TINY = ["--steps", "4", "--batch", "2", "--size", "32", "--features", "4", "--stages", "2"]
TINY += ["--kernel-size", "3"]
FIGURES = ("predictions.png", "confusion.png", "gradients.png", "learning_curve.png")
# Photographs that are in scikit-image's wheel.
PHOTOGRAPHS = {"chelsea": "png", "coffee": "jpg", "rocket": "tif", "astronaut": "png"}
SHIPPED = pathlib.Path(skimage.__file__).parent / "data"


@pytest.fixture(autouse=True)
def _as_users_have_it():
    with jax.enable_x64(False):
        yield


@pytest.fixture
def one_device(monkeypatch):
    devices = jax.devices()[:1]
    monkeypatch.setattr(jax, "devices", lambda: devices)


def save(array, path, **settings):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(array).save(path, **settings)


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    """Real photographs of several sizes in three formats; masks say what is dark, cool and warm."""
    folder = tmp_path_factory.mktemp("photographs")
    for number, (name, suffix) in enumerate(PHOTOGRAPHS.items()):
        with Image.open(next(SHIPPED.glob(f"{name}.*"))) as picture:
            picture = picture.convert("RGB").resize((90 + 10 * number, 70))
        pixels = np.asarray(picture)
        dark, warm = pixels.mean(-1) < 70, pixels[..., 0] > pixels[..., 2] + 40
        mask = np.where(dark, 0, np.where(warm, 2, 1)).astype(np.uint8)
        mask[:3] = IGNORED
        save(pixels, folder / f"images/{name}.{suffix}")
        save(mask, folder / f"masks/{name}.png")
    return folder


def asked(folder, *arguments):
    from jaxunpool.training.train import parse

    folders = ["--images", str(folder / "images"), "--masks", str(folder / "masks")]
    return parse([*folders, *arguments])


def prepared(folder, *arguments, seed=0):
    return dataset.prepare(asked(folder, *arguments), seed)


def made_run(folder, *arguments, **settings):
    """A run of one device, as the command makes it."""
    from jaxunpool.training.train import of_images

    quiet = argparse.Namespace(print=lambda line: None)
    _, make = of_images(asked(folder, *TINY, *arguments), quiet)
    return make(devices=jax.devices()[:1], **settings)


# What folders and masks mean

GREY = np.array([[0, 1, 2], [2, 1, 0]], np.uint8)
CAMVID = """64 128 64\tAnimal
192 0 128\t\tArchway
0 128 192\tBicyclist

128 0 0\tBuilding
0 0 0\tVoid
"""
COLOURS = np.array([(64, 128, 64), (192, 0, 128), (0, 0, 0)], np.uint8)


def with_masks(folder, masks, name="{}.png"):
    """A folder with an image for each mask."""
    for number, mask in enumerate(masks):
        save(np.full((*mask.shape[:2], 3), 40 * number, np.uint8), folder / f"images/{number}.png")
        save(mask, folder / "masks" / name.format(number))
    return folder


def classes_of(data):
    pairs = sorted([*data.training, *data.validation])
    return [data.load(pair)[1].tolist() for pair in pairs]


def test_grey_masks(tmp_path):
    first, second = GREY.copy(), GREY.copy()
    second[0, 0] = 255
    with_masks(tmp_path, [first, second])
    data = prepared(tmp_path)
    assert data.classes.names == ("0", "1", "2")
    assert classes_of(data) == [GREY.tolist(), second.tolist()]
    assert prepared(tmp_path, "--classes", "5").classes.names == tuple("01234")
    assert prepared(tmp_path, "--classes", "12").classes.colours[1] == (128, 0, 0)
    named = prepared(tmp_path, "--classes", "sky,road", "car", "--ignore", "255")
    assert named.classes.names == ("sky", "road", "car")
    assert named.digest == data.digest
    without = prepared(tmp_path, "--ignore", "1")
    assert without.classes.names == ("0", "2", "255")
    assert classes_of(without)[0] == [[0, IGNORED, 1], [1, IGNORED, 0]]
    assert without.digest != data.digest
    assert len({prepared(tmp_path, seed=seed).digest for seed in range(6)}) == 2  # either image


@pytest.mark.parametrize("form", ["palette", "RGB", "16 bits", "float", "TIFF"])
def test_other_forms_of_numbers(form, tmp_path):
    with_masks(tmp_path, [GREY, GREY])
    for path in (tmp_path / "masks").iterdir():
        picture = Image.fromarray(GREY)
        if form == "palette":
            picture.putpalette([9, 9, 9, 0, 99, 0, 0, 0, 255])
        elif form == "RGB":
            picture = picture.convert("RGB")
        elif form == "16 bits":
            picture = Image.fromarray(GREY.astype(np.uint16))
        if form in ("float", "TIFF"):
            path.unlink()
            path = path.with_suffix(".tiff")
            picture = Image.fromarray(GREY.astype(np.float32 if form == "float" else np.uint8))
        picture.save(path)
    data = prepared(tmp_path)
    assert classes_of(data) == [GREY.tolist()] * 2
    own = ((9, 9, 9), (0, 99, 0), (0, 0, 255))
    assert data.classes.colours == (own if form == "palette" else dataset.MUTED[:3])


@pytest.mark.parametrize("bits", [1, 8])
def test_black_and_white(bits, tmp_path):
    mask = np.array([[0, 255], [255, 255]], np.uint8)
    with_masks(tmp_path, [mask > 0 if bits == 1 else mask] * 2)
    assert classes_of(prepared(tmp_path, "--classes", "table", "cat"))[0] == [[0, 1], [1, 1]]
    if bits == 8:
        with pytest.raises(UsageError, match=r"expected 2 to 255 classes, got 1 \(0\)"):
            prepared(tmp_path, "--ignore", "255")


def test_camvid(tmp_path):
    """Its layout: `_L` behind the names of masks, coloured, and a palette beside the folders."""
    mask = COLOURS[GREY]
    with_masks(tmp_path, [mask, mask], "{}_L.png")
    (tmp_path / "label_colors.txt").write_text(CAMVID)
    data = prepared(tmp_path)
    assert data.classes.names == ("Animal", "Archway", "Bicyclist", "Building")
    assert data.classes.colours[3] == (128, 0, 0)
    expected = np.array([0, 1, IGNORED])[GREY].tolist()
    assert classes_of(data) == [expected] * 2
    assert "ignored: Void" in data.notes[1]
    assert data.notes[2] == "no training mask has Bicyclist, Building"
    np.testing.assert_array_equal(data.counts, [[2, 2, 0, 0]])
    fewer = prepared(tmp_path, "--classes", "archway", "void", "--ignore", "Animal")
    assert classes_of(fewer)[0] == np.array([IGNORED, 0, 1])[GREY].tolist()
    # The same palette with colours in one class, as a table, and masks with its numbers.
    (tmp_path / "label_colors.txt").unlink()
    (tmp_path / "masks/class_dict.csv").write_text(
        "name,r,g,b\nliving,64,128,64\nhouse,192,0,128\nliving,0,128,192\nunlabelled,0,0,0\n"
    )
    assert classes_of(prepared(tmp_path)) == [expected] * 2
    with_masks(tmp_path, [GREY, GREY], "{}_L.png")
    assert prepared(tmp_path).classes.names == ("living", "house")


def test_where_files_lie(tmp_path):
    """Subfolders; images and masks in one folder; a list of those to validate with."""
    for name in ("a/1", "a/2", "b/1"):
        save(np.zeros((2, 3, 3), np.uint8), tmp_path / f"images/{name}.JPG")
        save(GREY, tmp_path / f"images/{name}_mask.png")
    save(GREY, tmp_path / "images/b/alone_mask.png")
    (tmp_path / "masks").symlink_to("images")
    (tmp_path / "list.txt").write_text("2\n\n")
    data = prepared(tmp_path, "--validation", str(tmp_path / "list.txt"))
    assert [pair.mask.name for pair in data.validation] == ["2_mask.png"]
    assert [pair.image.name for pair in data.training] == ["1.JPG", "1.JPG"]
    assert data.notes[-1] == "not used, without an image: 1 of the masks"
    assert len(prepared(tmp_path, "--validation", "0.99").training) == 1


def test_images_of_all_kinds(tmp_path, rng):
    grey = rng.integers(0, 2**16, (4, 5), np.uint16)
    save(grey, tmp_path / "16.png")
    found = dataset.read_image(tmp_path / "16.png")
    np.testing.assert_array_equal(found, np.repeat((grey >> 8)[..., None], 3, -1))
    lying = Image.fromarray(np.zeros((4, 5, 3), np.uint8))
    exif = lying.getexif()
    exif[0x0112] = 6  # a camera on its side
    lying.save(tmp_path / "lying.jpg", exif=exif)
    assert dataset.read_image(tmp_path / "lying.jpg").shape == (5, 4, 3)


def test_voc_colours():
    """Those of the development kit."""
    expected = [(0, 0, 0), (128, 0, 0), (0, 128, 0), (128, 128, 0), (0, 0, 128), (128, 0, 128)]
    assert [dataset._voc(number) for number in range(6)] == expected
    assert dataset._voc(20) == (0, 64, 128)


def test_fitted(rng):
    image = rng.integers(0, 255, (5, 9, 3), np.uint8)
    classes = image[..., 0]
    small, found = dataset.fitted(image, classes, 4, "crop", rng)
    np.testing.assert_array_equal(small[..., 0], found)
    assert found.tobytes() in {
        classes[y : y + 4, x : x + 4].tobytes() for y in range(2) for x in range(6)
    }
    middle, found = dataset.fitted(image, classes, 7, "crop")
    np.testing.assert_array_equal(middle[1:6], image[:, 1:8])
    np.testing.assert_array_equal(found[1:6], classes[:, 1:8])
    assert (middle[[0, 6]] == dataset.FILL).all()
    assert (found[[0, 6]] == IGNORED).all()
    small, found = dataset.fitted(image, classes, 4, "resize")
    assert (small.shape, found.shape) == ((4, 4, 3), (4, 4))
    assert set(found.ravel()) <= set(classes.ravel())


# Mistakes: one line that names the file, before training


def no_mask(folder):
    (folder / "masks/1.png").unlink()
    return "images/1.png: its mask is missing: "


def other_size(folder):
    save(np.zeros((4, 3), np.uint8), folder / "masks/1.png")
    return "masks/1.png: has 4x3 pixels (height x width), its image 1.png has 2x3"


def cut(folder):
    path = folder / "images/1.png"
    path.write_bytes(path.read_bytes()[:-30])
    return "images/1.png: cannot be read ("


def text(folder):
    (folder / "masks/1.png").write_text("no picture")
    return "masks/1.png: cannot be read (no picture that Pillow knows)"


def empty(folder):
    for path in (folder / "images").iterdir():
        path.unlink()
    return "images: holds no PNG, JPEG or TIFF file"


def no_folder(folder):
    (folder / "masks").rename(folder / "other")
    return "masks: does not exist"


def file(folder):
    no_folder(folder)
    (folder / "masks").write_text("")
    return "masks: is not a folder"


def one(folder):
    (folder / "images/1.png").unlink()
    return "images/0.png: is the only image"


def coloured(folder):
    save(COLOURS[GREY], folder / "masks/1.png")
    return "masks/1.png: has colours: say with --palette which class each of them is"


def fractions(folder):
    save(GREY / np.float32(2), folder / "masks/1.tif")
    (folder / "masks/1.png").unlink()
    return "masks/1.tif: holds values that are not 0, 1, 2, ..."


def unknown_colour(folder):
    with_masks(folder, [COLOURS[GREY]] * 2)
    save(COLOURS[GREY] + np.uint8(GREY[..., None] == 1), folder / "masks/1.png")
    (folder / "label_colors.txt").write_text(CAMVID)
    return "masks/1.png: has the colour 193 1 129 in 2 pixels, unknown to "


def two_masks(folder):
    save(GREY, folder / "masks/1_L.png")
    return "masks/1_L.png: 1.png is a mask of the same image"


def two_images(folder):
    save(np.zeros((2, 3, 3), np.uint8), folder / "images/1.jpg")
    return "images/1.png: 1.jpg has the same name"


def all_ignored(folder):
    for path in (folder / "masks").iterdir():
        save(np.full((2, 3), 255, np.uint8), path)
    return "masks: expected 2 to 255 classes, got 0 (none)"


def many_values(folder):
    for number in range(2):
        save(np.zeros((10, 10, 3), np.uint8), folder / f"images/{number}.png")
        save(np.arange(100, dtype=np.uint8).reshape(10, 10), folder / f"masks/{number}.png")
    return "masks: masks have 100 values: say how many classes there are with --classes"


BAD = [no_mask, other_size, cut, text, empty, no_folder, file, one, coloured, fractions]
BAD += [unknown_colour, two_masks, two_images, all_ignored, many_values]
LISTS = {
    "no list": (None, "argument --validation: list.txt: No such file or directory"),
    "unknown": ("0\nzebra\n", "list.txt, line 2: there is no image zebra"),
    "all": ("0\n1\n", "list.txt: lists 2 of 2 images: expected some, and others to train on"),
    "binary": (b"\xff\xfe\xff", "list.txt: is not a text file"),
}
PALETTES = {
    "no colours": ("# none\n", "palette.txt: holds no colour"),
    "no name": ("0 0 0\n", "palette.txt, line 1: expected red, green, blue (0 to 255) and a name,"),
    "too large": ("0 0 0 a\n0 256 0 b\n", "palette.txt, line 2: expected red, green, blue"),
    "one for two": ("0 0 0 a\n0 0 0 b\n", "palette.txt, line 2: a has the same colour"),
}
OPTIONS = {
    "--classes 2": "masks/0.png: has the value 2 in 2 pixels, expected 0, 1, 255",
    "--classes a b a": "argument --classes: a is named twice",
    "--classes 256": "argument --classes: expected at most 255",
    "--classes 1": "masks: expected 2 to 255 classes, got 1 (0)",
    "--ignore black": "argument --ignore: expected a value in masks, got 'black'",
    "--validation 1.5": "argument --validation: expected between 0 and 1, got 1.5",
    "--augment none flip": "argument --augment: expected none alone, got ['none', 'flip']",
    "--size 8": "argument --size: expected 16 to 4096, got 8",
    "--network segnet --stages 3": "argument --stages: expected 5, which is segnet's, got 3",
    "--model enet --features 8": "argument --features: expected 16, which is enet's, got 8",
    "--model enet --weights vgg.npz": "argument --weights: is for basic and segnet, not for enet",
    "--weights vgg.pth": "argument --weights: expected a .npz or .safetensors file, got vgg.pth",
    "--weights vgg.npz": "argument --weights: vgg.npz: cannot be read (",
    "--palette none.txt": "argument --palette: none.txt: No such file or directory",
    "--palette p.txt --classes 3": "argument --classes: p.txt has 2, got 3",
    "--palette p.txt --classes a c": "argument --classes: p.txt has no c",
    "--palette p.txt --ignore c": "argument --ignore: p.txt has no c",
    "--palette p.txt": "masks/0.png: has the value 2 in 2 pixels, expected 0, 1, 255",
}


def refused(folder, capfd, message, *arguments):
    """One line, exit status 2, and no folder of a run."""
    assert main(["train", "--images", "images", "--masks", "masks", *arguments]) == 2
    output, error = capfd.readouterr()
    assert output == ""
    assert error.startswith(f"jaxunpool: {message}")
    assert error.count("\n") == 1
    assert not (folder / "jaxunpool-train").exists()


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(images, "ImagesRun", None)  # refused before any slow work
    return with_masks(tmp_path, [GREY, GREY])


@pytest.mark.parametrize("spoil", BAD)
def test_bad_files(spoil, here, capfd):
    refused(here, capfd, spoil(here))


@pytest.mark.parametrize("name", LISTS)
def test_bad_lists(name, here, capfd):
    text, message = LISTS[name]
    if text is not None:
        (here / "list.txt").write_bytes(text if isinstance(text, bytes) else text.encode())
    refused(here, capfd, message, "--validation", "list.txt")


@pytest.mark.parametrize("name", PALETTES)
def test_bad_palettes(name, here, capfd):
    text, message = PALETTES[name]
    (here / "palette.txt").write_text(text)
    refused(here, capfd, message, "--palette", "palette.txt")


@pytest.mark.parametrize("line", OPTIONS)
def test_bad_options(line, here, capfd):
    (here / "p.txt").write_text("0 0 0 a\n1 1 1 b\n")
    refused(here, capfd, OPTIONS[line], *line.split())


def test_nothing_to_learn(here, capfd):
    all_ignored(here)
    message = "masks: no pixel of the training masks has a class"
    refused(here, capfd, message, "--classes", "3")


def test_options_that_need_others(capfd):
    for line, message in {
        "--masks masks": "argument --masks: is for your own images: name them with --images",
        "--fit crop": "argument --fit: is for your own images: name them with --images",
        "--images images": "argument --images: name the folder of their masks too, with --masks",
    }.items():
        assert main(["train", *line.split()]) == 2
        assert capfd.readouterr().err == f"jaxunpool: {message}\n"


@pytest.mark.parametrize("package", options.FOR_IMAGES)
def test_missing_extra(package, here, capfd, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    refused(here, capfd, f"{package} is missing: pip install 'jaxunpool[train]'")


def test_jpeg_masks_are_explained(here, capfd, rng):
    noise = rng.integers(0, 3, (20, 20), np.uint8) * 100
    for number in range(2):
        (here / f"masks/{number}.png").unlink()
        save(np.zeros((20, 20, 3), np.uint8), here / f"images/{number}.png")
        save(noise, here / f"masks/{number}.jpg")
    assert main(["train", "--images", "images", "--masks", "masks", "--classes", "3"]) == 2
    assert "JPEG changes values, PNG keeps them" in capfd.readouterr().err


# Pixels without a class


@pytest.mark.thorough
def test_ignored_pixels_do_not_count(rng):
    truth, guess = rng.integers(0, 4, (2, 3, 12, 13))
    hidden = rng.random(truth.shape) < 0.3
    seen = truth.copy()
    seen[hidden] = IGNORED
    known = truth[~hidden], guess[~hidden]
    np.testing.assert_array_equal(
        metrics.confusion_matrix(seen, guess, 4), sklearn.metrics.confusion_matrix(*known)
    )
    logits = rng.standard_normal((3, 12, 13, 4)).astype(np.float32)
    weights = np.array([1, 2, 0.5, 3], np.float32)
    expected = loop.cross_entropy(logits[~hidden], truth[~hidden], weights)
    np.testing.assert_allclose(loop.cross_entropy(logits, seen, weights), expected, rtol=1e-5)
    nothing = jax.value_and_grad(loop.cross_entropy)(logits, np.full_like(seen, IGNORED), weights)
    assert nothing[0] == 0
    assert not np.asarray(nothing[1]).any()


def test_no_outline_at_what_is_ignored():
    truth = np.zeros((1, 20, 20), int)
    truth[:, 5:15, 5:15] = 1
    guess = truth.copy()
    guess[:, :10] = 0
    assert metrics.boundary_f1(truth, guess) < 0.9
    truth[:, :11] = IGNORED
    assert metrics.boundary_f1(truth, guess) == 1
    assert np.isnan(metrics.boundary_f1(np.full((1, 4, 4), IGNORED), np.zeros((1, 4, 4), int)))


def test_frequencies_are_of_pixels_with_a_class():
    counts = np.array([[6, 2, 0], [0, 4, 0]])  # as many pixels again may be ignored
    frequency = np.array([6 / 8, 6 / 12])
    expected = [*(np.median(frequency) / frequency), 0]
    np.testing.assert_allclose(loop.median_frequency_weights(counts), expected, rtol=1e-6)


# Training


@pytest.mark.thorough
def test_train_and_predict(photographs, tmp_path, monkeypatch, capfd, one_device):
    monkeypatch.chdir(tmp_path)
    folders = ["--images", str(photographs / "images"), "--masks", str(photographs / "masks")]
    command = ["train", *folders, *TINY, "--classes", "dark", "cool", "warm", "--output", "run"]
    assert main(command) == 0
    output, error = capfd.readouterr()
    assert error == ""
    assert "4 images of 70 x 90 to 120 pixels: 3 to train on, 1 to validate\n" in output
    assert "3 classes (values 0 to 2; ignored: 255): dark, cool, warm\n" in output
    assert "crops of 32 x 32 pixels\n" in output
    assert "1 validation image\n" in output
    found = json.loads(pathlib.Path("run/metrics.json").read_text())
    assert f"{found['scores']['mean_iou']:.3f}" in output
    assert found["configuration"]["classes"] == ["dark", "cool", "warm"]
    for figure in FIGURES:
        with Image.open(f"run/{figure}") as picture:
            assert len(np.unique(np.asarray(picture))) > 50
    assert main(command) == 0
    assert "run: complete, 4 steps\n" in capfd.readouterr().out
    assert main([*command, "--precision", "bfloat16"]) == 2
    assert "holds a run with precision=float32, but you asked for precision=bfloat16" in (
        capfd.readouterr().err
    )

    pictures = [str(photographs / "images" / name) for name in ("coffee.jpg", "rocket.tif")]
    assert main(["predict", "run", *pictures]) == 0
    output, error = capfd.readouterr()
    assert error == ""
    assert output.count("\n") == 2
    for path, size in zip(pictures, ((100, 70), (110, 70))):
        stem = pathlib.Path("run/predictions", pathlib.Path(path).stem)
        mask, overlay, confidence = (
            Image.open(f"{stem}_{kind}.png") for kind in ("mask", "overlay", "confidence")
        )
        assert mask.size == overlay.size == confidence.size == size
        assert (mask.mode, overlay.mode, confidence.mode) == ("P", "RGB", "L")
        classes = np.asarray(mask)
        assert classes.max() < 3
        np.testing.assert_array_equal(mask.convert("RGB"), np.array(dataset.MUTED)[classes])
        assert np.asarray(confidence).min() >= 255 // 3
        mixed = (np.asarray(Image.open(path)) + np.asarray(mask.convert("RGB"), float)) / 2
        assert np.abs(np.asarray(overlay) - mixed).max() <= 0.5

    model = session.load("run")
    assert model(jnp.zeros((1, 16, 17, 3))).shape == (1, 16, 17, 3)
    pathlib.Path("broken.png").write_text("none")
    pathlib.Path("coffee.png").write_text("none")
    for arguments, message in {
        ("run", "broken.png"): "broken.png: cannot be read (no picture that Pillow knows)",
        ("run", "none.png"): "none.png: cannot be read (",
        ("run", pictures[0], "coffee.png"): f"coffee.png: {pictures[0]} would have the same files",
        ("nowhere", pictures[0]): "nowhere: holds no run",
    }.items():
        assert main(["predict", *arguments]) == 2
        assert capfd.readouterr().err.startswith(f"jaxunpool: {message}")


@pytest.fixture(scope="module")
def run(photographs):
    with jax.enable_x64(False):
        return made_run(photographs)


@pytest.mark.thorough
def test_resumed_run_is_the_same_bit_for_bit(run, photographs, tmp_path):
    state, threads = run.start(), set()
    load = dataset.Dataset.load

    def noted(self, pair):
        threads.add(threading.get_ident())
        return load(self, pair)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dataset.Dataset, "load", noted)
        for number, batch in enumerate(run.feed(0), 1):
            state = run.step(state, *batch)
            if number == 2:
                with contextlib.closing(
                    checkpoints.Folder(tmp_path / "run", run.configuration)
                ) as folder:
                    folder.save(state)
    assert number == 4
    assert np.isfinite(state.losses).all()
    assert threads
    assert threading.get_ident() not in threads  # read off the training thread
    again = made_run(photographs)
    with contextlib.closing(checkpoints.Folder(tmp_path / "run", again.configuration)) as folder:
        resumed = folder.resume(again.start())
    for batch in again.feed(2):
        resumed = again.step(resumed, *batch)
    np.testing.assert_array_equal(checkpoints.pack(resumed), checkpoints.pack(state))


@pytest.mark.parametrize(
    ("image", "mask", "message"),
    [
        ("images/gone.png", "masks/gone.png", r"gone\.png: cannot be read"),
        ("images/coffee.jpg", "masks/rocket.png", r"coffee\.jpg: has changed since training began"),
    ],
)
def test_files_that_change_while_training(image, mask, message, run, photographs):
    pair = dataset.Pair(photographs / image, photographs / mask)
    other = dataclasses.replace(run.data, training=(pair,))
    with pytest.raises(UsageError, match=message):
        next(images.ImagesRun.feed(argparse.Namespace(data=other, asked=run.asked), 0))


def test_watched_scenes(run):
    watched = run.watched()
    assert run.watched_on == "crops of 1 validation image"
    assert run.trained_on == f"crops of {len(run.data.training)} training images"
    assert watched.images.shape == (1, 32, 32, 3)
    assert watched.images.max() <= 1
    state = run.record(run.start(), watched)
    assert state.miou.shape == (4,)


@pytest.mark.thorough
def test_augmentation(run, rng):
    """Image and mask are flipped together; colours change the image alone, and each its own way."""
    classes = np.tile(rng.integers(0, 3, (1, 6, 7), np.uint8), (8, 1, 1))
    pictures = np.repeat(classes[..., None] * np.uint8(80), 3, -1)
    alone = dataclasses.replace(run.asked, batch=8, augment=["flip"])
    one = shards.Shards(8, jax.devices()[:1])
    compose = lambda asked: images.ImagesRun.compose(
        argparse.Namespace(asked=asked, shards=one), jax.random.key(0), pictures, classes
    )
    image, found = map(np.asarray, compose(alone))
    np.testing.assert_array_equal(np.round(image[..., 0] * 255 / 80), found)
    assert 0 < sum((each == classes[0]).all() for each in found) < 8
    none, same = compose(dataclasses.replace(alone, augment=[]))
    np.testing.assert_array_equal(same, classes)
    np.testing.assert_allclose(none, pictures / 255, atol=1e-6)
    coloured, same = compose(dataclasses.replace(alone, augment=["colour"]))
    np.testing.assert_array_equal(same, classes)
    assert np.ptp(np.mean(coloured, axis=(1, 2, 3))) > 0.01
    assert 0 <= coloured.min() <= coloured.max() <= 1


@pytest.mark.thorough
def test_batch_is_sharded_over_the_devices(run):
    shared = images.ImagesRun(run.asked, jax.devices()[:2], run.data)
    batch = next(shared.feed(0))
    assert [each.sharding for each in batch] == [shared.shards.sharded] * 2
    losses = [each.step(each.start(), *next(each.feed(0))).losses[0] for each in (run, shared)]
    np.testing.assert_allclose(*losses, rtol=1e-5)


@pytest.mark.thorough
def test_bfloat16(run, photographs):
    low = made_run(photographs, "--precision", "bfloat16", "--balance", "none")
    assert (np.asarray(low.class_weights) == 1).all()
    state, batch = low.start(), next(low.feed(0))
    text = low.step.lower(state, *batch).as_text()
    assert "tensor<2x32x32x4xbf16>" in text
    after = low.step(state, *batch)
    for leaf in jax.tree.leaves((after.parameters, after.statistics, after.losses)):
        assert leaf.dtype == jnp.float32
    changed = [
        (np.asarray(a) != np.asarray(b)).any()
        for a, b in zip(jax.tree.leaves(state.statistics), jax.tree.leaves(after.statistics))
    ]
    assert all(changed)
    high = images.ImagesRun(
        dataclasses.replace(low.asked, precision="float32"), jax.devices()[:1], low.data
    )
    np.testing.assert_allclose(
        after.losses[0], high.step(high.start(), *batch).losses[0], rtol=0.02
    )


# Tiles


def test_tiles_are_the_whole_image(run, rng):
    image = rng.integers(0, 255, (300, 260, 3), np.uint8)
    whole, tiled = segment.Segmenter(run, run.start()), segment.Segmenter(run, run.start(), 1)
    assert (whole.tile, tiled.tile, tiled.margin) == (1024, 192, 64)
    assert len(tiled._cuts(320)) == 3
    (classes, confidence), (same, close) = whole(image), tiled(image)
    assert classes.shape == confidence.shape == (300, 260)
    np.testing.assert_allclose(confidence, close, rtol=1e-5)
    assert (classes == same).mean() > 0.9999
    assert len(np.unique(classes)) > 1


@pytest.mark.thorough
@pytest.mark.parametrize("decoder", only("bilinear", among=models.DECODERS))
def test_reach(decoder):
    """No pixel further away changes what the network says of one."""
    model = models.SegNetBasic(
        1, 2, features=3, kernel_size=3, stages=2, decoder=decoder, rngs=nnx.Rngs(0)
    )
    model.eval()
    reach = segment.reach(model)
    image = np.random.default_rng(0).standard_normal((1, 120, 4, 1)).astype(np.float32)
    other = image.copy()
    other[:, 60:] += 1
    differs = np.abs(np.asarray(model(image)) - np.asarray(model(other))).max((0, 2, 3)) > 1e-5
    assert 60 - reach <= differs.argmax() < 60


def test_resized(photographs, rng):
    run = made_run(photographs, "--fit", "resize")
    images, classes = next(run.feed(0))
    assert images.shape == (2, 32, 32, 3)
    assert classes.dtype == jnp.uint8
    classes, confidence = segment.Segmenter(run, run.start())(np.zeros((50, 41, 3), np.uint8))
    assert classes.shape == confidence.shape == (50, 41)
    assert confidence.min() >= 1 / 3 - 1e-5


@pytest.mark.thorough
def test_runs_of_scenes_predict_too():
    tiny = options.Configuration(steps=2, batch=2, size=24, features=4, kernel_size=3, stages=2)
    run = loop.Run(tiny, jax.devices()[:1])
    classes, _ = segment.Segmenter(run, run.start())(np.zeros((10, 11, 3), np.uint8))
    assert classes.shape == (10, 11)
    assert segment.colours(run)[0] == (0x33, 0x22, 0x88)


# Weights


class Layers:
    """A network of twelve convolutions each way, so that names have numbers of two digits."""

    def __init__(self, rng):
        self.model = models.EncoderDecoder(
            3, 2, [[4] * 6, [5] * 6], [[5, 4], [4]], rngs=nnx.Rngs(0)
        )
        widths = [3, *[4] * 6, *[5] * 6]
        self.kernels = [
            rng.standard_normal((o, i, 3, 3)).astype(np.float32)
            for i, o in itertools.pairwise(widths)
        ]

    def named(self, normalised):
        found, at = {}, 0
        for kernel in self.kernels:
            count = np.ones(len(kernel), np.float32)
            found[f"features.{at}.weight"], found[f"features.{at}.bias"] = kernel, 2 * count
            if normalised:
                entries = {"weight": 3, "bias": 4, "running_mean": 5, "running_var": 6}
                for name, value in entries.items():
                    found[f"features.{at + 1}.{name}"] = value * count
            at += 3 if normalised else 2
        return found | {"classifier.0.weight": np.ones((7, 8)), "classifier.0.bias": np.ones(7)}


@pytest.mark.few(1)
@pytest.mark.parametrize(
    ("normalised", "suffix"),
    only(
        (True, "npz"),
        (False, "safetensors"),
        among=itertools.product([True, False], ["npz", "safetensors"]),
    ),
)
def test_weights_of_vgg16(normalised, suffix, tmp_path, rng):
    layers, path = Layers(rng), tmp_path / f"vgg.{suffix}"
    named = layers.named(normalised)
    if suffix == "npz":
        np.savez(path, **named)
    else:
        safetensors.numpy.save_file(named, path)
    weights, digest = images.read_weights(path)
    assert len(digest) == 64
    images.load_weights(layers.model, weights)
    blocks = [block for stage in layers.model.encoder.stages for block in stage]
    for block, kernel in zip(blocks, layers.kernels):
        np.testing.assert_array_equal(block.conv.kernel[...].transpose(3, 2, 0, 1), kernel)
        np.testing.assert_array_equal(block.conv.bias[...], 2)
        expected = (3, 4, 5, 6) if normalised else (1, 0, 0, 1)
        found = (block.norm.scale, block.norm.bias, block.norm.mean, block.norm.var)
        for variable, value in zip(found, expected):
            np.testing.assert_array_equal(variable[...], value)


def test_weights_of_a_whole_network(rng):
    layers, named = Layers(rng), {}
    model = layers.model
    for number, layer in enumerate(models.weights._layers(model)):
        layer = layer.module
        if isinstance(layer, nnx.Conv):
            shape = np.array(layer.kernel.shape)[[3, 2, 0, 1]]
            named[f"{number}.weight"] = np.full(shape, number, np.float32)
        else:
            entries = ("weight", "bias", "running_mean", "running_var")
            named |= {f"{number}.{name}": np.ones(layer.num_features) for name in entries}
    images.load_weights(model, named)
    assert (np.asarray(model.last.kernel[...]) == number).all()


def test_segnet_has_the_sizes_of_vgg16(monkeypatch):
    monkeypatch.setattr(nnx, "jit", lambda made: lambda: nnx.eval_shape(made))
    widths = [3, *(width for stage in models.segnet.VGG16 for width in stage)]
    named = {
        f"features.{at}.weight": np.full((o, i, 3, 3), at, np.float32)
        for at, (i, o) in enumerate(itertools.pairwise(widths))
    }
    segnet = dataclasses.replace(options.IMAGES, network="segnet", classes=["a", "b"])
    model = images.ImagesRun.network(argparse.Namespace(asked=segnet, weights=named))
    assert isinstance(model, models.SegNet)
    assert (np.asarray(model.encoder.stages[4][2].conv.kernel[...]) == 12).all()
    assert model.last.out_features == 2


def test_weights_that_do_not_fit(tmp_path, rng):
    layers = Layers(rng)
    named = layers.named(True)
    named["features.3.weight"] = named["features.3.weight"][:, :2]
    with pytest.raises(UsageError, match=r"layer 3 does not fit.*has features\.3 \(a 2-D conv"):
        images.load_weights(layers.model, named)
    longer = named | {f"more.{n}.weight": np.ones((2, 2, 3, 3)) for n in range(2)}
    with pytest.raises(UsageError, match=r"--weights: .* layer 3 does not fit: the module has"):
        images.load_weights(layers.model, longer)


@pytest.mark.thorough
def test_segnet_from_vgg16(photographs, tmp_path, monkeypatch, one_device, rng):
    """The whole way: VGG16's sizes, one step, in bfloat16."""
    from jaxunpool.models.segnet import VGG16

    widths = [3, *(width for stage in VGG16 for width in stage)]
    named = {
        f"features.{at}.{name}": value
        for at, (i, o) in enumerate(itertools.pairwise(widths))
        for name, value in {
            "weight": rng.standard_normal((o, i, 3, 3), np.float32) / np.float32(3 * i**0.5),
            "bias": np.zeros(o, np.float32),
        }.items()
    }
    safetensors.numpy.save_file(named, tmp_path / "vgg16.safetensors")
    monkeypatch.chdir(tmp_path)
    folders = ["--images", str(photographs / "images"), "--masks", str(photographs / "masks")]
    command = ["train", *folders, "--network", "segnet", "--steps", "1", "--batch", "1"]
    command += ["--size", "32", "--precision", "bfloat16", "--weights", "vgg16.safetensors"]
    assert main(command) == 0
    assert sorted(os.listdir("jaxunpool-train"))[0] == "checkpoints"
