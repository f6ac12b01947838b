"""Prompts as users give them: which is one and which are several, as plain data that travels."""

from typing import Any

from mlx_nb.shared.errors import PromptError
from mlx_nb.shared.request import Prompt


def plain_prompt(prompt: Any) -> Prompt:
    """A prompt as plain data that travels: arrays of ids become lists.

    Raises:
        PromptError: It is neither text, messages nor ids.
    """
    if isinstance(prompt, str):
        return prompt
    if hasattr(prompt, "tolist"):
        prompt = prompt.tolist()
    if isinstance(prompt, list | tuple):
        return list(prompt)
    raise PromptError(
        f"A prompt cannot be a {type(prompt).__name__}.",
        "Type a string, a list of chat messages, or a list of token ids.",
    )


def are_several(prompt: Any) -> bool:
    """Whether something is a list of prompts, rather than one: ids are ints, and messages dicts.

    >>> [are_several(p) for p in ("Hi", ["Hi", "Ho"], [1, 2], [[1, 2], [3]], [{"role": "user", "content": "Hi"}], [])]
    [False, True, False, True, False, False]
    """
    if not isinstance(prompt, list | tuple):
        return False
    return bool(prompt) and all(isinstance(item, str | list | tuple) for item in prompt)
