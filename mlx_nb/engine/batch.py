"""``mpirun -n 2 mlx-nb run``: the ranks alone, with no notebook and no controller."""

import os
import sys
import time
from typing import Any

from mpi4py import MPI

from mlx_nb.engine import blas
from mlx_nb.engine.drive import Driver
from mlx_nb.engine.interrupt import Interrupt
from mlx_nb.engine.mpi_link import MpiLink
from mlx_nb.engine.obtain import obtain_stage
from mlx_nb.shared.code_file import read_code
from mlx_nb.shared.console_words import in_console
from mlx_nb.shared.errors import MlxNbError, RemoteCodeError
from mlx_nb.shared.request import RunRequest, check_for_model, options_from
from mlx_nb.shared.text import Trimmer, format_count

PATIENCE_S = 2.0
RUN_ID = 1  # one run in the life of these processes


def run_rank(model: str, prompt: str, wishes: dict[str, Any], options: dict[str, Any]) -> int:
    """Be one rank of a pipeline that answers one prompt; the exit status. The last rank prints the text."""
    link = MpiLink()
    _share_cores()
    try:
        return _run(link, model, prompt, wishes, options)
    except MlxNbError as error:
        # As a rule every rank finds the same mistake; rank 0 says so, unless it is this rank's own.
        alone = not _all_arrive(PATIENCE_S)
        if link.rank == 0 or alone:
            told = in_console(str(error), "run", sys.argv[2:], ranks=link.size)
            print(f"mlx-nb: {told}", file=sys.stderr, flush=True)
        if alone:  # the others have what they need and wait for this rank: MPI ends them
            MPI.COMM_WORLD.Abort(1)
        return 1
    except BaseException:
        # The others would wait for this rank for ever: MPI ends them.
        MPI.COMM_WORLD.Abort(1)
        raise
    finally:
        link.close()


def _all_arrive(patience_s: float) -> bool:
    """Whether every rank comes to this point in time: mpirun ends the others when the first one leaves."""
    request, end = MPI.COMM_WORLD.Ibarrier(), time.monotonic() + patience_s
    while not request.Test():
        if time.monotonic() > end:
            return False
        time.sleep(0.01)
    return True


def _share_cores() -> None:
    """Ranks on one machine share its cores: with a BLAS thread per core each they would be in each other's way."""
    neighbours = MPI.COMM_WORLD.Split_type(MPI.COMM_TYPE_SHARED)
    if neighbours.size > 1:
        blas.set_threads((os.cpu_count() or 1) // neighbours.size)
    neighbours.Free()


def _run(link: MpiLink, model: str, prompt: str, wishes: dict[str, Any], options: dict[str, Any]) -> int:
    checked = options_from(options)
    split = wishes["split"]
    counts = [int(n) for n in split.split(",")] if split.replace(",", "").isdigit() else split

    trim = Trimmer()

    def show(event: dict[str, Any]) -> None:
        if event["kind"] == "token":
            print(trim(event["text"]), end="", flush=True)

    code = read_code(wishes["code"]) if wishes.get("code") else None
    if code is not None and not wishes["trust_remote_code"]:
        raise RemoteCodeError(
            f"{code.path} would run on every rank.",
            f"If you trust it, type: %mlx_load {model} --code {code.name} --trust-remote-code",
        )
    stage = obtain_stage(model, link, publish=show, **{**wishes, "split": counts, "code": code})
    check_for_model(
        checked, vocabulary=stage.sizes.vocabulary, has_tokenizer=stage.prompter.tokenizer is not None
    )
    request = RunRequest(
        run_id=RUN_ID,
        tokens=tuple(stage.prompter.encode(prompt, raw=checked.raw)),
        options=checked,
        stop_ids=stage.prompter.stop_ids,
    )
    MPI.COMM_WORLD.Barrier()  # a rank that loads slowly is not a silent one
    outcome = Driver(Interrupt()).run_to_end(stage.open_run(request))
    stage.close_run(RUN_ID)
    if stage.shard.is_last:
        tokens = format_count(len(outcome.token_ids), "token")
        shown = f"{stage.shard.describe()} · {tokens} · {outcome.finish or outcome.kind}"
        ranks = format_count(link.size, "rank")
        print(f"\n[{ranks}, the last with {shown}]", flush=True)
    MPI.COMM_WORLD.Barrier()
    return 0 if outcome.kind == "finished" else 130
