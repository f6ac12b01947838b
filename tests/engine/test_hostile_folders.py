"""Model folders that were damaged, or made to harm: each loads, or is refused in one line that says what to do.

Some here; five hundred with ``pytest -m soak tests/engine/test_hostile_folders.py``.
"""

import json
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mlx_nb.engine.obtain import obtain_stage
from mlx_nb.engine.transport import LoopbackWorld
from mlx_nb.shared.errors import MlxNbError
from tests.engine.loopback import generate
from tests.tiny import make_tiny

SPREAD, MANY = 60, 500
VALUES: tuple[Any, ...] = (
    0,
    -1,
    2**31,
    2**60,
    1e308,
    float("nan"),
    None,
    "",
    "x",
    [],
    {},
    [1, "x"],
    True,
    "../../x",
)
KEYS = ("quantization", "rope_scaling", "layer_types", "tie_word_embeddings", "model_file", "auto_map")
KEYS += ("eos_token_id", "sliding_window")
SHAPES: tuple[Any, ...] = ([2**60], [2**60, 2**60], [-1], [], [0], [1] * 9, ["x"], None, [1.5])
OFFSETS: tuple[Any, ...] = ([0, 2**63], [5, 1], [-4, 4], [], None, [0, 0], [0, 4])
DTYPES: tuple[Any, ...] = ("F64", "X", "BOOL", "I8", "F8_E4M3", None, 5)
INDEXES = (
    "[]",
    "{",
    '{"weight_map": 5}',
    '{"weight_map": {"x": 5}}',
    '{"weight_map": {"x": "../../../etc/passwd"}}',
    '{"weight_map": {"x": "/etc/passwd"}}',
    '{"weight_map": {"model.embed_tokens.weight": "other.safetensors"}}',
)


def a_setting(folder: Path, chance: random.Random) -> None:
    file = folder / "config.json"
    config = json.loads(file.read_text())
    key = chance.choice(sorted({*config, *KEYS}))
    if chance.random() < 0.2:
        config.pop(key, None)
    else:
        config[key] = chance.choice(VALUES)
    file.write_text(json.dumps(config))


def a_byte_of_the_settings(folder: Path, chance: random.Random) -> None:
    file = folder / "config.json"
    text = bytearray(file.read_bytes())
    text[chance.randrange(len(text))] = chance.randrange(256)
    file.write_bytes(bytes(text))


def the_index(folder: Path, chance: random.Random) -> None:
    (folder / "model.safetensors.index.json").write_text(chance.choice(INDEXES))


def the_end_of_the_weights(folder: Path, chance: random.Random) -> None:
    file = folder / "model.safetensors"
    file.write_bytes(file.read_bytes()[: chance.randrange(file.stat().st_size)])


def bytes_of_the_header(folder: Path, chance: random.Random) -> None:
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    for _ in range(chance.randrange(1, 20)):
        data[chance.randrange(8 + struct.unpack("<Q", data[:8])[0])] = chance.randrange(256)
    file.write_bytes(bytes(data))


def a_tensor_of_the_header(folder: Path, chance: random.Random) -> None:
    file = folder / "model.safetensors"
    data = file.read_bytes()
    end = 8 + struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:end])
    entry = header[chance.choice(sorted(set(header) - {"__metadata__"}))]
    key = chance.choice(("shape", "dtype", "data_offsets"))
    entry[key] = chance.choice({"shape": SHAPES, "dtype": DTYPES, "data_offsets": OFFSETS}[key])
    packed = json.dumps(header).encode()
    file.write_bytes(struct.pack("<Q", len(packed)) + packed + data[end:])


DAMAGES: tuple[Callable[[Path, random.Random], None], ...] = (
    a_setting,
    a_setting,
    a_byte_of_the_settings,
    the_index,
    the_end_of_the_weights,
    bytes_of_the_header,
    a_tensor_of_the_header,
)


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole") / "model"
    make_tiny("llama", folder)
    return folder


def load_and_use(folder: Path) -> None:
    stages = [obtain_stage(str(folder), transport) for transport in LoopbackWorld(2).transports()]
    generate(stages, max_tokens=2)


def refusals(whole: Path, tmp_path: Path, seeds: range) -> list[str]:
    """What was said of folders that were damaged at random; any other exception fails the test."""
    said = []
    for seed in seeds:
        chance = random.Random(seed)
        folder = tmp_path / str(seed)
        shutil.copytree(whole, folder)
        chance.choice(DAMAGES)(folder, chance)
        if (refusal := refusal_of(folder)) is not None:
            assert refusal.problem, seed
            assert refusal.fix, seed
            assert "\n" not in str(refusal), seed
            said.append(str(refusal))
        shutil.rmtree(folder)
    return said


def refusal_of(folder: Path) -> MlxNbError | None:
    try:
        load_and_use(folder)
    except MlxNbError as error:
        return error
    return None


def test_damaged_folders_are_refused_in_a_line(whole: Path, tmp_path: Path) -> None:
    load_and_use(whole)  # the control

    said = refusals(whole, tmp_path, range(SPREAD))

    assert len(said) > SPREAD / 2


@pytest.mark.soak
def test_five_hundred_damaged_folders_are_refused_in_a_line(whole: Path, tmp_path: Path) -> None:
    assert len(refusals(whole, tmp_path, range(SPREAD, SPREAD + MANY))) > MANY / 2


@pytest.mark.parametrize(
    ("file", "text", "words"),
    [
        (
            "model.safetensors.index.json",
            '{"weight_map": {"x": "../../x.safetensors"}}',
            "a file outside its folder",
        ),
        ("config.json", '{"model_type": "llama", "num_hidden_layers": 2147483648}', "which no model has"),
        ("config.json", '{"text_config": {"num_experts": 1000000000}}', "which no model has"),
        ("config.json", "[" * 200_000, "is not JSON"),
    ],
)
def test_what_was_made_to_harm_is_refused_before_it_does(
    whole: Path, tmp_path: Path, file: str, text: str, words: str
) -> None:
    folder = tmp_path / "model"
    shutil.copytree(whole, folder)
    (folder / file).write_text(text)

    with pytest.raises(MlxNbError, match=words):
        load_and_use(folder)
