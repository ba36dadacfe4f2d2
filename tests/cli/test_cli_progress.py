import io
import re
import sys
from pathlib import Path

import pytest
from rich.console import Console

from isthmus.cli.progress import Bar, Lines, Silent, clock, describe, reporter
from isthmus.runs.execution import Progress


def row(step, **more):
    return {
        "step": step,
        "stage": "adam",
        "objective": 1.5,
        "residual_max": 0.25,
        "rate": 0.01,
        "seconds": step / 10,
        **more,
    }


def begin(screen, step=0, total=100):
    screen.start(Progress(step, total, Path("a")))
    return screen


def test_a_row_is_described_by_what_it_has():
    assert describe(row(3)) == ["adam", "objective 1.5", "residual 0.25", "rate 0.01"]
    found = describe({"step": 3, "stage": "done", "objective": 1e-9, "rate": None, "test_accuracy": 0.96123})
    assert found == ["done", "objective 1e-09", "test accuracy 0.9612"]


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(None, "?"), (0.0, "0:00"), (-1.0, "0:00"), (59.6, "1:00"), (3599.0, "59:59"), (3600.0, "1:00:00")],
)
def test_times(seconds, text):
    assert clock(seconds) == text


def test_lines_come_about_twenty_times_with_first_and_last(capsys):
    screen = begin(Lines(), total=1000)
    for step in range(0, 1001, 10):
        screen.record(row(step))
    screen.close()
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 21
    assert lines[0] == "step 0/1000 adam objective 1.5 residual 0.25 rate 0.01 left ?"
    assert lines[-1] == "step 1000/1000 adam objective 1.5 residual 0.25 rate 0.01 left 0:00"


def test_the_last_line_comes_where_the_recipe_ends_early(capsys):
    screen = begin(Lines(), total=1000)
    for step in range(0, 400, 20):
        screen.record(row(step))
    screen.record(row(383, stage="done", rate=None))
    assert capsys.readouterr().err.splitlines()[-1] == "step 383/1000 done objective 1.5 residual 0.25 left 0:00"


def test_time_left_is_by_the_pace_of_this_process(capsys):
    screen = begin(Lines(), step=50, total=100)
    screen.record(row(60, seconds=1000.0))
    screen.record(row(70, seconds=1020.0))
    assert "left 1:00" in capsys.readouterr().err.splitlines()[-1]


def test_rows_without_a_time(capsys):
    begin(Lines()).record({"step": 0, "stage": "adam"})
    assert capsys.readouterr().err == "step 0/100 adam left ?\n"


def test_silence(capsys):
    screen = begin(Silent())
    screen.record(row(1))
    screen.close()
    assert capsys.readouterr() == ("", "")


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_the_bar_shows_the_same_and_gives_the_cursor_back(monkeypatch):
    screen_text = Terminal()
    monkeypatch.setattr(sys, "stderr", screen_text)
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")
    screen = reporter(quiet=False)
    assert isinstance(screen, Bar)
    screen.close()
    begin(screen, step=10)
    screen.record(row(20))
    screen.record(row(60))
    screen.close()
    text = screen_text.getvalue()
    assert "60/100" in text
    assert "adam objective 1.5 residual 0.25 rate 0.01" in text
    assert "left 0:04" in text
    assert text.count("\x1b[?25l") == text.count("\x1b[?25h") == 1


@pytest.mark.parametrize(
    ("width", "words"),
    [
        (28, ""),
        (40, "adam"),
        (60, "adam objective 1.5"),
        (80, "adam objective 1.5 residual 0.25 rate 0.01"),
        (120, "adam objective 1.5 residual 0.25 rate 0.01 test cost 0.0001234"),
    ],
)
def test_the_bar_always_has_room_for_the_step_and_the_time_left(width, words):
    file = io.StringIO()
    console = Console(width=width, force_terminal=True, color_system=None, file=file)
    screen = begin(Bar(console), total=2000)
    screen.record(row(0))
    screen.record(row(1200, seconds=10000, test_cost=1.234e-4))
    screen.close()
    line = re.split(r"\r|\n|\x1b\[\w+", file.getvalue()[file.getvalue().rindex("1200/2000") :])[0]
    assert line.startswith("1200/2000 left 1:51:07 ")
    assert re.fullmatch(r"1200/2000 left 1:51:07 [━╸]+ *(.*?) *", line)[1] == words
    assert len(line.rstrip()) <= width
    assert "\u2026" not in file.getvalue()


def test_the_reporter_suits_the_output(monkeypatch):
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    assert isinstance(reporter(quiet=False), Lines)
    assert isinstance(reporter(quiet=True), Silent)
