"""The main job in a plain terminal: start, load, answer, step, stop."""

from collections.abc import Sequence
from typing import Any

from mlx_nb.client.cluster import Cluster
from mlx_nb.client.debugger import Debugger
from mlx_nb.client.fetch import check_model
from mlx_nb.client.options import parse_split
from mlx_nb.client.pipe import Pipe
from mlx_nb.client.progress import ProgressLine
from mlx_nb.client.stream_out import stream_to_screen
from mlx_nb.shared.errors import PromptError
from mlx_nb.shared.position import Position
from mlx_nb.shared.request import options_from
from mlx_nb.shared.text import format_number, format_shape, format_table


def run_demo(
    question: str, model: str, ranks: int | None, hosts: Sequence[str] | None, profile: str | None
) -> int:
    """Show the whole of it: the plan, the answer, one pass in stops across the ranks."""
    check_model(model)
    with ProgressLine() as progress:
        cluster = Cluster.start(ranks, hosts, profile, progress=progress.tell)
    with cluster:
        print(str(cluster.status()).replace("ends with this kernel", "ends with this command"), end="\n\n")
        with ProgressLine() as progress:
            pipe = cluster.load(model, on_event=progress.on_event)
        print(pipe.plan, end="\n\n")
        print(f"> {question}")
        stream_to_screen(pipe, question, {"max_tokens": 64})
        print("\nThe same question, stopped at every layer and every hop of its first pass:\n")
        walk(pipe, question)
    print("\nThe cluster has stopped. Next: mlx-nb lab")
    return 0


def walk(pipe: Pipe, question: str) -> None:
    """One pass as a table of stops, and a look at the code where it stands once."""
    rows = [["rank", "site", "value", "min", "mean", "max", "KV cache"]]
    with pipe.debug(question, max_tokens=8) as dbg:
        position = dbg.position
        while position.index == 0 and not dbg.done:
            rows.append(_row(position))
            if position.module == dbg.layer_paths[0] and position.kind == "output":
                shown = _look_inside(dbg)
            position = _next(dbg)
        print(format_table(rows, right=(3, 4, 5)))
        text = "".join(dbg.pieces())
        print(f"\nThe pass has given the first token: {text!r}. Run to the end:")
        dbg.run()
        print(f"  {dbg.gen.text!r}")
        print(f"\nA stop inside the second layer looked like this:\n\n{shown}")


def _next(dbg: Debugger) -> Position:
    """To the next whole layer's output, or to a crossing, whichever comes first."""
    here = dbg.position
    last = max(shard.layers[1] for shard in dbg.pipe.shards[: here.rank + 1]) - 1
    if here.kind in ("send", "input") or (here.kind == "output" and here.layer < last):
        return dbg.rank() if here.kind == "send" else dbg.layer()
    if here.kind == "recv":
        return dbg.layer()
    return dbg.token() if here.rank == dbg.pipe.num_ranks - 1 else dbg.into()


def _look_inside(dbg: Debugger) -> str:
    position = dbg.until(f"{dbg.layer_paths[1]}.self_attn.*")
    return f"{position}\n\n{dbg.source()}"


def _row(position: Position) -> list[str]:
    summary = position.summary
    site = f"→ rank {position.hop.target}" if position.kind == "send" and position.hop else position.site
    value = f"{format_shape(summary.shape)} {summary.dtype}" if summary else ""
    numbers = [format_number(v) for v in (summary.min, summary.mean, summary.max)] if summary else [""] * 3
    kv = next((line.text for line in position.ranks if line.rank == position.rank), "")
    return [str(position.rank), site, value, *numbers, kv]


def run_generate(
    prompt: str, model: str, where: dict[str, Any], wishes: dict[str, Any], options: dict[str, Any]
) -> int:
    """Start ranks, load, generate, stop."""
    options_from(options)  # what is wrong is said at once, not after the start
    parse_split(wishes["split"])
    if not prompt.strip():
        raise PromptError("The prompt is empty.", 'Type: mlx-nb generate "What is the capital of France?"')
    check_model(model)
    with ProgressLine() as progress:
        cluster = Cluster.start(where["ranks"], where["hosts"], where["profile"], progress=progress.tell)
    with cluster:
        with ProgressLine() as progress:
            pipe = cluster.load(model, on_event=progress.on_event, **wishes)
        generation = stream_to_screen(pipe, prompt, options)
    return 0 if generation.state == "finished" else 130
