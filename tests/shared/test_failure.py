"""Failures travel as plain data."""

import pickle
import traceback

from mlx_nb.shared.errors import RunError
from mlx_nb.shared.failure import Failure, RankTraceback
from mlx_nb.shared.ids import Rank


def test_a_failure_survives_the_journey() -> None:
    failure = Failure(error=RunError("It broke.", "Mend it."), rank=Rank(1), traceback="Traceback …")

    back = pickle.loads(pickle.dumps(failure))

    assert isinstance(back.error, RunError)
    assert str(back.error) == "It broke. Mend it."
    assert (back.rank, back.traceback) == (1, "Traceback …")


def test_the_ranks_traceback_is_printed_above_our_own() -> None:
    try:
        raise RunError("It broke.", "Mend it.") from RankTraceback("there it was")
    except RunError as error:
        text = "".join(traceback.format_exception(error))

    assert text.index("there it was") < text.index("It broke.")
