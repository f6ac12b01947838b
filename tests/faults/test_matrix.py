"""Faults in every phase of a cluster's life: a spread of cells here, all of them and random ones in the soak tier."""

import json
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor

import pytest

from tests.faults import matrix
from tests.faults.matrix import FAULTS, PHASES, Cell, draw, run_cell

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("alone")]

SPREAD = [
    ("kill controller", "start"),
    ("kill rank 1", "prefill"),
    ("kill mpirun", "decode"),
    ("stop rank 1", "stepped"),
    ("delay rank 1", "decode"),
]


def assert_good(cell: Cell) -> None:
    assert not cell.wrong, f"{cell.fault} in {cell.phase}: {cell.wrong}; the user read: {cell.said}"


@pytest.fixture(scope="module")
def spread() -> Iterator[dict[tuple[str, str], Future[Cell]]]:
    """The cells, each in a process of its own and two at a time: most of a cell is waiting."""

    def in_a_process(fault: str, phase: str) -> Cell:
        command = [sys.executable, matrix.__file__, "--cell", fault, phase]
        done = subprocess.run(command, capture_output=True, text=True, timeout=200, check=False)
        assert done.stdout, done.stderr
        return Cell(**json.loads(done.stdout.splitlines()[-1]))

    with ThreadPoolExecutor(2) as pool:
        yield {place: pool.submit(in_a_process, *place) for place in SPREAD}


@pytest.mark.parametrize(("fault", "phase"), SPREAD)
def test_a_fault_is_told_and_the_cluster_restarts(
    fault: str, phase: str, spread: dict[tuple[str, str], Future[Cell]]
) -> None:
    cell = spread[fault, phase].result()

    assert_good(cell)
    assert "%mlx_cluster" in cell.said or phase == "start" or cell.harmless


@pytest.mark.soak
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_in_every_phase(fault: str, phase: str) -> None:
    assert_good(run_cell(fault, phase))


@pytest.mark.soak
@pytest.mark.timeout(7200)
def test_two_hundred_random_faults_in_a_row() -> None:
    bed = matrix.Bed()
    for seed in range(200):
        assert_good(bed.play(*draw(seed)))
    bed.close()
