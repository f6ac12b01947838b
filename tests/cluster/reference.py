"""What one process makes of the same prompts, through mlx-lm alone: run as a program, it writes JSON and arrays."""

import json
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

LONG = (
    "Here is a list of words. Tell me in one sentence what they have in common: "
    + ", ".join(["apple", "pear", "plum", "cherry", "quince", "medlar", "apricot", "peach"] * 16)
    + "."
)
PROMPTS = [
    "What is the capital of France?",
    "Name three colours.",
    "Write one sentence about the sea.",
    "What is 2 + 2?",
    "Who wrote Hamlet?",
    "Translate 'good morning' into Spanish.",
    "Why is the sky blue?",
    "Give me a short proverb about patience.",
    "List two uses of Python's zip() function, with {braces} and $dollars.",
    LONG,
]
MAX_TOKENS = [24, 10, 10, 24, 10, 10, 10, 10, 10, 10]
TINY_TOKENS = 24
SEVERAL, SEVERAL_TOKENS = (
    [0, 3, 8, 1],
    24,
)  # places in PROMPTS: of four lengths, and two of them end by themselves
SAMPLING = {"temp": 0.8, "top_p": 0.9, "top_k": 40, "min_p": 0.02}
SEED = 7
PENALTY = 1.3
# Options as ours; those of mlx-lm's processors are picked out by name. Chunks of 16 end where mlx-lm's do.
TUNED: dict[str, dict[str, Any]] = {
    "rotating": {"max_kv_size": 24, "prefill_step_size": 16},
    "quantised": {"kv_bits": 4, "kv_group_size": 32, "prefill_step_size": 16},
    "quantised later": {"kv_bits": 4, "quantized_kv_start": 40, "prefill_step_size": 16},
    "eight bits": {"kv_bits": 8, "prefill_step_size": 16},
    "repetition": {"repetition_penalty": 1.4, "repetition_context_size": 60},
    "presence": {"presence_penalty": 3.0, "presence_context_size": 40},
    "frequency": {"frequency_penalty": 4.0, "frequency_context_size": 60},
    "bias": {"logit_bias": {28: 6.0, 260: -100.0, 253: -100.0}},
    "all": {"temp": 0.9, "top_k": 30, "presence_penalty": 1.0, "logit_bias": {253: -5.0}},
}
TUNED_PROMPT, TUNED_TOKENS = 8, 20
PROCESSORS = ("logit_bias", "repetition_penalty", "presence_penalty", "frequency_penalty")
PROCESSORS += ("repetition_context_size", "presence_context_size", "frequency_context_size")
TALK = ["My name is Ada. What is the capital of France?", "And of Italy?", "What is my name?"]
TALK_SYSTEM, TALK_TOKENS = "You are brief.", 16
TINY = ("gemma3", "rwkv7", "deepseek_v3", "qwen3")
TINY_ROTATING = {"max_kv_size": 12, "prefill_step_size": 8}
IDS = [(place * 7) % 101 for place in range(21)]
TINY_SEVERAL = [IDS[:5], IDS, IDS[3:14]]


