"""Changing what a run goes on with, where it stands."""

from typing import TYPE_CHECKING, Any

import numpy as np

from mlx_nb.client.arrays import plain_array
from mlx_nb.client.looking import Looking
from mlx_nb.shared.errors import OptionError, RunError, ValueShapeError
from mlx_nb.shared.position import Position
from mlx_nb.shared.sites import short_spelling
from mlx_nb.shared.text import format_shape

if TYPE_CHECKING:
    import threading


class Changing(Looking):
    """The part of a `Debugger` that changes values and tokens."""

    _lock: "threading.RLock"

    @property
    def value(self) -> np.ndarray:
        """A copy of the first array here (bfloat16 as the equal float32). Assign to it to change the pass from here on.

        Raises:
            TransferTooLargeError: It is over 64 MiB.
            ValueShapeError: What is assigned has another shape.
            RunFinished: The run is over.
        """
        return self._value()

    @value.setter
    def value(self, new: Any) -> None:
        with self._lock:
            self._check_can_move()
            summary = self.position.summary
            if summary is None:
                raise RunError("There is no array where the run stands.", "Type: dbg.args")
            array = plain_array(new)
            if array.shape != summary.shape:
                raise self._misfit(array.shape, summary.shape)
            self.stand(self._ask("set_value", array))

    @property
    def next_token(self) -> int | None:
        """The token that will be taken in place of the next sampled one; None if it is sampled."""
        self._check_open()
        here = self.position
        place = here.index, int(here.rank), here.tick
        token: int | None = self._ask("forced_token", place, rank=self.pipe.num_ranks - 1)
        return token

    @next_token.setter
    def next_token(self, token: int | None) -> None:
        with self._lock:
            self._check_can_move()
            vocabulary = self.pipe.shards[0].vocabulary
            if token is not None and not (isinstance(token, int | np.integer) and 0 <= token < vocabulary):
                raise OptionError(
                    f"{token!r} is no token id; they are 0–{vocabulary - 1}.",
                    "Type: dbg.next_token = pipe.encode(' Lyon', raw=True)[0]",
                )
            here = self.position
            place = here.index, int(here.rank), here.tick
            last = self.pipe.num_ranks - 1
            self._ask("force_token", place, None if token is None else int(token), rank=last)

    def _misfit(self, given: tuple[int, ...], wanted: tuple[int, ...]) -> ValueShapeError:
        site = short_spelling(self.position.site, self.layer_paths)
        fix = f"Give it that shape: {format_shape(wanted, ())}."
        if wanted == (1, *given):
            fix = "Type: dbg.value = x[None]"
        elif given == (1, *wanted):
            fix = "Type: dbg.value = x[0]"
        elif np.prod(given) == np.prod(wanted):
            fix = f"Type: dbg.value = x.reshape({', '.join(map(str, wanted))})"
        return ValueShapeError(
            f"{site} is {format_shape(wanted, ())}; your value is {format_shape(given, ())}.", fix
        )

    # What the others do -----------------------------------------------------------------------------

    def stand(self, position: Position) -> Position:
        """Be there."""
        raise NotImplementedError

    def _check_can_move(self) -> None:
        raise NotImplementedError
