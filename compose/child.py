"""One child process of ours: in its own session, its output in a file, and never outliving us.

A session of its own keeps the terminal's Ctrl-C away from it, so that its stop is our decision. The parent-death
signal (prctl(2), PR_SET_PDEATHSIG, set by setpriv(1) of util-linux) reaches it also when we are killed with SIGKILL.
The kernel ties that signal to the thread that forked: start children from the main thread only.
"""

import os
import shutil
import signal
import subprocess
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Final

from compose.errors import StartFailed

LOG_TAIL_BYTES: Final = 4096


class Child:
    """A command that can be started, stopped, and started again."""

    def __init__(
        self,
        name: str,
        command: Sequence[str],
        *,
        log: Path,
        environment: Mapping[str, str],
        orphan_signal: str = "KILL",
        prefix: Sequence[str] = (),
        folder: Path | None = None,
        standard_input: Path = Path(os.devnull),
    ) -> None:
        """`folder`: where it works, if not where we do. `prefix`: what runs the command as somebody else."""
        setpriv = shutil.which("setpriv")
        if setpriv is None:
            raise StartFailed("setpriv is missing: install it with `apt install util-linux`")
        self.name: Final = name
        self.log: Final = log
        self._command = [*prefix, setpriv, f"--pdeathsig={orphan_signal}", *command]
        self._environment = dict(environment)
        self._folder = folder
        self._standard_input = standard_input
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def pid(self) -> int:
        """The process id of the last start; 0 before the first."""
        return 0 if self._process is None else self._process.pid

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    @property
    def exit_code(self) -> int | None:
        """As Popen's: negative for a signal, None while it runs."""
        return None if self._process is None else self._process.poll()

    def start(self) -> None:
        """Start it; StartFailed if the command cannot be run at all."""
        assert not self.running
        assert threading.current_thread() is threading.main_thread(), "the parent-death signal follows the thread"
        try:
            with self.log.open("ab") as output, self._standard_input.open("rb") as standard_input:
                self._process = subprocess.Popen(
                    self._command,
                    stdin=standard_input,
                    stdout=output,
                    stderr=subprocess.STDOUT,
                    env=self._environment,
                    cwd=self._folder,
                    start_new_session=True,
                )
        except OSError as error:
            raise StartFailed(f"{self.name} cannot be started: {error}") from error

    def send(self, number: signal.Signals) -> None:
        """Send a signal, if it still runs."""
        if self._process is not None and self.running:
            self._process.send_signal(number)

    def wait(self, seconds: float) -> bool:
        """Wait for its end; tell whether it came in time."""
        if self._process is None:
            return True
        try:
            self._process.wait(seconds)
        except subprocess.TimeoutExpired:
            return False
        return True

    def stop(self, number: signal.Signals, *, seconds: float) -> bool:
        """Ask it to stop, kill its whole session after `seconds`; tell whether it stopped by itself."""
        self.send(number)
        return self.end_within(seconds)

    def end_within(self, seconds: float) -> bool:
        """Wait for its end, kill its whole session after `seconds`; tell whether it ended by itself."""
        if self.wait(seconds):
            return True
        assert self._process is not None
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()
        return False

    def last_words(self) -> str:
        """Return the last lines of its output, for an error message."""
        try:
            with self.log.open("rb") as output:
                output.seek(max(0, self.log.stat().st_size - LOG_TAIL_BYTES))
                return output.read().decode(errors="replace").strip()
        except OSError:
            return ""
