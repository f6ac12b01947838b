"""Versions of mlx-lm: those that work are taken, others are refused with what to install."""

import json
import os
import subprocess
import sys
import tomllib
from importlib import metadata
from pathlib import Path

import pytest

from mlx_nb.engine import mlx_lm_api
from mlx_nb.shared.errors import ModelError, VersionError
from mlx_nb.shared.versions import REQUIREMENT
from tests.tiny import make_tiny

ROOT = Path(__file__).parents[2]


def other_version(folder: Path, version: str) -> dict[str, str]:
    """An environment in which Python finds an mlx-lm of another version, which lacks all that is used of it."""
    for name in ("mlx_lm", f"mlx_lm-{version}.dist-info"):
        (folder / name).mkdir(parents=True)
    (folder / "mlx_lm" / "__init__.py").touch()
    (folder / f"mlx_lm-{version}.dist-info" / "METADATA").write_text(f"Name: mlx-lm\nVersion: {version}\n")
    return {**os.environ, "PYTHONPATH": str(folder)}


def test_the_project_asks_for_the_versions_that_are_taken() -> None:
    asked = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]

    assert REQUIREMENT in asked
    mlx_lm_api.check_version()


@pytest.mark.parametrize(
    ("version", "words"),
    [
        ("0.30.7", "mlx-lm 0.30.7 is too old: mlx_nb works with 0.31.3 to 0.32."),
        ("0.31.2", "mlx-lm 0.31.2 is too old: mlx_nb works with 0.31.3 to 0.32."),
        ("0.31.3", ""),
        ("0.31.4.dev20260101", ""),
        ("0.32.99", ""),
        ("0.33.0", "mlx-lm 0.33.0 is newer than this mlx_nb, which works with 0.31.3 to 0.32."),
        ("1.0", "mlx-lm 1.0 is newer than this mlx_nb, which works with 0.31.3 to 0.32."),
    ],
)
def test_a_version_nobody_has_tried_is_refused(
    version: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(metadata, "version", lambda _name: version)
    if not words:
        mlx_lm_api.check_version()
        return
    with pytest.raises(VersionError) as caught:
        mlx_lm_api.check_version()
    assert caught.value.problem == words
    assert "pip install 'mlx-lm>=0.31.3,<0.33'" in caught.value.fix


@pytest.mark.parametrize(("version", "word"), [("0.30.7", "too old"), ("0.33.0", "newer than this mlx_nb")])
def test_a_plan_with_another_version_says_so_in_one_sentence(version: str, word: str, tmp_path: Path) -> None:
    model = make_tiny("llama", tmp_path / "llama")
    command = [sys.executable, "-m", "mlx_nb.engine.describe", "plan", str(model)]
    environment = other_version(tmp_path / "site", version)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    answer = json.loads(done.stdout)
    assert answer["class"] == "VersionError"
    assert f"mlx-lm {version} is {word}" in answer["problem"]


@pytest.mark.parametrize(("version", "word"), [("0.30.7", "too old"), ("0.33.0", "newer than this mlx_nb")])
def test_ranks_with_another_version_say_so_at_load(version: str, word: str, tmp_path: Path) -> None:
    model = make_tiny("llama", tmp_path / "llama")
    program = "import sys; from mlx_nb.cli import main; sys.exit(main())"
    command = [sys.executable, "-c", program, "run", "--model", str(model), "--prompt", "x"]
    environment = other_version(tmp_path / "site", version)
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)

    assert done.returncode == 1
    assert f"mlx-nb: mlx-lm {version} is {word}" in done.stderr
    assert "Traceback" not in done.stderr


def test_code_in_a_models_folder_runs_only_when_it_is_trusted(tmp_path: Path) -> None:
    from mlx_nb.engine.loading import build_model

    folder = make_tiny("llama", tmp_path / "llama")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_file": "own.py"}))
    mark = tmp_path / "it ran"
    (folder / "own.py").write_text(
        f"from pathlib import Path\nPath({str(mark)!r}).touch()\nfrom mlx_lm.models.llama import Model, ModelArgs\n"
    )

    with pytest.raises(ModelError, match="trust_remote_code=True"):
        build_model(folder, trust_remote_code=False)
    assert not mark.exists()
    build_model(folder, trust_remote_code=True)
    assert mark.exists()
