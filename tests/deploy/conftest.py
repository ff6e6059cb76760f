"""Tests of other runtimes, which want the packages of the extra `deploy` (see CONTRIBUTING.md)."""

import jax
import pytest


@pytest.fixture(autouse=True)
def _as_users_have_it():
    with jax.enable_x64(False):
        yield


def pytest_collection_modifyitems(items):
    """Converters warn of much that is not ours."""
    for item in items:
        if "deploy" in item.path.parts:
            item.add_marker(pytest.mark.filterwarnings("ignore"))
