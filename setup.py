"""Builds the optional native library, and one wheel for every Python; all else of the package is in pyproject.toml."""

import sys
from pathlib import PurePosixPath

from setuptools import Extension, setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext

# Not an extension module but a plain shared library, which native.py loads and pixels/kernel.py binds: it needs no
# Python headers. Without a C compiler the package installs all the same, and Pillow does the work.
# CFLAGS=-DTEACHONCE_NO_AVX2 builds it without its own vector code, as it is built for other processors than x86-64.
native = Extension(
    "teachonce._native",
    sources=[
        f"native/{name}.c" for name in ("views", "decoding", "segments", "rewrite", "examples", "frames", "numbers")
    ],
    depends=[f"native/{name}.h" for name in ("jpeg62", "decoding", "layout", "segments")],
    # No fused multiply-add: weights must be rounded as Pillow rounds them. No -Wpsabi: no vector crosses a call.
    extra_compile_args=[] if sys.platform == "win32" else ["-O3", "-std=gnu11", "-ffp-contract=off", "-Wno-psabi"],
    libraries=[] if sys.platform == "win32" else ["m"],
    optional=True,
)


class BuildLibrary(build_ext):
    """Without the suffix that ties an extension module to one version of Python: nothing of Python is in it."""

    def get_ext_filename(self, fullname: str) -> str:
        """``teachonce/_native.so``, whichever Python builds it."""
        return str(PurePosixPath(*fullname.split(".")).with_suffix(".so"))


class AnyPython(bdist_wheel):
    """A wheel of a platform, not of a version of Python."""

    def get_tag(self) -> tuple[str, str, str]:
        """The platform is that of the build, or what ``--plat-name`` says (``make wheel``, which checks it)."""
        return "py3", "none", super().get_tag()[2]


setup(ext_modules=[native], cmdclass={"build_ext": BuildLibrary, "bdist_wheel": AnyPython})
