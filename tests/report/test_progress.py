import io

import pytest
from rich.console import Console

from pruneaug.report.progress import Progress


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def log(clock: Clock | None = None) -> tuple[Progress, io.StringIO]:
    file = io.StringIO()
    return Progress(Console(file=file, force_terminal=False), clock or Clock()), file


def test_a_log_gets_lines_with_the_remaining_time_and_not_too_many():
    clock = Clock()
    progress, file = log(clock)
    with progress, progress.stage("Profile", total=100) as stage:
        for _ in range(50):
            clock.now += 1
            stage.advance(note="conv 3x3")
    lines = file.getvalue().splitlines()
    assert lines[0] == "Profile: started"
    assert lines[1] == "Profile: 10 of 100, 1:30 left, conv 3x3"
    assert lines[-1] == "Profile: 50 done in 0:50"
    assert len(lines) == 1 + 5 + 1


def test_a_stage_within_a_stage_writes_no_lines_of_its_own():
    progress, file = log()
    with progress, progress.stage("Search", total=2) as search:
        for number in range(2):
            progress.update(f"Trial {number}", 1, 10, "loss 0.1")
            search.advance()
    assert file.getvalue().splitlines() == ["Search: started", "Search: 2 done in 0:00"]


def test_a_stage_that_reaches_its_total_is_over_and_may_begin_again():
    progress, file = log()
    with progress:
        for _ in range(2):
            progress.update("Train", 3, 3)
    assert file.getvalue().splitlines() == ["Train: started", "Train: 3 done in 0:00"] * 2


def test_an_error_within_a_stage_passes_through_and_ends_it():
    progress, file = log()

    def search() -> None:
        with progress, progress.stage("Search") as stage:
            stage.advance()
            raise RuntimeError

    with pytest.raises(RuntimeError):
        search()
    assert file.getvalue().splitlines()[-1] == "Search: 1 done in 0:00"


def test_a_terminal_shows_bars_and_keeps_only_the_outer_one():
    file = io.StringIO()
    progress = Progress(Console(file=file, force_terminal=True, width=100))
    with progress, progress.stage("Search", total=4) as search:
        for number in range(4):
            with progress.stage(f"Trial {number}", total=2) as trial:
                trial.advance(note="[bold]loss")
            search.advance(note="best 1.2 ms")
    last = file.getvalue().split("\x1b[2K")[-1]
    assert "4/4" in last
    assert "Trial" not in last
