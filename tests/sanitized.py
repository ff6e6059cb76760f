"""Tests with a library that was compiled with sanitizers, for `test_native_cpu.py`.

`python sanitized.py LIBRARY TYPES ARGS...`: `ARGS` are pytest's, and the library has the types
named (with commas) alone.
"""

import dataclasses
import pathlib
import sys

import pytest


class Sanitized:
    """Puts the library in place of the one installed, before tests are collected."""

    def __init__(self, path: str, types: str) -> None:
        self.path, self.types = pathlib.Path(path), types.split(",")

    def pytest_collection(self):
        from backend_cases import TESTED

        from jaxunpool.kernels.native_cpu import library

        library.load(self.path)
        library.missing = lambda: None
        tested = TESTED["native_cpu"]
        dtypes = [dtype for dtype in tested.dtypes if dtype.name in self.types]
        TESTED["native_cpu"] = dataclasses.replace(tested, dtypes=dtypes)


if __name__ == "__main__":
    path, types, *arguments = sys.argv[1:]
    sys.exit(pytest.main(["-p", "no:cacheprovider", "-s", *arguments], [Sanitized(path, types)]))
