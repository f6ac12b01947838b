"""Which parameters a rank's share of the forward pass really reads.

Nothing is guessed from names: the pass is built lazily (no weight is read) and MLX's own graph says
which parameters the outputs depend on. A tied embedding, read through `as_linear`, is found on both ends.
"""

import io
import re
from collections import defaultdict
from collections.abc import Iterable, Iterator
from itertools import islice

import mlx.core as mx

_EDGE = re.compile(r'^(?:"(?P<array>[^"]+)"|(?P<op>\d+)) -> (?:"(?P<to_array>[^"]+)"|(?P<to_op>\d+))$')


# A call takes at most 1024 keyword arguments, and every parameter is named by one.
_BATCH = 900


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
