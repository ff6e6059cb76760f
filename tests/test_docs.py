"""The examples in docstrings and in the README do what they say."""

import doctest
import pathlib
import re

import jax
import jax.numpy as jnp
import pytest

import jaxunpool
import jaxunpool.geometry
import jaxunpool.indices
import jaxunpool.max

ROOT = pathlib.Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


@pytest.fixture(autouse=True)
def _as_users_have_it():
    with jax.enable_x64(False):
        yield


@pytest.mark.parametrize("module", ["geometry", "indices", "max"])
def test_docstring_examples(module):
    module = getattr(jaxunpool, module)
    names = {"jax": jax, "jnp": jnp, "jaxunpool": jaxunpool}
    result = doctest.testmod(module, extraglobs=names)
    assert result.attempted > 0
    assert result.failed == 0


def test_every_public_function_has_an_example():
    for name in jaxunpool.__all__:
        documented = getattr(jaxunpool, name)
        text = documented.__doc__ + (getattr(documented, "for_input", documented).__doc__)
        assert ">>> " in text, name


def test_readme_examples():
    blocks = re.findall(r"^```python\n(.*?)^```", README, re.DOTALL | re.MULTILINE)
    assert len(blocks) >= 7
    names: dict = {}
    for block in blocks:
        exec(compile(block, "README.md", "exec"), names)


def test_readme_is_finished():
    assert not re.findall(r"\b[A-Z]+_[A-Z]+\b", re.sub(r"`[^`]*`", "", README))


def test_readme_mentions_what_exists():
    for path in re.findall(r"\]\(([^)#]+)\)", README):
        assert (ROOT / path).exists(), path
