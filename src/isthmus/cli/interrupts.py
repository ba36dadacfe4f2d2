"""Ctrl-C and SIGTERM: the first ends the run after its step, saved; the second at once."""

import os
import signal
import sys
import threading
from types import FrameType, TracebackType
from typing import Any

from isthmus.cli.failures import INTERRUPTED

_SIGNALS = (signal.SIGINT, signal.SIGTERM)
_NOTICE = b"\nstopping after this step and saving; again to stop at once (what was saved last stays)\n"
_SHOW_CURSOR = b"\x1b[?25h\n"


class Interrupts:
    """While this context is open, the first signal is only noted: call the object to ask for it."""

    def __init__(self) -> None:
        self.requested = False
        self._before: dict[signal.Signals, Any] = {}

    def __call__(self) -> bool:
        """Whether somebody wants the run to stop."""
        return self.requested

    def __enter__(self) -> "Interrupts":
        """Take the signals over, except those that the parent process chose to ignore."""
        if threading.current_thread() is threading.main_thread():
            for number in _SIGNALS:
                if signal.getsignal(number) is not signal.SIG_IGN:
                    self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Give the signals back."""
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _handle(self, number: int, frame: FrameType | None) -> None:
        # os.write, since a handler may run in the middle of a print.
        if self.requested:
            if sys.stderr.isatty():
                os.write(2, _SHOW_CURSOR)
            os._exit(INTERRUPTED)
        self.requested = True
        os.write(2, _NOTICE)
