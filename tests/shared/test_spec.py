"""Wishes, and what a cluster prints."""

import pickle

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mlx_nb.shared.errors import OptionError
from mlx_nb.shared.ids import EngineId, Rank
from mlx_nb.shared.spec import (
    ClusterSpec,
    ClusterStatus,
    ProcessInfo,
    RankInfo,
    format_keep,
    parse_duration,
    slots_of,
)

MIB = 2**20


@pytest.mark.parametrize(
    ("typed", "seconds"),
    [
        *[("8h", 28800), ("30m", 1800), ("30min", 1800), ("1h30m", 5400), ("90", 90), ("0.5h", 1800)],
        *[("2 d", 172800), ("90S", 90), (90, 90), (1.5, 1.5), (False, 0), (None, 0), (0, 0)],
    ],
)
def test_durations_as_people_type_them(typed: str | float | None, seconds: float) -> None:
    assert parse_duration(typed) == seconds


@pytest.mark.parametrize(
    "typed", ["", "h", "8x", "8h!", "-1h", -1, float("nan"), float("inf"), True, "1.2.3h"]
)
def test_what_is_no_duration(typed: str | float) -> None:
    with pytest.raises(OptionError, match="--keep 8h"):
        parse_duration(typed)


@given(st.integers(min_value=0, max_value=10**7))
def test_a_printed_keep_time_can_be_typed(seconds: int) -> None:
    assert parse_duration(format_keep(seconds)) == seconds


@pytest.mark.parametrize("host", ["", ":1", "a:", "a:0", "a:-1", "a:b", "a:1.5", "a:1:2"])
def test_what_is_no_host(host: str) -> None:
    with pytest.raises(OptionError, match="is not a host"):
        slots_of(host)


def test_specs_are_equal_if_the_same_cluster_satisfies_both() -> None:
    assert ClusterSpec(ranks=2) == ClusterSpec(ranks=2, keep_s=60)
    assert ClusterSpec(ranks=2) != ClusterSpec(ranks=3)
    assert ClusterSpec(ranks=2) != ClusterSpec(ranks=2, profile="minis")
    assert ClusterSpec(ranks=2) != ClusterSpec(ranks=2, hosts=("a", "b"))


def test_impossible_specs_are_refused() -> None:
    with pytest.raises(OptionError, match=r"one rank or more, not 0\. Type: %mlx_cluster start --ranks 2"):
        ClusterSpec(ranks=0)
    with pytest.raises(OptionError, match=r"3 ranks do not fit on a,b, which offer 2\. .*--ranks 2"):
        ClusterSpec(ranks=3, hosts=("a", "b"))


def test_a_spec_says_how_it_would_be_typed() -> None:
    spec = ClusterSpec(ranks=2, hosts=("a:1", "b:1"), profile="minis", keep_s=28800)

    assert spec.command == "%mlx_cluster start --ranks 2 --profile minis --hosts a:1,b:1 --keep 8h"
    assert spec.describe() == "2 ranks on a:1, b:1 with profile minis"
    assert ClusterSpec(ranks=1).describe() == "1 rank on this machine"


def ranks() -> tuple[RankInfo, ...]:
    return tuple(
        RankInfo(
            rank=Rank(r), engine=EngineId(r), host="laptop", pid=41207 + r, created_s=0, memory_bytes=m * MIB
        )
        for r, m in enumerate((402, 398))
    )


def test_a_cluster_prints_as_the_surface_says() -> None:
    status = ClusterStatus(name="local-7f3a", ending="ends with this kernel", ranks=ranks())

    assert str(status) == (
        "Cluster local-7f3a · 2 ranks · 1 host · ends with this kernel\n"
        " rank  engine  host    pid    memory   state\n"
        " 0     0       laptop  41207  402 MiB  idle\n"
        " 1     1       laptop  41208  398 MiB  idle"
    )
    assert repr(status) == str(status)


def test_the_status_adds_the_processes_around_the_ranks() -> None:
    others = (
        ProcessInfo(role="mpirun", pid=5, memory_bytes=12 * MIB),
        ProcessInfo(role="nanny", pid=6, memory_bytes=40 * MIB),
        ProcessInfo(role="nanny", pid=7, memory_bytes=40 * MIB),
    )
    status = ClusterStatus(name="local-7f3a", ending="ends with this kernel", ranks=ranks(), others=others)

    assert repr(status).splitlines()[-1] == (
        " mpirun 5 (12 MiB) · nanny 6 (40 MiB), 7 (40 MiB) · these together 92 MiB"
    )
    assert str(ClusterStatus(name="x", ending="")) == "Cluster x · stopped"


def test_records_cross_the_border() -> None:
    status = ClusterStatus(name="x", ending="y", ranks=ranks())

    assert pickle.loads(pickle.dumps(status)) == status
