"""A model's name becomes this rank's stage: the files that its share needs are fetched, then loaded."""

import platform
from functools import partial
from typing import Any

from mlx_nb.engine.needed import files_of_share
from mlx_nb.engine.resolve import resolve_model
from mlx_nb.engine.stage import Stage
from mlx_nb.engine.transport import Transport
from mlx_nb.shared.errors import PartOfModelError
from mlx_nb.shared.models import ModelDownloadError, Progress


def obtain_stage(
    name: str,
    transport: Transport,
    progress: Progress | None = None,
    *,
    size: int | None = None,
    **wishes: Any,
) -> Stage:
    """Load this rank's share of a model.

    From Hugging Face only the weight files that hold the share are fetched. mlx-lm converts some models at
    load and wants tensors of other layers for it; then all files are.

    Args:
        name: As the user typed it.
        transport: The links to the other ranks.
        progress: Told how far a download or conversion is.
        size: Over the first so many ranks; None takes all.
        **wishes: As `Stage` takes them.

    Raises:
        MlxNbError: The model cannot be had, or not be loaded so.
    """
    ranks, split = size or transport.size, wishes.get("split", "even")
    share = partial(files_of_share, rank=transport.rank, size=ranks, split=split, name=name)
    try:
        folder = resolve_model(name, progress, share)
    except ModelDownloadError as error:  # each host has a download cache of its own
        where = f"Rank {transport.rank} ({platform.node().split('.')[0]})"
        raise type(error)(f"{where}: {error.problem}", error.fix) from error
    try:
        return Stage(name, folder, transport, size=size, **wishes)
    except PartOfModelError:
        whole = resolve_model(name, progress)
        return Stage(name, whole, transport, size=size, **wishes)
