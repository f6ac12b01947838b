"""``%mlx_load`` and ``%mlx_generate``: a model over the ranks, and text out of it."""

from IPython.core.magic import Magics, line_cell_magic, line_magic, magics_class, no_var_expand

from mlx_nb.client.current import current
from mlx_nb.client.magics.parsing import Parser, one_line_errors, parse_words, split_line
from mlx_nb.client.magics.state import need_cluster, need_pipe, offer
from mlx_nb.client.options import (
    add_generation_options,
    add_model_options,
    add_prompt_cache_option,
    generation_options,
    model_wishes,
)
from mlx_nb.client.pipe import Pipe
from mlx_nb.client.progress import ProgressLine
from mlx_nb.client.show import show_stepper
from mlx_nb.client.stream_out import stream_to_screen
from mlx_nb.shared.errors import OptionError, PromptError


def load_parser() -> Parser:
    parser = Parser("%mlx_load", "load a model over the ranks; each reads its own layers")
    parser.add_argument("model", nargs="?", help="smollm2, a folder, or a Hugging Face id")
    add_model_options(parser)
    parser.add_argument("--ranks", type=int, help="over the first N ranks only")
    return parser


def generate_parser() -> Parser:
    parser = Parser(
        "%mlx_generate",
        "generate over the pipeline: options first, the rest of the line is the prompt, word for word\n"
        "(or %%mlx_generate, with the prompt in the cell)",
    )
    parser.add_argument("-o", "--out", metavar="NAME", help="put the result into this variable")
    add_generation_options(parser)
    add_prompt_cache_option(parser)
    return parser


def reload_parser() -> Parser:
    parser = Parser(
        "%mlx_reload", "read the model's file again, the one of %mlx_load --code; the weights stay in memory"
    )
    parser.add_argument("code", nargs="?", metavar="FILE", help="another file; none takes the one before")
    return parser


@magics_class
class ModelMagics(Magics):
    """Loading and generating."""

    @no_var_expand
    @line_magic
    @one_line_errors
    def mlx_load(self, line: str) -> Pipe:
        """Load a model over the ranks: see ``%mlx_load --help``."""
        found = parse_words(load_parser(), line)
        if not found.model:
            raise OptionError("%mlx_load needs a model.", "Type: %mlx_load smollm2")
        cluster = need_cluster()
        old = current.pipe
        with ProgressLine() as progress:
            progress.tell(f"loading {found.model}")
            pipe = cluster.load(
                found.model,
                **model_wishes(found),
                ranks=found.ranks,
                on_event=progress.on_event,
            )
        if old is not None and old.cluster is cluster:
            old.unload()  # one magic, one model: the API can hold several side by side
            current.pipe = pipe
        offer(self.shell, "pipe", pipe)
        return pipe

    @no_var_expand
    @line_magic
    @one_line_errors
    def mlx_reload(self, line: str) -> Pipe:
        """Read the model's file again: see ``%mlx_reload --help``."""
        found = parse_words(reload_parser(), line)
        return need_pipe().reload(found.code)

    @no_var_expand
    @line_cell_magic
    @one_line_errors
    def mlx_generate(self, line: str, cell: str | None = None) -> None:
        """Generate over the pipeline: see ``%mlx_generate --help``."""
        parser = generate_parser()
        words, rest = split_line(parser, line)
        found = parser.parse_args(words)
        prompt = prompt_of(rest, cell)
        generation = stream_to_screen(need_pipe(), prompt, generation_options(found))
        if found.out:
            self.shell.user_ns[found.out] = generation
        if generation.state == "stopped":
            offer(self.shell, "dbg", current.dbg)
            show_stepper(current.dbg)


def prompt_of(rest: str, cell: str | None, magic: str = "%mlx_generate") -> str:
    """The prompt of a line or a cell; `magic` is what to type it behind.

    Raises:
        PromptError: There is none.
    """
    if cell is not None and rest:
        raise PromptError(
            f"'{rest[:40]}' stands beside the options of a cell.",
            'Put the whole prompt into the cell, and an option\'s text into quotes: --system "Be brief."',
        )
    prompt = cell.strip("\n") if cell is not None else rest
    if not prompt.strip():
        raise PromptError("The prompt is empty.", f"Type: {magic} What is the capital of France?")
    return prompt
