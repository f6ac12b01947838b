"""The lines of `python -m mlx_nb.engine.fetch`."""

import json
import subprocess
import sys

import pytest

from mlx_nb.engine import fetch
from mlx_nb.shared.errors import ModelNotFoundError


@pytest.fixture
def clock(monkeypatch):
    """Seconds that the test sets."""
    now = [0.0]
    monkeypatch.setattr(fetch.time, "monotonic", lambda: now[0])
    return now


def printed(capsys) -> list[dict]:
    return [json.loads(line) for line in capsys.readouterr().out.splitlines()]


def test_progress_is_ten_lines_a_second_and_ends_with_the_last_report(clock, capsys):
    reporter = fetch._Reporter()
    for step in range(1001):
        clock[0] = step / 1000  # a thousand reports in one second
        reporter("download", step, 1000)
    reporter("convert", 0, 5)
    reporter("convert", 5, 5)
    reporter.flush()
    lines = printed(capsys)

    downloads = [line["done"] for line in lines if line["stage"] == "download"]
    assert (downloads[0], downloads[-1]) == (0, 1000)
    assert 9 <= len(downloads) <= 12
    assert [line["done"] for line in lines if line["stage"] == "convert"] == [0, 5]


def test_a_known_error_is_one_line_and_exit_1(monkeypatch, capsys):
    def refuse(name, progress):
        raise ModelNotFoundError("No such.", "Type that.")

    monkeypatch.setattr(fetch, "resolve_model", refuse)

    assert fetch.main(["x"]) == 1
    assert printed(capsys) == [{"kind": "error", "problem": "No such.", "fix": "Type that."}]


def test_an_unknown_error_is_one_line_too_and_its_traceback_goes_to_stderr(monkeypatch, capsys):
    monkeypatch.setattr(fetch, "resolve_model", lambda *_: 1 // 0)

    assert fetch.main(["x"]) == 1
    out, err = capsys.readouterr()
    assert "ZeroDivisionError" in json.loads(out)["problem"]
    assert "Traceback" in err


def test_without_a_name_it_says_what_to_type(capsys):
    assert fetch.main([]) == 1
    assert "mlx_nb.engine.fetch smollm2" in printed(capsys)[0]["fix"]


def test_a_reader_that_went_away_ends_it_quietly():
    code = (
        "import sys, time; from mlx_nb.engine import fetch\n"
        "def endless(name, progress):\n"
        "    while True: progress('download', 1, 2); time.sleep(0.01)\n"
        "fetch.resolve_model = endless\n"
        "sys.exit(fetch.main(['x']))"
    )
    command = [sys.executable, "-c", code]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert process.stderr is not None
    process.stdout.readline()
    process.stdout.close()

    assert process.wait(timeout=60) == 1
    assert process.stderr.read() == ""
    process.stderr.close()


@pytest.fixture(autouse=True)
def _own_signal_handlers():
    """`main` sets a handler for SIGTERM; the test process keeps its own."""
    before = fetch.signal.getsignal(fetch.signal.SIGTERM)
    yield
    fetch.signal.signal(fetch.signal.SIGTERM, before)