def main(folder: Path) -> None:
    """Write ``logits.npy`` and, last, ``reference.json`` into `folder`."""
    import mlx_nb.engine  # noqa: F401 - before mlx: the same BLAS as on the ranks
    from mlx_nb.engine.resolve import resolve_model

    sys.path.insert(0, str(Path(__file__).parents[2]))
    from tests.tiny import make_tiny

    import mlx.core as mx  # isort: skip
    import mlx_lm
    import numpy as np
    from mlx_lm.generate import generate_step
    from mlx_lm.models.cache import RotatingKVCache
    from mlx_lm.sample_utils import make_logits_processors, make_sampler
    from mlx_lm.utils import load_model

    model, tokenizer, *_ = mlx_lm.load(str(resolve_model("smollm2")))

    def encode(prompt: str) -> list[int]:
        message = [{"role": "user", "content": prompt}]
        return list(tokenizer.apply_chat_template(message, add_generation_prompt=True, return_dict=False))

    def answer(prompt: str, limit: int, **options: Any) -> dict[str, Any]:
        ids = encode(prompt)
        pieces = list(mlx_lm.stream_generate(model, tokenizer, ids, max_tokens=limit, **options))
        return {
            "prompt_ids": ids,
            "token_ids": [piece.token for piece in pieces],
            "text": "".join(piece.text for piece in pieces),
            "finish": pieces[-1].finish_reason,
        }

    found: dict[str, Any] = {"answers": [answer(*item) for item in zip(PROMPTS, MAX_TOKENS, strict=True)]}
    mx.random.seed(SEED)
    found["sampled"] = answer(PROMPTS[2], MAX_TOKENS[2], sampler=make_sampler(**SAMPLING))
    processors = make_logits_processors(repetition_penalty=PENALTY)
    found["penalised"] = answer(PROMPTS[2], MAX_TOKENS[2], logits_processors=processors)
    found["tuned"] = {}
    for name, options in TUNED.items():
        given = dict(options)
        chosen = {key: given.pop(key) for key in PROCESSORS if key in given}
        sampling = {key: given.pop(key) for key in SAMPLING if key in given}
        if "kv_bits" in given:
            given.setdefault("quantized_kv_start", 0)
        if "max_kv_size" in given:  # which mlx-lm ignores for llama, since that makes its own KV caches
            size = given.pop("max_kv_size")
            given["prompt_cache"] = [RotatingKVCache(size, keep=4) for _ in model.layers]
        mx.random.seed(SEED)
        found["tuned"][name] = answer(
            PROMPTS[TUNED_PROMPT],
            TUNED_TOKENS,
            sampler=make_sampler(**sampling),
            logits_processors=make_logits_processors(**chosen),
            **given,
        )
    found["talk"] = talk(model, tokenizer)
    rows = [encode(PROMPTS[place]) for place in SEVERAL]
    found["several"] = together(model, rows, SEVERAL_TOKENS, tokenizer.eos_token_ids)
    found["tiny"], found["tiny_several"] = {}, {}
    for kind in TINY:
        small, _ = load_model(make_tiny(kind, folder / "tiny" / kind))
        if kind != "rwkv7":  # its states take no padding
            found["tiny_several"][kind] = together(small, TINY_SEVERAL, TINY_TOKENS, set())
        found["tiny"][kind] = [
            int(token) for token, _ in generate_step(mx.array(IDS), small, max_tokens=TINY_TOKENS)
        ]
    small, _ = load_model(folder / "tiny" / "qwen3")
    found["tiny_rotating"] = [
        int(token)
        for token, _ in generate_step(mx.array(IDS), small, max_tokens=TINY_TOKENS, **TINY_ROTATING)
    ]
    logits = np.array(model(mx.array(encode(PROMPTS[0]))[None])[0].astype(mx.float32))
    np.save(folder / "logits.npy", logits)
    whole = folder / "written.json"
    whole.write_text(json.dumps(found))
    whole.rename(folder / "reference.json")


def together(model: Any, rows: list[list[int]], limit: int, stop_ids: set[int]) -> list[list[int]]:
    """The tokens of several prompts at once, by mlx-lm's `batch_generate`; it leaves stop tokens out."""
    from mlx_lm.generate import batch_generate

    # It hands out texts in every version, token ids only in the later ones.
    tokenizer: Any = SimpleNamespace(eos_token_ids=stop_ids, decode=list)
    found: list[Any] = batch_generate(model, tokenizer, rows, max_tokens=limit).texts
    return found


def talk(model: Any, tokenizer: Any) -> list[dict[str, Any]]:
    """A conversation that goes on with mlx-lm's prompt cache: each turn feeds what the cache does not hold."""
    import mlx_lm
    from mlx_lm.models.cache import make_prompt_cache, trim_prompt_cache

    cache, held, turns = make_prompt_cache(model), [], []
    messages = [{"role": "system", "content": TALK_SYSTEM}]
    for text in TALK:
        messages.append({"role": "user", "content": text})
        ids = list(tokenizer.apply_chat_template(messages, add_generation_prompt=True, return_dict=False))
        count = 0
        while count < min(len(held), len(ids) - 1) and held[count] == ids[count]:
            count += 1
        trim_prompt_cache(cache, cache[0].offset - count)
        pieces = list(
            mlx_lm.stream_generate(model, tokenizer, ids[count:], max_tokens=TALK_TOKENS, prompt_cache=cache)
        )
        answer = "".join(piece.text for piece in pieces)
        messages.append({"role": "assistant", "content": answer})
        tokens = [piece.token for piece in pieces]
        held = (ids + tokens)[: cache[0].offset]
        turns.append({"text": answer, "token_ids": tokens, "prompt": len(ids), "reused": count})
    return turns


if __name__ == "__main__":
    main(Path(sys.argv[1]))
