"""Two hosts: real ssh, real mpirun over TCP, a cable that can be pulled. Each has a hostname and a network of its own."""

import json
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import nbformat
import pytest

from mlx_nb.client.pipe import Pipe
from tests.cluster.two_hosts import ADDRESSES, NETWORK, TwoHosts, why_not
from tests.notebooks.test_lessons import LESSONS, solve, text_of

pytestmark = [pytest.mark.cluster]

LONG = "Tell me in one sentence what these have in common: " + "apple, pear, plum, cherry, quince, " * 30
HOSTS = list(ADDRESSES)
DROPPED_S = 2.0

DOCTOR = """
import json, sys, mlx_nb
found = mlx_nb.doctor(json.loads(sys.argv[1]))
print(json.dumps({"ok": found.ok, "text": repr(found), "checks": [[c.host, c.name, c.verdict, c.found, c.fix] for c in found.checks]}))
"""

SNIFFER = """
import socket, threading
class Sniffer(threading.Thread):
    # What anybody on the cable can read.
    def __init__(self):
        super().__init__(daemon=True)
        self.read, self.off = bytearray(), False
        self.socket = socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.ntohs(3))
        self.socket.bind((next(name for _, name in socket.if_nameindex() if name.startswith("mlx")), 0))
        self.socket.settimeout(0.2)
        self.start()
    def run(self):
        while not self.off:
            try:
                self.read += self.socket.recv(1 << 17)
            except OSError:
                pass
    def ended(self):
        self.off = True
        self.join()
        return bytes(self.read)
"""

SESSION = (
    SNIFFER
    + """
import json, sys, time, mlx_nb
from mlx_nb.shared.errors import MlxNbError
hosts, long = json.loads(sys.argv[1]), sys.argv[2]
sniffer = Sniffer()
say = lambda **what: print(json.dumps(what), flush=True)
STORY = dict(raw=True, max_tokens=3000)
with mlx_nb.Cluster.start(hosts=hosts) as cluster:
    pipe = cluster.load("smollm2")
    gen = pipe.generate(long, max_tokens=12)
    cluster[1].push({"secret": "quincunx"}, block=True)
    on_the_cable = sniffer.ended()
    words = {"typed": b"quincunx", "called": b"mlx_nb.engine", "launched": cluster.name.encode()}
    say(readable={name: word in on_the_cable for name, word in words.items()})
    say(hosts=[info.host for info in cluster.ranks], token_ids=gen.token_ids, prompt=len(gen.prompt_ids))
    with pipe.debug("What is the capital of France?", max_tokens=4) as dbg:
        dbg.until("layers.20.attn_out")
        say(site=dbg.position.site, rank=dbg.position.rank, shape=list(dbg.value.shape))
        dbg.run()
        say(stepped=dbg.gen.text)
    for number, piece in enumerate(pipe.stream(long, max_tokens=60)):
        if number == 5:
            say(shake=True)
    say(shaken=pipe.last.token_ids)
    try:
        for number, piece in enumerate(pipe.stream("Once upon a time there was a little robot, and", **STORY)):
            if number == 5:
                say(cut=True)
                sys.stdin.readline()
                cut = time.monotonic()
    except MlxNbError as error:
        say(error=str(error), after_s=time.monotonic() - cut, text=pipe.last.text, state=pipe.last.state)
    sys.stdin.readline()
    cluster.restart()
    pipe.load_there()
    say(again=pipe.generate("What is the capital of France?", max_tokens=10).text)
"""
)

LESSON = """
import json, os, sys, nbformat
from nbclient import NotebookClient
folder = sys.argv[1]
os.environ["IPYTHONDIR"] = folder  # where its profile goes
lesson = nbformat.read(folder + "/lesson.ipynb", as_version=4)
NotebookClient(lesson, timeout=120, kernel_name="python3", resources={"metadata": {"path": folder}}).execute()
nbformat.write(lesson, folder + "/lesson.ipynb")
print(json.dumps(True))
"""


@pytest.fixture(scope="module")
def hosts() -> Iterator[TwoHosts]:
    if reason := why_not():
        pytest.skip(reason)
    two = TwoHosts()
    yield two
    two.close()


@contextmanager
def emptied(file: Path) -> Iterator[None]:
    """A file without its content, for a while."""
    before = file.read_text()
    file.write_text("")
    try:
        yield
    finally:
        file.write_text(before)


def checks(found: dict[str, Any], name: str) -> dict[str, tuple[str, str, str]]:
    return {host: (verdict, text, fix) for host, what, verdict, text, fix in found["checks"] if what == name}


def test_the_doctor_finds_two_sound_hosts_and_measures_the_cable(hosts: TwoHosts) -> None:
    found = hosts.run(DOCTOR, json.dumps(HOSTS))

    assert found["ok"], found["text"]
    assert list(checks(found, "versions")) == ["mini1 (10.77.0.1)", "mini2 (10.77.0.2)"]
    assert checks(found, "ssh")["mini2 (10.77.0.2)"][0] == "pass"
    assert NETWORK in checks(found, "network")["mini1 (10.77.0.1)"][1]
    verdict, text, _ = checks(found, "MPI")["link"]
    assert verdict == "pass", text
    assert "over mlx" in text  # the bytes went through the cable, by the system's own counters
    assert checks(found, "dtypes")["link"][0] == "pass"
    assert checks(found, "clock")["mini2 (10.77.0.2)"][0] == "pass"


