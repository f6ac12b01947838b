"""The oldest mlx-lm that is taken: the parity tests once more, in an environment of their own. By hand: some four minutes."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlx_nb.shared.versions import OLDEST

ROOT = Path(__file__).parents[2]
VERSION = ".".join(map(str, OLDEST))

PARITY = [
    "tests/engine/test_adapters.py",
    "tests/engine/test_coverage.py",
    "tests/engine/test_cuts.py",
    "tests/engine/test_forwarding.py",
    "tests/engine/test_kv_read.py",
    "tests/engine/test_mlx_lm_api.py",
    "tests/engine/test_sharding_exact.py",
    "tests/cluster/test_architectures.py",
    "tests/cluster/test_parity.py",
]

# What 0.31 itself has not, or does otherwise in one process.
NOT_THERE = {
    "deepseek_v41": "a model file that is newer",
    "kimi_k3": "a model file that is newer",
    "nanbeige": "a model file that is newer",
    "muse_spark": "a model file that is newer",
    "every_installed_architecture": "the list is that of the newest version",
    "refused_before_its_weights_are_read": "its example is nanbeige",
    "llama4": "its chunked KV cache fails in one process too",
    "front_was_cut": "the same chunked KV cache",
    "repetition_penalty": "it leaves the prompt out of the penalty",
}


@pytest.mark.soak
@pytest.mark.cluster
@pytest.mark.timeout(1200)
def test_the_oldest_mlx_lm_gives_the_same_tokens(tmp_path: Path) -> None:
    subprocess.run([sys.executable, "-m", "venv", tmp_path / "venv"], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    install = [python, "-m", "pip", "install", "-q", f"mlx-lm=={VERSION}", "-e", f"{ROOT}[test]"]
    subprocess.run(install, check=True)

    own = {"VIRTUAL_ENV": str(tmp_path / "venv"), "PATH": f"{python.parent}:{os.environ['PATH']}"}
    skip = " and ".join(f"not {name}" for name in NOT_THERE)
    command = [python, "-m", "pytest", "-q", "-k", skip, *PARITY]
    report = tmp_path / "report.xml"
    subprocess.run([*command, f"--junitxml={report}"], check=True, cwd=ROOT, env={**os.environ, **own})

    asked = [python, "-c", "from importlib import metadata; print(metadata.version('mlx-lm'))"]
    assert subprocess.run(asked, capture_output=True, text=True, check=True).stdout.strip() == VERSION
    assert 'errors="0" failures="0" skipped="0"' in report.read_text()
