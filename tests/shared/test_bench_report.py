"""Medians, ratios and targets of a benchmark."""

import json

from mlx_nb.shared.bench_report import HIGHER, LOWER, OURS, Report, Row, Target


def speed(*ours: float) -> Row:
    return Row(
        "decode", "decode", "tok/s", HIGHER, {OURS: list(ours), "peer": [10, 20, 40]}, (Target("peer", 0.9),)
    )


def test_a_ratio_is_the_median_over_the_rounds() -> None:
    row = speed(10, 40, 20)  # round by round 1, 2, 0.5; of the medians it would be 1 as well

    assert row.ratio("peer") == 1
    assert speed(5, 40, 80).ratio("peer") == 2  # of the medians it would be 2, of the means 1.79
    assert row.median(OURS) == 20
    assert row.spread("peer") == (10, 40)


def test_a_target_is_a_floor_where_more_is_better_and_a_ceiling_where_less_is() -> None:
    assert speed(9, 18, 36).met(Target("peer", 0.9))
    assert not speed(8, 16, 32).met(Target("peer", 0.9))
    seconds = Row("start", "start", "s", LOWER, {OURS: [3.0], "bare": [2.5]})
    assert seconds.met(Target("bare", 1.3))
    assert not seconds.met(Target("bare", 1.1))


def test_a_report_prints_the_verdict_and_what_was_not_measured() -> None:
    report = Report({"processor": "two cores"}, 3, [speed(8, 16, 32)], {"hop": "mpiexec was not found."})

    assert not report.ok
    assert "MISSED" in repr(report)
    assert "hop was not measured: mpiexec was not found." in report.to_markdown()
    assert "| decode | mlx_nb | 16.0 tok/s | 8.00 tok/s – 32.0 tok/s |" in report.to_markdown()
    assert "- processor: two cores" in report.to_markdown()
    assert Report({}, 3, [speed(9, 18, 36)]).ok


def test_a_report_comes_back_from_json() -> None:
    report = Report({"processor": "two cores"}, 3, [speed(8, 16, 32)], {"hop": "no."})

    assert Report.from_json(report.to_json()) == report
    assert json.loads(report.to_json())["rows"][0]["ratios"] == {"peer": 0.8}
