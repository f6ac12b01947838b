"""From a name to a folder: the embedded model, folders, Hugging Face ids, and names that are none."""

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from mlx_nb.engine import hub
from mlx_nb.engine.embedded import embedded_model
from mlx_nb.engine.resolve import known_names, resolve_model
from mlx_nb.shared.errors import MlxNbError, ModelNotFoundError
from tests.hub import NOWHERE, Hub, serving
from tests.tiny import make_tiny, store_by_layers

REPO = "org/tiny"
WEIGHTS = bytes(range(256)) * 4096  # 1 MiB


@pytest.fixture
def here(tmp_path, monkeypatch) -> Path:
    """An empty current folder, which is also the home."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    return tmp_path


def make_model(folder: Path) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    return folder


def error_of(name: str) -> MlxNbError:
    with pytest.raises(ModelNotFoundError) as caught:
        resolve_model(name)
    return caught.value


def test_smollm2_is_the_embedded_model_even_beside_a_folder_of_that_name(tmp_path, monkeypatch):
    folder = make_model(tmp_path / "smollm2")
    monkeypatch.chdir(tmp_path)

    assert resolve_model("smollm2") == embedded_model()
    assert resolve_model("./smollm2") == folder


@pytest.mark.parametrize("name", ["models/mine", "./models/mine", "~/models/mine", "../{}/models/mine", "{}"])
def test_a_folder_is_found_however_it_is_written(here, name):
    folder = make_model(here / "models" / "mine")
    typed = name.format(folder if name == "{}" else here.name)

    assert resolve_model(typed).resolve() == folder
    assert resolve_model(f"  {typed} ").is_absolute()


def test_a_misspelt_name_is_answered_with_the_closest(here):
    error = error_of("smolm2")

    assert str(error) == "No model 'smolm2'. Did you mean smollm2? Type: %mlx_load smollm2"


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        ("SmolLM2", "smollm2"),
        ("qwen3-1.7b-8bit", "mlx-community/Qwen3-1.7B-8bit"),
        ("Qwen3-1.7B-8bits", "mlx-community/Qwen3-1.7B-8bit"),
        ("my-modle", "my-model"),
        ("./my-modle", "./my-model"),
        ("models/deep/mime", "models/deep/mine"),
    ],
)
def test_names_nearby_are_offered(here, typed, meant):
    make_model(here / "my-model")
    make_model(here / "models" / "deep" / "mine")

    assert error_of(typed).fix.endswith(f"Type: %mlx_load {meant}")


@pytest.mark.parametrize("typed", ["", "zzzzzz", "./zzzzzz", "/no/such/folder", "a b/c"])
def test_a_name_like_no_other_is_answered_with_what_would_do(here, typed):
    error = error_of(typed)

    assert "Did you mean" not in error.fix
    assert error.fix.endswith("%mlx_load smollm2")


def test_a_quantised_model_that_is_not_known_is_offered_as_the_communitys(here):
    assert "%mlx_load mlx-community/phi-4-6bit. Or" in error_of("phi-4-6bit").fix


def test_a_folder_that_holds_one_model_is_answered_with_it(here):
    make_model(here / "models" / "mine")
    assert error_of("models").fix == "Type: %mlx_load models/mine"

    make_model(here / "models" / "other")  # control: with two there is no telling
    assert "config.json" in error_of("models").fix


def test_a_file_of_a_model_is_answered_with_its_folder(here):
    folder = make_model(here / "mine")

    assert error_of("mine/config.json").fix == f"Type: %mlx_load {folder}"


def test_the_names_to_complete_start_with_the_embedded_one():
    assert known_names()[0] == "smollm2"
    assert "mlx-community/Qwen3-1.7B-8bit" in known_names()


def test_the_same_files_are_fetched_as_by_mlx_lm():
    from mlx_lm.utils import DEFAULT_ALLOW_PATTERNS

    assert hub.FILES == DEFAULT_ALLOW_PATTERNS


# Whole or not


def test_a_model_without_weights_or_with_a_shard_missing_is_not_whole(tmp_path):
    assert hub.missing_files(tmp_path) == "config.json"
    (tmp_path / "config.json").write_text("{}")
    assert hub.missing_files(tmp_path) == "model*.safetensors"
    (tmp_path / "model-00001-of-00002.safetensors").touch()
    assert hub.missing_files(tmp_path) == ""

    index = tmp_path / "model.safetensors.index.json"
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    index.write_text(json.dumps({"weight_map": shards}))
    assert hub.missing_files(tmp_path) == "model-00002-of-00002.safetensors"
    index.write_text("{")
    assert "index" in hub.missing_files(tmp_path)


# A hub of our own, and none


@pytest.fixture
def own_hub() -> Iterator[Hub]:
    """A hub with one small model."""
    files = {"config.json": b"{}", "model.safetensors": WEIGHTS, "README.md": b"not wanted"}
    with serving(Hub(repo=REPO, files=files)) as hub:
        yield hub


def fetch(name: str, tmp_path: Path, endpoint: str, **more: str) -> list[dict]:
    """What `mlx_nb.engine.fetch` prints: in a process, as the hub's library reads its settings at import."""
    environment = Hub(url=endpoint).environment(tmp_path / "hf", **more)
    command = [sys.executable, "-m", "mlx_nb.engine.fetch", name]
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=False)
    lines = [json.loads(line) for line in run.stdout.splitlines()]
    assert run.returncode == (0 if lines[-1]["kind"] == "done" else 1), run.stderr
    return lines


