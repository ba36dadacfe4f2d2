from dataclasses import dataclass
from typing import Any

import pytest

from isthmus.cli.main import app

TINY = (
    *("--dims", "6,2,6", "--hidden", "8", "--train", "60", "--test", "30"),
    *("--width", "12", "--depth", "6", "--effective-depth", "3"),
    *("--steps", "24", "--log-every", "4", "--checkpoint-every", "7", "--threads", "1", "--dtype", "float64"),
)


@dataclass(frozen=True)
class Ended:
    code: int
    out: str
    err: str


@pytest.fixture
def tiny() -> tuple[str, ...]:
    """Options of a run of a fraction of a second."""
    return TINY


@pytest.fixture
def cli(capsys: Any, monkeypatch: Any, tmp_path: Any) -> Any:
    """Run the command in this process, in a folder of its own: exit code, standard output and standard error."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "120")

    def run(*arguments: object) -> Ended:
        with pytest.raises(SystemExit) as stopped:
            app([str(argument) for argument in arguments], prog_name="isthmus")
        streams = capsys.readouterr()
        return Ended(int(stopped.value.code or 0), streams.out, streams.err)

    return run
