"""Building a model draws random weights that nobody looks at; nothing of that may stay in the process."""

import io
from collections.abc import Callable
from pathlib import Path

import pytest

from mlx_nb.engine.unloaded import build_unloaded  # before mlx: it loads OpenBLAS
from tests.adapters import make_adapter
from tests.engine.loopback import make_stages

import mlx.core as mx  # isort: skip


def drawn() -> int:
    """How many operations MLX's global key still waits for."""
    written = io.StringIO()
    mx.export_to_dot(written, mx.random.state[0])  # type: ignore[index]
    return written.getvalue().count("shape=rectangle")


def load(folder: Path, _tmp: Path) -> None:
    make_stages(folder, [3, 2])


def load_with_adapter(folder: Path, tmp: Path) -> None:
    adapter = make_adapter(folder, tmp / "adapter")
    mx.random.uniform(shape=(3,))  # making it drew as well
    make_stages(folder, [3, 2], adapter_path=str(adapter))


def plan(folder: Path, _tmp: Path) -> None:
    build_unloaded(folder)


@pytest.mark.parametrize("build", [load, load_with_adapter, plan])
def test_what_was_drawn_for_a_model_is_forgotten(
    tiny: Callable[..., Path], tmp_path: Path, build: Callable[[Path, Path], None]
) -> None:
    folder = tiny("llama")
    mx.random.uniform(shape=(3,))
    assert drawn() > 0  # the control: a draw alone leaves something

    build(folder, tmp_path)

    assert drawn() == 0
