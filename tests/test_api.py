"""A change of the public API is a decision: it shows in a file, and in the version's number."""

import pathlib
import re

import api

import jaxunpool

ROOT = pathlib.Path(__file__).parent.parent


def test_the_public_api_is_the_one_in_the_file():
    """If it is meant to change: python tests/api.py, and a line in CHANGELOG.md."""
    assert api.text() == api.FILE.read_text()


def test_the_changelog_names_the_version():
    versions = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert versions[0] == jaxunpool.__version__
    assert versions == sorted(versions, key=lambda v: [*map(int, v.split("."))], reverse=True)
