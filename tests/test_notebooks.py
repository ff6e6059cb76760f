"""The committed notebooks are whole: executed, and fit to be read. `notebooks/run.py` runs them."""

import ast
import copy
import json
import pathlib
import re
import runpy

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
    recorded = json.loads((FOLDER / "data" / "pytorch.json").read_text())
    if torch.__version__.partition("+")[0] != recorded["version"]:
        pytest.skip("recorded with another version of PyTorch")
    main = runpy.run_path(str(FOLDER / "data" / "record_pytorch.py"))["main"]
    threads = torch.get_num_threads()
    monkeypatch.setitem(main.__globals__, "RECORDED", tmp_path / "again.json")
    main()
    torch.set_num_threads(threads)
    again = json.loads((tmp_path / "again.json").read_text())
    assert again == recorded


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
