"""The cluster's view: a card for each rank, and the buttons that act on all of them.

view = ClusterView(state)
view.on_ask(answer)     # "pause", "resume", "interrupt", "restart", "stop"; {} each
"""

from typing import Any, ClassVar

from mlx_nb.widgets.markup import Markup, tag
from mlx_nb.widgets.view import View, still

HEADS = ("rank", "host", "device", "holds", "weights", "KV caches", "process", "free", "state", "tok/s")


class ClusterView(View):
    """The ranks of a cluster.

    Attributes:
        state: See `blank`.
    """

    name = "cluster"
    blank: ClassVar[dict[str, Any]] = {
        "name": "",
        "note": "",  # how many ranks and hosts, and when the cluster ends
        "status": "",  # idle, running, paused, stopped, lost, ended: what its ranks are together
        "run": "",  # what is running, or was last
        "ranks": [],  # a card each
        "actions": [],  # of pause, resume, interrupt, restart, start, stop: which make sense now
        "warnings": {"restart": "", "stop": ""},  # what goes with it, said before it is done
        "doing": "",  # a restart or a stop that is under way
        "sentence": "",
        "text": "",
    }

    def html(self) -> str:
        return cluster_html(self.state)

    def text(self) -> str:
        return "\n".join(filter(None, [self.state["text"], self.state["error"]]))


def cluster_html(state: dict[str, Any]) -> str:
    """The cards as a table, without a script."""
    rows: list[Markup] = []
    for rank in state["ranks"]:
        names = ("rank", "host", "device", "holds", "weights", "kv", "process", "free", "state", "speed")
        cells = (str(rank[name]) or "–" for name in names)
        rows.append(tag("tr", *(tag("td", cell) for cell in cells)))
        told = "\n".join(filter(None, [rank["why"], *rank["log"]]))
        if told:
            rows.append(tag("tr", tag("td"), tag("td.mc-log.mv-mono", told, colspan=len(HEADS) - 1)))
    table = tag(
        "table.mc-table",
        tag("thead", tag("tr", *(tag("th", name, scope="col") for name in HEADS))),
        tag("tbody", *rows),
    )
    where = f"cluster · {state['note']}"
    return still(
        "cluster",
        "Cluster",
        state["name"],
        where,
        state["run"],
        tag("div.mv-row.mc-scroll", table),
        sentence=state["sentence"],
    )
