"""Every row of the benchmark: who takes part, what each of them does once a round, and what is wanted."""

import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import psutil

from mlx_nb.bench.session import LARGE, RANKS, SPLITTABLE, Session
from mlx_nb.bench.worker import run_json, under_mpi
from mlx_nb.client.cluster import Cluster
from mlx_nb.client.pipe import Pipe
from mlx_nb.shared.bench_report import HIGHER, LOWER, OURS, Target
from mlx_nb.shared.ids import Rank

STORY = "Once upon a time there was a little robot, and"
CHUNKS = (64, 128, 256)
MLX_LM_CHUNK = 2048
ONE, TWO = "mlx-lm, 1 process, 1 thread", "mlx-lm, 1 process, 2 threads"
AS_IT_COMES = "mlx-lm, 1 process, 2 threads, its default chunk"
PIPELINE = "mlx-lm's own pipeline, 2 processes"
UNWATCHED = "no breakpoint"
PING, BARE, NO_OP, UNHOOKED = "plain MPI ping", "bare ipyparallel cluster", "no-op call", "no stepper open"

Measure = Callable[[], float]


@dataclass(slots=True)
class Contest:
    """A row before it is run.

    Attributes:
        contenders: By name, what each does once; ours is ``mlx_nb``.
        after: Called when the row is done.
    """

    title: str
    unit: str
    better: str
    contenders: dict[str, Measure]
    targets: tuple[Target, ...] = ()
    note: str = ""
    after: Callable[[], None] | None = None


def decode(session: Session) -> Contest:
    """One stream, token by token."""
    pipe, tokens = session.pipe(), 24 if session.quick else 64
    ids = pipe.encode(STORY, raw=True)
    return Contest(
        f"decode of one stream, {tokens} tokens",
        "tok/s",
        HIGHER,
        {
            OURS: lambda: decode_speed(pipe, ids, tokens),
            ONE: lambda: session.alone(1).ask("decode", ids=ids, tokens=tokens),
            TWO: lambda: session.alone(2).ask("decode", ids=ids, tokens=tokens),
        },
        (Target(ONE, 0.95),),
    )


def prefill(session: Session, tokens: int) -> Contest:
    """A long prompt, up to its first token."""
    tokens = tokens // 8 if session.quick else tokens
    pipe, ids = session.pipe(), random_ids(tokens)
    alone = session.alone(1)
    few = ids[: min(512, tokens)]
    best = max(CHUNKS, key=lambda chunk: alone.ask("prefill", ids=few, chunk=chunk))
    return Contest(
        f"prefill of {tokens:,} tokens",
        "tok/s",
        HIGHER,
        {
            OURS: lambda: prefill_speed(pipe, ids),
            ONE: lambda: alone.ask("prefill", ids=ids, chunk=best),
            TWO: lambda: session.alone(2).ask("prefill", ids=ids, chunk=best),
            AS_IT_COMES: lambda: session.alone(2).ask("prefill", ids=ids, chunk=MLX_LM_CHUNK),
        },
        (Target(ONE, 1.7),),
        f"best chunk of one process, tried once on {len(few)} tokens: {best}; ours as it comes",
    )


def own_pipeline_decode(session: Session) -> Contest:
    """On an architecture that mlx-lm splits itself."""
    pipe, tokens, ids = session.pipe(SPLITTABLE), 24 if session.quick else 64, random_ids(9)
    return Contest(
        f"decode, {SPLITTABLE} of smollm2's size",
        "tok/s",
        HIGHER,
        {
            OURS: lambda: decode_speed(pipe, ids, tokens),
            PIPELINE: lambda: session.lm_pipeline().ask("decode", ids=ids, tokens=tokens),
            ONE: lambda: session.alone(1, SPLITTABLE).ask("decode", ids=ids, tokens=tokens),
        },
    )


def own_pipeline_prefill(session: Session) -> Contest:
    """On an architecture that mlx-lm splits itself."""
    pipe, ids = session.pipe(SPLITTABLE), random_ids(256 if session.quick else 1024)
    return Contest(
        f"prefill of {len(ids):,} tokens, {SPLITTABLE} of smollm2's size",
        "tok/s",
        HIGHER,
        {
            OURS: lambda: prefill_speed(pipe, ids),
            PIPELINE: lambda: session.lm_pipeline().ask("prefill", ids=ids, chunk=128),
            ONE: lambda: session.alone(1, SPLITTABLE).ask("prefill", ids=ids, chunk=128),
        },
        note="chunks of 128 for all",
    )


