"""How a call that went wrong on a rank travels home: as plain data, never as a foreign exception class."""

from dataclasses import dataclass

from mlx_nb.shared.errors import MlxNbError
from mlx_nb.shared.ids import Rank


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """What a rank returns instead of a value.

    Attributes:
        error: What the notebook raises. An exception that is not ours has been put into a
            `RunError` on the rank, since its class may not exist in the kernel.
        rank: The rank that raised it.
        traceback: The rank's own traceback, as text.
    """

    error: MlxNbError
    rank: Rank
    traceback: str


class RankTraceback(Exception):
    """The cause of an error that came from a rank: Python prints the rank's traceback above our own."""

    def __str__(self) -> str:
        return "\n" + "\n".join(map(str, self.args))
