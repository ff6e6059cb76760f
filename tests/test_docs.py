"""The examples in docstrings, in the README and in the documentation do what they say."""

import doctest
import functools
import inspect
import os
import pathlib
import re
import runpy
import shlex
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from strategies import only

import jaxunpool

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.fixture(autouse=True)
def _as_users_have_it():
    with jax.enable_x64(False):
        yield


@pytest.fixture(autouse=True, scope="module")
def _without_optimizations():
    """Compiling takes most of the time here, and nothing here is about speed."""
    before = jax.config.read("jax_disable_most_optimizations")
    jax.config.update("jax_disable_most_optimizations", True)
    yield
    jax.config.update("jax_disable_most_optimizations", before)


PUBLIC = {name: getattr(jaxunpool, name) for name in jaxunpool.__all__ if name != "interop"}
PUBLIC |= {
    f"interop.{name}": getattr(jaxunpool.interop, name) for name in jaxunpool.interop.__all__
}


@pytest.mark.few(3)
@pytest.mark.parametrize("module", sorted({public.__module__ for public in PUBLIC.values()}))
def test_docstring_examples(module):
    module = sys.modules[module]
    names = {"jax": jax, "jnp": jnp, "np": np, "jaxunpool": jaxunpool}
    result = doctest.testmod(module, extraglobs=names)
    assert result.attempted > 0
    assert result.failed == 0


def test_every_public_function_has_an_example():
    for name, documented in PUBLIC.items():
        text = documented.__doc__ + (getattr(documented, "for_input", documented).__doc__)
        assert ">>> " in text, name


def test_docstrings_are_whole():
    """What it takes, what it returns and what it raises, of every public function."""
    for name, documented in PUBLIC.items():
        if isinstance(documented, type):
            continue
        parameters = inspect.signature(documented).parameters
        sections = ("Args:", "Raises:") if parameters else ()
        for section in sections + (() if name == "validate_indices" else ("Returns:",)):
            assert section in documented.__doc__, (name, section)
        for parameter in parameters:
            assert re.search(rf"\b{parameter}\b", documented.__doc__), (name, parameter)


PAGES = ["README.md", *(str(p.relative_to(ROOT)) for p in sorted((ROOT / "docs").rglob("*.md")))]
NEEDS = {
    "docs/deploy.md": "jax2onnx",
    "docs/recipes/equinox.md": "equinox",
    "docs/recipes/keras.md": "keras",
}
# `--thorough` runs the others, in which networks learn.
LONG = (
    "recipes/",
    "api/models",
    "guide",
    "modules",
    "porting/networks",
    "faults",
    "sharding",
    "training",
)
QUICK = [page for page in PAGES if not page.removeprefix("docs/").startswith(LONG)]


def blocks(page, language):
    return re.findall(
        rf"^```{language}\n(.*?)^```", (ROOT / page).read_text(), re.DOTALL | re.MULTILINE
    )


@functools.cache
def names_after(page):
    """What the code blocks of a page leave behind."""
    names: dict = {}
    for block in blocks(page, "python"):
        exec(compile(block, page, "exec"), names)
    return names


@pytest.mark.few(2)
@pytest.mark.parametrize("page", only(*QUICK, among=PAGES))
def test_every_code_block_runs(page, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    if page in NEEDS:
        pytest.importorskip(NEEDS[page])
    names_after(page)


def test_most_pages_have_code():
    assert sum(bool(blocks(page, "python")) for page in PAGES) >= 12


# Tables of pairs: what to write in another framework, and here.


def pairs(page):
    """(framework, code there, code here) of every row of the tables of pairs."""
    framework = None
    for line in (ROOT / page).read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("| ").split(" | ")]
        if not line.startswith("|"):
            framework = None
        elif cells[1:] == ["jaxunpool"]:
            framework = cells[0]
        elif framework and not cells[0].startswith("---"):
            theirs, ours = (re.findall(r"`([^`]+)`", cell) for cell in cells)
            yield framework, theirs, ours


PORTING = [page for page in PAGES if "/porting/" in page]
TABLES = sorted({(page, framework) for page in PORTING for framework, *_ in pairs(page)})
MODULES = {"Flax": "flax", "Keras": "keras", "PyTorch": "torch", "TensorFlow": "tensorflow"}


