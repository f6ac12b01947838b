"""One value, one message, over real MPI."""

import json
import subprocess
import sys
from pathlib import Path

import pytest

PREFIX = 8


@pytest.fixture(scope="module")
def sent() -> list[dict[str, int]]:
    script = Path(__file__).parent / "envelope_over_mpi.py"
    done = subprocess.run(
        [sys.executable, str(script)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return [json.loads(line) for line in done.stdout.splitlines()]


def test_every_value_arrives_bit_for_bit(sent: list[dict[str, int]]) -> None:
    assert [message["same"] for message in sent] == [True] * 13


def test_a_layout_travels_once(sent: list[dict[str, int]]) -> None:
    lean = [message["message_bytes"] == PREFIX + message["array_bytes"] for message in sent]

    # The fourth value looks like the third, and the ninth like the eighth: their headers stay at home.
    assert lean == [False] * 3 + [True] + [False] * 4 + [True] + [False] * 4


def test_sizes_count_the_arrays_alone(sent: list[dict[str, int]]) -> None:
    assert sent[0]["array_bytes"] == 24 * 4
    assert sent[7]["array_bytes"] == 4
