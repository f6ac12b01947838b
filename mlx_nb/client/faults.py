"""Faults in the notebook: context managers that spoil one thing on one rank, and mend it again."""

from typing import TYPE_CHECKING, Self

from mlx_nb.shared.errors import OptionError
from mlx_nb.shared.faults import FaultSpec, kind_of
from mlx_nb.shared.ids import Rank

if TYPE_CHECKING:
    from mlx_nb.client.pipe import Pipe


class Fault:
    """A fault that is in; use it as a context manager to be sure that it comes out.

    Attributes:
        name, rank: What it is, and where.
        sites: The modules, tensors or KV cache entries that are wrong because of it.
    """

    def __init__(
        self, pipe: "Pipe", name: str, rank: int | None, layer: int | None, by: float | None
    ) -> None:
        """Put it in. Arguments and errors as `Pipe.fault`."""
        kind = kind_of(name)
        if by is not None and (isinstance(by, bool) or not isinstance(by, int | float)):
            raise OptionError(
                f"by is a number, not {by!r}.", f"Type: pipe.fault('{name}', by={kind.by or 1:g})"
            )
        self.name, self._pipe = name, pipe
        self.rank = _rank_of(pipe, rank, layer)
        pipe.fault_count += 1
        spec = FaultSpec(number=pipe.fault_count, name=name, layer=layer, by=by)
        self._number = spec.number
        self._in = True
        self.sites: tuple[str, ...] = tuple(
            pipe.cluster.remote.call(Rank(self.rank), "put_fault", pipe.pipe_id, spec)
        )

    def remove(self) -> None:
        """Take it out; does nothing the second time."""
        if self._in and not self._pipe.cluster.remote.ended:
            self._pipe.cluster.remote.call(Rank(self.rank), "take_fault", self._pipe.pipe_id, self._number)
        self._in = False

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.remove()

    def __repr__(self) -> str:
        first, last = self.sites[0], self.sites[-1]
        where = first if len(self.sites) == 1 else f"{first} … {last}"
        state = "" if self._in else " · removed"
        return f"Fault {self.name} · rank {self.rank} · {where}{state}\n it {kind_of(self.name).what}"


def _rank_of(pipe: "Pipe", rank: int | None, layer: int | None) -> int:
    """The rank that is meant: the one of the layer, or the one named, or rank 1 where there is one."""
    count = pipe.num_ranks
    if rank is not None and not 0 <= rank < count:
        raise OptionError(f"There is no rank {rank}.", f"The ranks of this pipe are 0–{count - 1}.")
    if layer is None:
        return rank if rank is not None else min(1, count - 1)
    for number, shard in enumerate(pipe.shards):
        if shard.layers[0] <= layer < shard.layers[1]:
            if rank not in (None, number):
                raise OptionError(
                    f"Layer {layer} is on rank {number}, not on rank {rank}.", f"Leave rank={rank} away."
                )
            return number
    raise OptionError(f"There is no layer {layer}.", f"The layers are 0–{pipe.shards[0].num_layers - 1}.")
