"""The doctor on one machine, and what it makes of what systems and ssh print. Two hosts: `cluster/test_two_hosts.py`."""

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

import mlx_nb
from mlx_nb.client import doctor as doctor_module
from mlx_nb.client import host_facts
from mlx_nb.client.host_facts import fingerprint, parse_wired_limit
from mlx_nb.client.leftovers import clean, describe, find_leftovers
from mlx_nb.client.network import (
    ETHERNET,
    LOOPBACK,
    THUNDERBOLT,
    VIRTUAL,
    WIFI,
    interfaces,
    mac_kind,
    parse_ports,
)
from mlx_nb.client.remote_shell import explain
from mlx_nb.shared.checkup import FAIL, PASS, WARN, Check, Checkup

NETWORKSETUP = """
Hardware Port: Ethernet
Device: en0
Ethernet Address: 1c:f6:4c:00:00:01

Hardware Port: Wi-Fi
Device: en1
Ethernet Address: 1c:f6:4c:00:00:02

Hardware Port: Thunderbolt 1
Device: en2
Ethernet Address: 36:5a:11:00:00:03

Hardware Port: Thunderbolt Bridge
Device: bridge0
Ethernet Address: 36:5a:11:00:00:03

VLAN Configurations
===================
"""


@pytest.mark.parametrize(
    ("version", "found"),
    [("0.29.1", "mlx-lm 0.29.1 is too old"), ("0.33.0", "mlx-lm 0.33.0 is newer"), ("0.32.0", "Python ")],
)
def test_a_version_that_a_load_would_refuse_fails_here_as_well(
    version: str, found: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    known = host_facts._version
    monkeypatch.setattr(host_facts, "_version", lambda name: version if name == "mlx-lm" else known(name))
    monkeypatch.setattr(doctor_module, "_link", lambda *_: [])  # what two ranks measure is another test's

    checkup = doctor_module.doctor()

    check = next(check for check in checkup.checks if check.name == "versions")
    assert check.found.startswith(found)
    assert check.verdict == (PASS if version == "0.32.0" else FAIL)
    assert ("pip install 'mlx-lm>=0.31.3,<0.33'" in check.fix) == (check.verdict == FAIL)


def test_this_machine_is_sound() -> None:
    found = mlx_nb.doctor()

    assert found.ok, found
    assert {check.name for check in found.checks} >= {
        "versions",
        "mpiexec",
        "memory",
        "MPI",
        "dtypes",
        "binding",
    }
    assert found.of("dtypes")[0].found == "every dtype comes back bit for bit"
    assert repr(found).startswith("Doctor · 1 host · ")


def test_a_checkup_tells_what_to_do() -> None:
    good = Check(host="mini1", name="memory", verdict=PASS, found="8 GiB free")
    bad = Check(
        host="mini2", name="ssh", verdict=FAIL, found="refused", fix="In a terminal: ssh-copy-id mini2"
    )
    odd = Check(host="mini2", name="clock", verdict=WARN, found="4 s apart", fix="Set the time.")

    assert Checkup((good, odd)).ok
    assert not Checkup((good, bad)).ok
    assert Checkup((good, bad, odd)).headline == "Doctor · 2 hosts · 1 passed · 1 doubtful · 1 failed"
    assert "✗ mini2, ssh: In a terminal: ssh-copy-id mini2" in repr(Checkup((good, bad)))


@pytest.mark.parametrize(
    ("errors", "code", "problem", "fix"),
    [
        (
            "ann@m: Permission denied (publickey,password).",
            255,
            "refused (publickey,password)",
            "ssh-copy-id m",
        ),
        ("Host key verification failed.", 255, "host key", "compare the fingerprint"),
        ("ssh: connect to host m port 22: Connection refused", 255, "nothing answers", "Remote Login"),
        ("ssh: connect to host m port 22: Operation timed out", 255, "cannot be reached", "cable"),
        ("ssh: Could not resolve hostname m", 255, "cannot be reached", "cable"),
        ("zsh:1: no such file or directory: /opt/python", 127, "no /opt/python", "same path"),
        ("/opt/python: No module named mlx_nb", 1, "No module named", "pip install mlx-nb"),
        ("kex_exchange_identification: read: reset", 255, "kex_exchange", "ssh m"),
    ],
)
def test_a_refusal_of_ssh_is_explained(errors: str, code: int, problem: str, fix: str) -> None:
    said, todo = explain("m", "/opt/python", code, errors)

    assert problem in said
    assert fix in todo


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("en0", ETHERNET),
        ("en1", WIFI),
        ("en2", THUNDERBOLT),
        ("bridge0", THUNDERBOLT),
        ("lo0", LOOPBACK),
        ("utun3", VIRTUAL),
    ],
)
def test_macs_interfaces_are_told_apart(name: str, kind: str) -> None:
    assert mac_kind(name, parse_ports(NETWORKSETUP)) == kind


def test_this_machines_loopback_is_seen() -> None:
    assert ("127.0.0.1", LOOPBACK) in [(one.address, one.kind) for one in interfaces()]


def test_the_wired_limit_is_read() -> None:
    assert parse_wired_limit("14336\n") == 14 * 2**30
    assert parse_wired_limit("0\n") == 0  # the system's own default
    assert parse_wired_limit("") == 0  # an older macOS does not know it


def test_a_models_fingerprint_changes_with_its_files(tmp_path: Path) -> None:
    folder = str(tmp_path)
    assert fingerprint(folder) == ""
    for name, text in (("config.json", "{}"), ("model.safetensors", "12345")):
        (tmp_path / name).write_text(text)
    before = fingerprint(folder)
    (tmp_path / "model.safetensors").write_text("1234")

    assert before
    assert fingerprint(folder) != before


@pytest.fixture
def orphan() -> Iterator["subprocess.Popen[bytes]"]:
    process = sleeper("test-orphan")
    yield process
    process.kill()
    process.wait()


def sleeper(cluster: str, *words: str) -> "subprocess.Popen[bytes]":
    """A process that carries a cluster's mark, as an engine whose mpirun and watchdog were killed."""
    command = [sys.executable, "-c", "import time; time.sleep(100)", *words]
    process = subprocess.Popen(command, env={**os.environ, "MLX_NB_CLUSTER": cluster})
    while not psutil.Process(process.pid).environ().get("MLX_NB_CLUSTER"):
        time.sleep(0.01)  # it is still a copy of this process
    return process


def test_leftovers_are_found_and_only_they_are_ended(orphan: "subprocess.Popen[bytes]") -> None:
    watched = sleeper("test-watched", "mlx_nb.client.watchdog")
    try:
        mine = [one for one in find_leftovers() if one.cluster.startswith("test-")]
        assert [(one.cluster, one.pids) for one in mine] == [("test-orphan", (orphan.pid,))]
        assert "leftovers" in [c.name for c in mlx_nb.doctor().checks if c.verdict == WARN]

        ended = clean()

        assert "Ended 1 process of test-orphan." in describe(ended)
        assert orphan.poll() is not None
        assert watched.poll() is None  # somebody's cluster, whose record lies elsewhere
    finally:
        watched.kill()
        watched.wait()


def test_the_console_offers_both() -> None:
    command = [sys.executable, "-m", "mlx_nb.cli"]
    looked = subprocess.run([*command, "doctor"], capture_output=True, text=True, check=False)
    cleaned = subprocess.run([*command, "clean"], capture_output=True, text=True, check=False)

    assert looked.returncode == 0, looked.stdout + looked.stderr
    assert "every dtype comes back bit for bit" in looked.stdout
    assert cleaned.returncode == 0
    assert cleaned.stdout