def test_there_are_tables():
    assert len(TABLES) >= 8


@pytest.mark.thorough
@pytest.mark.parametrize(
    "page", only("docs/porting/pytorch.md", among=sorted({page for page, _ in TABLES}))
)
def test_every_row_runs(page):
    names = names_after(page)
    for _, _, ours in pairs(page):
        assert ours
        for code in ours:
            assert jax.tree.leaves(eval(code, names)), code


@pytest.mark.few(1)
@pytest.mark.parametrize(("page", "framework"), TABLES)
def test_rows_equal_the_other_framework(page, framework, monkeypatch):
    monkeypatch.setenv("KERAS_BACKEND", "jax")
    if framework not in (*MODULES, "NumPy"):
        pytest.skip(f"{framework} is not Python that can be called")
    ours = names_after(page)
    theirs = there(framework, ours)
    compared = 0
    for found, code, equal in pairs(page):
        if found != framework or len(code) > 1 or "..." in code[0] or "tfa." in code[0]:
            continue
        if "tf.nn.fractional" in code[0]:
            continue  # random positions
        results = [eval(code[0], theirs), eval(equal[0], ours)]
        compare(*map(plain_arrays, results), code[0])
        compared += 1
    assert compared >= 5


def integers(array):
    """All values of an unsigned type, in an array of the same shape."""
    return np.random.default_rng(0).integers(0, 256, array.size, np.uint8).reshape(array.shape)


def with_nan(array):
    changed = np.array(array)
    changed.reshape(-1)[::5] = np.nan
    return changed


@pytest.mark.parametrize("change", [integers, with_nan])
@pytest.mark.parametrize(
    ("page", "framework"), [("docs/porting/keras.md", "Flax"), ("docs/porting/others.md", "NumPy")]
)
def test_rows_hold_for_integers_and_nan(page, framework, change):
    """Where both sides take them, a row is as true of them as of the floats on its page."""
    arrays = {k: v for k, v in names_after(page).items() if isinstance(v, np.ndarray)}
    names = names_after(page) | {name: change(array) for name, array in arrays.items()}
    compared = 0
    for found, code, equal in pairs(page):
        if found != framework or "jax.image" in code[0]:  # that spreads NaN, as its page says
            continue
        if "avg_pool" in code[0] and change is integers:  # Flax's sums wrap around
            continue
        try:
            results = [eval(code[0], names), eval(equal[0], names)]
        except TypeError:  # floats only
            continue
        compare(*map(plain_arrays, results), code[0])
        compared += 1
    assert compared >= 4


def there(framework, names):
    """The arrays of a page as those of a framework, and the names its code uses."""
    if framework == "PyTorch":
        torch = pytest.importorskip("torch")
        names = {
            name: torch.from_numpy(np.array(value, np.int64 if value.dtype == np.int32 else None))
            if isinstance(value, jax.Array | np.ndarray)
            else value
            for name, value in names.items()
        }
        return names | {"F": torch.nn.functional}
    if framework == "TensorFlow":
        tf = pytest.importorskip("tensorflow")
        from tensorflow.python.ops import gen_nn_ops

        return names | {"tf": tf, "gen_nn_ops": gen_nn_ops}
    if framework == "Keras":
        return names | {"keras": pytest.importorskip("keras")}
    return names


def plain_arrays(result):
    leaves = jax.tree.leaves(result, is_leaf=lambda leaf: isinstance(leaf, jaxunpool.PoolIndices))
    flat = [leaf.flat if isinstance(leaf, jaxunpool.PoolIndices) else leaf for leaf in leaves]
    return [np.asarray(leaf) for leaf in flat]


def compare(theirs, ours, code):
    assert len(theirs) == len(ours), code
    for a, b in zip(theirs, ours):
        assert a.shape == b.shape, code
        # Sums of up to 36 products of normal numbers, in any order.
        np.testing.assert_allclose(a, b, rtol=0, atol=64 * np.finfo(np.float32).eps, err_msg=code)


# Commands.


COMMAND = re.compile(r"python3? -m (jaxunpool|benchmarks)\b((?:[^`\n#&|\\]|\\\n)*)")


