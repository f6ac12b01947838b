"""How a wrong array is wrong: by a factor, in another order, from some token on. It often names the cause."""

import numpy as np

CLOSE = 1e-3
"""What a guess at the cause may leave unexplained, relative to the array."""


def clues(
    own: np.ndarray, other: np.ndarray, axis: int, hidden: int = 0, tolerance: float = CLOSE
) -> list[str]:
    """What is striking about the difference of two arrays.

    Args:
        own: The wrong one.
        other: What it should be, of the same shape.
        axis: Where the tokens are.
        hidden: The width of the residual stream, to name factors by; 0 if it is not known.
        tolerance: The relative distance that counts as rounding.

    >>> clues(np.ones((1, 2, 4)) * 8, np.ones((1, 2, 4)), 1, hidden=64)
    ['It is 8 times what it should be, everywhere: 8 = sqrt(64), the square root of hidden_size.']
    """
    a, b = np.moveaxis(own, axis, 0).astype(np.float64), np.moveaxis(other, axis, 0).astype(np.float64)
    a, b = a.reshape(len(a), -1), b.reshape(len(b), -1)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return []
    limit = max(tolerance, CLOSE)
    found = [_alike(a, b, own.shape[-1], hidden, limit)]
    found.append(_tokens(a, b, tolerance))
    return [clue for clue in found if clue]


def _far(a: np.ndarray, b: np.ndarray) -> float:
    size = float(np.linalg.norm(b))
    return float(np.linalg.norm(a - b)) / size if size else float(np.any(a))


def _alike(a: np.ndarray, b: np.ndarray, width: int, hidden: int, limit: float) -> str:
    """What makes one of the other."""
    size = float((b * b).sum())
    factor = float((a * b).sum()) / size if size else 0.0
    if not np.any(a):
        return "It is zero everywhere."
    if abs(factor - 1) < limit and _far(a, b) < limit:
        return ""  # so close that every guess below would fit
    if factor and _far(a, factor * b) < limit:
        return f"It is {factor:.4g} times what it should be, everywhere{_named(factor, hidden)}."
    rows, other = a.reshape(-1, width), b.reshape(-1, width)
    if width > 1 and _far(np.sort(rows, axis=1), np.sort(other, axis=1)) < limit:
        return "It has the same numbers in another order: rows of a weight, or heads, are exchanged."
    if len(a) > 2 and _far(a[1:], b[:-1]) < limit:
        return "Each token has what the one before it should have: it is shifted by one."
    if len(rows) > width // 8 and len(rows) > 3:
        gap = rows - other
        if _far(gap, np.broadcast_to(gap.mean(axis=0), gap.shape)) < limit:
            return "It differs by the same vector at every token: a bias too many, or one that is lost."
        scale = (rows * other).sum(axis=0) / np.maximum((other * other).sum(axis=0), 1e-30)
        if _far(rows, other * scale) < limit:
            return "Each channel is off by a factor of its own: another weight (a norm's that counts from 0 or from 1?)."
    return ""


def _named(factor: float, hidden: int) -> str:
    if not hidden:
        return ""
    root = float(hidden) ** 0.5
    for value, words in ((root, "sqrt({0})"), (1 / root, "1 / sqrt({0})")):
        if abs(factor / value - 1) < CLOSE:
            return f": {factor:.4g} = {words.format(hidden)}, the square root of hidden_size"
    return ""


def _tokens(a: np.ndarray, b: np.ndarray, tolerance: float) -> str:
    """From which token on it is wrong."""
    wrong = [place for place in range(len(a)) if _far(a[place], b[place]) > tolerance]
    if not wrong or len(wrong) == len(a) or len(a) < 2:
        return ""
    if wrong == list(range(wrong[0], len(a))):
        if wrong[0] == 1:
            return "Token 0 is right, all others are wrong: look at positions (RoPE) and at the mask."
        return f"It is right up to token {wrong[0] - 1}, and wrong from there on: look at RoPE's offset, the mask's window and the KV cache, where a chunk begins."
    if len(wrong) == 1:
        return f"Only token {wrong[0]} is wrong."
    return f"{len(wrong)} of {len(a)} tokens are wrong, first token {wrong[0]}."
