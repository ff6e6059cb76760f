"""The examples in docstrings and in the README do what they say."""

import doctest
import inspect
import pathlib
import re
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxunpool

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.fixture(autouse=True)
def _as_users_have_it():
    with jax.enable_x64(False):
        yield


PUBLIC = {name: getattr(jaxunpool, name) for name in jaxunpool.__all__ if name != "interop"}
PUBLIC |= {
    f"interop.{name}": getattr(jaxunpool.interop, name) for name in jaxunpool.interop.__all__
}


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
        for section in ("Args:", "Raises:") + (() if name == "validate_indices" else ("Returns:",)):
            assert section in documented.__doc__, (name, section)
        for parameter in inspect.signature(documented).parameters:
            assert re.search(rf"\b{parameter}\b", documented.__doc__), (name, parameter)


PAGES = ["README.md", *(str(p.relative_to(ROOT)) for p in sorted((ROOT / "docs").rglob("*.md")))]


@pytest.mark.parametrize("page", PAGES)
def test_every_code_block_runs(page):
    text = (ROOT / page).read_text()
    blocks = re.findall(r"^```python\n(.*?)^```", text, re.DOTALL | re.MULTILINE)
    assert blocks
    names: dict = {}
    for block in blocks:
        exec(compile(block, page, "exec"), names)


def test_readme_is_finished():
    assert not re.findall(r"\b[A-Z]+_[A-Z]+\b", re.sub(r"`[^`]*`", "", README))


def test_readme_mentions_what_exists():
    for path in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / path).exists(), path
