"""Compiles the kernels for CPU where there is a C++ compiler; without one, installing goes on."""

import concurrent.futures
import hashlib
import importlib.metadata
import importlib.util
import itertools
import os
import pathlib
import platform
import shutil
import subprocess
import sys

from setuptools import Extension, setup
from setuptools.command.build_ext import build_ext

FOLDER = pathlib.Path("jaxunpool/kernels/native_cpu")
SOURCES = sorted(path for path in FOLDER.iterdir() if path.suffix in (".cc", ".h", ".inc"))
UNITS = [str(path) for path in SOURCES if path.suffix == ".cc"]
# The library says what it was made of: beside other sources it is not used (library.py).
DIGEST = hashlib.sha256(b"".join(path.read_bytes() for path in SOURCES)).hexdigest()

jaxlib = importlib.util.find_spec("jaxlib")
headers = [str(pathlib.Path(jaxlib.origin).parent / "include")] if jaxlib else []

# Sums have the same bits whatever the compiler: no products fused with additions.
FLAGS = ["-std=c++17", "-O3", "-g0", "-ffp-contract=off", "-fno-math-errno", "-fno-trapping-math"]
# What else a library depends on.
COMPILER = [os.environ.get(name) for name in ("CC", "CXX", "CFLAGS", "CXXFLAGS", "CPPFLAGS")]
VERSIONS = [importlib.metadata.version("jaxlib") if jaxlib else None, platform.machine()]
BUILD = hashlib.sha256(repr([FLAGS, COMPILER, VERSIONS]).encode()).hexdigest()
SAYS = "import ctypes, sys; library = ctypes.CDLL(sys.argv[1])\n" + "".join(
    f"library.{name}.restype = ctypes.c_char_p; print(library.{name}().decode())\n"
    for name in ("jaxunpool_sources", "jaxunpool_build")
)


class Build(build_ext):
    """Compiles the sources side by side; `-e` again takes the library that is there."""

    def build_extensions(self):
        """All of them, with a compiler that runs several times at once."""
        one_by_one = self.compiler.compile

        def side_by_side(sources, *args, **options):
            with concurrent.futures.ThreadPoolExecutor() as pool:
                built = pool.map(lambda source: one_by_one([source], *args, **options), sources)
                return list(itertools.chain.from_iterable(built))

        self.compiler.compile = side_by_side
        super().build_extensions()

    def build_extension(self, extension):
        """A library that was made here of the same sources is as good as a new one."""
        there = FOLDER / pathlib.Path(self.get_ext_filename(extension.name)).name
        if self.editable_mode and is_current(there):
            target = pathlib.Path(self.get_ext_fullpath(extension.name))
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copy(there, target)
        else:
            super().build_extension(extension)


def is_current(library):
    """Whether a library was made of these sources, in this way.

    It is asked in another process, which a file that is not whole can end.
    """
    asked = [sys.executable, "-c", SAYS, str(library.resolve())]
    said = subprocess.run(asked, capture_output=True, text=True, check=False)
    return said.returncode == 0 and said.stdout.split() == [DIGEST, BUILD]


setup(
    cmdclass={"build_ext": Build},
    ext_modules=[
        Extension(
            "jaxunpool.kernels.native_cpu._native",
            UNITS,
            depends=[str(path) for path in SOURCES],
            include_dirs=headers,
            define_macros=[
                ("JAXUNPOOL_SOURCES", f'"{DIGEST}"'),
                ("JAXUNPOOL_BUILD", f'"{BUILD}"'),
            ],
            extra_compile_args=[*FLAGS, "-Wno-psabi"],
            language="c++",
            optional=True,
            py_limited_api=True,
        )
    ],
)
