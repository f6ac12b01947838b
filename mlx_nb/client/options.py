"""The options of generation, once for all: the magics and the console script read them the same way."""

import argparse
import difflib
from collections.abc import Callable, Sequence
from typing import Any

from mlx_nb.shared.errors import OptionError


def _pairs(text: str) -> dict[int, float]:
    """``42=-100,7=5`` as a dict."""
    try:
        return {
            int(token): float(number)
            for token, _, number in (part.partition("=") for part in text.split(","))
        }
    except ValueError:
        raise argparse.ArgumentTypeError(f"'{text}' is not like 42=-100,7=5") from None


def _escaped(text: str) -> str:
    """A text whose line breaks and tabs are written as in Python: a line of a magic cannot hold them."""
    return text.replace("\\n", "\n").replace("\\t", "\t")


_OPTIONS: tuple[tuple[str, Callable[[str], Any], str], ...] = (
    ("--max-tokens", int, "the most tokens to generate (256)"),
    ("--temp", float, "temperature; 0 takes the likeliest token (0)"),
    ("--top-p", float, "nucleus: the smallest set of tokens with this probability; 0 is off"),
    ("--top-k", int, "the k likeliest tokens; 0 is off"),
    ("--min-p", float, "least probability as a share of the likeliest token's; 0 is off"),
    ("--seed", int, "makes sampling repeatable"),
    ("--stop", _escaped, "text that ends the run, and is not part of it; may be given several times"),
    ("--repetition-penalty", float, "above 1 discourages the last tokens"),
    ("--repetition-context-size", int, "how many of them (20)"),
    ("--presence-penalty", float, "subtracted from the logits of the last 20 tokens"),
    ("--frequency-penalty", float, "the same, for each time that they occur"),
    ("--logit-bias", _pairs, "added to tokens' logits: 42=-100,7=5"),
    ("--prefill-step-size", int, "prompt tokens a chunk"),
    ("--max-kv-size", int, "slots of a rotating KV cache, whose first 4 tokens stay"),
    ("--kv-bits", int, "bits of a quantised KV cache: 2, 3, 4, 5, 6 or 8"),
    ("--kv-group-size", int, "its group size: 32, 64 or 128 (64)"),
    ("--quantized-kv-start", int, "tokens from which on it is quantised (0)"),
)


def near_option(parser: argparse.ArgumentParser, message: str) -> str:
    """What a parser's complaint about an option may have meant, as a sentence; nothing if nothing is near."""
    _, unknown, words = message.partition("unrecognized arguments: ")
    if not unknown or not words.split():  # the argument may be empty: ''
        return ""
    known = [name for action in parser._actions for name in action.option_strings if name.startswith("--")]
    near = difflib.get_close_matches(words.split()[0], known, n=1, cutoff=0.7)
    return f" Did you mean {near[0]}?" if near else ""


def add_generation_options(parser: argparse.ArgumentParser) -> None:
    """Add every option of generation to a parser; absent ones stay out of the result."""
    group = parser.add_argument_group("generation, as in mlx-lm")
    for name, kind, text in _OPTIONS:
        many: dict[str, Any] = {"action": "append"} if name == "--stop" else {}
        group.add_argument(
            name, type=kind, default=argparse.SUPPRESS, help=text, metavar=name[2:].upper()[:1], **many
        )
    group.add_argument(
        "--raw",
        action="store_true",
        default=argparse.SUPPRESS,
        help="feed the prompt without the chat template",
    )


def add_chunk_option(parser: argparse.ArgumentParser) -> None:
    """How long the prompt's chunks are, for those magics that take no other option of generation; absent if not given."""
    parser.add_argument(
        "--prefill-step-size", type=int, metavar="P", default=argparse.SUPPRESS, help="prompt tokens a chunk"
    )