@pytest.mark.parametrize("page", [*PAGES, "CONTRIBUTING.md"])
def test_commands_exist(page, monkeypatch, capsys):
    """Their subcommands and options, as far as `--help` knows them."""
    for module, arguments in COMMAND.findall((ROOT / page).read_text()):
        words = shlex.split(arguments.replace("\\\n", " "))
        subcommand = words[:1] if words and not words[0].startswith("-") else []
        monkeypatch.setattr(sys, "argv", [module, *subcommand, "--help"])
        monkeypatch.delitem(sys.modules, f"{module}.__main__", raising=False)  # runpy would warn
        with pytest.raises(SystemExit) as stopped:
            runpy.run_module(module, run_name="__main__")
        assert not stopped.value.code
        help_text = capsys.readouterr().out
        for option in (word.split("=")[0] for word in words if word.startswith("-")):
            assert re.search(rf"{option}\b", help_text), (module, arguments)


# The reference.


def test_the_reference_is_complete():
    """Every public name is in a group, and every group on a page and in the table of all."""
    pytest.importorskip("mkdocs")
    groups = runpy.run_path(str(ROOT / "docs/reference.py"))["groups"]()
    shown = [name.removeprefix("jaxunpool.") for names in groups.values() for name in names]
    assert sorted(shown) == sorted(PUBLIC)
    for group in groups:
        assert f"<!-- entries: {group} -->" in (ROOT / f"docs/api/{group}.md").read_text()
        assert f"<!-- table: {group} -->" in (ROOT / "docs/api/index.md").read_text()


@pytest.mark.thorough
def test_drawings_are_what_the_library_computes(tmp_path):
    """Matplotlib keeps each text in a comment."""
    script = ROOT / "docs/drawings.py"
    quick = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    command = [sys.executable, script, tmp_path]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=quick)
    committed = sorted((ROOT / "docs/images/drawings").iterdir())
    assert [path.name for path in committed] == sorted(path.name for path in tmp_path.iterdir())
    for path in committed:
        words = [re.findall(r"<!-- (.*) -->", p.read_text()) for p in (path, tmp_path / path.name)]
        assert words[0] == words[1], path.name
        assert path.name in "".join((ROOT / page).read_text() for page in PAGES), path.name


@pytest.mark.parametrize("page", PAGES)
def test_pages_are_finished(page):
    """No placeholder is left outside code."""
    text = re.sub(r"^```.*?^```|^    .*?$", "", (ROOT / page).read_text(), flags=re.DOTALL | re.M)
    assert not re.findall(r"\b[A-Z]+_[A-Z]+\b", re.sub(r"`[^`]*`", "", text))


def test_readme_mentions_what_exists():
    for path in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / path).exists(), path


@pytest.mark.thorough
def test_examples_to_copy():
    """The reference shows them without prompts, and as a program of its own."""
    pytest.importorskip("griffe")
    pytest.importorskip("mkdocs")
    plain = runpy.run_path(str(ROOT / "docs/docstrings.py"))["plain"]
    for name, documented in PUBLIC.items():
        texts = (documented.__doc__, getattr(documented, "for_input", documented).__doc__)
        example = next(text.partition("Example:\n")[2] for text in texts if "Example:\n" in text)
        code = plain(textwrap.dedent(example), documented.__module__)
        assert "jup." in code, name
        assert ">>>" not in code, name
        compile(code, name, "exec")
        if "expected" not in code and "nnx" not in code:  # no error, and no model to build
            exec(code, {})


@pytest.mark.thorough
def test_cookbook_pictures(tmp_path):
    """Each is drawn from what the page has computed, and shown there."""
    pytest.importorskip("matplotlib")
    script = ROOT / "docs/cookbook.py"
    quick = os.environ | {"JAX_DISABLE_MOST_OPTIMIZATIONS": "1"}
    command = [sys.executable, script, tmp_path]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, env=quick)
    committed = {path.name for path in (ROOT / "docs/images/cookbook").iterdir()}
    assert committed == {path.name for path in tmp_path.iterdir()}
    page = (ROOT / "docs/recipes/cookbook.md").read_text()
    assert committed == set(re.findall(r"images/cookbook/(\w+\.png)", page))
    assert len(committed) == page.count("\n## ")
