"""Remove from the runner's image what nothing can use there. Runs in the layer that installed it.

The image has no compiler and one CUDA version, so headers, static libraries, and libraries for other CUDA versions are
dead weight: half a gigabyte. Only the standard library is used; run it with the image's own Python.
"""

import shutil
import sys
import sysconfig
from pathlib import Path

# Pattern below site-packages -> why nothing misses it. A pattern that matches nothing stops the build: then a package
# has changed, and its line has to be looked at again.
UNUSED = {
    "torch/include": "headers for extensions",
    "torch/bin/protoc*": "compiles protocol buffers; torch_shm_manager beside it is needed",
    "nvidia/cu13/include": "headers for extensions",
    "nvidia/cu13/lib/*.a": "static libraries",
    "nvidia/nvshmem/lib/*.a": "static libraries",
    "nvidia/cu13/lib/libcusolverMg.so.*": "dense solvers over several GPUs: nothing links to them or loads them",
    "nvidia/cu13/lib/libnvrtc.alt.so.*": "a second build of NVRTC: torch loads the first",
    "nvidia/cu13/lib/libnvrtc-builtins.alt.so.*": "goes with it",
    "pyarrow/include": "headers for extensions",
    "pyarrow/tests": "tests",
    "scipy/**/tests": "tests",
    "numpy/**/tests": "tests",
    "sympy/**/tests": "tests",
    "networkx/**/tests": "tests",
}


def unused(site_packages: Path, cuda: str) -> list[Path]:
    """List what to remove: the patterns' matches, and bitsandbytes' kernels for other versions than `cuda` ("13.0").

    Raises:
        LookupError: a pattern matches nothing, or bitsandbytes has no kernels for this CUDA version.
    """
    found: list[Path] = []
    for pattern in UNUSED:
        matches = sorted(site_packages.glob(pattern))
        if not matches:
            raise LookupError(f"nothing matches {pattern} in {site_packages}: mend UNUSED in requirements/unused.py")
        found += matches
    used = site_packages / "bitsandbytes" / f"libbitsandbytes_cuda{cuda.replace('.', '')}.so"
    if not used.is_file():
        raise LookupError(f"bitsandbytes has no {used.name} for torch's CUDA {cuda}: lock versions that fit together")
    kernels = used.parent.glob("libbitsandbytes_*.so")
    return found + sorted(path for path in kernels if path not in (used, used.parent / "libbitsandbytes_cpu.so"))


def main() -> int:
    """Remove it, and say how much it was."""
    import torch.version

    try:
        paths = unused(Path(sysconfig.get_path("purelib")), str(torch.version.cuda))
    except LookupError as error:
        print(error, file=sys.stderr)
        return 1
    removed_bytes = 0
    for path in paths:
        files = [path] if path.is_file() else [entry for entry in path.rglob("*") if entry.is_file()]
        removed_bytes += sum(entry.lstat().st_size for entry in files)
        if path.is_dir():
            shutil.rmtree(path)
        elif path.exists():
            path.unlink()
    print(f"removed {removed_bytes / 1e6:.0f} MB that nothing uses")
    return 0


if __name__ == "__main__":
    sys.exit(main())
