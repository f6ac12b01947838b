"""The notebook's kernel stays light."""

import json
import subprocess
import sys

import pytest

import mlx_nb


def loaded(statement: str) -> set[str]:
    """The packages that a fresh interpreter has loaded after a statement."""
    program = f"{statement}; import sys, json; print(json.dumps(sorted(sys.modules)))"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    return {name.partition(".")[0] for name in json.loads(done.stdout)}


def test_importing_the_package_loads_next_to_nothing() -> None:
    assert not {"mlx", "ipyparallel", "IPython", "numpy", "zmq"} & loaded("import mlx_nb")


@pytest.mark.parametrize("module", ["mlx_nb.client.cluster", "mlx_nb.client.watchdog"])
def test_nothing_in_the_kernel_loads_mlx_or_mpi(module: str) -> None:
    found = loaded(f"import {module}")

    assert not {"mlx", "mlx_lm", "mpi4py", "transformers"} & found
    assert "psutil" in found  # the control


def test_the_watchdog_does_without_ipyparallel() -> None:
    assert not {"ipyparallel", "IPython", "zmq"} & loaded("import mlx_nb.client.watchdog")


def test_the_public_names_are_there() -> None:
    for name in mlx_nb.__all__:
        assert getattr(mlx_nb, name) is not None
        assert name in dir(mlx_nb)
    with pytest.raises(AttributeError, match="has no attribute 'nonsense'"):
        _ = mlx_nb.nonsense
    assert repr(type(mlx_nb.current)()) == "Nothing is running."
