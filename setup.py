"""Builds the optional native kernel; everything else about the package is in pyproject.toml."""

import sys

from setuptools import Extension, setup

# Not an extension module but a plain shared library, which native.py loads and pixels/kernel.py binds: it needs no
# Python headers. Without a C compiler the package installs all the same, and Pillow does the work.
native = Extension(
    "teachonce._native",
    sources=[f"native/{name}.c" for name in ("views", "decoding", "segments", "rewrite", "examples")],
    depends=[f"native/{name}.h" for name in ("jpeg62", "decoding", "segments")],
    # No fused multiply-add: weights must be rounded as Pillow rounds them. No -Wpsabi: no vector crosses a call.
    extra_compile_args=[] if sys.platform == "win32" else ["-O3", "-std=gnu11", "-ffp-contract=off", "-Wno-psabi"],
    libraries=[] if sys.platform == "win32" else ["m"],
    optional=True,
)

setup(ext_modules=[native])
