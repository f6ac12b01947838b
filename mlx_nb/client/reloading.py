"""``pipe.reload()``: a model file under work is read again; the weights stay where they are."""

from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING

from mlx_nb.client.current import current
from mlx_nb.shared.code_file import CodeFile, read_code
from mlx_nb.shared.errors import MlxNbError, OptionError, RemoteCodeError

if TYPE_CHECKING:
    from mlx_nb.client.pipe import Pipe
    from mlx_nb.shared.loaded import LoadedShard


def code_for(model: str, path: str | Path, *, trusted: bool) -> CodeFile:
    """A model file that may run.

    Raises:
        RemoteCodeError: Nobody has said that it may.
        OptionError: There is no such file.
    """
    code = read_code(path)
    if not trusted:
        raise RemoteCodeError(
            f"{code.path} would run on every rank.",
            f"If you trust it, type: %mlx_load {model} --code {path} --trust-remote-code "
            "(in Python: trust_remote_code=True)",
        )
    return code


def reload(pipe: "Pipe", path: str | Path | None) -> "list[LoadedShard]":
    """Build every rank's share with the file as it is now, and let it take the old one's place on all of them, or none.

    Raises:
        OptionError: The pipe was not loaded with a file.
        CodeError: The file does not run, or does not fit the weights; the pipe goes on with what it had.
    """
    known = path or pipe.code_path
    if not known:
        raise OptionError(
            f"{pipe.name} runs code that was not given with code=, so there is nothing to read again.",
            f"Type: %mlx_load {pipe.name} --code mymodel.py --trust-remote-code",
        )
    if not pipe.trusted:
        code_for(pipe.name, known, trusted=False)
    code = read_code(known, again=True)
    try:
        shards: list[LoadedShard] = pipe.call_all("prepare_reload", code)
    except BaseException:
        if not pipe.cluster.remote.ended and not pipe.cluster.remote.out_of_reach():
            with suppress(MlxNbError):  # what went wrong first is what the user needs to read
                pipe.call_all("drop_reload")
        raise
    standing = current.dbg if current.dbg is not None and current.dbg.pipe is pipe else None
    pipe.stop_runs()
    if standing is not None:
        standing.close()
    pipe.call_all("commit_reload")
    pipe.reloads += 1
    if standing is not None:
        current.lost_dbg = standing
        standing.tell()
    return shards
