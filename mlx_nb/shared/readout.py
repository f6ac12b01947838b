"""What the last rank's norm and head make of hidden states: the most probable tokens, and how sure they are."""

from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, slots=True, kw_only=True)
class Readout:
    """Hidden states of some layers at one position, read as if each were the last layer's.

    Shapes:
        N: Hidden states, the last layer's last. k: How many tokens were asked for.

    Attributes:
        ids: ``[N, k]`` the most probable tokens, the first first; -1 where the logits are not finite.
        probabilities: ``[N, k]`` float32.
        entropy_bits: ``[N]`` float32: 0 is certain, log2 V knows nothing.
        answer: The most probable token of the last row; -1 where its logits are not finite.
        answer_probabilities: ``[N]`` float32: how probable that token is in each row.
        answer_places: ``[N]`` its place among all tokens, from 0 for the most probable.
    """

    ids: np.ndarray
    probabilities: np.ndarray
    entropy_bits: np.ndarray
    answer: int
    answer_probabilities: np.ndarray
    answer_places: np.ndarray
