"""Faults that are put into a rank on purpose, and taken out again without a trace.

A table: each entry strikes one thing, and returns where, and how it is undone.
"""

from dataclasses import dataclass
from typing import TYPE_CHECKING

from mlx_nb.engine.faults import ends, kv, layers, settings, weights
from mlx_nb.engine.faults.tools import NotHere, Strike, Target, Undo
from mlx_nb.shared.errors import OptionError
from mlx_nb.shared.faults import FaultSpec, kind_of
from mlx_nb.shared.text import format_layers

if TYPE_CHECKING:
    from mlx_nb.engine.stage import Stage

TABLE: dict[str, Strike] = {**kv.TABLE, **layers.TABLE, **weights.TABLE, **settings.TABLE, **ends.TABLE}


@dataclass(slots=True)
class Struck:
    """A fault that is in.

    Attributes:
        spec: Which.
        sites: The modules, tensors or KV cache entries that are wrong now.
        undo: Takes it out.
    """

    spec: FaultSpec
    sites: list[str]
    undo: list[Undo]


class Faults:
    """The faults of one rank's share, in the order in which they were put in."""

    def __init__(self, stage: "Stage") -> None:
        self._stage = stage
        self._active: list[Struck] = []

    def put(self, spec: FaultSpec) -> list[str]:
        """Put one in; where it is.

        Raises:
            OptionError: Nothing on this rank has what it strikes.
        """
        struck = Struck(spec, [], [])
        self._strike(struck)
        self._active.append(struck)
        return struck.sites

    def take(self, number: int) -> None:
        """Take one out; does nothing the second time. Those that came later are lifted off, and put back."""
        place = next((i for i, one in enumerate(self._active) if one.spec.number == number), None)
        if place is None:
            return
        later = self._active[place + 1 :]
        for one in reversed(self._active[place:]):
            _lift(one)
        del self._active[place:]
        for one in later:
            self.put(one.spec)

    def clear(self) -> None:
        """Take all out."""
        for one in reversed(self._active):
            _lift(one)
        self._active.clear()

    def _strike(self, struck: Struck) -> None:
        spec, stage = struck.spec, self._stage
        kind = kind_of(spec.name)
        by = spec.by if spec.by is not None else kind.by if kind.by is not None else 0.0
        layers = stage.shard.layers if spec.layer is None else range(spec.layer, spec.layer + 1)
        lacking = ""
        for layer in layers:
            try:
                site, undo = TABLE[spec.name](Target(stage, layer, by))
            except NotHere as error:
                lacking = lacking or str(error)
                continue
            struck.sites.append(site)
            struck.undo.append(undo)
            if not kind.everywhere:
                return
        if not struck.sites:
            raise OptionError(
                f"The fault {spec.name} needs {lacking}. On rank {stage.rank} ({format_layers(layers)} of {stage.name}) "
                "there is none.",
                "Take another rank or layer, or another fault: mlx_nb.faults()",
            )


def _lift(struck: Struck) -> None:
    for undo in reversed(struck.undo):
        undo()
