"""mlx-lm alone with prompt caches: goes on with our file, writes one, and goes on with that. A program of its own."""

import json
import sys
from pathlib import Path


def main(model_folder: Path, ours: Path, theirs: Path, first: list[int], then: list[int], count: int) -> None:
    """Print the tokens after our file, and those after the one that it writes."""
    import mlx_nb.engine  # noqa: F401 - before mlx: the same BLAS as on the ranks

    import mlx.core as mx  # isort: skip
    from mlx_lm.generate import generate_step
    from mlx_lm.models.cache import load_prompt_cache, make_prompt_cache, save_prompt_cache
    from mlx_lm.utils import load_model

    model, _ = load_model(model_folder)

    def go_on(cache: list[object]) -> list[int]:
        return [
            int(token)
            for token, _ in generate_step(mx.array(then), model, max_tokens=count, prompt_cache=cache)
        ]

    cache = make_prompt_cache(model)
    model(mx.array(first)[None], cache=cache)
    save_prompt_cache(str(theirs), cache)
    after_theirs = go_on(load_prompt_cache(str(theirs)))
    print(json.dumps([go_on(load_prompt_cache(str(ours))), after_theirs]))


if __name__ == "__main__":
    folder, ours, theirs, *rest = sys.argv[1:]
    main(Path(folder), Path(ours), Path(theirs), *map(json.loads, rest))
