"""Tokens as a person reads them."""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Token:
    """One token: its id, its text, and whether the chat template added it."""

    id: int
    text: str
    template: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptTokens:
    """A prompt's tokens, in order; iterates over them."""

    tokens: tuple[Token, ...]

    @property
    def ids(self) -> list[int]:
        return [token.id for token in self.tokens]

    def __iter__(self) -> Iterator[Token]:
        return iter(self.tokens)

    def __len__(self) -> int:
        return len(self.tokens)

    def __getitem__(self, place: int) -> Token:
        return self.tokens[place]

    def __repr__(self) -> str:
        added = sum(token.template for token in self.tokens)
        head = f"{len(self)} tokens" + (f" · {added} from the chat template, in ( )" if added else "")
        shown = [f"({t.text!r})" if t.template else repr(t.text) for t in self.tokens]
        return f"{head}\n {' '.join(shown)}"
