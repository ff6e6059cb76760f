"""`python -m jaxunpool`: its figure, the numbers of its table, its answers to wrong requests."""

import io
import os
import re
import subprocess
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from strategies import only

import jaxunpool as jup
from jaxunpool.apps import photograph as demo
from jaxunpool.apps.command import show_table

for package in ("matplotlib", "rich", "skimage"):
    pytest.importorskip(package)
from PIL import Image  # noqa: E402  (comes with the demo extra)


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    """Every test works in a folder of its own, where it also writes."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo, "TIMED_RUNS", 1)
    return tmp_path


def command(*arguments):
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PYTHONWARNINGS": "error"}
    return subprocess.run(
        [sys.executable, "-m", "jaxunpool", *arguments],
        capture_output=True,
        text=True,
        encoding="utf-8",
        env=environment,
        timeout=300,
    )


def rows(output):
    """The cells of the table's numbered rows and of its last one."""
    lines = [re.sub(r"[|,]", "", line).split() for line in output.splitlines()]
    return [cells for cells in lines if cells and re.fullmatch(r"\d+|all", cells[0])]


def picture(rng, shape, dtype=np.uint8):
    return Image.fromarray(rng.integers(0, np.iinfo(dtype).max, shape, dtype, endpoint=True))


def assert_is_figure(path, levels):
    with Image.open(path) as figure:
        figure.load()
        assert figure.width == 84 + 104 + 400 * (levels + 1) + 14 * levels
        assert figure.height > 600
        assert len(np.unique(np.asarray(figure))) > 50


def test_default_job(folder):
    finished = command()
    assert (finished.returncode, finished.stderr) == (0, "")
    assert finished.stdout.startswith("chelsea: window 2, strides 2, float32 on cpu")
    assert finished.stdout.endswith("wrote jaxunpool.png\n")
    *levels, total = rows(finished.stdout)
    assert [cells[:5] for cells in levels] == [
        ["1", "300x451x3", "150x225x3", "101250", "810000"],
        ["2", "150x225x3", "75x112x3", "25200", "201600"],
        ["3", "75x112x3", "37x56x3", "6216", "49728"],
    ]
    assert total == ["all", "132666", "1061328"]
    energy = [float(cells[5].rstrip("%")) for cells in levels]
    assert 25 < energy[0] < 40  # the largest of four similar values, so a little over a quarter
    assert energy == sorted(energy, reverse=True)
    assert all(float(cell) >= 0 for cells in levels for cell in cells[6:])
    assert os.listdir(folder) == ["jaxunpool.png"]
    assert_is_figure("jaxunpool.png", levels=3)
    assert os.path.getsize("jaxunpool.png") < 1_200_000


@pytest.mark.thorough
def test_wrong_request_from_the_shell(folder):
    finished = command("--image", "missing.png")
    assert (finished.returncode, finished.stdout) == (2, "")
    assert finished.stderr == "jaxunpool: --image missing.png: no such file\n"
    assert os.listdir(folder) == []


PICTURES = {
    "grey.png": ((33, 47), np.uint8, 1),
    "grey_alpha.png": ((33, 47, 2), np.uint8, 1),
    "rgb.jpg": ((33, 47, 3), np.uint8, 3),
    "rgba.png": ((33, 47, 4), np.uint8, 3),
    "sixteen.png": ((33, 47), np.uint16, 1),
    "sixteen.tif": ((33, 47), np.uint16, 1),
}


@pytest.mark.few(2)
@pytest.mark.parametrize("name", PICTURES)
def test_kinds_of_pictures(name, rng, capsys):
    shape, dtype, channels = PICTURES[name]
    picture(rng, shape, dtype).save(name)
    assert demo.main(["--image", name, "--levels", "1", "--output", "figure.png"]) == 0
    size = 16 * 23 * channels
    level, _ = rows(capsys.readouterr().out)
    assert level[1:5] == [f"33x47x{channels}", f"16x23x{channels}", str(size), str(8 * size)]
    assert_is_figure("figure.png", levels=1)


