"""A model's name becomes this rank's stage: the files that its share needs are fetched, then loaded."""

import platform
from pathlib import Path
from typing import Any

from mlx_nb.engine.loading import read_config
from mlx_nb.engine.needed import files_of_share
from mlx_nb.engine.own_code import check_code
from mlx_nb.engine.resolve import resolve_model
from mlx_nb.engine.stage import Stage
from mlx_nb.engine.transport import Transport
from mlx_nb.shared.errors import ModelNotFoundError, PartOfModelError
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
    own = wishes.get("code") is not None  # only mlx-lm's code tells beforehand which files a share needs

    def share(folder: Path) -> set[str] | None:
        # Before any weight is fetched for a model that may not be built.
        check_code(folder, read_config(folder), trusted=bool(wishes.get("trust_remote_code")))
        return files_of_share(folder, transport.rank, ranks, split, name=name)

    where = f"Rank {transport.rank} ({platform.node().split('.')[0]})"
    try:
        folder = resolve_model(name, progress, None if own else share)
    except ModelDownloadError as error:  # each host has a download cache of its own
        raise type(error)(f"{where}: {error.problem}", error.fix) from error
    except ModelNotFoundError as error:
        if transport.rank == 0:
            raise
        # Seen only if rank 0 has found it: on several hosts each needs the model.
        raise ModelNotFoundError(
            f"{where}: {error.problem}", "Copy the model to the same path there."
        ) from error
    try:
        return Stage(name, folder, transport, size=size, **wishes)
    except PartOfModelError:
        whole = resolve_model(name, progress)
        return Stage(name, whole, transport, size=size, **wishes)
