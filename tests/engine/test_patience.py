"""Sleeping between looks: long while nothing is due, short when something is."""

from mlx_nb.engine.patience import LONGEST_S, SHORTEST_S, Patience


def simulate(patience: Patience, arrives_s: float) -> tuple[float, int]:
    """How late a message is noticed that comes so many seconds after the wait began, and after how many looks."""
    now, looks = 0.0, 1
    while now < arrives_s:
        now += patience.nap_s("x", now) or 0.00002
        looks += 1
    return now - arrives_s, looks


def test_what_comes_when_it_is_expected_is_noticed_soon_after_few_looks() -> None:
    patience = Patience()
    for _ in range(6):
        late, looks = simulate(patience, 0.075)
        patience.learn("x", 0.075)

    assert late <= 2 * SHORTEST_S
    assert looks < 200  # every 50 µs it would be 1,500


def test_what_comes_at_any_other_time_is_late_by_a_longest_nap_at_most() -> None:
    patience = Patience()
    patience.learn("x", 0.075)
    for arrives in (0.0, 0.0003, 0.004, 0.05, 0.2, 3.0):
        assert simulate(patience, arrives)[0] <= LONGEST_S + 1e-9


def test_it_follows_a_change_of_pace() -> None:
    patience = Patience()
    for waited in (0.5, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01, 0.01):
        patience.learn("x", waited)

    assert 0.009 < patience.expected_s["x"] < 0.015


def test_waits_for_different_things_do_not_mix() -> None:
    patience = Patience()
    patience.learn("the token", 0.5)

    assert "the hidden state" not in patience.expected_s
