"""The console script ``mlx-nb``: parse, call the client, print."""

import argparse
import os
import sys
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

from mlx_nb.client.options import (
    add_bench_options,
    add_cluster_options,
    add_doctor_options,
    add_generation_options,
    add_model_options,
    add_prompt_cache_option,
    generation_options,
    model_wishes,
    near_option,
)
from mlx_nb.shared.console_words import in_console
from mlx_nb.shared.errors import MlxNbError

QUESTION = "What is the capital of France?"


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command; its exit status."""
    parser = build_parser()
    found, unknown = parser.parse_known_args(argv)
    if unknown and found.__dict__.get("name") == "lab":
        found.options = unknown  # JupyterLab's own
    elif unknown:
        getattr(found, "parser", parser).error(f"unrecognized arguments: {' '.join(unknown)}")
    if not hasattr(found, "command"):
        parser.print_help()
        return 2
    command: Callable[[argparse.Namespace], int] = found.command
    typed = list(sys.argv[1:] if argv is None else argv)[1:]
    try:
        return command(found)
    except MlxNbError as error:
        print(f"mlx-nb: {in_console(str(error), found.name, typed)}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\nmlx-nb: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:
        # The reader of our output has left; Python would complain once more at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 141


class _Parser(argparse.ArgumentParser):
    """Complains in two lines, as the errors do; the usage is a ``--help`` away."""

    def error(self, message: str) -> NoReturn:
        """Say what is wrong and leave with 2."""
        self.exit(2, f"{self.prog}: {message}.{near_option(self, message)} Type: {self.prog} --help\n")


def build_parser() -> argparse.ArgumentParser:
    """The parser of all subcommands."""
    from importlib.metadata import version

    parser = _Parser(
        prog="mlx-nb",
        description="Step through distributed LLM inference: MLX models over MPI ranks.",
        allow_abbrev=False,
    )
    parser.add_argument("--version", action="version", version=f"mlx-nb {version('mlx-nb')}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND")

    demo = _command(commands, "demo", _demo, "two ranks, one answer, one token step by step; stops by itself")
    demo.add_argument("question", nargs="?", default=QUESTION, help=f"({QUESTION})")
    demo.add_argument("--model", default="smollm2", help="(smollm2)")
    add_cluster_options(demo, keep=False)

    lab = _command(commands, "lab", _lab, "copy the lessons to a folder of yours and open JupyterLab there")
    lab.add_argument("folder", nargs="?", default="mlx-nb-lessons", help="(mlx-nb-lessons)")
    lab.add_argument("--no-open", action="store_true", help="copy only")
    lab.set_defaults(options=[])
    lab.epilog = "further options are JupyterLab's: mlx-nb lab --port=8931 --no-browser --allow-root"

    generate = _command(commands, "generate", _generate, "start ranks, load a model, generate, stop")
    generate.add_argument("prompt", nargs="+", help="the prompt")
    generate.add_argument("--model", default="smollm2", help="(smollm2)")
    add_cluster_options(generate, keep=False)
    add_model_options(generate)
    add_generation_options(generate)
    add_prompt_cache_option(generate)

    run = _command(
        commands, "run", _run, "one rank of `mpirun -n 2 mlx-nb run …`: the same pipeline, no notebook"
    )
    run.add_argument("--model", default="smollm2", help="(smollm2)")
    run.add_argument("--prompt", required=True, help="the prompt")
    add_model_options(run)
    add_generation_options(run)

    fetch = _command(commands, "fetch", _fetch, "bring a model onto this machine and print its folder")
    fetch.add_argument("model", nargs="?", default="smollm2", help="(smollm2)")
    fetch.add_argument("-q", "--quiet", action="store_true", help="no progress")

    doctor = _command(
        commands, "doctor", _doctor, "look at this machine, the other hosts, and the link between them"
    )
    add_doctor_options(doctor)

    _command(commands, "clean", _clean, "end what earlier clusters have left behind on this machine")

    bench = _command(
        commands,
        "bench",
        _bench,
        "measure two ranks against mlx-lm in one process, its own pipeline, plain MPI",
    )
    add_bench_options(bench)
    bench.add_argument("--events", action="store_true", help=argparse.SUPPRESS)  # for %mlx_bench
    return parser


def _command(commands: Any, name: str, function: Callable[..., int], text: str) -> argparse.ArgumentParser:
    parser = commands.add_parser(name, help=text, description=text, allow_abbrev=False)
    parser.set_defaults(command=function, name=name, parser=parser)
    return parser


def _demo(found: argparse.Namespace) -> int:
    from mlx_nb.client.demo import run_demo  # each command imports what it needs, so --help is quick

    return run_demo(found.question, found.model, found.ranks, found.hosts, found.profile)


def _generate(found: argparse.Namespace) -> int:
    from mlx_nb.client.demo import run_generate

    where = {"ranks": found.ranks, "hosts": found.hosts, "profile": found.profile}
    return run_generate(
        " ".join(found.prompt), found.model, where, model_wishes(found), generation_options(found)
    )


def _run(found: argparse.Namespace) -> int:
    # The one command that is a rank itself: nothing of the client is used.
    from mlx_nb.engine.batch import run_rank

    return run_rank(found.model, found.prompt, model_wishes(found), generation_options(found))


def _fetch(found: argparse.Namespace) -> int:
    from mlx_nb.client.fetch import fetch_model
    from mlx_nb.client.progress import ProgressLine

    with ProgressLine(quiet=found.quiet) as progress:
        folder = fetch_model(found.model, progress.tell)
    print(folder)
    return 0


def _doctor(found: argparse.Namespace) -> int:
    from mlx_nb.client.doctor import doctor
    from mlx_nb.client.progress import ProgressLine

    with ProgressLine() as progress:
        checkup = doctor(found.hosts, found.profile, model=found.model, tell=progress.tell)
    print(in_console(str(checkup), "doctor"))
    return 0 if checkup.ok else 1


def _clean(_found: argparse.Namespace) -> int:
    from mlx_nb.client.leftovers import clean, describe

    print(describe(clean()))
    return 0


def _bench(found: argparse.Namespace) -> int:
    from mlx_nb.bench.command import run_command

    return run_command(found)


def _lab(found: argparse.Namespace) -> int:
    from mlx_nb.client.lab import copy_lessons, need_lab, open_lab

    if not found.no_open:
        need_lab(found.options)
    folder = copy_lessons(found.folder)
    return 0 if found.no_open else open_lab(folder, found.options)


if __name__ == "__main__":
    sys.exit(main())