def test_pixels_are_between_0_and_1(rng, folder):
    values = np.array([[0, 51, 255]], np.uint8)
    Image.fromarray(values).save("grey.png")
    Image.fromarray(values.astype(np.uint16) * 257).save("sixteen.png")
    Image.fromarray(values.astype(np.float32) / 255).save("float.tif")
    for name in ("grey.png", "sixteen.png", "float.tif"):
        pixels = demo.load(folder / name).pixels
        assert pixels.dtype == np.float32
        np.testing.assert_allclose(pixels, [[[0], [0.2], [1]]], rtol=1e-6)
    Image.fromarray(values > 50).save("bit.png")
    np.testing.assert_array_equal(demo.load(folder / "bit.png").pixels, [[[0], [1], [1]]])


def test_transparent_is_white_and_palettes_are_looked_up(folder):
    clear_and_red = np.array([[[0, 0, 0, 0], [255, 0, 0, 255]]], np.uint8)
    Image.fromarray(clear_and_red).save("rgba.png")
    Image.fromarray(clear_and_red[..., :3]).quantize(2).save("palette.png")
    np.testing.assert_array_equal(demo.load(folder / "rgba.png").pixels, [[[1, 1, 1], [1, 0, 0]]])
    np.testing.assert_array_equal(
        demo.load(folder / "palette.png").pixels, [[[0, 0, 0], [1, 0, 0]]]
    )


def test_a_photograph_is_turned_as_the_camera_was(folder):
    tags = Image.Exif()
    tags[0x0112] = 6  # turned by 90 degrees
    Image.new("RGB", (30, 20)).save("turned.jpg", exif=tags)
    assert demo.load(folder / "turned.jpg").pixels.shape == (30, 20, 3)


def test_overlapping_windows(rng, capsys):
    picture(rng, (23, 31, 3)).save("small.png")
    arguments = "--image small.png --window 3 --strides 2 --levels 2 --output figure.svg"
    assert demo.main(arguments.split()) == 0
    printed = capsys.readouterr().out
    assert "window 3, strides 2" in printed
    assert [cells[1:3] for cells in rows(printed)[:-1]] == [
        ["23x31x3", "11x15x3"],
        ["11x15x3", "5x7x3"],
    ]
    with open("figure.svg", encoding="utf-8") as figure:
        assert "<svg" in figure.read()


@pytest.mark.thorough
@pytest.mark.parametrize(("window", "strides"), only((3, 2), among=[(2, 2), (3, 2), (2, 3)]))
def test_levels_are_the_chain(window, strides, rng):
    x = rng.random((29, 37, 3), np.float32)
    levels = demo.run(demo.Photograph(x, "random"), window, strides, 2)
    pair, y, chain = (window, window), jnp.asarray(x), []
    for level in levels[1:]:
        y, indices = jup.max_pool_with_indices(y, pair, (strides, strides))
        chain.append(indices)
        back = y
        for indices in reversed(chain):
            back = jup.max_unpool(back, indices)
        np.testing.assert_array_equal(level.pooled, y)
        np.testing.assert_array_equal(level.unpooled, back)
        # Random values are never 0 nor equal: what is not 0 was selected.
        np.testing.assert_array_equal(back, np.where(back != 0, x, 0))
        expected = np.where(back != 0, 2 * x - 1, 0)
        np.testing.assert_allclose(level.gradient, expected, rtol=1e-6, atol=1e-6)


def test_fewer_levels_where_the_default_does_not_fit(rng, capsys):
    picture(rng, (5, 7)).save("tiny.png")
    assert demo.main(["--image", "tiny.png"]) == 0
    assert [cells[0] for cells in rows(capsys.readouterr().out)] == ["1", "2", "all"]
    assert_is_figure("jaxunpool.png", levels=2)


@pytest.mark.few(1)
@pytest.mark.parametrize("shape", [(1, 1), (40, 3), (3, 40, 3)])
def test_strange_shapes(shape, rng):
    picture(rng, shape).save("strange.png")
    arguments = "--image strange.png --window 1 --levels 1 --output figure.png"
    assert demo.main(arguments.split()) == 0
    assert_is_figure("figure.png", levels=1)


