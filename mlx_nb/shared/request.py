"""What a run is asked to do: plain data, checked before it is sent to any rank."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

from mlx_nb.shared.capture import TraceWish
from mlx_nb.shared.errors import OptionError

KEPT_TOKENS = 4
"""How many of a prompt's first tokens a rotating KV cache keeps, as in mlx-lm."""

_COUNTS = {
    "max_tokens", "top_k", "seed", "prefill_step_size", "max_kv_size", "kv_bits", "kv_group_size",
    "quantized_kv_start", "repetition_context_size", "presence_context_size", "frequency_context_size",
}  # fmt: skip

Prompt = str | list[dict[str, str]] | list[int]


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerateOptions:
    """Options of a run, named and defaulted as mlx-lm's where it has them.

    Attributes:
        max_tokens: The most tokens to generate, 1 or more.
        temp: Sampling temperature; 0 takes the likeliest token.
        top_p: Nucleus: the smallest set of tokens with this probability; 0 or 1 is off.
        top_k: The k likeliest tokens; 0 is off.
        min_p: Least probability, as a share of the likeliest token's; 0 is off.
        seed: Seeds this run's own random state; None draws one.
        stop: Texts that end the run; the run's text stops before the first of them.
        repetition_penalty: Above 1 divides the logits of the last `repetition_context_size` tokens; None is off.
        presence_penalty: Subtracted from the logits of the last `presence_context_size` tokens; None is off.
        frequency_penalty: Subtracted once for each time a token is among the last `frequency_context_size`.
        logit_bias: Added to these tokens' logits.
        logits_processors: Functions ``(tokens, logits [1, V]) -> logits`` that run on the last rank, after the
            above; pickled on the way there.
        raw: Feed a string as it is, without the model's chat template.
        prefill_step_size: Prompt tokens a chunk; None takes the device's default.
        max_kv_size: Slots of a rotating KV cache, whose first 4 tokens stay; None does not limit it.
        kv_bits: Bits of a quantised KV cache; None keeps it as it is.
        kv_group_size: Its group size: 32, 64 or 128.
        quantized_kv_start: Tokens from which on it is quantised (mlx-lm begins at 5000).
    """

    max_tokens: int = 256
    temp: float = 0.0
    top_p: float = 0.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    repetition_penalty: float | None = None
    repetition_context_size: int = 20
    presence_penalty: float | None = None
    presence_context_size: int = 20
    frequency_penalty: float | None = None
    frequency_context_size: int = 20
    logit_bias: Mapping[int, float] = field(default_factory=dict)
    logits_processors: tuple[bytes, ...] = ()
    raw: bool = False
    prefill_step_size: int | None = None
    max_kv_size: int | None = None
    kv_bits: int | None = None
    kv_group_size: int = 64
    quantized_kv_start: int = 0

    def __post_init__(self) -> None:
        checks = {
            "max_tokens": (self.max_tokens >= 1, "1 or more", "max_tokens=256"),
            "temp": (self.temp >= 0, "0 or more", "temp=0.7"),
            "top_p": (0 <= self.top_p <= 1, "from 0 to 1", "top_p=0.9"),
            "top_k": (self.top_k >= 0, "0 or more", "top_k=40"),
            "min_p": (0 <= self.min_p <= 1, "from 0 to 1", "min_p=0.05"),
            "repetition_penalty": (
                self.repetition_penalty is None or self.repetition_penalty > 0,
                "above 0",
                "repetition_penalty=1.1",
            ),
            "prefill_step_size": (
                self.prefill_step_size is None or self.prefill_step_size >= 1,
                "1 or more",
                "prefill_step_size=128",
            ),
            "max_kv_size": (
                self.max_kv_size is None or self.max_kv_size > KEPT_TOKENS,
                f"over {KEPT_TOKENS}, since the first {KEPT_TOKENS} tokens stay",
                "max_kv_size=512",
            ),
            "kv_bits": (self.kv_bits in (None, 2, 3, 4, 5, 6, 8), "2, 3, 4, 5, 6 or 8", "kv_bits=8"),
            "kv_group_size": (self.kv_group_size in (32, 64, 128), "32, 64 or 128", "kv_group_size=64"),
            "quantized_kv_start": (self.quantized_kv_start >= 0, "0 or more", "quantized_kv_start=0"),
            **{
                name: (getattr(self, name) >= 1, "1 or more", f"{name}=20")
                for name in ("repetition_context_size", "presence_context_size", "frequency_context_size")
            },
            "stop": (all(self.stop), "text, not nothing", 'stop=["\\n\\n"]'),
        }
        for name, (fine, wanted, example) in checks.items():
            if not fine:
                value = getattr(self, name)
                raise OptionError(f"{name} is {wanted}, not {value}.", f"Type: {example}")
        if self.max_kv_size is not None and self.kv_bits is not None:
            raise OptionError(
                "A rotating KV cache cannot be quantised (mlx-lm has no such class).",
                "Give either max_kv_size or kv_bits.",
            )

    @property
    def kv_differs(self) -> bool:
        """Whether a pass writes something else than it attends to, so that it matters where the chunks end."""
        return self.max_kv_size is not None or self.kv_bits is not None


