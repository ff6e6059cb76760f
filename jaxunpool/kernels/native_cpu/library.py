"""The compiled library: where it is, and why not where it is not."""

from __future__ import annotations

import ctypes
import functools
import pathlib

import jax

HANDLERS = ("select", "gather", "scatter", "reduce", "replicate")
PREFIX = "jaxunpool_"
HOW = "with a C++17 compiler (g++ or clang), `pip install --force-reinstall --no-deps` brings it"


@functools.cache
def missing() -> str | None:
    """Why the kernels are not there; None once they are loaded and XLA knows them."""
    folder = pathlib.Path(__file__).parent
    built = [path for path in folder.glob("_native*") if path.suffix in (".so", ".pyd", ".dylib")]
    if not built:
        return f"it was not compiled when jaxunpool was installed; {HOW}"
    try:
        load(built[0])
    except Exception as error:  # of another machine, or another version of XLA's interface
        return f"its library cannot be used here ({error}); {HOW}"
    return None


def load(path: pathlib.Path) -> None:
    """Make the kernels of a library known to XLA."""
    library = ctypes.CDLL(str(path))
    for name in HANDLERS:
        handler = jax.ffi.pycapsule(getattr(library, PREFIX + name))
        jax.ffi.register_ffi_target(PREFIX + name, handler, platform="cpu")