LARGE = {  # the widest cells of a photograph of 24 megapixels
    "level": ["1", "2"],
    "input": ["4000x6000x3", "2000x3000x3"],
    "pooled": ["2000x3000x3", "1000x1500x3"],
    "index\nbytes": ["18,000,000", "4,500,000"],
    "int64\nbytes": ["144,000,000", "36,000,000"],
    "energy\nkept": ["100.0%", "26.3%"],
    "pool\nms": ["123.45", "30.12"],
    "unpool\nms": ["123.45", "130.12"],
}


def shown(columns, width, spare=(), **options):
    """The lines of a table on a console of so many columns."""
    from rich.console import Console

    console = Console(width=width, file=io.StringIO(), highlight=False)
    show_table(console, "A title", columns, spare=spare, **options)
    return console.file.getvalue().splitlines()


@pytest.mark.parametrize("width", [60, 72, 80, 100])
def test_a_table_fits_the_console_and_no_cell_is_cut(width):
    spare = ("input", "int64\nbytes")
    lines = shown(LARGE, width, spare, footers={"level": "all", "index\nbytes": "22,500,000"})
    assert max(map(len, lines)) <= width
    omitted = {60: spare, 72: spare[:1], 80: (), 100: ()}[width]
    words = " ".join(lines).split()
    for header, cells in LARGE.items():
        assert set(cells) <= set(words) or header in omitted
        assert set(header.split()) <= set(words) or header in omitted
    said = [line for line in lines if line.startswith("not shown")]
    named = ", ".join(header.replace("\n", " ") for header in omitted)
    assert said == ([f"not shown in {width} columns: {named}"] if omitted else [])


def test_a_table_that_nothing_makes_narrow_enough_is_whole():
    lines = shown(LARGE, 20)
    assert shown(LARGE, 100)[1:] == lines[1:]


