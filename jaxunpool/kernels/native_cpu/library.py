"""The compiled library: where it is, and why not where it is not."""

from __future__ import annotations

import ctypes
import functools
import hashlib
import importlib.metadata
import json
import pathlib
import shlex
import struct
import sys
from typing import Any

import jax

HANDLERS = ("select", "gather", "scatter", "reduce", "replicate")
OTHERS = ("select_uneven", "gather_flat", "scatter_flat", "resample", "convolve")
PREFIX = "jaxunpool_"
FOLDER = pathlib.Path(__file__).parent


@functools.cache
def missing() -> str | None:
    """Why the kernels are not there, and what brings them; None once XLA knows them."""
    reason = _load(FOLDER)
    return None if reason is None else f"{reason}; {_remedy(FOLDER)}"


def _load(folder: pathlib.Path) -> str | None:
    """Why the library of a folder cannot be used; None once XLA knows its handlers."""
    built = [path for path in folder.glob("_native*") if path.suffix in (".so", ".pyd", ".dylib")]
    if not built:
        return "it was not compiled when jaxunpool was installed"
    try:
        if _is_cut_off(built[0]):
            return "its library is not whole"
        sources = ctypes.CDLL(str(built[0])).jaxunpool_sources
        sources.restype = ctypes.c_char_p
        if _digest(folder) not in (None, sources().decode()):
            return "its library was compiled from other sources than are here now"
        # What JAX registers before there is a backend it checks too late: the backend would fail.
        jax.devices("cpu")
        load(built[0])
    except Exception as error:  # for another machine, or another version of XLA's interface
        return f"its library cannot be used here ({error})"
    return None


def load(path: pathlib.Path) -> None:
    """Make the kernels of a library known to XLA."""
    library = ctypes.CDLL(str(path))
    for name in HANDLERS + OTHERS:
        handler = jax.ffi.pycapsule(getattr(library, PREFIX + name))
        jax.ffi.register_ffi_target(PREFIX + name, handler, platform="cpu")


def _is_cut_off(path: pathlib.Path) -> bool:
    """Whether the end of an ELF file is missing: to load the rest would end the process."""
    with path.open("rb") as file:
        header = file.read(64)
    if len(header) < 64 or header[:6] != b"\x7fELF\x02\x01":  # 64 bits, little-endian
        return False  # what is no ELF file, or less than its header, is refused without harm
    start, each, count = struct.unpack("<40x Q 10x HH 2x", header)
    return path.stat().st_size < start + each * count  # the sections' table, which comes last


def _digest(folder: pathlib.Path) -> str | None:
    """Of the sources, as setup.py has it; None where there are none, as in a wheel."""
    sources = sorted(path for path in folder.iterdir() if path.suffix in (".cc", ".h", ".inc"))
    if not sources:
        return None
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()


def _remedy(folder: pathlib.Path) -> str:
    """What installs jaxunpool again from where it came, and compiles."""
    again = ["--no-deps", "--no-cache-dir", "--force-reinstall", "--no-binary=jaxunpool"]
    origin, clone = _origin(), folder.parents[2]
    url = origin.get("url", "jaxunpool")  # without one it came from an index
    if (clone / "setup.py").exists():
        what = ["-e", str(clone)]
    elif url.endswith(".whl"):
        return "a wheel that is built where there is g++ or clang brings it"
    elif "vcs_info" in origin:
        what = [*again, f"{origin['vcs_info']['vcs']}+{url}@{origin['vcs_info']['commit_id']}"]
    else:
        what = [*again, url]
    command = shlex.join([sys.executable, "-m", "pip", "install", *what])
    return f"where there is g++ or clang, `{command}` brings it"


def _origin() -> dict[str, Any]:
    """What pip wrote down about where jaxunpool came from (PEP 610)."""
    try:
        written = importlib.metadata.distribution("jaxunpool").read_text("direct_url.json")
    except importlib.metadata.PackageNotFoundError:
        written = None
    return json.loads(written) if written else {}