def start(session: Session) -> Contest:
    """From the call until every rank is ready."""

    def ours() -> float:
        begin = time.perf_counter()
        with Cluster.start(ranks=RANKS):
            return time.perf_counter() - begin

    def bare() -> float:
        command = [sys.executable, "-m", "mlx_nb.bench.peers.bare_cluster", str(RANKS)]
        return float(subprocess.run(command, capture_output=True, text=True, check=True).stdout.split()[-1])

    return Contest("start to ready, 2 ranks", "s", LOWER, {OURS: ours, BARE: bare}, (Target(BARE, 1.3),))


def load(session: Session) -> Contest:
    """Loading again, files in the system's cache."""
    session.pipe()
    contenders = {OURS: session.reload, ONE: lambda: session.alone(1).ask("load")}
    note = "files in the system's cache; a tokenizer is the same work for every process"
    return Contest("load", "s", LOWER, contenders, (Target(ONE, 0.7),), note)


def load_large(session: Session) -> Contest:
    """Eight bits to float32, as a rank on a CPU does unless it is told otherwise."""
    session.pipe(LARGE)

    def ours() -> float:
        return session.reload(LARGE)

    contenders = {OURS: ours, ONE: lambda: session.alone(1, LARGE).ask("load")}
    title = "load 430 M parameters, 8-bit to float32"
    return Contest(title, "s", LOWER, contenders, (Target(ONE, 0.7),), after=lambda: session.unload(LARGE))


def load_bytes(session: Session) -> Contest:
    """What the busiest rank reads while it loads."""
    pipe = session.pipe()

    def ours() -> float:
        before = {pid: read_bytes(pid) for pid in pids(pipe)}
        session.reload()
        return max(read_bytes(pid) - start for pid, start in before.items())

    def alone() -> float:
        worker = session.alone(1)
        before = read_bytes(worker.pid)
        worker.ask("load")
        return read_bytes(worker.pid) - before

    return Contest("bytes read by a load, busiest rank", "B", LOWER, {OURS: ours, ONE: alone})


def memory(session: Session) -> Contest:
    """Of the largest rank, after a run."""
    pipe = session.pipe()
    pipe.generate(random_ids(64), max_tokens=2)
    session.alone(1).ask("decode", ids=random_ids(64), tokens=2)
    return Contest(
        "process memory after a run, largest rank",
        "B",
        LOWER,
        {
            OURS: lambda: float(max(psutil.Process(pid).memory_info().rss for pid in pids(pipe))),
            ONE: lambda: session.alone(1).ask("memory"),
        },
    )


def hop(session: Session, tokens: int, btl: str) -> Contest:
    """A hidden state of so many tokens, one way."""
    size_bytes = tokens * 576 * 4
    command = under_mpi(2, "mlx_nb.bench.peers.hop", str(size_bytes), "3", btl=btl)
    both: dict[str, float] = {}

    def ours() -> float:
        both.update(run_json(command))
        return both["hop"]

    over = "shared memory" if "sm" in btl.split(",") else "TCP"
    return Contest(
        f"hop of {tokens} token{'s' if tokens > 1 else ''} × 576 float32, {over}",
        "us",
        LOWER,
        {OURS: ours, PING: lambda: both["ping"]},
        (Target(PING, 2.0),),
    )


def stop(session: Session) -> Contest:
    """A stride of the stepper, from call to return."""
    pipe = session.pipe()
    times = 10 if session.quick else 50

    def ours() -> float:
        with pipe.debug(STORY, raw=True, max_tokens=2) as dbg:
            dbg.into()
            return mean_ms(dbg.into, times)

    def no_op() -> float:
        return mean_ms(lambda: pipe.cluster.remote.call(Rank(0), "hello"), times)

    return Contest("a stop of the stepper", "ms", LOWER, {OURS: ours, NO_OP: no_op})


def hooks(session: Session) -> Contest:
    """A free run while a stepper stands open on the same model, and nothing is probed in the run."""
    pipe, tokens = session.pipe(), 24 if session.quick else 64
    ids = pipe.encode(STORY, raw=True)

    def with_stepper() -> float:
        with standing(pipe):
            return decode_speed(pipe, ids, tokens)

    contenders = {OURS: with_stepper, UNHOOKED: lambda: decode_speed(pipe, ids, tokens)}
    return Contest(
        "decode while a stepper stands open", "tok/s", HIGHER, contenders, (Target(UNHOOKED, 0.99),)
    )


