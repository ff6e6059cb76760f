"""The committed notebooks are whole: executed, and fit to be read. `notebooks/run.py` runs them."""

import ast
import copy
import importlib.util
import json
import pathlib
import re
import runpy
import subprocess
import sys

import numpy as np
import pytest

FOLDER = pathlib.Path(__file__).parent.parent / "notebooks"
NAMES = [
    "1_photograph",
    "2_gradient_flow",
    "3_modes",
    "4_segnet",
    "5_coming_from_pytorch_and_tensorflow",
    "6_kernels_and_sharding",
]
MOST_BYTES = 1_500_000


def load(name):
    return json.loads((FOLDER / f"{name}.ipynb").read_text())


def code(notebook):
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def test_all_are_there():
    assert sorted(path.stem for path in FOLDER.glob("*.ipynb")) == NAMES


@pytest.mark.parametrize("name", NAMES)
def test_valid(name):
    nbformat = pytest.importorskip("nbformat")
    nbformat.validate(nbformat.read(FOLDER / f"{name}.ipynb", as_version=4))


@pytest.mark.parametrize("name", NAMES)
def test_executed_from_top_to_bottom(name):
    cells = code(load(name))
    assert [cell["execution_count"] for cell in cells] == list(range(1, len(cells) + 1))


@pytest.mark.parametrize("name", NAMES)
def test_outputs_are_committed_without_errors_and_warnings(name):
    outputs = [output for cell in code(load(name)) for output in cell["outputs"]]
    assert any("image/png" in output.get("data", {}) for output in outputs)
    assert not [output for output in outputs if output["output_type"] == "error"]
    assert not [output for output in outputs if output.get("name") == "stderr"]
    assert (FOLDER / f"{name}.ipynb").stat().st_size < MOST_BYTES


@pytest.mark.parametrize("name", NAMES)
def test_code_compiles_and_claims_are_asserted(name):
    sources = ["".join(cell["source"]) for cell in code(load(name))]
    for source in sources:
        ast.parse(source)
    assert sum("assert" in source for source in sources) >= 3


@pytest.mark.parametrize("name", NAMES)
def test_begins_with_a_title_and_what_there_is_to_see(name):
    first = load(name)["cells"][0]
    assert first["cell_type"] == "markdown"
    text = "".join(first["source"])
    assert text.startswith("# ")
    assert "You will see" in text or "you will see" in text


@pytest.mark.parametrize("name", NAMES)
def test_nothing_of_the_machine_is_in_it(name):
    notebook = load(name)
    assert notebook["metadata"] == {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    for cell in notebook["cells"]:
        assert set(cell["metadata"]) <= {"tags"}
        for output in cell.get("outputs", ()):
            output.get("data", {}).pop("image/png", None)
    paths = r"/(home|root|work|usr|opt|tmp|var|Users|private)/|[A-Za-z]:\\\\|File \""
    assert not re.findall(paths, json.dumps(notebook))


def install_cell(notebook):
    """The source of the first cell of code."""
    return "".join(code(notebook)[0]["source"])


def test_all_begin_with_the_same_install_cell():
    assert len({install_cell(load(name)) for name in NAMES}) == 1


def installed(monkeypatch, source, missing=True):
    """The commands that the install cell runs."""
    commands = []
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if missing else name)
    monkeypatch.setattr(subprocess, "run", lambda command, check: commands.append(command))
    cell = install_cell(load(NAMES[0]))
    assert 'SOURCE = ""\n' in cell
    exec(cell.replace('SOURCE = ""', f"SOURCE = {source!r}"), {})
    return commands


def test_the_install_cell_installs_where_the_library_is_missing(monkeypatch):
    address = "git+https://example.org/jaxunpool.git"
    (command,) = installed(monkeypatch, address)
    assert command[0] == sys.executable
    assert command[1:] == ["-m", "pip", "install", "--quiet", f"jaxunpool[train] @ {address}"]
    assert installed(monkeypatch, "", missing=False) == []
    with pytest.raises(ValueError, match="SOURCE is empty"):
        installed(monkeypatch, "")


@pytest.mark.parametrize("name", NAMES)
def test_needs_no_file_beside_it(name):
    beside = {path.stem for path in FOLDER.iterdir()}
    for cell in code(load(name)):
        source = "".join(cell["source"])
        for node in ast.walk(ast.parse(source)):
            if isinstance(node, ast.Import):
                assert not {alias.name for alias in node.names} & beside
            if isinstance(node, ast.ImportFrom):
                assert node.module not in beside
        assert "pathlib" not in source
        assert "open(" not in source


@pytest.mark.parametrize("name", NAMES)
def test_formulas_need_no_typesetting(name):
    text = ["".join(c["source"]) for c in load(name)["cells"] if c["cell_type"] == "markdown"]
    assert not [part for part in text if "$" in part or "\\(" in part]


