"""Install packages into an image: pip, then remove what no step needs at run time, then compile the bytecode.

    python install.py ARGUMENTS-OF-PIP-INSTALL

Works on the files that this call adds, so that each layer of an image only holds its own.
"""

import compileall
import py_compile
import struct
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

TARGET = Path("/opt/mlcore")

# Folders and files that no step needs at run time, as patterns under site-packages.
UNNEEDED = [
    "tensorflow/include",  # C++ headers, 236 MB
    "tensorflow/xla_aot_runtime_src",  # C++ sources of ahead-of-time compilation
    "tensorflow/python/kernel_tests",
    "tensorboard/webfiles.zip",  # the pages of TensorBoard; steps only write summaries
    "matplotlib/mpl-data/sample_data",
    "**/tests",  # not `test`: tf.test is part of TensorFlow's API
    "**/*.pyi",
    "**/*.pyx",
    "**/*.pxd",
    "**/*.h",
    "**/*.hpp",
    "**/*.a",
]


def files_of(folder: Path) -> set[Path]:
    """Every file below a folder."""
    return {path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()}


def loaded_size(path: Path) -> int | None:
    """The bytes of a 64-bit ELF file that a program can load; None for other files.

    Behind the last segment come symbol names and debugging information, a quarter of TensorFlow's libraries. The loader
    never reads them.
    """
    with path.open("rb") as file:
        header = file.read(64)
        if header[:6] != b"\x7fELF\x02\x01":
            return None
        (table,) = struct.unpack_from("<Q", header, 32)
        size, count = struct.unpack_from("<HH", header, 54)
        file.seek(table)
        segments = [struct.unpack("<IIQQQQQQ", file.read(size)[:56]) for _ in range(count)]
    return max([table + size * count] + [offset + length for _, _, offset, _, _, length, _, _ in segments])


def strip(path: Path) -> None:
    """Cut off what follows the last segment of a shared library, the table of sections with it."""
    size = loaded_size(path)
    if size is None or size >= path.stat().st_size:
        return
    with path.open("r+b") as file:
        file.truncate(size)
        file.seek(40)
        file.write(bytes(8))  # e_shoff: no table of sections
        file.seek(60)
        file.write(bytes(4))  # e_shnum, e_shstrndx


def compile_file(path: Path) -> bool:
    """Write the bytecode of one module, valid without a look at the source's time."""
    return compileall.compile_file(
        path, quiet=2, force=True, invalidation_mode=py_compile.PycInvalidationMode.UNCHECKED_HASH
    )


def main() -> None:
    """Install, remove, strip, compile."""
    before = files_of(TARGET)
    subprocess.run(
        [sys.executable, "-m", "pip", "--python", TARGET / "bin" / "python", "install", "--disable-pip-version-check",
         "--quiet", "--no-deps", "--no-compile", "--root-user-action=ignore", *sys.argv[1:]],
        check=True,
    )  # fmt: skip
    (site,) = TARGET.glob("lib/python3*/site-packages")
    unneeded = {path for pattern in UNNEEDED for path in site.glob(pattern)}
    removed = {file for path in unneeded for file in (files_of(path) if path.is_dir() else {path})} - before
    for file in removed:
        file.unlink()
    for folder in sorted((path for path in site.rglob("*") if path.is_dir()), reverse=True):
        if not any(folder.iterdir()):
            folder.rmdir()
    added = files_of(TARGET) - before
    # The NVIDIA libraries are left as they come: they are not tried without their sections.
    for library in (path for path in added if ".so" in path.name and "nvidia" not in path.parts):
        strip(library)
    with ProcessPoolExecutor() as pool:
        list(pool.map(compile_file, sorted(path for path in added if path.suffix == ".py"), chunksize=32))


if __name__ == "__main__":
    main()