def nonfinite_prefill(session: Session) -> Contest:
    """One chunk of a prompt while a breakpoint looks for NaN and Inf at every site."""
    pipe, ids = session.pipe(), random_ids(128)
    return nonfinite(pipe, "prefill of one chunk of 128", lambda: prefill_speed(pipe, ids))


def nonfinite_decode(session: Session) -> Contest:
    """Decoding while a breakpoint looks for NaN and Inf at every site."""
    pipe, tokens = session.pipe(), 24 if session.quick else 64
    ids = pipe.encode(STORY, raw=True)
    return nonfinite(pipe, f"decode of {tokens}", lambda: decode_speed(pipe, ids, tokens))


def nonfinite(pipe: Pipe, what: str, speed: Measure) -> Contest:
    """The same with the breakpoint and without it."""

    def watched() -> float:
        one = pipe.break_at("*", when="nonfinite")
        try:
            return speed()
        finally:
            one.delete()

    contenders = {OURS: watched, UNWATCHED: speed}
    title = f"{what} tokens, break on NaN and Inf at every site"
    return Contest(title, "tok/s", HIGHER, contenders, (Target(UNWATCHED, 0.91),))


@dataclass(frozen=True, slots=True)
class Catalogued:
    """A row by what it says of itself."""

    text: str
    prepare: Callable[[Session], Contest]


ROWS: dict[str, Catalogued] = {
    "start": Catalogued("a cluster, from the call until every rank is ready", start),
    "load": Catalogued("loading a model", load),
    "load-large": Catalogued("loading a larger model, 8-bit to float32", load_large),
    "bytes": Catalogued("bytes read while loading", load_bytes),
    "memory": Catalogued("memory per rank", memory),
    "decode": Catalogued("decode of one stream", decode),
    "prefill-1024": Catalogued("prefill of 1,024 tokens", lambda session: prefill(session, 1024)),
    "prefill-4096": Catalogued("prefill of 4,096 tokens", lambda session: prefill(session, 4096)),
    "own-decode": Catalogued("decode against mlx-lm's own pipeline", own_pipeline_decode),
    "own-prefill": Catalogued("prefill against mlx-lm's own pipeline", own_pipeline_prefill),
    "hop": Catalogued("a decode hop, shared memory", lambda session: hop(session, 1, "self,sm")),
    "hop-37": Catalogued("a hop of 37 tokens, shared memory", lambda session: hop(session, 37, "self,sm")),
    "hop-tcp": Catalogued("a decode hop, TCP", lambda session: hop(session, 1, "self,tcp")),
    "hop-37-tcp": Catalogued("a hop of 37 tokens, TCP", lambda session: hop(session, 37, "self,tcp")),
    "stop": Catalogued("a stop of the stepper", stop),
    "hooks": Catalogued("hooks in place, nothing probed", hooks),
    "nonfinite-prefill": Catalogued("a chunk, break on NaN and Inf at every site", nonfinite_prefill),
    "nonfinite-decode": Catalogued("decode, break on NaN and Inf at every site", nonfinite_decode),
}


# What ours does -----------------------------------------------------------------------------------


def decode_speed(pipe: Pipe, ids: list[int], tokens: int) -> float:
    """Tokens a second from the first to the last, as they reach the notebook."""
    times = [time.perf_counter() for _ in pipe.stream(ids, max_tokens=tokens)]
    return (len(times) - 1) / (times[-1] - times[0])


def prefill_speed(pipe: Pipe, ids: list[int]) -> float:
    """Prompt tokens a second, from the call to the end of a run of one token."""
    begin = time.perf_counter()
    pipe.generate(ids, max_tokens=1)
    return len(ids) / (time.perf_counter() - begin)


def random_ids(count: int) -> list[int]:
    """Token ids without a pattern, the same every time."""
    return [(place * 7919) % 40000 + 100 for place in range(count)]


def mean_ms(call: Callable[[], object], times: int) -> float:
    begin = time.perf_counter()
    for _ in range(times):
        call()
    return (time.perf_counter() - begin) / times * 1e3


def pids(pipe: Pipe) -> list[int]:
    return [info.pid for info in pipe.cluster.ranks]


def read_bytes(pid: int) -> float:
    """Bytes that a process has read from files so far."""
    return float(psutil.Process(pid).io_counters().read_chars)


@contextmanager
def standing(pipe: Pipe) -> Iterator[None]:
    """A stepper that stands open meanwhile."""
    with pipe.debug(STORY, raw=True, max_tokens=2) as dbg:
        dbg.layer()
        yield
