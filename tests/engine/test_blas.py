"""OpenBLAS goes before mlx where it fits, and never where it would end the process."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_nb.engine import blas

AVX2 = frozenset({"sse4_2", "avx", "avx2", "fma"})
AVX512 = AVX2 | {"avx512f", "avx512bw", "avx512dq", "avx512vl"}

linux = pytest.mark.skipif(sys.platform != "linux", reason="mlx brings a fast BLAS elsewhere")


def in_python(code: str, **environment: str) -> dict:
    """Run code in a fresh interpreter; the JSON object it prints."""
    run = subprocess.run(
        [sys.executable, "-c", code],
        env={"PATH": "/usr/bin:/bin", "HOME": str(Path.home()), **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    return json.loads(run.stdout)


REPORT = "; import json; print(json.dumps(dict(loaded=blas.loaded, note=blas.note, threads=blas.threads())))"


@pytest.mark.parametrize(
    ("config", "flags", "fit"),
    [
        ("OpenBLAS 0.3.29 NO_AFFINITY ZEN MAX_THREADS=4", AVX2, True),
        ("OpenBLAS 0.3.29 NO_AFFINITY ZEN MAX_THREADS=4", frozenset({"avx"}), False),
        ("OpenBLAS 0.3.31 NO_AFFINITY SKYLAKEX MAX_THREADS=4", AVX512, True),
        ("OpenBLAS 0.3.31 NO_AFFINITY SKYLAKEX MAX_THREADS=4", AVX2, False),
        ("OpenBLAS 0.3.31 NO_AFFINITY SKYLAKEX MAX_THREADS=4", frozenset(), False),
        ("OpenBLAS 0.3.30 NO_AFFINITY Neoversev1 MAX_THREADS=4", frozenset({"asimd"}), False),
        ("OpenBLAS 0.3.30 NO_AFFINITY armv8 MAX_THREADS=4", frozenset({"asimd"}), True),
        ("OpenBLAS 0.3.34 DYNAMIC_ARCH NO_AFFINITY SkylakeX MAX_THREADS=64", AVX2, True),
        ("OpenBLAS 9 NO_AFFINITY NEXTCHIP MAX_THREADS=4", AVX512, False),
    ],
)
def test_a_build_is_fit_only_for_a_processor_with_its_instructions(config, flags, fit):
    assert (blas.why_unfit(config, flags) == "") is fit


@linux
def test_importing_the_engine_loads_it_before_mlx_and_products_come_out_right():
    code = (
        "from mlx_nb.engine import blas; import mlx.core as mx\n"
        "a, b = mx.random.normal((64, 576)), mx.random.normal((576, 1536))\n"
        "error = mx.abs(a @ b - (a[:, :, None] * b[None]).sum(1)).max().item()\n"
        "import json; print(json.dumps(dict(loaded=blas.loaded, error=error, note=blas.note)))"
    )
    result = in_python(code)

    assert result["error"] < 1e-3
    if blas.processor_flags() >= AVX2:
        assert "libopenblas" in result["loaded"], result["note"]


@linux
def test_after_mlx_it_stays_away_and_says_so():
    result = in_python("import mlx.core; from mlx_nb.engine import blas" + REPORT)

    assert result["loaded"] == ""
    assert "imported before" in result["note"]


@linux
def test_an_unfit_build_is_not_loaded():
    code = (
        "import pathlib; real = pathlib.Path.read_text\n"
        "def flags(self, *args, **options):\n"
        "    return 'flags : fpu sse2' if str(self) == '/proc/cpuinfo' else real(self, *args, **options)\n"
        "pathlib.Path.read_text = flags; from mlx_nb.engine import blas"
    )
    result = in_python(code + REPORT)

    assert result["loaded"] == ""
    assert "this processor lacks" in result["note"] or "not known" in result["note"]


@pytest.fixture(scope="module")
def loads_here() -> None:
    """Asked in a fresh process: in this one other tests may have imported mlx first."""
    result = in_python("from mlx_nb.engine import blas" + REPORT)
    if not result["loaded"]:
        pytest.skip(result["note"])


@pytest.mark.usefixtures("loads_here")
@pytest.mark.parametrize("variable", ["OPENBLAS_NUM_THREADS", "OMP_NUM_THREADS"])
def test_the_users_thread_count_wins(variable):
    code = "from mlx_nb.engine import blas; blas.set_threads(2)" + REPORT

    one = in_python(code, **{variable: "1"})
    assert one["threads"] == 1
    assert one["note"].endswith(", 1 thread")
    assert in_python(code)["threads"] == 2  # control: without the variable it is ours


@pytest.mark.usefixtures("loads_here")
def test_a_rank_can_take_one_thread():
    assert in_python("from mlx_nb.engine import blas; blas.set_threads(1)" + REPORT)["threads"] == 1


@linux
def test_a_library_that_lacks_fortran_borrows_mlxs():
    """What a bare system goes through, whether or not this one is bare."""
    code = (
        "import ctypes; from mlx_nb.engine import blas; blas._lend_gfortran()\n"
        "maps = open('/proc/self/maps').read(); import json\n"
        "print(json.dumps(dict(lent='memfd:libgfortran.so.5' in maps)))"
    )
    assert in_python(code)["lent"]
