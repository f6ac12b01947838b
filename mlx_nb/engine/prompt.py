"""From a prompt to token ids, and from ids to pieces that a person can read."""

import textwrap
from pathlib import Path
from typing import Any

from mlx_nb.engine.mlx_lm_api import load_tokenizer
from mlx_nb.engine.own_code import refusal
from mlx_nb.shared.errors import ModelError, PromptError
from mlx_nb.shared.request import Prompt
from mlx_nb.shared.tokens import PromptTokens, Token

_TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json", "vocab.json")


class Prompter:
    """One model's tokenizer, or the lack of one.

    Attributes:
        tokenizer: mlx-lm's wrapper; None for a folder without a tokenizer, which takes ids only.
        vocabulary: How many ids the model knows; 0 if the config does not tell.
        stop_ids: The ids that end a text.
    """

    def __init__(self, folder: Path, config: dict[str, Any], *, trust_remote_code: bool) -> None:
        self.vocabulary = int(config.get("vocab_size", 0) or 0)
        self.tokenizer: Any = None
        eos = config.get("eos_token_id")
        eos_ids = [] if eos is None else list(eos) if isinstance(eos, list) else [eos]
        if strange := [one for one in eos_ids if not isinstance(one, int)]:
            raise ModelError(
                f"eos_token_id in the config.json of {folder.name} is {str(strange[0])[:40]!r}, which is no token id.",
                "Fetch the model again.",
            )
        if any((folder / name).is_file() for name in _TOKENIZER_FILES):
            try:
                self.tokenizer = load_tokenizer(
                    folder, {"trust_remote_code": trust_remote_code}, eos_token_ids=eos_ids or None
                )
            except Exception as error:
                if not trust_remote_code and "trust_remote_code" in str(error):
                    raise refusal(folder, f"{folder.name} has a tokenizer of its own code") from error
                text = textwrap.shorten(str(error), 300, placeholder=" …")
                raise ModelError(
                    f"The tokenizer in {folder} cannot be loaded: {text.rstrip('.')}.",
                    "Fetch the model again.",
                ) from error
            eos_ids = sorted(self.tokenizer.eos_token_ids)
        self.stop_ids = tuple(int(i) for i in eos_ids)

    def encode(self, prompt: Prompt, *, raw: bool) -> list[int]:
        """Token ids of a prompt: a string, chat messages, or ids that are taken as they are.

        Raises:
            PromptError: It is empty, needs a tokenizer that is not there, or has ids out of range.
        """
        if isinstance(prompt, str) or (prompt and isinstance(prompt[0], dict)):
            ids = self._encode_text(prompt, raw=raw)
        else:
            ids = self._check_ids(list(prompt))
        if not ids:
            raise PromptError("The prompt has no tokens.", "Type some text after the options.")
        return ids

    def tokens(self, prompt: Prompt, *, raw: bool) -> PromptTokens:
        """The tokens of a prompt with their text, and which of them the chat template added.

        Raises:
            PromptError: As `encode`.
        """
        ids = self.encode(prompt, raw=raw)
        template = [False] * len(ids)
        if isinstance(prompt, str) and self._uses_template(raw):
            template = self._template_mask(prompt, ids)
        return PromptTokens(
            tokens=tuple(
                Token(id=i, text=self.piece(i), template=t) for i, t in zip(ids, template, strict=True)
            )
        )

    def piece(self, token: int) -> str:
        """One token's text; ``<id>`` without a tokenizer."""
        return self.tokenizer.decode([token]) if self.tokenizer is not None else f"<{token}>"

    def detokenizer(self) -> Any:
        """A fresh streaming detokenizer, or None without a tokenizer."""
        return self.tokenizer.detokenizer if self.tokenizer is not None else None

    def _uses_template(self, raw: bool) -> bool:
        return not raw and self.tokenizer is not None and self.tokenizer.chat_template is not None

    def _encode_text(self, prompt: str | list[dict[str, str]], *, raw: bool) -> list[int]:
        if self.tokenizer is None:
            raise PromptError(
                "This model's folder has no tokenizer, so it takes token ids only.",
                "Type: pipe.generate([1, 2, 3]) or, step by step, pipe.debug([1, 2, 3])",
            )
        if isinstance(prompt, str) and not prompt.strip():
            raise PromptError("The prompt is empty.", "Type some text after the options.")
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        if self._uses_template(raw):
            try:
                ids = self.tokenizer.apply_chat_template(
                    messages, add_generation_prompt=True, return_dict=False
                )
            except Exception as error:
                text = " ".join(str(error).split())[:200]
                raise PromptError(
                    f"The chat template refuses the prompt: {text}", "Try --raw, or other messages."
                ) from error
            return list(ids)
        if not isinstance(prompt, str):
            prompt = "\n".join(str(message.get("content", "")) for message in prompt)
        bos = self.tokenizer.bos_token
        special = bos is None or not prompt.startswith(bos)
        return list(self.tokenizer.encode(prompt, add_special_tokens=special))

    def _check_ids(self, ids: list[Any]) -> list[int]:
        for place, token in enumerate(ids):
            if isinstance(token, bool) or not hasattr(token, "__index__"):
                raise PromptError(
                    f"Item {place} of the prompt is {token!r}, not a token id.",
                    "A prompt is a string, a list of chat messages, or a list of ints.",
                )
            if not 0 <= int(token) < (self.vocabulary or 2**31):
                raise PromptError(
                    f"Token id {token} at place {place} is outside the vocabulary (0–{self.vocabulary - 1}).",
                    "Type: pipe.tokens('…') to see valid ids.",
                )
        return [int(token) for token in ids]

    def _template_mask(self, prompt: str, ids: list[int]) -> list[bool]:
        """Which tokens lie outside the user's own words, by their place in the rendered text."""
        messages = [{"role": "user", "content": prompt}]
        text = self.tokenizer.apply_chat_template(messages, add_generation_prompt=True, tokenize=False)
        begin = text.rfind(prompt.strip())
        if begin < 0:
            return [False] * len(ids)
        try:
            # mlx-lm's wrapper hands on attributes but not calls.
            wrapped = getattr(self.tokenizer, "_tokenizer", self.tokenizer)
            coded = wrapped(text, add_special_tokens=False, return_offsets_mapping=True)
        except (NotImplementedError, TypeError, ValueError):
            return [False] * len(ids)  # a slow tokenizer knows no offsets
        if list(coded["input_ids"]) != ids:
            return [False] * len(ids)
        end = begin + len(prompt.strip())
        return [not (start < end and stop > begin) for start, stop in coded["offset_mapping"]]
