"""A clock that does not count the time in which nobody could look at it."""

from mlx_nb.shared.awake import LONGEST_S, AwakeClock


def test_it_goes_with_the_time_and_leaves_out_a_standstill() -> None:
    seen_s = iter([100.0, 100.5, 101.5, 231.5, 232.0])
    awake = AwakeClock(lambda: next(seen_s))

    assert [awake() for _ in range(5)] == [0.0, 0.5, 1.5, 1.5 + LONGEST_S, 2.0 + LONGEST_S]
