"""Which parameters a rank's share of the forward pass really reads.

Nothing is guessed from names: the pass is built lazily (no weight is read) and MLX's own graph says
which parameters the outputs depend on. A tied embedding, read through `as_linear`, is found on both ends.
"""

import io
import re
from collections import defaultdict
from collections.abc import Collection, Container, Iterable, Iterator
from itertools import islice

import mlx.core as mx

_EDGE = re.compile(r'^(?:"(?P<array>[^"]+)"|(?P<op>\d+)) -> (?:"(?P<to_array>[^"]+)"|(?P<to_op>\d+))$')


_OPERATION = re.compile(r"^\{ \d+ \[label")

# A call takes at most 1024 keyword arguments, and every parameter is named by one.
_BATCH = 900


class Graph:
    """What depends on what, among arrays that have not been evaluated.

    MLX's drawing lists operations in an order that stays the same from one drawing to the next, so an array
    is known by the operation that makes it, and names can be asked for in batches. An array that nothing
    makes (it is held, not computed) is known by its name. The numbers in the drawing are no help: calls of
    one compiled function share theirs.
    """

    def __init__(self, outputs: list[mx.array], named: dict[str, mx.array]) -> None:
        """Read the graph of `outputs`; the arrays of `named` can be asked for."""
        self._parents: dict[str, list[str]] = defaultdict(list)
        self._node: dict[str, str] = {}
        self._names: dict[str, list[str]] = defaultdict(list)
        for number, batch in enumerate(batched(named.items(), _BATCH)):
            self._read(outputs, dict(batch), first=number == 0)

    def _read(self, outputs: list[mx.array], named: dict[str, mx.array], *, first: bool) -> None:
        dot = io.StringIO()
        mx.export_to_dot(dot, *outputs, **named)
        makers: dict[str, str] = {}
        seen: set[str] = set()
        operation = 0
        for line in map(str.strip, dot.getvalue().splitlines()):
            if _OPERATION.match(line):
                operation += 1
            elif match := _EDGE.match(line):
                if made := match["to_array"]:
                    makers[made] = f"#{operation}"
                else:
                    array = match["array"]
                    seen.add(array)
                    # Inputs are drawn before what is made of them.
                    if array in named and array not in makers:
                        self._parents[f"#{operation}"].append(array)
                    elif first and array in makers:
                        self._parents[f"#{operation}"].append(makers[array])
        for name in named.keys() & (makers.keys() | seen):
            node = makers.get(name, name)
            self._node[name] = node
            self._names[node].append(name)

    def contract(self, marks: Collection[str]) -> dict[str, set[str]]:
        """What each marked array depends on without going through another one: marks, and other named arrays."""
        ends = {self._node[name] for name in marks if name in self._node}
        found: dict[str, set[str]] = {}
        for mark in marks:
            stack = list(self._parents[self._node[mark]]) if mark in self._node else []
            seen: set[str] = set()
            while stack:
                node = stack.pop()
                if node not in seen:
                    seen.add(node)
                    if node not in ends:
                        stack.extend(self._parents[node])
            found[mark] = {name for node in seen & self._names.keys() for name in self._names[node]}
        return found


def walk(depends: dict[str, set[str]], roots: Iterable[str], stops: Container[str]) -> set[str]:
    """Every name that `roots` depend on, themselves included; the way back ends at `stops`."""
    seen: set[str] = set()
    stack = list(roots)
    while stack:
        name = stack.pop()
        if name not in seen:
            seen.add(name)
            if name not in stops:
                stack.extend(depends.get(name, ()))
    return seen


def reachable(outputs: list[mx.array], parameters: dict[str, mx.array]) -> set[str]:
    """The names of the parameters that `outputs` depend on.

    Args:
        outputs: Unevaluated arrays; evaluated ones have forgotten what they came from.
        parameters: Candidates by name.
    """
    found: set[str] = set()
    for batch in batched(parameters.items(), _BATCH):
        found |= _reachable(outputs, dict(batch))
    return found


def batched(items: Iterable[tuple[str, mx.array]], size: int) -> Iterator[list[tuple[str, mx.array]]]:
    """Items in lists of at most `size` (itertools has it from Python 3.12 on)."""
    rest = iter(items)
    while batch := list(islice(rest, size)):
        yield batch


def _reachable(outputs: list[mx.array], parameters: dict[str, mx.array]) -> set[str]:
    names = {f"param:{name}": value for name, value in parameters.items()}
    roots = {f"root:{i}": value for i, value in enumerate(outputs)}
    dot = io.StringIO()
    mx.export_to_dot(dot, *outputs, **names, **roots)
    parents: dict[str, list[str]] = defaultdict(list)
    for line in dot.getvalue().splitlines():
        if match := _EDGE.match(line.strip()):
            source = match["array"] or match["op"]
            parents[match["to_array"] or match["to_op"]].append(source)
    seen: set[str] = set()
    stack = list(roots)
    while stack:
        node = stack.pop()
        if node in seen:
            continue
        seen.add(node)
        if node not in names:  # a parameter's own history (a cast, a dequantisation) is not ours
            stack.extend(parents[node])
    return {node.removeprefix("param:") for node in seen if node in names}
