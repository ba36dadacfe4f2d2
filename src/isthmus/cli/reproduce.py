"""The commands `isthmus reproduce` and `isthmus claims`: the paper's figures and claims, with seeds and intervals."""

import os
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from isthmus._support import command, hint
from isthmus.cli.failures import DONE, FAILED, INTERRUPTED, exit_codes, say
from isthmus.cli.shown import show_study, write_page

if TYPE_CHECKING:
    from isthmus.claims.reproduce import Reproduced
    from isthmus.sweeps import Done, Job

SEEDS, QUICK_SEEDS = 10, 2
FOLDER = Path("runs/paper")

Seeds = Annotated[
    int | None,
    typer.Option("--seeds", metavar="N", help="Teachers and networks: seeds 0 to N - 1 (default: 10; quick: 2).",
                 show_default=False),
]  # fmt: skip
Quick = Annotated[bool, typer.Option("--quick", help="Tiny networks, for a look: a minute or two.")]
SizeName = Annotated[
    str | None,
    typer.Option("--size", metavar="NAME", help="small, paper (the paper's own: many hours), or quick "
                 "(default: small).", show_default=False),
]  # fmt: skip
Out = Annotated[
    Path | None,
    typer.Option("--out", metavar="DIR", help="Folder (default: runs/paper; runs/paper-SIZE for another size).",
                 show_default=False),
]  # fmt: skip
Workers = Annotated[
    int | None,
    typer.Option("--workers", metavar="N", help="Processes, of one thread each (default: as many as cores).",
                 show_default=False),
]  # fmt: skip
Retry = Annotated[bool, typer.Option("--retry-failed", help="Compute anew what has failed before.")]
NoReport = Annotated[bool, typer.Option("--no-report", help="Write no claims.html and no figures.")]
Quiet = Annotated[bool, typer.Option("--quiet", help="Print nothing but the folder, warnings and errors.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show the traceback of errors (also by ISTHMUS_DEBUG=1).")]


