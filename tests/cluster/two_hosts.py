"""Two hosts on one machine: network namespaces with hostnames of their own, joined by a cable, with real sshd.

Needs root on Linux, iproute2 and OpenSSH. Everything is named after this process, so two test sessions do not
meet, and everything goes away with `close`.
"""

import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

NETWORK = "10.77.0.0/24"
ADDRESSES = ("10.77.0.1", "10.77.0.2")
NAMES = ("mini1", "mini2")
SSHD = "/usr/sbin/sshd"
SSHD_TIMEOUT_S = 10


def why_not() -> str:
    """Why the hosts cannot be made here; nothing if they can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "two hosts need root on Linux"
    missing = [tool for tool in ("ip", "ssh", "ssh-keygen", "unshare", SSHD) if not shutil.which(tool)]
    return f"not installed: {', '.join(missing)}" if missing else ""


class TwoHosts:
    """A pair of hosts; `run` runs a program on the first, as the notebook would.

    Attributes:
        folder: Keys, configurations, and the first host's home.
    """

    def __init__(self) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="mlx_nb-hosts-"))
        self._spaces = [f"mlxnb{os.getpid()}{letter}" for letter in "ab"]
        self._cables = [f"mlx{os.getpid()}{letter}" for letter in "ab"]
        self._daemons: list[subprocess.Popen[bytes]] = []
        try:
            self._lay_cable()
            self._make_keys()
            for number in range(2):
                self._start_sshd(number)
        except BaseException:
            self.close()
            raise

    def _lay_cable(self) -> None:
        for space in self._spaces:
            _do("ip", "netns", "add", space)
        a, b = self._cables
        _do("ip", "link", "add", a, "type", "veth", "peer", "name", b)
        for space, cable, address in zip(self._spaces, self._cables, ADDRESSES, strict=True):
            _do("ip", "link", "set", cable, "netns", space)
            for line in (f"addr add {address}/24 dev {cable}", f"link set {cable} up", "link set lo up"):
                _do("ip", "-n", space, *line.split())

    def _make_keys(self) -> None:
        for name in ("host_key", "id"):
            _do("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", str(self.folder / name))
        (self.folder / "authorized_keys").write_text((self.folder / "id.pub").read_text())
        public = (self.folder / "host_key.pub").read_text().split()[:2]
        known = "".join(f"{address} {' '.join(public)}\n" for address in ADDRESSES)
        (self.folder / "known_hosts").write_text(known)
        (self.folder / "ssh_config").write_text(
            "Host *\n"
            f"  IdentityFile {self.folder}/id\n"
            "  IdentitiesOnly yes\n"
            f"  UserKnownHostsFile {self.folder}/known_hosts\n"
            "  StrictHostKeyChecking yes\n"
            "  BatchMode yes\n"
        )

    def _start_sshd(self, number: int) -> None:
        configuration = self.folder / f"sshd_config_{number}"
        configuration.write_text(
            f"ListenAddress {ADDRESSES[number]}\n"
            f"HostKey {self.folder}/host_key\n"
            f"AuthorizedKeysFile {self.folder}/authorized_keys\n"
            f"PidFile {self.folder}/sshd_{number}.pid\n"
            "PermitRootLogin prohibit-password\nPasswordAuthentication no\nKbdInteractiveAuthentication no\nStrictModes no\nUsePAM no\n"
        )
        Path("/run/sshd").mkdir(mode=0o755, exist_ok=True)  # where sshd locks itself up before a login
        daemon = subprocess.Popen([*self.on(number), SSHD, "-D", "-f", str(configuration)])
        self._daemons.append(daemon)
        deadline = time.monotonic() + SSHD_TIMEOUT_S
        while self.ssh(number, "true").returncode:
            if time.monotonic() > deadline or daemon.poll() is not None:
                raise RuntimeError(f"sshd did not come up on {NAMES[number]}")
            time.sleep(0.1)

    def on(self, number: int) -> list[str]:
        """The words before a command that is to run on a host."""
        name = NAMES[number]
        return [
            *("ip", "netns", "exec", self._spaces[number], "unshare", "--uts", "sh", "-c"),
            *(f'hostname {name} && exec "$@"', "sh"),
        ]

    def ssh(self, number: int, *command: str) -> "subprocess.CompletedProcess[str]":
        """A command on a host, from the first, over ssh."""
        words = [*self.on(0), "ssh", "-F", str(self.folder / "ssh_config"), ADDRESSES[number], *command]
        return subprocess.run(words, capture_output=True, text=True, timeout=30, check=False)

    @property
    def environment(self) -> dict[str, str]:
        """What a program on the first host finds in its environment beside ours."""
        return {
            "PRTE_MCA_plm_ssh_args": f"-F {self.folder}/ssh_config",
            "MLX_NB_SSH_CONFIG": f"{self.folder}/ssh_config",
        }

    def start(self, program: str, *arguments: str) -> "subprocess.Popen[str]":
        """Start a Python program on the first host, as a notebook would run there."""
        command = [*self.on(0), sys.executable, "-c", program, *arguments]
        return subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, **self.environment},
        )

    def run(self, program: str, *arguments: str, timeout_s: float = 120) -> Any:
        """Run a Python program on the first host; what its last line says, as JSON."""
        process = self.start(program, *arguments)
        try:
            out, errors = process.communicate(timeout=timeout_s)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)
            out, errors = process.communicate(timeout=30)
            raise AssertionError(f"it did not end in {timeout_s:.0f} s:\n{out}\n{errors}") from None
        assert process.returncode == 0, f"{out}\n{errors}"
        return json.loads(out.strip().splitlines()[-1])

    def cut(self) -> None:
        """Pull the cable."""
        _do("ip", "-n", self._spaces[1], "link", "set", self._cables[1], "down")

    def mend(self) -> None:
        """Put the cable back."""
        _do("ip", "-n", self._spaces[1], "link", "set", self._cables[1], "up")

    def processes(self) -> list[int]:
        """What runs on both hosts, the ssh daemons left out."""
        daemons = {daemon.pid for daemon in self._daemons}
        found: list[int] = []
        for space in self._spaces:
            done = subprocess.run(["ip", "netns", "pids", space], capture_output=True, text=True, check=False)
            found += [int(pid) for pid in done.stdout.split() if int(pid) not in daemons]
        return found

    def close(self) -> None:
        """End what runs on the hosts, and take them away."""
        for daemon in self._daemons:
            daemon.terminate()
            daemon.wait(10)
        for pid in self.processes():
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        for space in self._spaces:
            subprocess.run(["ip", "netns", "del", space], capture_output=True, check=False)
        shutil.rmtree(self.folder, ignore_errors=True)


def _do(*command: str) -> None:
    subprocess.run(command, check=True, capture_output=True)
