"""The import arrows hold, and the check that says so can fail."""

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


def lint_imports(folder: Path) -> subprocess.CompletedProcess[str]:
    """Run import-linter on a copy of the package; the copy is what gets imported."""
    command = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as c; c()"]
    return subprocess.run(
        [*command, "--no-cache"],
        cwd=folder,
        env={"PYTHONPATH": str(folder), "PATH": "/usr/bin:/bin"},
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture
def copy(tmp_path: Path) -> Path:
    shutil.copytree(ROOT / "mlx_nb", tmp_path / "mlx_nb", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    return tmp_path


def test_imports_run_one_way(copy: Path) -> None:
    done = lint_imports(copy)

    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize(
    ("file", "line"),
    [
        ("client/pipe.py", "from mlx_nb.engine import kv"),
        ("engine/run.py", "from mlx_nb.client import current"),
        ("engine/run.py", "from mlx_lm.utils import load_model"),
        ("client/generation.py", "import mlx.core"),
        ("shared/plan.py", "from mlx_nb.widgets import stepper"),
    ],
)
def test_an_import_against_the_arrow_is_caught(copy: Path, file: str, line: str) -> None:
    target = copy / "mlx_nb" / file
    target.write_text(f"{target.read_text()}\n{line}\n")

    assert lint_imports(copy).returncode != 0


def test_the_kernel_side_loads_without_mlx() -> None:
    code = (
        "import sys, mlx_nb.client.magics, mlx_nb.widgets.stepper, mlx_nb.cli;"
        "print([m for m in ('mlx', 'mlx_lm', 'mpi4py') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "[]"