def reproduce(
    what: Annotated[
        str, typer.Argument(metavar="FIGURE", help="figure1, figure2, figure3, or all.", show_default=False)
    ],
    seeds: Seeds = None,
    quick: Quick = False,
    size: SizeName = None,
    out: Out = None,
    workers: Workers = None,
    retry_failed: Retry = False,
    no_report: NoReport = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Reproduce the paper's figures, with seeds, intervals and certificates.

    Networks are read in two ways: trained by the paper's recipe, and at critical points that were followed. What is
    not a certified critical point is drawn hollow. Interrupted, it goes on where it was with the same command; given
    again, it computes nothing. All figures of one folder share their networks, and those of isthmus claims.
    """
    with exit_codes(debug):
        from isthmus.claims.plan import FIGURES

        if what != "all" and what not in FIGURES:
            raise ValueError(f"unknown figure {what!r}: expected {', '.join(FIGURES)} or all{hint(what, FIGURES)}")
        figures = FIGURES if what == "all" else (what,)
        study = _Study(("reproduce", what), figures, False, seeds, quick, size, out, workers, retry_failed, quiet)
        raise typer.Exit(study.run(report=not no_report))


def claims(
    seeds: Seeds = None,
    quick: Quick = False,
    size: SizeName = None,
    out: Out = None,
    workers: Workers = None,
    retry_failed: Retry = False,
    no_report: NoReport = False,
    quiet: Quiet = False,
    debug: Debug = False,
) -> None:
    """Judge the paper's claims: estimate, interval, certificate, and a verdict that follows from a rule.

    Every rule was written before it was measured, and decides by code alone: a claim holds where its whole interval
    lies where the rule wants it, fails where it lies outside, and is undecided otherwise. The networks are those of
    isthmus reproduce all.
    """
    with exit_codes(debug):
        from isthmus.claims.plan import FIGURES

        study = _Study(("claims",), FIGURES, True, seeds, quick, size, out, workers, retry_failed, quiet)
        raise typer.Exit(study.run(report=not no_report))


class _Study:
    """One call of either command."""

    def __init__(
        self,
        name: tuple[str, ...],
        figures: tuple[str, ...],
        claims: bool,
        seeds: int | None,
        quick: bool,
        size: str | None,
        out: Path | None,
        workers: int | None,
        retry_failed: bool,
        quiet: bool,
    ) -> None:
        from isthmus.claims.sizes import SIZES

        if quick and size not in (None, "quick"):
            raise ValueError(f"--quick is --size quick: leave one of them out (got --size {size})")
        chosen = "quick" if quick else size or "small"
        if chosen not in SIZES:
            raise ValueError(f"--size: expected {', '.join(SIZES)}, got {chosen!r}{hint(chosen, SIZES)}")
        self.size, self.figures, self.claims = SIZES[chosen], figures, claims
        self.seeds = (QUICK_SEEDS if chosen == "quick" else SEEDS) if seeds is None else seeds
        if self.seeds < 1:
            raise ValueError(f"--seeds must be at least 1, got {self.seeds}")
        self.workers = (os.cpu_count() or 1) if workers is None else workers
        if self.workers < 1:
            raise ValueError(f"--workers must be at least 1, got {self.workers}")
        self.folder = out if out is not None else FOLDER if chosen == "small" else Path(f"{FOLDER}-{chosen}")
        self.retry_failed, self.quiet = retry_failed, quiet
        options: list[Any] = [] if chosen == "small" else ["--quick"] if chosen == "quick" else ["--size", chosen]
        options += [] if seeds is None else ["--seeds", seeds]
        self.reproducing = command(*name, *options)
        self.command = self.reproducing if out is None else command(*name, *options, "--out", out)

    def run(self, report: bool) -> int:
        """Compute, say what was found, write the page; returns the exit code."""
        from isthmus.claims.reproduce import reproduce as compute
        from isthmus.cli.interrupts import Interrupts

        progress = _Lines(self.quiet, self.workers)
        with Interrupts() as interrupts:
            found = compute(
                self.folder,
                self.size,
                self.seeds,
                self.figures,
                claims=self.claims,
                workers=self.workers,
                retry_failed=self.retry_failed,
                command=self.reproducing,
                should_stop=interrupts,
                on_done=progress.done,
                on_plan=progress.plan,
            )
        if found.sweep.left:
            left = f"{found.sweep.left} computations are left, the others are kept"
            say(f"interrupted: {left}; go on with: {self.command}")
            return INTERRUPTED
        return self._shown(found, report)

    def _shown(self, found: "Reproduced", report: bool) -> int:
        for job, why in found.failures:
            say(f"failed: {job.kind}, seed {job.settings['seed']}: {why}")
        if found.failures:
            count = len(found.failures)
            words = "1 computation failed and is" if count == 1 else f"{count} computations failed and are"
            say(f"{words} left out of all figures; try again: {self.command} --retry-failed")
        if not self.quiet:
            show_study(found.pictures, found.rows, found.facts)
        page, written = write_page(found.folder) if report else (None, True)
        print(found.folder if self.quiet else f"\nfolder: {found.folder}" + (f"\npage:   {page}" if page else ""))
        return DONE if written and not (found.failures and not found.sweep.done + found.sweep.skipped) else FAILED


class _Lines:
    """Progress: on a terminal one line that changes, else a line now and then."""

    def __init__(self, quiet: bool, workers: int) -> None:
        self.quiet, self.workers = quiet, workers
        self.began, self.first, self.next = time.monotonic(), 0, 0

    def plan(self, total: int, there: int, lost: list["Job"]) -> None:
        """How much there is to do."""
        self.first = there
        for job in lost:
            say(f"warning: the result {job.name}.json was deleted: it is computed again")
        if not self.quiet and there < total:
            done = f", {there} of them done before" if there else ""
            say(f"{total} computations{done}; Ctrl-C stops and keeps what is done")

    def done(self, done: "Done") -> None:
        """A computation was finished."""
        if self.quiet:
            return
        made = done.number - self.first
        left = (time.monotonic() - self.began) / made * (done.total - done.number)
        text = f"{done.number}/{done.total} {done.job.kind}, seed {done.job.settings['seed']}, {done.seconds:.0f} s"
        text += f", some {_clock(left)} left" if done.number < done.total else ""
        if sys.stderr.isatty():
            ending = "\n" if done.number == done.total or done.failure else ""
            print(f"\r\x1b[2K{text}{ending}", end="", file=sys.stderr, flush=True)
        elif made >= self.next or done.number == done.total:
            self.next = made + max(1, (done.total - self.first) // 20)
            say(text)


def _clock(seconds: float) -> str:
    return f"{seconds:.0f} s" if seconds < 90 else f"{seconds / 60:.0f} min"