def test_a_hub_model_is_fetched_once_and_then_found_without_network(own_hub, tmp_path):
    *progress, done = fetch(REPO, tmp_path, own_hub.url)

    folder = Path(done["path"])
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]
    assert (folder / "model.safetensors").read_bytes() == WEIGHTS
    assert {line["stage"] for line in progress} == {"download"}
    assert progress[-1]["done"] == progress[-1]["total"] == len(WEIGHTS) + 2

    own_hub.asked.clear()
    assert fetch(REPO, tmp_path, own_hub.url) == [done]
    assert own_hub.asked == []
    assert fetch(REPO, tmp_path, NOWHERE) == [done]
    assert fetch(REPO, tmp_path, own_hub.url, HF_HUB_OFFLINE="1") == [done]


def test_a_snapshot_that_lost_its_weights_is_fetched_again(own_hub, tmp_path):
    folder = Path(fetch(REPO, tmp_path, own_hub.url)[-1]["path"])
    weights = folder / "model.safetensors"
    weights.resolve().unlink()
    weights.unlink()

    assert (
        "cannot be reached" in fetch(REPO, tmp_path, NOWHERE)[-1]["problem"]
    )  # control: it is not taken as whole
    assert fetch(REPO, tmp_path, own_hub.url)[-1]["kind"] == "done"
    assert weights.read_bytes() == WEIGHTS


def test_without_network_the_error_says_what_to_do(tmp_path):
    error = fetch(REPO, tmp_path, NOWHERE)[-1]

    assert error["problem"] == f"{REPO} is not downloaded, and Hugging Face ({NOWHERE}) cannot be reached."
    assert "%mlx_load smollm2" in error["fix"]


def test_what_may_have_been_a_folder_is_also_missed_as_one(tmp_path, monkeypatch):
    from mlx_nb.engine import resolve
    from mlx_nb.shared.models import ModelDownloadError

    def no_hub(repo, *_):
        raise ModelDownloadError(f"{repo} is not downloaded.", "Connect.")

    monkeypatch.setattr(resolve, "hub_model", no_hub)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "m" / "gemma3n").mkdir(parents=True)
    (tmp_path / "m" / "gemma3n" / "config.json").write_text("{}")

    for name, fix in (("m/gemma3", "Did you mean m/gemma3n?"), ("m/zzz", "Connect.")):
        with pytest.raises(ModelDownloadError) as caught:
            resolve_model(name)
        assert caught.value.problem.startswith(
            f"There is no folder {tmp_path / name}, and as a Hugging Face id, {name}"
        )
        assert caught.value.fix.startswith(fix)
    with pytest.raises(ModelDownloadError) as caught:
        resolve_model("org/gemma3")  # control: no folder org is here
    assert caught.value.problem == "org/gemma3 is not downloaded."


