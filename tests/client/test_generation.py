"""How a run's result is printed."""

from mlx_nb.client.generation import MOST_IDS, Generation


def test_a_model_without_a_tokenizer_shows_its_token_ids() -> None:
    assert repr(Generation([1], [7, 8], state="finished")) == "token ids: 7 8\n[no tokens yet · finished]"
    assert repr(Generation([1], [5] * (MOST_IDS + 1))).splitlines()[0].endswith(" 5 …")
    assert repr(Generation([1], [7, 8], "text")).startswith("text\n")  # control
    assert repr(Generation([1])).startswith("\n")  # nothing yet
