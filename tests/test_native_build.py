"""The library of the kernels for CPU: what is done where it is missing, or is for another machine.

Installations with it and without a compiler are in test_packaging.py.
"""

import importlib.util
import os
import pathlib
import re
import shutil
import subprocess
import sys

import jax
import pytest

from jaxunpool.kernels.native_cpu import library

SOURCES = sorted(p for p in library.FOLDER.iterdir() if p.suffix in (".cc", ".h", ".inc"))
HEADERS = pathlib.Path(jax.ffi.include_dir())
# Any library that Python came with, and that has none of the handlers.
OTHER = pathlib.Path(importlib.util.find_spec("_ctypes").origin)
ELF = sys.platform == "linux"


@pytest.fixture
def folder(tmp_path):
    """Where the library of an installed wheel would be."""
    folder = tmp_path / "jaxunpool/kernels/native_cpu"
    folder.mkdir(parents=True)
    return folder


def compile_to(path, source, *flags):
    compiler = shutil.which(os.environ.get("CXX", "g++")) or shutil.which("clang++")
    if compiler is None:
        pytest.skip("there is no compiler")
    command = [compiler, "-std=c++17", "-w", "-shared", "-fPIC", *flags, "-o", path, source]
    subprocess.run(list(map(str, command)), check=True)


def test_it_can_be_loaded_again():
    if reason := library.missing():
        pytest.skip(reason)
    assert library._load(library.FOLDER) is None


def test_nothing_was_compiled(folder):
    assert "not compiled" in library._load(folder)


BROKEN = {
    "empty": lambda code: b"",
    "no library": lambda code: b"no library",
    "cut off": lambda code: code[: len(code) // 2],
    "after its header": lambda code: code[:64],
    "of another machine": lambda code: code[:18] + b"\xf7\x00" + code[20:],
    "without handlers": lambda code: code,
}


@pytest.mark.skipif(not ELF, reason="these are ELF files")
@pytest.mark.parametrize("how", BROKEN)
def test_a_broken_library(how, folder):
    (folder / "_native.abi3.so").write_bytes(BROKEN[how](OTHER.read_bytes()))
    reason = library._load(folder)
    assert reason.startswith("its library ")
    assert ("is not whole" in reason) == (how in ("cut off", "after its header"))


def test_it_is_not_used_beside_other_sources(folder):
    if reason := library.missing():
        pytest.skip(reason)
    for path in library.FOLDER.glob("_native*"):
        shutil.copy(path, folder)
    for path in SOURCES:
        shutil.copy(path, folder)
    assert "other sources" not in (library._load(folder) or "")
    with (folder / "rows.h").open("a") as file:
        file.write("// changed\n")
    assert "other sources" in library._load(folder)


HANDLERS = """
#include "xla/ffi/api/ffi.h"
static xla::ffi::Error Nothing() { return xla::ffi::Error::Success(); }
#define NAMED(name) XLA_FFI_DEFINE_HANDLER_SYMBOL(jaxunpool_##name, Nothing, xla::ffi::Ffi::Bind())
NAMED(select); NAMED(gather); NAMED(scatter); NAMED(reduce); NAMED(replicate);
extern "C" const char* jaxunpool_sources() { return ""; }
"""
AS_FIRST_THING = """
import pathlib, sys
from jaxunpool.kernels.native_cpu import library
library.FOLDER = pathlib.Path(sys.argv[1])
import jax, jaxunpool
print(jaxunpool.backends().found[1].reason)
print(jax.numpy.ones(2) + 1)
"""


@pytest.mark.thorough
@pytest.mark.parametrize("part", ["MAJOR", "MINOR"])
def test_another_version_of_the_interface(part, folder, tmp_path):
    """Is a reason, and no error of JAX's whenever the library is loaded."""
    shutil.copytree(HEADERS, tmp_path / "include")
    header = tmp_path / "include/xla/ffi/api/c_api.h"
    changed, count = re.subn(
        rf"(?m)^(#define XLA_FFI_API_{part}) \d+$", r"\1 99", header.read_text()
    )
    assert count == 1
    header.write_text(changed)
    (tmp_path / "handlers.cc").write_text(HANDLERS)
    compile_to(folder / "_native.so", tmp_path / "handlers.cc", "-I", tmp_path / "include")
    done = subprocess.run(
        [sys.executable, "-c", AS_FIRST_THING, folder], capture_output=True, text=True, check=True
    )
    reason, result = done.stdout.splitlines()
    assert re.match(r"its library cannot be used here \(.*API version.*99", reason)
    assert result == "[2. 2.]"


@pytest.mark.parametrize(
    ("origin", "wanted"),
    [
        ({}, "--no-binary=jaxunpool jaxunpool`"),
        ({"url": "file:///a/b%20c", "dir_info": {}}, "--force-reinstall .* file:///a/b%20c`"),
        (
            {"url": "https://a/b.git", "vcs_info": {"vcs": "git", "commit_id": "abc"}},
            "--no-cache-dir .* git\\+https://a/b.git@abc`",
        ),
        ({"url": "file:///a/b-py3-none-any.whl", "archive_info": {}}, "^a wheel that is built"),
    ],
)
def test_the_command_installs_from_where_it_came(origin, wanted, folder, monkeypatch):
    monkeypatch.setattr(library, "_origin", lambda: origin)
    assert re.search(wanted, library._remedy(folder))
    (folder.parents[2] / "setup.py").touch()
    assert f"-m pip install -e {folder.parents[2]}`" in library._remedy(folder)


@pytest.mark.parametrize("source", sorted(path.name for path in library.FOLDER.glob("*.cc")))
@pytest.mark.parametrize("target", ["x86_64-linux-gnu", "aarch64-linux-gnu", "aarch64-macos"])
def test_clang_compiles_it_without_a_warning(target, source, tmp_path):
    """For other processors and systems too, none of which has to be here."""
    pytest.importorskip("ziglang")
    compiled = tmp_path / "compiled.o"
    command = [sys.executable, "-m", "ziglang", "c++", "-target", target, "-std=c++17", "-O0"]
    command += ["-Wall", "-Wextra", "-Werror", "-Wno-psabi", "-isystem", HEADERS, "-c"]
    command += [library.FOLDER / source, "-o", compiled]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    widest = {"baseline.cc": "xmm", "avx2.cc": "ymm", "avx512.cc": "zmm"}.get(source)
    if target == "x86_64-linux-gnu" and widest and shutil.which("objdump"):
        assert max(registers(compiled)) == widest


def registers(path):
    """The kinds of vectors in the machine code."""
    shown = ["objdump", "-d", path]
    code = subprocess.run(shown, capture_output=True, text=True, check=True).stdout
    return set(re.findall(r"%(xmm|ymm|zmm)", code))
