"""A small program under the gateway's supervisor: each worker listens on the shared port and answers its pid.

`python -m tests.support.workers COUNT` supervises in the current folder, whose files tell the workers what to do:
`fail` (exit 3 with one line, whatever is in the file), `crash` (exit 5 once ready), `busy` (do not drain, stop only
at once), `deaf` (do not even that). Each worker writes what happens to it to the file `log`: `asked` (to drain, where it
does not), `drained`, `stopped` or `orphaned`.
"""

import asyncio
import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from gateway import workers
from gateway.listeners import hold, listen
from gateway.workers import Supervisor, Worker, Workers

DEADLINE: Final = 60.0
_PORT: Final = "TINY_PORT"


# The program


def _note(what: str) -> None:
    with Path("log").open("a") as log:
        log.write(f"{what} {os.getpid()}\n")


def _say(line: str) -> None:
    sys.stdout.write(line + "\n")
    sys.stdout.flush()


def _told_to(what: str) -> bool:
    return Path(what).exists()


async def _work(worker: Worker) -> int:
    over = asyncio.Event()

    async def answer(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(str(os.getpid()).encode())
        writer.close()

    def drain() -> None:
        if _told_to("busy") or _told_to("deaf"):
            _note("asked")
        else:
            over.set()

    def now() -> None:
        if not _told_to("deaf"):
            _note("stopped")
            over.set()

    async def obey() -> None:
        await supervisor.obey(drain, now)
        _note("orphaned")
        over.set()

    with contextlib.closing(Supervisor(worker)) as supervisor:
        listener = listen("127.0.0.1", int(os.environ[_PORT]), shared=True)
        async with await asyncio.start_server(answer, sock=listener):
            crash = _told_to("crash")
            supervisor.ready()
            if crash:
                return 5
            obeying = asyncio.create_task(obey())
            await over.wait()
            _note("drained")
            obeying.cancel()
    return 0


def _supervise(count: int) -> int:
    workers.KILL_SECONDS = 1.0  # type: ignore[misc]  # a test does not wait so long
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with hold("127.0.0.1", 0) as held:
        port = held.getsockname()[1]
        Path("directory").mkdir(exist_ok=True)
        command = [sys.executable, "-m", "tests.support.workers"]
        several = Workers(command, {**os.environ, _PORT: str(port)}, count, Path("directory").absolute())
        return asyncio.run(several.run(lambda: _say(f"serving {port}")))


def _main() -> int:
    worker = Worker.of(os.environ)
    if worker is None:
        return _supervise(int(sys.argv[1]))
    if Path("fail").exists():
        _say(Path("fail").read_text())
        return 3
    return asyncio.run(_work(worker))


# The tests' side


class SupervisedProgram:
    """The program in a process of its own. A context manager: leaving it ends every process that it started."""

    def __init__(self, folder: Path, count: int) -> None:
        self.folder = folder
        self.port = 0
        self.pids: set[int] = set()  # of all workers that have answered
        self._lines: list[str] = []
        self._said = threading.Condition()
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.support.workers", str(count)],
            cwd=folder,
            env={**os.environ, "PYTHONPATH": str(Path(__file__).parents[2])},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        self._reader = threading.Thread(target=self._read, name="supervisor's log")
        self._reader.start()

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            with self._said:
                self._lines.append(line)
                if line.startswith("serving "):
                    self.port = int(line.split()[1])
                self._said.notify_all()

    @property
    def pid(self) -> int:
        return self._process.pid

    @property
    def output(self) -> str:
        return "".join(self._lines)

    @property
    def notes(self) -> list[str]:
        """What the workers have written, without the pids."""
        log = self.folder / "log"
        return [line.split()[0] for line in log.read_text().splitlines()] if log.exists() else []

    def wait_for_notes(self, *notes: str) -> None:
        """Returns when the workers have written these, in any order."""
        deadline = time.monotonic() + DEADLINE
        while sorted(self.notes) != sorted(notes):
            assert time.monotonic() < deadline, self.notes
            time.sleep(0.01)

    def wait_for(self, text: str) -> None:
        """Returns when the supervisor has said it."""
        with self._said:
            assert self._said.wait_for(lambda: text in self.output, DEADLINE), self.output

    def ask(self) -> int | None:
        """The pid of the worker that answers; None where none does just now."""
        with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self.port), 5) as sock:
            answer = sock.recv(64)
            if answer:
                self.pids.add(int(answer))
                return int(answer)
        return None

    def serving(self, count: int) -> set[int]:
        """The pids of the workers that answer, once there are so many."""
        deadline = time.monotonic() + DEADLINE
        while time.monotonic() < deadline:
            found = {self.ask() for _ in range(20 * count)} - {None}
            if len(found) == count:
                return {pid for pid in found if pid is not None}
        raise AssertionError(f"{found} answer:\n{self.output}")

    def signal(self, number: int) -> None:
        self._process.send_signal(number)

    def wait(self) -> int:
        """The exit code, once it and its workers have let go of its output."""
        code = self._process.wait(DEADLINE)
        self._reader.join(DEADLINE)
        assert not self._reader.is_alive(), "a worker lives on"
        return code

    def close(self) -> None:
        for pid in {self._process.pid, *self.pids}:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait(DEADLINE)
        self._reader.join(DEADLINE)
        if self._process.stdout is not None:
            self._process.stdout.close()


@contextlib.contextmanager
def supervised(folder: Path, count: int = 2) -> Iterator[SupervisedProgram]:
    """The program, once its workers are ready."""
    with contextlib.closing(SupervisedProgram(folder, count)) as program:
        program.wait_for("serving ")
        yield program


if __name__ == "__main__":
    sys.exit(_main())
