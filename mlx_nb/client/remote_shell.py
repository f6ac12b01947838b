"""Commands on other hosts, through the user's own ssh: never a password, never a host key taken on trust."""

import os
import shlex
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass

SSH_ARGS_VARIABLE = "PRTE_MCA_plm_ssh_args"
"""mpirun's own setting for ssh's arguments: what it logs in with, we do."""

CONNECT_TIMEOUT_S = 5


@dataclass(frozen=True, slots=True)
class Said:
    """What a command on another host answered.

    Attributes:
        out: Its standard output.
        problem: Why it failed; nothing when it did not.
        fix: What to type.
    """

    out: str
    problem: str = ""
    fix: str = ""


def run_on(host: str, command: Sequence[str], *, timeout_s: float = 30) -> Said:
    """Run a command on another host; a refusal is explained, not raised."""
    options = ["-o", "BatchMode=yes", "-o", f"ConnectTimeout={CONNECT_TIMEOUT_S}"]
    words = ["ssh", *shlex.split(os.environ.get(SSH_ARGS_VARIABLE, "")), *options, host]
    try:
        done = subprocess.run(
            [*words, shlex.join(command)], capture_output=True, text=True, timeout=timeout_s, check=False
        )
    except FileNotFoundError:
        return Said("", "there is no ssh on this machine", "Install OpenSSH's client.")
    except subprocess.TimeoutExpired:
        return Said("", f"no answer within {timeout_s:.0f} s", f"In a terminal: ssh {host}")
    if done.returncode == 0:
        return Said(done.stdout)
    return Said(done.stdout, *explain(host, command[0], done.returncode, done.stderr))


def explain(host: str, program: str, code: int, errors: str) -> tuple[str, str]:
    """Why ssh failed, and what to type, out of what it printed.

    >>> explain("ann@192.168.5.2", "python", 255, "ann@192.168.5.2: Permission denied (publickey).")
    ('ssh was refused (publickey)', 'In a terminal: ssh-copy-id ann@192.168.5.2')
    """
    last = errors.strip().splitlines()[-1] if errors.strip() else f"exit status {code}"
    if "Permission denied" in errors:
        how = errors.partition("Permission denied (")[2].partition(")")[0] or "no key"
        return f"ssh was refused ({how})", f"In a terminal: ssh-copy-id {host}"
    if "Host key verification failed" in errors:
        return (
            "its ssh host key is not known here, or has changed",
            f"In a terminal: ssh {host} (compare the fingerprint with that on the host, then type yes)",
        )
    if "Connection refused" in errors:
        return (
            "nothing answers ssh there",
            "On that host: System Settings > General > Sharing > Remote Login (Linux: start sshd)",
        )
    if any(word in errors for word in ("timed out", "No route to host", "unreachable", "Could not resolve")):
        return f"it cannot be reached ({last})", "Look at the cable and the address; then: ping -c 3 " + host
    if code == 127 or "No such file" in errors or "not found" in errors:
        return (
            f"there is no {program} there",
            "Make the same virtual environment at the same path on that host.",
        )
    if "No module named" in errors:
        return f"{last} there", f"On that host: {program} -m pip install mlx-nb"
    return last, f"In a terminal: ssh {host}"
