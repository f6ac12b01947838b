"""Several prompts at once: one run, whose rows are padded on the left."""

from dataclasses import replace
from typing import TYPE_CHECKING, Any

from mlx_nb.client.generation import Generation, Generations
from mlx_nb.client.processors import read_options
from mlx_nb.shared.errors import OptionError

if TYPE_CHECKING:
    from mlx_nb.client.pipe import Pipe


def generate_several(pipe: "Pipe", prompts: list[Any], options: dict[str, Any]) -> Generations:
    """Generate after several prompts at once. Arguments and errors as `Pipe.generate`."""
    for name, why in (
        ("kv_bits", "be quantised: mlx-lm has no such class for several rows"),
        (
            "max_kv_size",
            "be limited: mlx-lm's ring for several rows forgets the first tokens, which one row keeps",
        ),
        ("prompt_cache", "go on: a prompt cache holds one row"),
    ):
        if options.get(name) is not None:
            raise OptionError(
                f"{name}: the KV caches of several prompts cannot {why}.",
                f"Leave {name} away, or give one prompt.",
            )
    if pipe.breakpoints.armed():
        raise OptionError(
            "Several prompts at once cannot stand still at a breakpoint.",
            "Give one prompt, or delete them: pipe.breakpoints",
        )
    first, *others = (pipe.request(prompt, read_options(options)) for prompt in prompts)
    request = replace(first, others=tuple(other.tokens for other in others))
    generations = Generations(Generation(list(tokens)) for tokens in request.prompts)
    pipe.last = generations[0]
    run = pipe.free_run("generate", request)
    run.generations = generations
    pipe.last = generations if others else generations[0]
    for _ in run.pieces():
        pass
    return generations
