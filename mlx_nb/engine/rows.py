"""The prompts of one run, side by side: one as a rule, or several that are padded on the left to one length.

Row by row they are as alone: a token, a text, an end, a random state of its own. Rows that have ended leave the KV
caches, so the others do not compute for them.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import mlx.core as mx

from mlx_nb.engine.sampling import Sampler
from mlx_nb.engine.text_out import TextOut
from mlx_nb.shared.outcome import RowText
from mlx_nb.shared.request import RunRequest

if TYPE_CHECKING:
    from mlx_nb.engine.prompt import Prompter

PAD = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One row's next token.

    Attributes:
        token: Its id.
        finish: Why the row ends with it, or "".
        text: What it adds; empty on all ranks but the last.
    """

    token: int
    finish: str
    text: str = ""


@dataclass(slots=True, kw_only=True)
class Row:
    """One prompt, and what follows it.

    Attributes:
        prompt: Its token ids.
        tokens: Prompt and generated ids.
        out: Its text; grows on the last rank only.
        sampler: Picks its tokens, on the last rank.
        finish: Why it has ended; empty before.
    """

    prompt: tuple[int, ...]
    tokens: list[int]
    out: TextOut
    sampler: Any
    finish: str = ""

    @property
    def generated(self) -> list[int]:
        return self.tokens[len(self.prompt) :]


class Rows:
    """All prompts of a run on one rank.

    Attributes:
        rows: Every prompt, in the order in which they were given.
        active: The places of those that have not ended, as they lie in the KV caches.
        width: Tokens of the longest prompt.
        held: Tokens of the longest prompt that is still in the KV caches.
        end: Tokens of the longest row, were none to end.
    """

    def __init__(self, request: RunRequest, prompter: "Prompter", *, is_last: bool) -> None:
        self._request = request
        self.rows = [
            Row(
                prompt=prompt,
                tokens=list(prompt),
                out=TextOut(prompter.detokenizer() if is_last else None, request.options.stop),
                sampler=Sampler(request.options) if is_last else None,
            )
            for prompt in request.prompts
        ]
        self.active = list(range(len(self.rows)))
        self.width = max(len(row.prompt) for row in self.rows)
        self.held = self.end = self.width

    @property
    def padding(self) -> list[int]:
        """Tokens before each prompt."""
        return [self.width - len(row.prompt) for row in self.rows]

    @property
    def several(self) -> bool:
        return len(self.rows) > 1

    @property
    def seed(self) -> int:
        """The first row's random state; 0 on ranks that do not sample."""
        sampler = self.rows[0].sampler
        return sampler.seed if sampler is not None else 0

    @seed.setter
    def seed(self, seed: int) -> None:
        if self.rows[0].sampler is not None:
            self.rows[0].sampler.seed = seed

    def resume(self, tokens: Sequence[int], seed: int) -> None:
        """Let one prompt be at an earlier place, with these tokens. Several are not stepped, so they never go back."""
        (row,) = self.rows
        row.tokens, self.seed = list(tokens), seed
        self.end = len(row.tokens)
        for token in row.generated:
            row.out.add(token, "")

    def inputs(self, start: int, stop: int) -> mx.array:
        """What a pass feeds.

        Shapes:
            returned: ``[B, L]`` token ids of the rows that have not ended.
        """
        padding = self.padding
        found = []
        for place in self.active:
            before, tokens = padding[place], self.rows[place].tokens
            pads = [PAD] * (min(stop, before) - min(start, before))
            found.append(pads + tokens[max(start - before, 0) : max(stop - before, 0)])
        return mx.array(found)

    def pick(self, logits: mx.array, forced: int | None = None) -> list[Answer]:
        """The next token of every row that has not ended; on the last rank.

        Args:
            logits: Of these rows.
            forced: Taken instead of what is sampled.

        Shapes:
            logits: ``[B, V]``, the last position's.
        """
        answers = []
        for index, place in enumerate(self.active):
            row = self.rows[place]
            token = row.sampler.pick(logits[index : index + 1], row.tokens[self._request.reused :])
            token = token if forced is None else forced
            finish = ""
            if token in self._request.stop_ids:
                finish = "stop"
            elif len(row.generated) + 1 >= self._request.options.max_tokens:
                finish = "length"
            text, finish = row.out.add(token, finish)
            answers.append(Answer(token=token, finish=finish, text=text))
        return answers

    def take(self, answers: list[Answer]) -> list[int] | None:
        """Append what was picked; the indices of the rows that go on if some others have ended, else None."""
        going = []
        for index, (place, answer) in enumerate(zip(self.active, answers, strict=True)):
            row = self.rows[place]
            row.tokens.append(answer.token)
            row.finish = answer.finish
            if not answer.finish:
                going.append(index)
        self.end += 1
        if len(going) == len(self.active):
            return None
        self.active = [self.active[index] for index in going]
        if going:
            self.held = max(len(self.rows[place].prompt) for place in self.active)
        return going

    def texts(self) -> tuple[RowText, ...]:
        """What each row has come to; nothing where there is but one, which the outcome itself tells."""
        if not self.several:
            return ()
        return tuple(
            RowText(token_ids=tuple(row.generated), text=row.out.text, finish=row.finish) for row in self.rows
        )
