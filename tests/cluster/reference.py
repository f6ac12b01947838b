"""What one process makes of the same prompts, through mlx-lm alone: run as a program, it writes JSON and arrays."""

import json
import sys
from pathlib import Path
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
SAMPLING = {"temp": 0.8, "top_p": 0.9, "top_k": 40, "min_p": 0.02}
SEED = 7
PENALTY = 1.3
TINY = ("gemma3", "rwkv7", "deepseek_v3")
IDS = [(place * 7) % 101 for place in range(21)]


def main(folder: Path, tiny: Path) -> None:
    """Write ``reference.json`` and ``logits.npy`` into `folder`; the tiny models lie in `tiny`."""
    import mlx_nb.engine  # noqa: F401 - before mlx: the same BLAS as on the ranks
    from mlx_nb.engine.resolve import resolve_model

    import mlx.core as mx  # isort: skip
    import mlx_lm
    import numpy as np
    from mlx_lm.generate import generate_step
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
    found["tiny"] = {}
    for kind in TINY:
        small, _ = load_model(tiny / kind)
        found["tiny"][kind] = [
            int(token) for token, _ in generate_step(mx.array(IDS), small, max_tokens=TINY_TOKENS)
        ]
    logits = np.array(model(mx.array(encode(PROMPTS[0]))[None])[0].astype(mx.float32))
    np.save(folder / "logits.npy", logits)
    (folder / "reference.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