def test_neither_pytorch_nor_tensorflow_is_needed():
    for name in NAMES:
        for cell in code(load(name)):
            for node in ast.walk(ast.parse("".join(cell["source"]))):
                imported = [a.name for a in node.names] if isinstance(node, ast.Import) else []
                if isinstance(node, ast.ImportFrom):
                    imported = [node.module]
                assert not {m.split(".")[0] for m in imported} & {"torch", "tensorflow"}, name


def test_recorded_answers_are_those_of_pytorch(monkeypatch, tmp_path):
    torch = pytest.importorskip("torch")
    recorded = json.loads((FOLDER.parent / "jaxunpool/apps/pytorch.json").read_text())
    if torch.__version__.partition("+")[0] != recorded["version"]:
        pytest.skip("recorded with another version of PyTorch")
    main = runpy.run_path(str(FOLDER / "record_pytorch.py"))["main"]
    threads = torch.get_num_threads()
    monkeypatch.setitem(main.__globals__, "RECORDED", tmp_path / "again.json")
    main()
    torch.set_num_threads(threads)
    again = json.loads((tmp_path / "again.json").read_text())
    assert again == recorded


@pytest.fixture
def drawing(monkeypatch):
    """How the notebooks draw, without a window."""
    matplotlib = pytest.importorskip("matplotlib")
    matplotlib.use("agg")
    module = pytest.importorskip("jaxunpool.apps.drawing")
    monkeypatch.setattr(module.plt, "show", lambda: None)
    yield module
    module.plt.close("all")


def test_panels_show_the_pictures_under_their_names(drawing):
    grey = np.arange(12.0).reshape(3, 4, 1)
    drawing.panels({"a": grey, "b": grey + 1, "c": grey}, rows=2, bar="amount", cmap="gray")
    a, b, c, bar = drawing.plt.gcf().axes
    assert [axes.get_title() for axes in (a, b, c)] == ["a", "b", "c"]
    np.testing.assert_array_equal(b.images[0].get_array(), grey[..., 0] + 1)
    assert bar.get_ylabel() == "amount"


def test_numbers_are_written_into_their_elements(drawing):
    planes = {"last": [[[0.0], [1.5]]], "first": np.ones((1, 1, 2, 3)), "bare": np.eye(2)}
    drawing.numbers(planes, rows=2)
    written = {
        axes.get_title(): [text.get_text() for text in axes.texts]
        for axes in drawing.plt.gcf().axes
    }
    assert written == {
        "last": ["0", "1.5"],
        "first": ["1"] * 6,
        "bare": ["1", "0", "0", "1"],
    }


def test_notebooks_share_a_style(drawing):
    with drawing.plt.rc_context(drawing.STYLE):
        assert drawing.plt.rcParams["image.cmap"] == "cividis"
    for name in NAMES:
        assert any("rcParams.update(STYLE)" in "".join(cell["source"]) for cell in code(load(name)))


@pytest.fixture
def run():
    pytest.importorskip("nbclient")
    return runpy.run_path(str(FOLDER / "run.py"))


def small(*sources):
    nbformat = pytest.importorskip("nbformat")
    cells = [nbformat.v4.new_code_cell(source) for source in sources]
    return nbformat.v4.new_notebook(cells=cells)


def test_what_changed_is_reported(run):
    nbformat = pytest.importorskip("nbformat")

    def printed(text, tags=()):
        notebook = small("print()")
        cell = notebook.cells[0]
        cell.outputs = [nbformat.v4.new_output("stream", text=text)]
        cell.execution_count, cell.metadata = 1, {"tags": list(tags)}
        return notebook

    differences = run["differences"]
    assert not list(differences(printed("2 dogs"), printed("2 dogs")))
    assert list(differences(printed("2 dogs"), printed("3 dogs")))
    assert not list(differences(printed("2 ms", ["varies"]), printed(" 31.5 ms", ["varies"])))
    assert list(differences(printed("2 ms", ["varies"]), printed("2 s", ["varies"])))
    skipped = copy.deepcopy(printed("2 dogs"))
    skipped.cells[0].execution_count = 7
    assert list(differences(skipped, printed("2 dogs")))


@pytest.mark.thorough
def test_a_notebook_that_fails_or_warns_or_hangs_is_reported(run, tmp_path, monkeypatch):
    nbformat = pytest.importorskip("nbformat")
    path = tmp_path / "it.ipynb"
    monkeypatch.setenv("JAX_PLATFORMS", "cpu")

    def problems(source, limit=60.0):
        nbformat.write(small(source), path)
        return "\n".join(run["run"](path, limit, True)[1])

    assert problems("1 + 1") == ""
    assert nbformat.read(path, as_version=4).cells[0].outputs[0].data == {"text/plain": "2"}
    assert "ZeroDivisionError" in problems("1 / 0")
    assert "warns" in problems("import warnings; warnings.warn('careful')")
    assert "2 seconds" in problems("import time; time.sleep(30)", limit=2.0)