@pytest.mark.thorough
@pytest.mark.parametrize("width", only(60, among=[60, 72, 80, 100]))
def test_the_command_fits_the_console(width, rng, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", str(width))
    picture(rng, (120, 160, 3)).save("a.png")
    demo.main(["--image", "a.png"])
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= width
    assert "\u2026" not in "".join(lines)


def test_black_picture_keeps_no_energy(capsys):
    Image.new("L", (8, 8)).save("black.png")
    assert demo.main(["--image", "black.png", "--levels", "1"]) == 0
    assert rows(capsys.readouterr().out)[0][5] == "0.0%"


def test_says_when_it_replaces_a_figure(folder, rng, capsys):
    picture(rng, (8, 8)).save("small.png")
    (folder / "figure.png").write_text("old")
    arguments = "--image small.png --levels 1 --output figure.png"
    assert demo.main(arguments.split()) == 0
    assert capsys.readouterr().out.endswith("replaced figure.png\n")
    assert_is_figure("figure.png", levels=1)
    assert sorted(os.listdir(folder)) == ["figure.png", "small.png"]


def test_close_up_is_where_the_picture_varies():
    pixels = np.zeros((100, 200, 1), np.float32)
    pixels[70:88:2, 130:150:2] = 1
    assert demo.close_up(demo.Photograph(pixels, ""), 40, 30) == (slice(60, 90), slice(120, 160))
    focused = demo.Photograph(pixels, "", focus=(95, 10))
    assert demo.close_up(focused, 40, 30) == (slice(70, 100), slice(10, 50))


WRONG_REQUESTS = {
    "window 0": ("--window 0", "--window: expected at least 1, got 0"),
    "window -2": ("--window=-2", "--window: expected at least 1, got -2"),
    "window text": ("--window two", "--window: expected an int, got 'two'"),
    "window float": ("--window 2.5", "--window: expected an int, got '2.5'"),
    "strides 0": ("--strides 0", "--strides: expected at least 1, got 0"),
    "strides -1": ("--strides=-1", "--strides: expected at least 1, got -1"),
    "levels 0": ("--levels 0", "--levels: expected at least 1, got 0"),
    "levels 9": ("--levels 9", "--levels: expected at most 8, got 9"),
    "unknown option": ("--size 3", "unrecognized arguments: --size 3"),
    "window too large": ("--window 301", "--window 301: larger than chelsea, which has 300 x 451"),
    "strides too large": ("--strides 999", "--strides 999: larger than chelsea"),
    "too many levels": ("--image grey.png --levels 4", "--levels 4: grey.png of 8 x 9 pixels"),
    "no such image": ("--image nowhere.png", "--image nowhere.png: no such file"),
    "image is a folder": ("--image sub", "--image sub: not a file"),
    "image is text": ("--image text.png", "--image text.png: not a picture"),
    "image is empty": ("--image empty.png", "--image empty.png: not a picture"),
    "image is cut": ("--image cut.png", "--image cut.png: cannot be read"),
    "no such folder": ("--output none/a.png", "--output none/a.png: none is not a folder"),
    "folder is a file": ("--output text.png/a.png", "text.png is not a folder"),
    "output is a folder": ("--output sub.png", "--output sub.png: is not a file"),
    "output format": ("--output a.xyz", "--output a.xyz: expected a file name ending in png"),
    "output without format": ("--output figure", "--output figure: expected a file name ending"),
    "output is the image": ("--image grey.png --output grey.png", "would overwrite the photograph"),
    "long name": (f"--output {'a' * 300}.png", "File name too long"),
}


def assert_refused(capsys, arguments, message):
    """Exit status 2, one line, and the folder as it was."""
    before = sorted(os.listdir())
    assert demo.main(arguments) == 2
    output, error = capsys.readouterr()
    assert message in error
    assert error.startswith("jaxunpool: ")
    assert error.count("\n") == 1
    assert error.endswith("\n")
    assert sorted(os.listdir()) == before
    return output


@pytest.mark.parametrize("name", WRONG_REQUESTS)
def test_wrong_requests(name, folder, rng, capsys, monkeypatch):
    monkeypatch.setattr(demo, "draw", None)  # refused before any slow work
    monkeypatch.setattr(jax, "grad", None)
    (folder / "sub").mkdir()
    (folder / "sub.png").mkdir()
    (folder / "empty.png").touch()
    (folder / "text.png").write_text("no picture")
    picture(rng, (8, 9)).save("grey.png")
    picture(rng, (64, 64)).save("whole.png")
    (folder / "cut.png").write_bytes((folder / "whole.png").read_bytes()[:2000])
    arguments, message = WRONG_REQUESTS[name]
    assert assert_refused(capsys, arguments.split(), message) == ""


def test_folder_that_is_not_writable(capsys, monkeypatch):
    monkeypatch.setattr(os, "access", lambda path, mode: False)  # also where the tester may all
    assert_refused(capsys, ["--output", "figure.png"], "the folder . is not writable")


def test_nothing_half_written(folder, rng, capsys, monkeypatch):
    def fill_the_disk(self, path, **options):
        path.write_bytes(b"half")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", fill_the_disk)
    picture(rng, (8, 8)).save("small.png")
    (folder / "figure.png").write_text("old")
    arguments = "--image small.png --levels 1 --output figure.png"
    assert_refused(
        capsys, arguments.split(), "figure.png: cannot be written (No space left on device)"
    )
    assert (folder / "figure.png").read_text() == "old"


@pytest.mark.parametrize("package", ["matplotlib", "rich", "skimage"])
def test_missing_extra(package, capsys, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    assert_refused(capsys, [], f"{package} is missing: pip install 'jaxunpool[demo]'")


def test_library_does_not_import_the_extra():
    code = "import sys, jaxunpool; print({'matplotlib', 'rich', 'skimage'} & set(sys.modules))"
    assert subprocess.check_output([sys.executable, "-c", code], text=True) == "set()\n"
