"""Compiles the kernels for CPU where there is a C++ compiler; without one, installing goes on."""

import importlib.util
import pathlib

from setuptools import Extension, setup

FOLDER = "jaxunpool/kernels/native_cpu"
jaxlib = importlib.util.find_spec("jaxlib")
headers = [str(pathlib.Path(jaxlib.origin).parent / "include")] if jaxlib else []

setup(
    ext_modules=[
        Extension(
            "jaxunpool.kernels.native_cpu._native",
            [f"{FOLDER}/handlers.cc"],
            include_dirs=headers,
            depends=[
                f"{FOLDER}/{name}"
                for name in ("geometry.h", "rows.h", "runs.inc", "vectors.inc", "winners.h")
            ],
            # Sums have the same bits whatever the compiler: no products fused with additions.
            extra_compile_args=[
                "-std=c++17",
                "-O3",
                "-g0",
                "-ffp-contract=off",
                "-fno-math-errno",
                "-fno-trapping-math",
                "-Wno-psabi",
            ],
            language="c++",
            optional=True,
            py_limited_api=True,
        )
    ]
)
