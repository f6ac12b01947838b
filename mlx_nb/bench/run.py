"""Running rows: every contender once a round, in turn, so that a noisy minute hits all of them."""

from collections.abc import Callable, Sequence
from contextlib import closing

from mlx_nb.bench.machine import describe_machine
from mlx_nb.bench.rows import ROWS
from mlx_nb.bench.session import Session
from mlx_nb.shared.bench_report import OURS, Report, Row
from mlx_nb.shared.errors import MlxNbError, OptionError

Tell = Callable[[str, int, int], None]


def run(
    rows: Sequence[str] = (),
    *,
    rounds: int = 3,
    model: str = "smollm2",
    quick: bool = False,
    tell: Tell | None = None,
) -> Report:
    """Measure.

    Args:
        rows: Which, by key (``mlx-nb bench --list``); none means all.
        rounds: How often each contender is run; the first one's warm-up is not counted.
        model: A name, a folder or a Hugging Face id.
        quick: Fewer tokens: to try it out, not to quote.
        tell: Gets ``text, done, total`` before every measurement.

    Returns:
        The report; a row that could not be measured is named there with the reason.

    Raises:
        OptionError: There is no such row, or no round.
    """
    if unknown := [key for key in rows if key not in ROWS]:
        raise OptionError(f"There is no row '{unknown[0]}'.", f"Rows: {', '.join(ROWS)}.")
    if rounds < 1:
        raise OptionError(f"A benchmark takes one round or more, not {rounds}.", "Type: --rounds 3")
    keys = [key for key in ROWS if key in rows or not rows]
    report = Report(describe_machine(), rounds)
    with closing(Session(model, quick=quick)) as session:
        for number, key in enumerate(keys):
            try:
                report.rows.append(_measure(session, key, rounds, number, len(keys), tell))
            except MlxNbError as error:
                report.missed[key] = str(error)
    return report


def _measure(session: Session, key: str, rounds: int, number: int, total: int, tell: Tell | None) -> Row:
    say = tell or (lambda text, done, total: None)
    say(f"{key}: getting ready", number, total)
    contest = ROWS[key].prepare(session)
    row = Row(key, contest.title, contest.unit, contest.better, {}, contest.targets, contest.note)
    for name in contest.contenders:
        row.samples[name] = []
    for turn in range(rounds + 1):
        for name, measure in contest.contenders.items():
            say(f"{key}: {name} ({turn or 'warm-up'}{f' of {rounds}' if turn else ''})", number, total)
            found = measure()
            if turn:
                row.samples[name].append(found)
    assert OURS in row.samples
    if contest.after:
        contest.after()
    return row
