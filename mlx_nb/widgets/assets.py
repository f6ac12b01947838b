"""A view's module and style sheet, each as one text.

The page loads a module from a Blob, where the import of a neighbour does not resolve. So a module names what it
takes from ``view.js`` in one import, as any ES module would, and here that file is put in the import's place.
"""

import re
from pathlib import Path

STATIC = Path(__file__).parent / "static"

_IMPORT = re.compile(r'^import \{[^}]*\} from "\./([\w-]+\.js)";\n', re.MULTILINE)


def script(name: str) -> str:
    """The module of a view with what it imports, each neighbour once; only the view itself exports anything."""
    return "\n".join(_parts(f"{name}.js", []))


def _parts(file: str, known: list[str]) -> list[str]:
    text = (STATIC / file).read_text(encoding="utf-8")
    parts = []
    for neighbour in _IMPORT.findall(text):
        if neighbour not in known:
            known.append(neighbour)
            inside = _parts(neighbour, known)
            parts += [*inside[:-1], re.sub(r"^export ", "", inside[-1], flags=re.MULTILINE)]
    return [*parts, _IMPORT.sub("", text)]


def sheet(name: str) -> str:
    """The style sheet of a view behind that of all views, without comments and line ends."""
    text = "\n".join((STATIC / f"{part}.css").read_text(encoding="utf-8") for part in ("view", name))
    return " ".join(re.sub(r"/\*.*?\*/", "", text, flags=re.DOTALL).split())
