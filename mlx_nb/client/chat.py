"""A conversation: messages here, and KV caches that stay on the ranks between the turns."""

import secrets
from collections.abc import Iterator
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mlx_nb.client.generation import Generation, Piece
from mlx_nb.client.processors import read_options
from mlx_nb.client.prompt_cache import drop
from mlx_nb.shared.errors import PromptError
from mlx_nb.shared.kept import KeptState, reusable

if TYPE_CHECKING:
    from mlx_nb.client.breaking_run import BreakingRun
    from mlx_nb.client.pipe import Pipe
    from mlx_nb.client.streaming import FreeRun


class Chat:
    """Several turns with one model. Made by `Pipe.chat`.

    Every turn renders the whole conversation with the model's chat template, and feeds the ranks the tokens from
    the first one on that their KV caches do not hold. As a rule that is the new message alone; a template that
    rewrites earlier turns costs what it rewrites. `Stats.reused_tokens` tells.

    Attributes:
        messages: What was said, as ``{"role": …, "content": …}``; you may change it between two turns.
        last: The last turn's `Generation`; None before the first.
    """

    def __init__(self, pipe: "Pipe", system: str | None, options: dict[str, Any]) -> None:
        read_options(options)
        if not pipe.shards[0].has_tokenizer:
            raise PromptError(
                "This model's folder has no tokenizer, so there is nothing to say to it.",
                "Generate from token ids: pipe.generate([1, 2, 3])",
            )
        self.pipe = pipe
        self.messages: list[dict[str, str]] = [{"role": "system", "content": system}] if system else []
        self.last: Generation | None = None
        self._options = options
        self._name = secrets.token_hex(4)

    def send(self, text: str, **options: Any) -> Generation:
        """Say something, and wait for the answer.

        Args:
            text: The user's message.
            **options: As `Pipe.generate`, over those of the chat.

        Raises:
            KeyboardInterrupt: It was interrupted; the answer so far is in `messages`.
            MlxNbError: It failed; `messages` is as before.
        """
        for _ in self.stream(text, **options):
            pass
        assert self.last is not None  # the stream has put it there
        return self.last

    __call__ = send

    def stream(self, text: str, **options: Any) -> Iterator[Piece]:
        """Say something, and get the answer piece by piece; leaving the loop ends it. Errors as `send`."""
        run = self.begin(text, **options)
        try:
            for piece in run.pieces():
                if piece is not None:
                    yield piece
        finally:
            self.end(text, run.generation)

    def begin(self, text: str, **options: Any) -> "FreeRun | BreakingRun":
        """Start a turn; whoever follows its pieces calls `end` afterwards."""
        if not isinstance(text, str) or not text.strip():
            raise PromptError("The message is empty.", 'Type: chat.send("What is the capital of France?")')
        messages = [*self.messages, {"role": "user", "content": text}]
        checked = read_options({**self._options, **options})
        request = self.pipe.request(messages, checked)
        states: list[KeptState | None] = self.pipe.call_all("kept_state", self._name)
        reused = reusable(states, request.tokens)
        run = self.pipe.begin_request(replace(request, kept=self._name, reused=reused, keeps=True), messages)
        self.last = run.generation
        return run

    def end(self, text: str, generation: Generation) -> None:
        """Take a turn into the conversation, as far as it came; one that failed leaves no trace."""
        if generation.state == "failed":
            return
        answer = {"role": "assistant", "content": generation.text}
        self.messages = [*self.messages, {"role": "user", "content": text}, answer]

    def close(self) -> None:
        """Free the ranks' memory; the messages stay, and another turn would feed them anew."""
        drop(self.pipe, self._name)

    def __repr__(self) -> str:
        turns = sum(message["role"] == "user" for message in self.messages)
        head = f"Chat {self.pipe.name} · {turns} turn{'' if turns == 1 else 's'}"
        if self.last is not None and self.last.stats is not None:
            stats = self.last.stats
            head += f" · last fed {stats.prompt_tokens} prompt tokens, reused {stats.reused_tokens}"
        said = [f" {message['role']}: {message['content']}" for message in self.messages]
        return "\n".join([head, *said, ' next: chat("…")'])
