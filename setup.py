"""Compiles the kernels for CPU where there is a C++ compiler; without one, installing goes on."""

import hashlib
import importlib.util
import pathlib

from setuptools import Extension, setup

FOLDER = pathlib.Path("jaxunpool/kernels/native_cpu")
SOURCES = sorted(path for path in FOLDER.iterdir() if path.suffix in (".cc", ".h", ".inc"))
# The library says what it was made of: beside other sources it is not used (library.py).
DIGEST = hashlib.sha256(b"".join(path.read_bytes() for path in SOURCES)).hexdigest()

jaxlib = importlib.util.find_spec("jaxlib")
headers = [str(pathlib.Path(jaxlib.origin).parent / "include")] if jaxlib else []

# Sums have the same bits whatever the compiler: no products fused with additions.
FLAGS = ["-std=c++17", "-O3", "-g0", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]

setup(
    ext_modules=[
        Extension(
            "jaxunpool.kernels.native_cpu._native",
            [str(FOLDER / "handlers.cc")],
            depends=[str(path) for path in SOURCES],
            include_dirs=headers,
            define_macros=[("JAXUNPOOL_SOURCES", f'"{DIGEST}"')],
            extra_compile_args=[*FLAGS, "-Wno-psabi"],
            language="c++",
            optional=True,
            py_limited_api=True,
        )
    ]
)