def test_a_known_models_short_name_is_mlx_communitys(tmp_path):
    error = fetch("Qwen3-1.7B-8bit", tmp_path, NOWHERE)[-1]

    assert error["problem"].startswith("mlx-community/Qwen3-1.7B-8bit is not downloaded, and Hugging Face")
    assert "copy the model's folder here and load it by its path" in error["fix"]


def test_offline_mode_is_named_as_the_reason(tmp_path):
    assert "HF_HUB_OFFLINE" in fetch(REPO, tmp_path, NOWHERE, HF_HUB_OFFLINE="1")[-1]["problem"]


@pytest.mark.parametrize(
    ("status", "code", "words"),
    [
        (404, "RepoNotFound", f"no model '{REPO}'"),
        (401, "RepoNotFound", f"no model '{REPO}'"),
        (403, "GatedRepo", "accept its terms"),
        (500, "", "HTTP 500"),
    ],
)
def test_what_the_hub_refuses_is_said_in_one_sentence(own_hub, tmp_path, status, code, words):
    own_hub.status, own_hub.code = status, code

    assert words in fetch(REPO, tmp_path, own_hub.url)[-1]["problem"]


def test_a_repository_without_safetensors_is_no_model(own_hub, tmp_path):
    del own_hub.files["model.safetensors"]

    assert "it has no model*.safetensors" in fetch(REPO, tmp_path, own_hub.url)[-1]["problem"]


BIG = bytes(range(256)) * (12 * 4096)  # 12 MiB: the hub's library takes 10 MiB at a time


def test_a_download_that_breaks_off_goes_on_where_it_was(own_hub, tmp_path):
    own_hub.files["model.safetensors"] = BIG
    own_hub.breaks["model.safetensors"] = 11 * 2**20
    done = fetch(REPO, tmp_path, own_hub.url)[-1]

    assert (Path(done["path"]) / "model.safetensors").read_bytes() == BIG
    assert own_hub.ranges["model.safetensors"] == [0, 10 * 2**20]


def test_a_download_that_cannot_go_on_says_what_is_kept(own_hub, tmp_path):
    names = [f"model-0000{number}-of-00002.safetensors" for number in (1, 2)]
    index = {"weight_map": {"a": names[0], "b": names[1]}}
    own_hub.files = {"config.json": b"{}", "model.safetensors.index.json": json.dumps(index).encode()}
    own_hub.files |= dict.fromkeys(names, WEIGHTS)
    own_hub.files[names[1]] = WEIGHTS[::-1]
    own_hub.breaks[names[1]] = 0
    error = fetch(REPO, tmp_path, own_hub.url)[-1]

    assert error["problem"].startswith(f"{REPO} is not whole here: {names[1]} is missing, and Hugging Face")
    assert "Connect and load again (files that are whole are kept), or copy" in error["fix"]

    own_hub.breaks.clear()
    own_hub.sent.clear()
    assert fetch(REPO, tmp_path, own_hub.url)[-1]["kind"] == "done"
    assert own_hub.weights_sent == {names[1]: len(WEIGHTS)}


def test_a_plan_of_a_hub_model_fetches_no_weights(own_hub, tmp_path):
    folder = make_tiny("llama_untied", tmp_path / "tiny")
    store_by_layers(folder)
    own_hub.files.clear()
    own_hub.add(folder)
    command = [sys.executable, "-m", "mlx_nb.engine.describe", "plan", REPO]
    environment = own_hub.environment(tmp_path / "hf")
    run = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120, check=True)

    assert len(json.loads(run.stdout)["content"]["layers"]) == 5
    assert own_hub.weights_sent == {}
    offline = fetch(REPO, tmp_path, own_hub.url, HF_HUB_OFFLINE="1")[-1]
    assert f"{REPO} is not whole here: model-00001-of-00003.safetensors is missing" in offline["problem"]
    assert "HF_HUB_OFFLINE forbids" in offline["problem"]
    assert fetch(REPO, tmp_path, own_hub.url)[-1]["kind"] == "done"
    assert own_hub.weights_sent.keys() == {path.name for path in folder.glob("*.safetensors")}
