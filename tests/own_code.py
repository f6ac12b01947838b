"""A model folder that brings its architecture as code of its own."""

import importlib.util
import json
import re
from pathlib import Path

from tests.tiny import make_tiny


def make_own_code(folder: Path, kind: str = "llama") -> Path:
    """A tiny model whose folder holds a copy of mlx-lm's own file; ``ran`` beside it grows when that runs."""
    make_tiny(kind, folder)
    spec = importlib.util.find_spec(f"mlx_lm.models.{kind}")
    assert spec
    assert spec.origin
    source = re.sub(r"from \.(\w+) import", r"from mlx_lm.models.\1 import", Path(spec.origin).read_text())
    note = f"\nwith open({str(folder / 'ran')!r}, 'a') as file:\n    file.write('x')\n"
    (folder / "own_model.py").write_text(source + note)
    config = json.loads((folder / "config.json").read_text())
    # A name that mlx-lm does not know: only the folder's code can build it.
    config |= {"model_type": "homemade", "model_file": "own_model.py"}
    (folder / "config.json").write_text(json.dumps(config))
    return folder
