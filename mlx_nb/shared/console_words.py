"""Errors say what to type in a notebook; in a terminal they must say what to type there."""

import re


def in_console(text: str, command: str) -> str:
    """An error as it is typed here: its fix speaks of magics, which only a notebook has.

    >>> in_console("31 ranks are too many. Type: %mlx_load smollm2 --ranks 30", "demo")
    '31 ranks are too many. Type: mlx-nb demo --model smollm2 --ranks 30'
    >>> in_console("The prompt is empty. Type some text after the options.", "run")
    'The prompt is empty. Type: mpirun -n 2 mlx-nb run --prompt "What is the capital of France?"'
    """
    again = "mpirun -n 2 mlx-nb run" if command == "run" else f"mlx-nb {command}"
    option = "" if command == "fetch" else "--model "
    for magic, here in (
        (r"Type some text after the options\.", f'Type: {again} --prompt "What is the capital of France?"'),
        (r"%env (\w+)=(\S+),?", rf"\1=\2 {again}"),
        (r"%mlx_load (MODEL )?(?=--)", f"{again} "),
        (r"%mlx_load ", f"{again} {option}"),
        (r"%mlx_cluster restart", f"{again}, once more"),
        (r"%mlx_cluster start", again),
        (r"%mlx_doctor --clean", "mlx-nb clean"),
        (r"%%?mlx_(?=generate|doctor|bench)", "mlx-nb "),
    ):
        text = re.sub(magic, here, text)
    return text
