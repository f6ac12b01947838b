"""What a run is asked to do: plain data, checked before it is sent to any rank."""

from dataclasses import dataclass, field, replace
from typing import Any

from mlx_nb.shared.errors import OptionError

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
        repetition_penalty: Above 1 discourages the last 20 tokens; None is off.
        raw: Feed a string as it is, without the model's chat template.
        prefill_step_size: Prompt tokens a chunk; None takes the device's default.
        max_kv_size: Slots of a rotating KV cache; None does not limit it.
        kv_bits: Bits of a quantised KV cache; None keeps it as it is.
        kv_group_size: Its group size.
        quantized_kv_start: Tokens from which on it is quantised.
    """

    max_tokens: int = 256
    temp: float = 0.0
    top_p: float = 0.0
    top_k: int = 0
    min_p: float = 0.0
    seed: int | None = None
    repetition_penalty: float | None = None
    raw: bool = False
    prefill_step_size: int | None = None
    max_kv_size: int | None = None
    kv_bits: int | None = None
    kv_group_size: int = 64
    quantized_kv_start: int = 0

    def __post_init__(self) -> None:
        checks = {
            "max_tokens": (self.max_tokens >= 1, "1 or more", "--max-tokens 256"),
            "temp": (self.temp >= 0, "0 or more", "--temp 0.7"),
            "top_p": (0 <= self.top_p <= 1, "from 0 to 1", "--top-p 0.9"),
            "top_k": (self.top_k >= 0, "0 or more", "--top-k 40"),
            "min_p": (0 <= self.min_p <= 1, "from 0 to 1", "--min-p 0.05"),
            "repetition_penalty": (
                self.repetition_penalty is None or self.repetition_penalty > 0,
                "above 0",
                "--repetition-penalty 1.1",
            ),
            "prefill_step_size": (
                self.prefill_step_size is None or self.prefill_step_size >= 1,
                "1 or more",
                "prefill_step_size=128",
            ),
            "max_kv_size": (
                self.max_kv_size is None or self.max_kv_size >= 1,
                "1 or more",
                "--max-kv-size 512",
            ),
            "kv_bits": (self.kv_bits in (None, 2, 3, 4, 5, 6, 8), "2, 3, 4, 5, 6 or 8", "--kv-bits 8"),
        }
        for name, (fine, wanted, example) in checks.items():
            if not fine:
                raise OptionError(f"{name} is {wanted}, not {getattr(self, name)}.", f"Type: {example}")


def options_from(keywords: dict[str, Any]) -> GenerateOptions:
    """Options out of keyword arguments.

    Raises:
        OptionError: A keyword is unknown or its value out of range.
    """
    known = GenerateOptions.__dataclass_fields__
    for name in keywords:
        if name not in known:
            raise OptionError(f"There is no option '{name}'.", f"Type one of: {', '.join(known)}.")
    try:
        return replace(GenerateOptions(), **keywords)
    except TypeError as error:
        raise OptionError(
            f"An option has the wrong type: {error}.", "Options are numbers; raw is True or False."
        ) from error


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRequest:
    """A run as it is sent to every rank.

    Attributes:
        run_id: Names the run on every rank and in every message between them, so that what an
            interrupted run left in flight is never taken for the next run's.
        tokens: The prompt's token ids.
        options: How to go on from there.
        kind: ``generate``, or ``logits`` (all positions' logits, nothing generated).
        stop_ids: Tokens that end the run.
    """

    run_id: int
    tokens: tuple[int, ...]
    options: GenerateOptions = field(default_factory=GenerateOptions)
    kind: str = "generate"
    stop_ids: tuple[int, ...] = ()