def test_the_doctor_says_what_to_type_when_ssh_refuses(hosts: TwoHosts) -> None:
    with emptied(hosts.folder / "authorized_keys"):
        found = hosts.run(DOCTOR, json.dumps(HOSTS))

    assert not found["ok"]
    assert checks(found, "ssh")["10.77.0.2"] == (
        "fail",
        "ssh was refused (publickey)",
        "In a terminal: ssh-copy-id 10.77.0.2",
    )


def test_the_doctor_never_trusts_an_unknown_host_key(hosts: TwoHosts) -> None:
    with emptied(hosts.folder / "known_hosts"):
        found = hosts.run(DOCTOR, json.dumps(HOSTS))

    verdict, text, fix = checks(found, "ssh")["10.77.0.2"]
    assert (verdict, text) == ("fail", "its ssh host key is not known here, or has changed")
    assert "compare the fingerprint" in fix


def test_a_session_over_two_hosts_with_a_cable_that_is_cut(hosts: TwoHosts, pipe2: Pipe) -> None:
    process = hosts.start(SESSION, json.dumps(HOSTS), LONG)
    try:
        said = follow(process, hosts)
    finally:
        process.kill()
        process.communicate()

    assert said["hosts"] == ["mini1", "mini2"]
    # The control: mpirun's own words can be read, and so the sniffer reads.
    assert said["readable"] == {"typed": False, "called": False, "launched": True}
    assert said["prompt"] > 2 * pipe2.shards[0].prefill_step_size  # three chunks
    assert said["token_ids"] == pipe2.generate(LONG, max_tokens=12).token_ids
    assert (said["site"], said["rank"]) == ("model.layers.20.self_attn.output", 1)
    assert said["stepped"] == pipe2.generate("What is the capital of France?", max_tokens=4).text
    assert said["shaken"] == pipe2.generate(LONG, max_tokens=60).token_ids  # what was dropped was sent again
    assert said["state"] == "failed"
    assert "Rank 1" in said["error"]
    assert "%mlx_cluster restart" in said["error"]
    assert said["after_s"] < 20  # a silent rank is named after 10 s; the rest is the machine's
    assert len(said["text"]) > 10
    assert said["again"] == "The capital of France is Paris."


def test_the_lesson_on_two_minis_runs_on_two_hosts(hosts: TwoHosts, tmp_path: Path) -> None:
    lesson = nbformat.read(LESSONS / "09_two_minis.ipynb", as_version=4)
    assert solve(lesson) == 1
    for cell in lesson.cells:
        cell.source = cell.source.replace("192.168.5.", ADDRESSES[0].removesuffix("1"))
    nbformat.write(lesson, tmp_path / "lesson.ipynb")

    hosts.run(LESSON, str(tmp_path), timeout_s=200)

    done = nbformat.read(tmp_path / "lesson.ipynb", as_version=4)
    said = {cell.source.split("\n")[0]: text_of(cell) for cell in done.cells if cell.cell_type == "code"}
    everything = "\n".join(said.values())
    assert "fail" not in said["%mlx_doctor --hosts 10.77.0.1,10.77.0.2"]
    assert "over mlx" in said["%mlx_doctor --hosts 10.77.0.1,10.77.0.2"]
    assert "mini2" in said["%mlx_cluster start --profile my_minis"]
    assert "layers 15–29" in said["%mlx_load smollm2"]
    assert "Right: 85248 bytes, and they are on mini2 now" in everything
    assert "Rank 1 (mini2, layers 15–29, norm, head) is lost" in everything
    assert "Type: %mlx_cluster restart" in everything
    assert "Paris" in said["%mlx_generate What is the capital of France?"]  # the one after the restart


def test_nothing_is_left_on_either_host(hosts: TwoHosts) -> None:
    assert hosts.processes() == []


def follow(process: "subprocess.Popen[str]", hosts: TwoHosts) -> dict[str, Any]:
    """Everything that the session says; the cable is pulled and put back when it is time."""
    assert process.stdout is not None
    assert process.stdin is not None
    said: dict[str, Any] = {}
    for line in process.stdout:
        if not line.startswith("{"):
            continue
        what = json.loads(line)
        said |= what
        if "shake" in what:  # well below the silence that ends a run
            hosts.cut()
            time.sleep(DROPPED_S)
            hosts.mend()
            continue
        if "cut" in what:
            hosts.cut()
        elif "error" in what:
            hosts.mend()
        else:
            continue
        process.stdin.write("\n")
        process.stdin.flush()
    process.wait(60)
    assert process.stderr is not None
    assert process.returncode == 0, process.stderr.read()
    return said
