"""How far to go: the strides of the stepper as plain data, and the rule for where each stops.

The rule is pure, so that it can be tested without a model: a rank asks it at every event of a
pass, and what is left of a stride travels to the next rank with it.
"""

from dataclasses import dataclass, replace

from mlx_nb.shared.attention import at_site, is_attention
from mlx_nb.shared.position import INPUT, OUTPUT, RECV, SEND

NAMES = ("into", "over", "out", "layer", "rank", "token", "run", "cont", "until")


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """One place where a pass could stand still.

    Attributes:
        kind: ``input``, ``output``, ``send`` or ``recv``; inside attention one of `attention.KINDS`.
        module: The module's path (that of attention has ``.sdpa`` behind; the last layer before, or the first after, a crossing).
        depth: Modules on the stack below it; a crossing counts as its layer.
        call: Which call of the module in this pass, from 1.
        layer: The index, when the module is a whole layer; else -1.
        begins_pass: The first entry of a pass: rank 0, before the embedding.
        rank: The rank.
        start, stop: The tokens of the pass.
        tick: Its number on its rank in this pass, from 1.
    """

    kind: str
    module: str
    depth: int
    call: int = 1
    layer: int = -1
    begins_pass: bool = False
    rank: int = 0
    start: int = 0
    stop: int = 0
    tick: int = 0

    @property
    def site(self) -> str:
        if self.kind in (SEND, RECV):
            return self.kind
        return f"{self.module}.{self.kind}" if self.module else ("logits" if self.kind == OUTPUT else "input")

    @property
    def in_attention(self) -> bool:
        """Whether it is inside the attention function: strides pass by, and only who names it comes there."""
        return is_attention(self.module)

    def at(self, pattern: str) -> bool:
        """Whether it is at a site, or at one that a glob means."""
        return at_site(self.site, pattern)


@dataclass(frozen=True, slots=True, kw_only=True)
class Stride:
    """A stride under way.

    Attributes:
        name: One of `NAMES`.
        count: How many times it must match still.
        kind, module, call, depth: Where it started; `over` and `out` compare with it.
        num_ranks: Ranks in the pipeline: with one there is no crossing to wait for.
        site: For ``until``: a site or a glob over sites, already spelled as `Event.site`.
        layer, rank, token: For ``until``: a layer's entry, any stop on a rank, the pass with a token.
        tick: For ``place``: the stop of this number, on `rank`, in the pass that begins with `token`.
    """

    name: str
    count: int = 1
    kind: str = ""
    module: str = ""
    call: int = 1
    depth: int = 0
    num_ranks: int = 2
    site: str = ""
    layer: int = -1
    rank: int = -1
    token: int = -1
    tick: int = -1


def advance(stride: Stride, event: Event) -> tuple[bool, Stride]:
    """Whether to stand still at `event`, and what is left of the stride."""
    if not meets(stride, event):
        return False, stride
    if stride.count > 1:
        return False, replace(stride, count=stride.count - 1)
    return True, stride


def meets(stride: Stride, event: Event) -> bool:
    """Whether an event counts for a stride."""
    if event.in_attention and not (stride.name == "place" or (stride.name == "until" and stride.site)):
        return False
    match stride.name:
        case "into":
            return True
        case "over":
            if event.begins_pass:
                return True
            if stride.kind == INPUT:
                own_exit = event.module == stride.module and event.call == stride.call
                return event.kind == OUTPUT and (own_exit or event.depth < stride.depth)
            return event.depth <= stride.depth
        case "out":
            return event.begins_pass or (event.kind == OUTPUT and event.depth < stride.depth)
        case "layer":
            return event.kind == OUTPUT and event.layer >= 0
        case "rank":
            return event.kind == RECV or (stride.num_ranks == 1 and event.begins_pass)
        case "token":
            return event.begins_pass
        case "until":
            return _is_target(stride, event)
        case "place":
            if event.start > stride.token:
                return event.begins_pass  # too far: it was not there
            return (event.start, event.rank, event.tick) == (stride.token, stride.rank, stride.tick)
    return False  # run and cont stop only at breakpoints


def came_past(stride: Stride, event: Event) -> bool:
    """Whether a stride backwards ends at an event that came before: the mirror of `advance`."""
    if event.in_attention and stride.name != "until":
        return False
    match stride.name:
        case "over":
            own_entry = event.module == stride.module and event.call == stride.call and event.kind == INPUT
            if stride.kind == OUTPUT:
                return own_entry or event.depth < stride.depth
            return event.depth <= stride.depth
        case "out":
            return event.kind == INPUT and event.depth < stride.depth
    return meets(stride, event)


def _is_target(stride: Stride, event: Event) -> bool:
    wanted = [
        not stride.site or event.at(stride.site),
        stride.layer < 0 or event.layer == stride.layer,
        stride.rank < 0 or event.rank == stride.rank,
        stride.token < 0 or event.start <= stride.token < event.stop,
    ]
    return all(wanted)
