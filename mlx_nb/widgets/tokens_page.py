"""A prompt's tokens as a page without a script: the text as it is cut up, with ids, the template's parts marked."""

from mlx_nb.shared.text import as_token
from mlx_nb.shared.tokens import PromptTokens, Token
from mlx_nb.widgets.markup import Markup, tag
from mlx_nb.widgets.view import still

MOST = 2000
"""So many tokens are shown; of a longer prompt both ends."""


def tokens_html(found: PromptTokens, model: str = "") -> str:
    """The whole page, self-contained."""
    count = len(found)
    added = sum(token.template for token in found)
    note = f"{count} token{'' if count == 1 else 's'}"
    note += f" · {count - added} of the prompt's own words, {added} from the chat template" if added else ""
    listed = list(enumerate(found))
    left_out = count - MOST
    first, last = (listed[: MOST // 2], listed[-MOST // 2 :]) if left_out > 0 else (listed, [])
    gap = [tag("span.mx-gap", f"… {left_out:,} more …")] if last else []
    line = [*(_token(*one) for one in first), *gap, *(_token(*one) for one in last)]
    spaces = "A dot is a space, ↵ a line end."
    said = (
        f"{spaces} Grey tokens were added by the model's chat template, which marks who speaks."
        if added
        else spaces
    )
    text = tag("div.mv-row.mx-text", *line, role="list", aria_label="Tokens")
    return still("tokens", "Tokens", model or "Tokens", "tokens" if model else "", note, text, sentence=said)


def _token(place: int, token: Token) -> Markup:
    text = as_token(token.text)
    ends = tag("br") if "\n" in token.text else None
    title = f"token {place}: id {token.id}, {token.text!r}" + (
        ", from the chat template" if token.template else ""
    )
    shown = tag("b", text or "∅")
    number = tag("small", str(token.id))
    one = tag(
        "span.mx-token.template" if token.template else "span.mx-token",
        shown,
        " ",
        number,
        title=title,
        role="listitem",
    )
    return Markup(one + (ends or " "))
