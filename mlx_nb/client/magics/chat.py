"""``%mlx_chat``: a conversation, a cell a turn."""

from IPython.core.magic import Magics, line_cell_magic, magics_class, no_var_expand

from mlx_nb.client.chat import Chat
from mlx_nb.client.magics.model import prompt_of
from mlx_nb.client.magics.parsing import Parser, one_line_errors, split_line
from mlx_nb.client.magics.state import need_pipe, offer
from mlx_nb.client.options import add_generation_options, generation_options
from mlx_nb.client.stream_out import follow_on_screen


def chat_parser() -> Parser:
    parser = Parser(
        "%mlx_chat",
        "say something to the model; it knows what was said before, and only the new message is fed\n"
        "(options first, then the message, on the line or below it in a cell; the conversation is in `chat`)",
    )
    parser.add_argument("--new", action="store_true", help="begin a new conversation")
    parser.add_argument("--system", metavar="TEXT", help="begin a new one with this system message")
    parser.add_argument("-o", "--out", metavar="NAME", help="put the answer's Generation into this variable")
    add_generation_options(parser)
    return parser


@magics_class
class ChatMagics(Magics):
    """Talking."""

    chat: Chat | None = None

    @no_var_expand
    @line_cell_magic
    @one_line_errors
    def mlx_chat(self, line: str, cell: str | None = None) -> None:
        """Say something to the model: see ``%mlx_chat --help``."""
        parser = chat_parser()
        words, rest = split_line(parser, line)
        found = parser.parse_args(words)
        message = prompt_of(rest, cell, "%mlx_chat")
        pipe = need_pipe()
        if self.chat is None or self.chat.pipe is not pipe or found.new or found.system:
            if self.chat is not None:
                self.chat.close()
            self.chat = pipe.chat(found.system)
            offer(self.shell, "chat", self.chat)
        run = self.chat.begin(message, **generation_options(found))
        try:
            generation = follow_on_screen(run)
        finally:
            self.chat.end(message, run.generation)
        if found.out:
            self.shell.user_ns[found.out] = generation
