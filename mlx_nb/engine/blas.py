"""OpenBLAS in place of the reference BLAS that PyPI's `mlx-cpu` links on Linux.

Symbols of a library loaded with RTLD_GLOBAL win over those of libraries that come later, so loading
OpenBLAS first sends mlx's matrix products through it. This touches only this process, where
LD_PRELOAD would leak into every child.

Two things can be wrong with the wheel that brings it, and both are looked at before mlx may use it:

- It needs `libgfortran.so.5`, which a bare system lacks. `mlx-cpu` brings one under another name.
- It is built for one processor. On one that lacks its instructions the first product would end the
  process with SIGILL, so its build target is compared with the processor's flags.

Nothing here fails: `loaded` and `note` say what came of it, for others to print.
"""

import ctypes
import importlib.metadata
import os
import sys
from collections.abc import Iterator
from pathlib import Path

from mlx_nb.shared.text import format_count

loaded: str = ""
"""Path of the OpenBLAS in use, or "" when mlx computes with what it links itself."""

note: str = "OpenBLAS has not been looked for yet."
"""One sentence on `loaded`: what is in use, or why not."""

_library: ctypes.CDLL | None = None

_NEEDED_FLAGS: dict[str, frozenset[str]] = {
    # Names as OpenBLAS prints them, flags as /proc/cpuinfo does.
    "PRESCOTT": frozenset(),
    "CORE2": frozenset(),
    "NEHALEM": frozenset({"sse4_2"}),
    "SANDYBRIDGE": frozenset({"avx"}),
    "HASWELL": frozenset({"avx2", "fma"}),
    "ZEN": frozenset({"avx2", "fma"}),
    "SKYLAKEX": frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl"}),
    "COOPERLAKE": frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16"}),
    "SAPPHIRERAPIDS": frozenset({"avx512f", "avx512bw", "avx512dq", "avx512vl", "avx512_bf16", "amx_tile"}),
    "ARMV8": frozenset(),
    "NEOVERSEN1": frozenset({"asimdhp"}),
    "NEOVERSEV1": frozenset({"sve"}),
    "NEOVERSEN2": frozenset({"sve"}),
}


def load() -> None:
    """Load OpenBLAS, once, if it is of use here; record the outcome in `loaded` and `note`."""
    global loaded, note, _library
    if _library is not None:
        return
    if sys.platform != "linux":
        note = "mlx brings its own fast BLAS on this system."
        return
    if "mlx.core" in sys.modules:
        note = "mlx was imported before mlx_nb.engine, so it keeps the slow reference BLAS."
        return
    path = next(_wheel_files("cmeel-openblas", "libopenblas.so.0"), None)
    if path is None:
        note = "OpenBLAS is not installed (pip install cmeel-openblas), so mlx uses the slow reference BLAS."
        return
    try:
        # Local first: a library that turns out to be unfit must not come between mlx and its own.
        library = _open_local(path)
        unfit = why_unfit(_config(library), processor_flags())
        if unfit:
            note = f"{unfit} So mlx uses the slow reference BLAS."
            return
        _library = ctypes.CDLL(str(path), mode=ctypes.RTLD_GLOBAL)
    except (OSError, AttributeError) as error:
        note = f"OpenBLAS could not be loaded ({error}), so mlx uses the slow reference BLAS."
        return
    loaded, note = str(path), f"{_config(_library)}, {format_count(threads(), 'thread')}"


def threads() -> int:
    """Threads that one matrix product may use; 0 when OpenBLAS is not loaded.

    At load OpenBLAS takes it from OPENBLAS_NUM_THREADS, else OMP_NUM_THREADS, else the cores.
    """
    return int(_library.openblas_get_num_threads()) if _library else 0


def set_threads(count: int) -> None:
    """Set `threads`; without OpenBLAS it does nothing.

    Ranks that share a machine run best with one each: two ranks with a thread per core get in each
    other's way. A user's own OPENBLAS_NUM_THREADS or OMP_NUM_THREADS is left alone.
    """
    if _library and not ({"OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"} & os.environ.keys()):
        _library.openblas_set_num_threads(max(1, count))


def why_unfit(config: str, flags: frozenset[str]) -> str:
    """Why an OpenBLAS build would end this process, as a sentence; "" when it is fit.

    Args:
        config: What its `openblas_get_config` says: version, build options, target.
        flags: The processor's, as `processor_flags` reads them.

    >>> why_unfit("OpenBLAS 0.3.31 NO_AFFINITY SKYLAKEX MAX_THREADS=4", frozenset({"avx2", "fma"}))[:47]
    'OpenBLAS is built for SKYLAKEX, and this proces'
    >>> why_unfit("OpenBLAS 0.3.31 DYNAMIC_ARCH NO_AFFINITY Haswell MAX_THREADS=64", frozenset())
    ''
    """
    words = config.upper().split()
    if "DYNAMIC_ARCH" in words:  # it carries kernels for every processor and picks at load
        return ""
    target = next((word for word in words if word in _NEEDED_FLAGS), "")
    if not target:
        return f"It is not known which processors this OpenBLAS runs on ({config})."
    missing = sorted(_NEEDED_FLAGS[target] - flags)
    if missing:
        return f"OpenBLAS is built for {target}, and this processor lacks {', '.join(missing)}."
    return ""


def processor_flags() -> frozenset[str]:
    """Instruction sets of this processor, as Linux names them (``flags``, on Arm ``Features``)."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return frozenset()
    for line in lines:
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def _config(library: ctypes.CDLL) -> str:
    library.openblas_get_config.restype = ctypes.c_char_p
    return str(library.openblas_get_config().decode())


def _open_local(path: Path) -> ctypes.CDLL:
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        if "libgfortran.so.5" not in str(error):
            raise
    _lend_gfortran()
    return ctypes.CDLL(str(path))


def _lend_gfortran() -> None:
    """Load mlx-cpu's libgfortran under its plain name, where the system has none.

    Wheels carry it renamed (``libgfortran-f7379c93.so.5.0.0``), and the loader matches libraries by the
    name written inside. A copy in memory with the plain name written over the long one satisfies it and
    leaves no file behind.
    """
    fortran = next(_wheel_files("mlx-cpu", "libgfortran-"), None)
    if fortran is None:
        raise OSError("libgfortran.so.5 is missing")
    for quadmath in _wheel_files("mlx-cpu", "libquadmath-"):
        ctypes.CDLL(str(quadmath))  # found beside the original only, so it has to be there already
    name = fortran.name.encode() + b"\0"
    image = fortran.read_bytes().replace(name, b"libgfortran.so.5".ljust(len(name), b"\0"))
    descriptor = os.memfd_create("libgfortran.so.5")
    with os.fdopen(descriptor, "wb") as file:
        file.write(image)
        file.flush()
        ctypes.CDLL(f"/proc/self/fd/{descriptor}")


def _wheel_files(wheel: str, start: str) -> Iterator[Path]:
    """Installed files of a wheel whose name begins with `start`."""
    try:
        files = importlib.metadata.files(wheel) or []
    except importlib.metadata.PackageNotFoundError:
        return
    for file in files:
        path = Path(str(file.locate()))
        if path.name.startswith(start) and path.is_file():
            yield path