def add_prompt_cache_option(parser: argparse.ArgumentParser) -> None:
    """Where a run may go on after a saved prompt cache."""
    parser.add_argument(
        "--prompt-cache",
        default=argparse.SUPPRESS,
        metavar="PATH",
        help="go on after what pipe.save_prompt_cache(PATH) or mlx-lm has written",
    )


def generation_options(found: argparse.Namespace, *only: str) -> dict[str, Any]:
    """The options that were given, all or some of them, as `Pipe.generate` takes them."""
    known = set(only) or {name[2:].replace("-", "_") for name, _, _ in _OPTIONS} | {"raw", "prompt_cache"}
    return {name: value for name, value in vars(found).items() if name in known}


def add_cluster_options(parser: argparse.ArgumentParser, *, keep: bool = True) -> None:
    """The wishes for a cluster; `keep` only where it may outlive its starter."""
    parser.add_argument("--ranks", type=int, help="how many ranks (the hosts' slots, else 2)")
    parser.add_argument("--profile", help="an ipyparallel profile, such as minis")
    parser.add_argument("--hosts", type=lambda text: [h for h in text.split(",") if h], help="a,b or a:2,b:2")
    if keep:
        parser.add_argument("--keep", default=False, help="how long it outlives this kernel: 8h, 30m")


def add_model_options(parser: argparse.ArgumentParser) -> None:
    """How a model is divided and computed."""
    parser.add_argument("--split", default="even", help="even, memory, or layers per rank: 14,16")
    dtypes = ("float32", "bfloat16", "float16", "native")
    parser.add_argument("--dtype", choices=dtypes, help="to compute in; float32 on a CPU, as stored on Metal")
    parser.add_argument(
        "--adapter", metavar="PATH", help="a folder with adapter_config.json and adapters.safetensors"
    )
    parser.add_argument(
        "--trust-remote-code", action="store_true", help="run code that the model's folder brings along"
    )
    parser.add_argument(
        "--code", metavar="FILE", help="a Python file of yours that defines the model, as mlx-lm's do"
    )


def add_doctor_options(parser: argparse.ArgumentParser) -> None:
    """What the doctor looks at."""
    parser.add_argument("--profile", help="an ipyparallel profile, whose hosts are looked at")
    parser.add_argument(
        "--hosts", type=lambda text: [h for h in text.split(",") if h], help="a,b: this one first"
    )
    parser.add_argument(
        "--model", default="smollm2", help="whose files should be the same everywhere (smollm2)"
    )


def add_bench_options(parser: argparse.ArgumentParser) -> None:
    """The options of a benchmark."""
    parser.add_argument("--rows", metavar="A,B", help="which, of those that --list names (all)")
    parser.add_argument("--list", action="store_true", help="name the rows and leave")
    parser.add_argument("--rounds", type=int, default=3, help="how often each contender is run (3)")
    parser.add_argument("--model", default="smollm2", help="(smollm2)")
    parser.add_argument("--quick", action="store_true", help="fewer tokens: to try it out, not to quote")
    parser.add_argument("--json", metavar="FILE", help="write every sample")
    parser.add_argument("--markdown", metavar="FILE", help="write the table and the machine's description")


def model_wishes(found: argparse.Namespace) -> dict[str, Any]:
    """How a model is to be loaded, as `Cluster.load` takes it."""
    return {
        "split": found.split,
        "dtype": found.dtype,
        "adapter_path": found.adapter,
        "trust_remote_code": found.trust_remote_code,
        "code": found.code,
    }


def parse_split(split: str | Sequence[int]) -> str | list[int]:
    """A split as the ranks take it: a name, or layers per rank.

    Raises:
        OptionError: It is neither.
    """
    if not isinstance(split, str):
        return [int(count) for count in split]
    if split.replace(",", "").replace(" ", "").isdecimal():
        return [int(count) for count in split.replace(" ", "").split(",") if count]
    if split not in ("even", "memory"):
        raise OptionError(
            f"There is no split '{split}'.",
            "Type one of: --split even, --split memory, or layers per rank such as --split 14,16",
        )
    return split
