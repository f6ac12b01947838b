"""Which weight files a rank needs, and loading from those alone."""

from pathlib import Path

import pytest

from mlx_nb.engine import obtain as obtain_module
from mlx_nb.engine.needed import files_of_share
from mlx_nb.engine.obtain import obtain_stage
from mlx_nb.engine.stage import Stage
from mlx_nb.engine.transport import LoopbackWorld
from mlx_nb.shared.errors import PartOfModelError, PlanError, WeightsError
from tests.engine.loopback import generate, make_stages
from tests.tiny import make_tiny, store_by_layers

FIRST, SECOND, THIRD = (f"model-0000{number}-of-00003.safetensors" for number in (1, 2, 3))


def by_layers(kind: str, folder: Path, **changes: object) -> Path:
    """A tiny model of five layers in three files: 0 and 1, 2 and 3, 4."""
    store_by_layers(make_tiny(kind, folder, **changes))
    return folder


def needed(folder: Path, split: list[int]) -> list[list[int]]:
    """The files of each rank, by their numbers."""
    found = [files_of_share(folder, rank, len(split), split, name="tiny") for rank in range(len(split))]
    assert None not in found
    return [sorted(int(name[6:11]) for name in names or ()) for names in found]


def test_a_rank_needs_the_files_of_its_layers_and_of_its_end(tmp_path: Path) -> None:
    untied = by_layers("llama_untied", tmp_path / "untied")
    assert needed(untied, [2, 3]) == [[1], [2, 3]]
    assert needed(untied, [3, 2]) == [[1, 2], [2, 3]]
    assert needed(untied, [2, 2, 1]) == [[1], [2], [3]]
    assert needed(untied, [5]) == [[1, 2, 3]]

    tied = by_layers("llama", tmp_path / "tied")  # the last rank reads the embedding once more
    assert needed(tied, [2, 2, 1]) == [[1], [2], [1, 3]]


def test_tensors_that_are_renamed_at_load_are_found_by_number(tmp_path: Path) -> None:
    folder = by_layers("llama_untied", tmp_path / "model")
    index = folder / "model.safetensors.index.json"
    index.write_text(index.read_text().replace('"model.layers.', '"language_model.model.layers.'))

    # What belongs to no layer may be anybody's: files 1 and 3 have such tensors.
    assert needed(folder, [2, 2, 1]) == [[1, 3], [1, 2, 3], [1, 3]]


def test_without_an_index_all_is_needed(tmp_path: Path) -> None:
    assert files_of_share(make_tiny("llama", tmp_path / "model"), 0, 2, "even", name="tiny") is None


def test_a_split_that_cannot_be_is_refused_before_anything_is_fetched(tmp_path: Path) -> None:
    folder = by_layers("llama", tmp_path / "model")

    with pytest.raises(PlanError, match="covers 4 layers"):
        files_of_share(folder, 0, 2, [2, 2], name="tiny")


@pytest.mark.parametrize(
    "kind", ["llama_untied", "qwen3_moe", pytest.param("deepseek_v3", marks=pytest.mark.soak)]
)
@pytest.mark.parametrize("changes", [{}, {"bits": 8, "dtype": "bfloat16"}], ids=["float32", "8 bits"])
def test_ranks_that_have_only_their_own_files_give_the_same_tokens(
    kind: str, changes: dict[str, object], tmp_path: Path
) -> None:
    whole = by_layers(kind, tmp_path / "whole", **changes)
    split = [2, 2, 1]
    dtype = "native" if kind == "llama_untied" else None  # on a CPU, experts are computed in float32 only
    wanted, _ = generate(make_stages(whole, split, dtype))
    stages = []
    for rank, names in enumerate(needed(whole, split)):
        part = tmp_path / f"rank {rank}"
        part.mkdir()
        for file in whole.iterdir():
            if file.suffix != ".safetensors" or int(file.name[6:11]) in names:
                (part / file.name).symlink_to(file)
        assert len(list(part.glob("*.safetensors"))) == len(names) < 3
        stages.append(part)
    transports = LoopbackWorld(3).transports()
    ranks = [
        Stage("tiny", part, transport, split=split, dtype=dtype)
        for part, transport in zip(stages, transports, strict=True)
    ]

    assert generate(ranks)[0] == wanted
    assert len({stage.dtype for stage in ranks}) == 1


def test_a_file_that_a_rank_needs_is_named_when_it_is_missing(tmp_path: Path) -> None:
    folder = by_layers("llama_untied", tmp_path / "model")
    (folder / FIRST).unlink()
    (folder / THIRD).unlink()
    transports = LoopbackWorld(3).transports()

    Stage("tiny", folder, transports[1], split=[2, 2, 1])
    with pytest.raises(WeightsError, match=rf"Rank 2 \(.*\): The weight file {THIRD} is missing"):
        Stage("tiny", folder, transports[2], split=[2, 2, 1])


def test_a_model_that_is_converted_at_load_is_fetched_whole_after_all(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = by_layers("llama_untied", tmp_path / "model")
    third = (folder / THIRD).read_bytes()
    (folder / THIRD).unlink()
    asked = []

    def resolve(_name: str, _progress: object, choose: object = None) -> Path:
        asked.append(choose is not None)
        if choose is None:
            (folder / THIRD).write_bytes(third)
        return folder

    def refuse(self: Stage, *_: object) -> object:
        if not (folder / THIRD).exists():
            raise PartOfModelError("mlx-lm wants more.", "Fetch it.")
        return right(self, *_)

    right = Stage._build
    monkeypatch.setattr(obtain_module, "resolve_model", resolve)
    monkeypatch.setattr(Stage, "_build", refuse)

    stage = obtain_stage("org/tiny", LoopbackWorld(2).transports()[0], split=[3, 2])
    assert asked == [True, False]
    assert stage.shard.layers == range(3)