def options_from(keywords: dict[str, Any]) -> GenerateOptions:
    """Options out of keyword arguments.

    Raises:
        OptionError: A keyword is unknown or its value out of range.
    """
    known = GenerateOptions.__dataclass_fields__
    for name in keywords:
        if name not in known:
            raise OptionError(
                f"There is no option '{name}'.", f"Type one of: {', '.join(known)}, prompt_cache."
            )
    try:
        return replace(GenerateOptions(), **_tidied(keywords))
    except (TypeError, ValueError) as error:
        raise OptionError(
            f"An option has the wrong type: {error}.", "Options are numbers; raw is True or False."
        ) from error


def _tidied(keywords: dict[str, Any]) -> dict[str, Any]:
    """Options as they travel: one stop text or several become a tuple, a bias a plain dict of numbers.

    Raises:
        OptionError: They are neither.
    """
    found = dict(keywords)
    for name in _COUNTS & found.keys():
        value = found[name]
        if value is not None and (isinstance(value, bool) or not hasattr(value, "__index__")):
            raise OptionError(f"{name} is a whole number, not {value!r}.", f"Type: {name}=20")
    if "stop" in found:
        stop = found["stop"]
        texts = () if stop is None else (stop,) if isinstance(stop, str) else tuple(stop)
        if strange := next((text for text in texts if not isinstance(text, str)), None):
            raise OptionError(f"stop is text, not {strange!r}.", 'Type: stop=["\\n\\n"]')
        found["stop"] = texts
    if "logit_bias" in found:
        bias = found["logit_bias"] or {}
        if not isinstance(bias, Mapping):
            raise OptionError(
                f"logit_bias is a dict of token id and number, not {bias!r}.", "Type: logit_bias={42: -100.0}"
            )
        found["logit_bias"] = {int(token): float(number) for token, number in bias.items()}
    return found


def check_for_model(options: GenerateOptions, *, vocabulary: int, has_tokenizer: bool) -> None:
    """Check options against what a model knows.

    Args:
        options: Of a run.
        vocabulary: V; 0 if it is not known.
        has_tokenizer: Whether its folder has a tokenizer.

    Raises:
        OptionError: They do not fit it.
    """
    if options.stop and not has_tokenizer:
        raise OptionError(
            "This model's folder has no tokenizer, so it makes no text that a stop could be found in.",
            "Leave stop away.",
        )
    for token in options.logit_bias:
        if not 0 <= token < (vocabulary or 2**31):
            raise OptionError(
                f"logit_bias names token {token}, which is outside the vocabulary (0–{vocabulary - 1}).",
                "Type: pipe.tokens('…') to see valid ids.",
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """A run as it is sent to every rank.

    Attributes:
        run_id: Names the run on every rank and in every message between them, so that what an
            interrupted run left in flight is never taken for the next run's.
        tokens: The prompt's token ids.
        options: How to go on from there.
        kind: ``generate``, ``prefill`` (nothing is generated), or ``logits`` (as that, and all positions' logits).
        stop_ids: Tokens that end the run.
        kept: The name of KV caches that the ranks keep, which this run goes on with; empty for fresh ones.
        reused: How many of `tokens` those hold already; they are cut back to as many.
        others: The prompts beside `tokens`, where several run at once.
        keeps: Whether the run's KV caches are kept under that name once it has ended.
        trace: What it records; None for nothing.
    """

    run_id: int
    tokens: tuple[int, ...]
    options: GenerateOptions = field(default_factory=GenerateOptions)
    kind: str = "generate"
    stop_ids: tuple[int, ...] = ()
    kept: str = ""
    reused: int = 0
    keeps: bool = False
    others: tuple[tuple[int, ...], ...] = ()
    trace: TraceWish | None = None

    @property
    def prompts(self) -> tuple[tuple[int, ...], ...]:
        """Every prompt's token ids."""
        return (self.tokens, *self.others)
