"""The benchmark itself, at its quickest: that every contender answers, never how fast."""

import json
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from mlx_nb.bench.rows import ROWS
from mlx_nb.bench.run import run
from mlx_nb.shared.bench_report import OURS, Report
from mlx_nb.shared.errors import OptionError

PEERS = "mlx_nb.bench.peers"

pytestmark = [pytest.mark.cluster]


def bench(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "mlx_nb.cli", "bench", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=280, check=False)


def test_rows_are_measured_for_every_contender_and_written(tmp_path: Path) -> None:
    files = ["--json", str(tmp_path / "b.json"), "--markdown", str(tmp_path / "b.md")]

    done = bench("--quick", "--rounds", "1", "--rows", "hop-37-tcp,bytes", *files)

    assert done.returncode in (0, 1), done.stderr  # 1: a target was missed, which is no matter for a test
    report = Report.from_json((tmp_path / "b.json").read_text())
    assert [row.key for row in report.rows] == ["bytes", "hop-37-tcp"]
    assert not report.missed
    for row in report.rows:
        assert OURS in row.samples
        assert len(row.samples) > 1
        assert all(len(found) == 1 and found[0] > 0 for found in row.samples.values())
    assert report.rows[0].ratio("mlx-lm, 1 process, 1 thread") < 0.7  # a rank reads its share, not the model
    assert "processor" in json.loads((tmp_path / "b.json").read_text())["machine"]
    assert "| bytes read by a load, busiest rank" in (tmp_path / "b.md").read_text()
    assert not [
        one for one in psutil.process_iter(["cmdline"]) if PEERS in " ".join(one.info["cmdline"] or ())
    ]


def test_a_wrong_row_is_named_with_the_right_ones() -> None:
    done = bench("--rows", "decoding")

    assert done.returncode == 1
    assert done.stderr.startswith("mlx-nb: There is no row 'decoding'. Rows: start, load,")
    with pytest.raises(OptionError, match="one round or more"):
        run(rounds=0)


def test_a_file_that_cannot_be_written_is_found_before_the_work(tmp_path: Path) -> None:
    done = bench("--rows", "start", "--json", str(tmp_path / "none" / "b.json"))

    assert done.returncode == 1
    assert "there is no such folder" in done.stderr


def test_the_list_names_every_row() -> None:
    assert [line.split()[0] for line in bench("--list").stdout.splitlines()] == list(ROWS)


@pytest.mark.soak
def test_every_row_is_measured() -> None:
    report = run(rounds=1, quick=True)

    assert [row.key for row in report.rows] == list(ROWS)
    assert not report.missed
    assert all(found[0] > 0 for row in report.rows for found in row.samples.values())
