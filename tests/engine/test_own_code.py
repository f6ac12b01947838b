"""Code in a model's folder runs if the user says so, and else not at all."""

import json
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mlx_nb.engine import obtain as obtain_module  # before mlx: it loads OpenBLAS
from mlx_nb.engine.describe import main as describe
from mlx_nb.engine.loading import read_config
from mlx_nb.engine.prompt import Prompter
from mlx_nb.engine.transport import LoopbackWorld
from mlx_nb.engine.unloaded import build_unloaded
from mlx_nb.shared.errors import ModelError, RemoteCodeError
from tests.engine.loopback import logits, make_stages
from tests.own_code import make_own_code

Tiny = Callable[..., Path]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_own_code(tmp_path / "homemade")


def test_it_is_refused_and_does_not_run(folder: Path) -> None:
    with pytest.raises(RemoteCodeError) as error:
        make_stages(folder, [3, 2])

    assert error.value.problem == (
        "homemade is built by code of its own (own_model.py), which would run on every rank."
    )
    assert (
        f"type: %mlx_load {folder} --trust-remote-code (in Python: trust_remote_code=True)" in error.value.fix
    )
    assert not (folder / "ran").exists()


def test_trusted_it_computes_what_the_same_code_in_mlx_lm_computes(folder: Path, tiny: Tiny) -> None:
    wanted = logits(make_stages(tiny("llama"), [3, 2]))

    stages = make_stages(folder, [3, 2], trust_remote_code=True)

    assert np.array_equal(logits(stages), wanted)
    assert (folder / "ran").read_text() == "xx"  # the control of the test above: it is seen when it runs
    assert stages[0].loaded().trusted


def test_a_plain_model_does_not_mind_being_trusted(tiny: Tiny) -> None:
    assert np.array_equal(
        logits(make_stages(tiny("llama"), [3, 2], trust_remote_code=True)),
        logits(make_stages(tiny("llama"), [3, 2])),
    )


@pytest.mark.parametrize("name", ["../evil.py", "/etc/evil.py", "", 7])
def test_code_outside_the_folder_is_refused_even_if_trusted(folder: Path, name: object) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "model_file": name}))

    with pytest.raises(ModelError, match="names code outside its folder"):
        make_stages(folder, [5], trust_remote_code=True)


@pytest.mark.parametrize(
    ("code", "told"),
    [
        (None, "has no own_model.py, which its config.json asks for"),
        ("class Model(:", "cannot build homemade: SyntaxError: "),
        ("import no_such_package", "ModuleNotFoundError: No module named 'no_such_package'"),
        ("Model = 1", "AttributeError"),
        ("raise SystemExit(3)", "needs a package that is not installed"),
    ],
)
def test_code_that_does_not_work_is_one_sentence(folder: Path, code: str | None, told: str) -> None:
    if code is None:
        (folder / "own_model.py").unlink()
    else:
        (folder / "own_model.py").write_text(code)

    with pytest.raises(ModelError, match=told):
        make_stages(folder, [5], trust_remote_code=True)


def test_plans_and_tables_refuse_it_politely(
    folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(RemoteCodeError, match="Plans and shape tables run no such code"):
        build_unloaded(folder)
    for what in ("plan", "sites"):
        monkeypatch.setattr("sys.argv", ["describe", what, str(folder)])
        assert describe() == 1
        said = json.loads(capsys.readouterr().out)
        assert said["class"] == "RemoteCodeError"
        assert "pipe.plan" in said["fix"]
    assert not (folder / "ran").exists()


def test_no_weight_is_fetched_for_a_model_that_is_refused(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fetched = []

    def resolve(_name: str, _progress: object, choose: Callable[[Path], object]) -> Path:
        choose(folder)  # as for a Hugging Face id: asked when the small files are here
        fetched.append(folder)
        return folder

    monkeypatch.setattr(obtain_module, "resolve_model", resolve)

    with pytest.raises(RemoteCodeError):
        obtain_module.obtain_stage("org/homemade", LoopbackWorld(1).transports()[0])
    assert not fetched
    trusted = obtain_module.obtain_stage(
        "org/homemade", LoopbackWorld(1).transports()[0], trust_remote_code=True
    )
    assert trusted.trusted
    assert fetched  # the control


def test_a_tokenizer_of_own_code_is_refused_too(tiny: Tiny, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((tiny("llama") / "config.json").read_text())
    names = {"tokenizer_class": "Own", "auto_map": {"AutoTokenizer": ["own_tokenizer.Own", None]}}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(names))
    (tmp_path / "own_tokenizer.py").write_text(
        f"open({str(tmp_path / 'ran')!r}, 'w').close()\nclass Own: pass"
    )

    with pytest.raises(
        RemoteCodeError, match="has a tokenizer of its own code, which would run on every rank"
    ):
        Prompter(tmp_path, read_config(tmp_path), trust_remote_code=False)
    assert not (tmp_path / "ran").exists()
    with pytest.raises(ModelError, match="cannot be loaded") as error:  # it is no real tokenizer
        Prompter(tmp_path, read_config(tmp_path), trust_remote_code=True)
    assert not isinstance(error.value, RemoteCodeError)
    assert (tmp_path / "ran").exists()  # the control
