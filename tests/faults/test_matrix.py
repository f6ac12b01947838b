"""Faults in every phase of a cluster's life: a spread of cells here, all of them and random ones in the soak tier."""

import random

import pytest

from tests.faults.matrix import FAULTS, PHASES, Cell, run_cell

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("alone")]

SPREAD = [
    ("kill controller", "start"),
    ("kill rank 1", "prefill"),
    ("kill mpirun", "decode"),
    ("stop rank 1", "stepped"),
]


def assert_good(cell: Cell) -> None:
    assert not cell.wrong, f"{cell.fault} in {cell.phase}: {cell.wrong}; the user read: {cell.said}"


@pytest.mark.parametrize(("fault", "phase"), SPREAD)
def test_a_fault_is_told_and_the_cluster_restarts(fault: str, phase: str) -> None:
    cell = run_cell(fault, phase)

    assert_good(cell)
    assert "%mlx_cluster" in cell.said or phase == "start"


@pytest.mark.soak
@pytest.mark.parametrize("phase", PHASES)
@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_in_every_phase(fault: str, phase: str) -> None:
    assert_good(run_cell(fault, phase))


@pytest.mark.soak
@pytest.mark.parametrize("seed", range(200))
def test_random_faults(seed: int) -> None:
    draw = random.Random(seed)
    fault, phase = draw.choice(FAULTS), draw.choice(PHASES)
    assert_good(run_cell(fault, phase, delay_s=draw.uniform(0.0, 1.0)))
