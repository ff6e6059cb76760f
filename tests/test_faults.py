"""The faults of other libraries that docs/faults.md shows: none of them is here.

The blocks of the page assert both outcomes. Those of jaxunpool run in test_docs.py, as on every
page. A block of another library names its version, and runs here where that is installed.
"""

import importlib.metadata
import pathlib
import re

import jax
import pytest
from namespace import TABLE
from strategies import only
from test_settings import VARIANTS

PAGE = pathlib.Path(__file__).parent.parent / "docs/faults.md"
BLOCK = re.compile(r'^```python(?: title="([^"]*)")?\n(.*?)^```', re.DOTALL | re.MULTILINE)
SECTIONS = {
    part.partition("\n")[0]: BLOCK.findall(part) for part in PAGE.read_text().split("\n## ")
}
del SECTIONS["---"]  # the top of the page
OTHERS = [(section, title) for section, blocks in SECTIONS.items() for title, _ in blocks if title]
SLOW = {"Another result in every run"}  # loads all of PyTorch's compiler
PACKAGES = {
    "JAX": ["jax"],
    "ONNX Runtime": ["onnxruntime", "onnx"],
    "Paddle": ["paddlepaddle"],
    "PyTorch": ["torch"],
    "TensorFlow": ["tensorflow", "tensorflow-cpu"],
    "tinygrad": ["tinygrad"],
}


@pytest.fixture(autouse=True)
def _as_users_have_it():
    with jax.enable_x64(False):
        yield


def test_every_fault_of_the_table_has_a_section_and_an_answer():
    text = PAGE.read_text()
    assert re.findall(r"^\| \[(.*?)\]\(#", text, re.MULTILINE) == list(SECTIONS)
    for section, blocks in SECTIONS.items():
        assert [title for title, _ in blocks].count("") >= 1, section
        assert all("assert " in code for _, code in blocks), section


@pytest.mark.parametrize(
    ("section", "title"), only(*(each for each in OTHERS if each[0] not in SLOW), among=OTHERS)
)
@pytest.mark.filterwarnings("ignore")  # those of other libraries are their own
def test_the_other_library_has_the_fault(section, title):
    library, versions = re.fullmatch(r"(.*?) ([\d., ]+)", title).groups()
    if not any(has(package, versions.split(", ")) for package in PACKAGES[library]):
        pytest.skip(f"needs {title}")
    (code,) = (code for other, code in SECTIONS[section] if other == title)
    exec(compile(code, f"{PAGE.name}, {section}, {title}", "exec"), {})


def has(package, versions):
    try:
        installed = importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return False
    return any(installed.startswith(f"{version}.") for version in versions)


BY_POSITION = {"validate_indices", "global_max_pool", "global_max_pool_with_indices"}
BY_POSITION |= {
    name for name in TABLE if name.startswith(("adaptive_max", "fractional_max", "interop"))
}
BY_POSITION |= {"from_flat", "from_flat, plane", "interop.onnx, columns"}
BY_POSITION |= {"interop.tensorflow, batch", "max_unpool, raw", "max_unpool, raw, sum"}


@pytest.mark.parametrize("x64", [False, True])
def test_planes_of_more_elements_than_int32_can_count(x64):
    """Windows work on them, with indices as small as ever. What needs positions says so."""
    with jax.enable_x64(x64):
        for name, entry in (TABLE | VARIANTS).items():
            x = jax.ShapeDtypeStruct(entry.shape(scale=2**13), "float32")
            assert x.shape[0] * x.shape[1] > 2**31 or entry.of == "y"
            if name in BY_POSITION:
                with pytest.raises(
                    ValueError, match=r"^[\w.]+[:=].*(int32|int64|at most 2147483647 elements)"
                ):
                    jax.eval_shape(entry.run, x)
            else:
                found = jax.tree.leaves(jax.eval_shape(entry.run, x))
                assert not {"int32", "int64"} & {leaf.dtype.name for leaf in found}, name
