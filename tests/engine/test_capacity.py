"""What a Mac may give to a model, with what its system calls print there."""

from collections.abc import Sequence

import psutil
import pytest

from mlx_nb.engine.capacity import capacity, metal_memory, read_wired_limit
from mlx_nb.shared.mac_memory import working_set

GIB = 2**30


def mac(**answers: str):
    """A `sysctl` that knows these names only."""
    known = {name.replace("__", "."): text for name, text in answers.items()}

    def ask(command: Sequence[str]) -> str:
        assert command[:2] == ["/usr/sbin/sysctl", "-n"]
        return known.get(command[2], "")

    return ask


# Memory and recommendedMaxWorkingSetSize as Macs of these sizes report them.
@pytest.mark.parametrize(
    ("memory_gib", "recommended"),
    [(8, 5_726_633_984), (16, 11_453_251_584), (32, 22_906_503_168), (64, 51_539_607_552)],
)
def test_what_metal_recommends_is_known_from_the_size(memory_gib: int, recommended: int) -> None:
    info = {"max_recommended_working_set_size": recommended, "memory_size": memory_gib * GIB}

    asked = metal_memory(memory_gib * GIB, info, mac(iogpu__wired_limit_mb="0\n"))
    assert asked == recommended
    assert working_set(memory_gib * GIB) == pytest.approx(recommended, rel=1e-4)


def test_a_wired_limit_goes_before_what_is_recommended() -> None:
    info = {"max_recommended_working_set_size": 11_453_251_584}

    assert metal_memory(16 * GIB, info, mac(iogpu__wired_limit_mb="14336\n")) == 14 * GIB
    assert metal_memory(16 * GIB, info, mac(iogpu__wired_limit_mb="4096\n")) == 4 * GIB
    assert metal_memory(16 * GIB, info, mac(iogpu__wired_limit_mb="99999\n")) == 16 * GIB
    assert metal_memory(16 * GIB, info, mac(debug__iogpu__wired_limit=f"{12 * GIB}\n")) == 12 * GIB


def test_a_system_without_an_answer_has_its_own_limit() -> None:
    assert read_wired_limit(mac()) == 0
    assert read_wired_limit(mac(iogpu__wired_limit_mb="unknown oid")) == 0
    assert metal_memory(16 * GIB, {}, mac()) == working_set(16 * GIB)


def test_a_cpu_gives_its_memory() -> None:
    host, size_bytes, on_metal = capacity()

    assert host
    assert on_metal or size_bytes == psutil.virtual_memory().total
