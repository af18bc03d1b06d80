"""Worker processes that decode media: started, given jobs, and replaced when they die.

An answer is believed only as far as it fits the job and the limits: a decoder that a file has taken
over can give wrong pixels of that file, and nothing else. Knows nothing of requests.
One event loop uses a pool. Shapes: H W pixels, T samples.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import os
import signal
import socket
import subprocess
import sys
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from m27.codec.media import SAMPLE_RATE
from m27.serve import decoder
from m27.serve.limits import CODES, GateLimits, MediaRefused

_GRACE = 2.0  # seconds that a worker has beyond its own clock, before it is killed
_ROOT = Path(__file__).resolve().parents[2]
_KEPT = ("PATH", "LD_LIBRARY_PATH", "SYSTEMROOT", "LANG")  # of the environment; keys stay here


@dataclasses.dataclass(frozen=True)
class Job:
    """Bytes to decode: `what` is PICTURE or SOUND; a picture is fitted into `fit`, if not (0, 0)."""

    what: int
    data: bytes
    base64: bool = False
    fit: tuple[int, int] = (0, 0)
    letterbox: bool = False

    def head(self) -> bytes:
        """What goes before the bytes."""
        flags = decoder.LETTERBOX * self.letterbox | decoder.BASE64 * self.base64
        return decoder.JOB.pack(self.what, flags, *self.fit, len(self.data))


class Pool:
    """At most `limits.workers` processes, started as they are needed."""

    def __init__(self, limits: GateLimits) -> None:
        self._limits = limits
        self._slots = asyncio.Semaphore(limits.workers)
        self._idle: list[_Worker] = []
        self._busy: set[_Worker] = set()
        self._tasks: set[asyncio.Task[Any]] = set()
        self._closed = False
        self.waiting = 0
        self.replaced = 0

    @property
    def busy(self) -> int:
        """How many workers are at a job."""
        return len(self._busy)

    def pids(self) -> list[int]:
        """The workers' process ids."""
        return [worker.process.pid for worker in (*self._idle, *self._busy)]

    async def start(self) -> None:
        """Start every worker and wait until they can take jobs. Raises MediaRefused where one cannot."""
        missing = self._limits.workers - len(self._idle) - len(self._busy)
        self._idle += [_Worker(self._limits) for _ in range(missing)]
        try:
            for worker in tuple(self._idle):
                await worker.ready()
        except _LostError as error:
            raise MediaRefused(error.args[0], error.code) from None

    async def run(self, job: Job) -> tuple[np.ndarray[Any, Any], float]:
        """uint8 [H, W, 3] or float32 [T], and the seconds its worker took. Raises MediaRefused.

        When the caller is cancelled, a job that has begun is finished all the same and then dropped:
        killing its worker would cost more than most jobs do.
        """
        if self._closed:
            raise MediaRefused("the server is going down", "gate_closed")
        if self._slots.locked() and self.waiting >= self._limits.queue:
            raise MediaRefused("too many pictures and sounds wait to be decoded", "decoder_busy")
        self.waiting += 1
        try:
            await self._slots.acquire()
        finally:
            self.waiting -= 1
        task = asyncio.create_task(self._give(job))
        self._tasks.add(task)
        task.add_done_callback(self._done)
        return await asyncio.shield(task)

    async def close(self) -> None:
        """End the workers; whoever waits for one is refused."""
        self._closed = True
        for worker in self._busy:
            worker.kill()
        while self._tasks or self.waiting:
            await asyncio.sleep(0.01)
        for worker in self._idle:
            await worker.close()
        self._idle.clear()

    def _done(self, task: asyncio.Task[Any]) -> None:
        self._tasks.discard(task)
        self._slots.release()
        if not task.cancelled():
            task.exception()  # seen, also where nobody waits for it any more

    async def _give(self, job: Job) -> tuple[np.ndarray[Any, Any], float]:
        if self._closed:
            raise MediaRefused("the server is going down", "gate_closed")
        worker = await self._take()
        self._busy.add(worker)
        try:
            await worker.ready()
            started = time.perf_counter()
            answer = await worker.ask(job)
        except BaseException as error:
            await worker.close()
            self._busy.discard(worker)
            if self._closed:
                raise MediaRefused("the server is going down", "gate_closed") from None
            self.replaced += 1
            if not isinstance(error, _LostError):
                raise
            if error.code != "decoder_unavailable":  # else the next would most likely fail too
                with suppress(MediaRefused):
                    self._idle.append(_Worker(self._limits))
            raise MediaRefused(error.args[0], error.code) from None
        self._busy.discard(worker)
        self._idle.append(worker)
        if isinstance(answer, MediaRefused):
            raise answer
        return answer, time.perf_counter() - started

    async def _take(self) -> _Worker:
        """A worker that is alive: one may have been killed from outside while it was idle."""
        while self._idle:
            worker = self._idle.pop()
            if worker.process.poll() is None:
                return worker
            self.replaced += 1
            await worker.close()
        return _Worker(self._limits)


class _LostError(Exception):
    """A worker is of no more use; why, for the client."""

    def __init__(self, message: str, code: str) -> None:
        super().__init__(message)
        self.code = code


class _Worker:
    """One process, and our end of the socket to it."""

    def __init__(self, limits: GateLimits) -> None:
        self._limits, self._ready, self._starting = limits, False, asyncio.Lock()
        self._link, theirs = socket.socketpair()
        self._link.setblocking(False)
        kept = {name: os.environ[name] for name in _KEPT if name in os.environ}
        one = {"OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1", "MALLOC_ARENA_MAX": "1"}
        settings = json.dumps(dataclasses.asdict(limits))
        command = [sys.executable, "-P", "-m", "m27.serve.decoder", str(theirs.fileno()), settings]
        try:
            with theirs:
                self.process = subprocess.Popen(
                    command,
                    stdin=subprocess.DEVNULL,
                    stdout=subprocess.DEVNULL,
                    cwd="/",
                    env=kept | one | {"PYTHONPATH": str(_ROOT)},
                    pass_fds=(theirs.fileno(),),
                    start_new_session=True,  # one kill reaches its forks; a ^C at us does not
                )
        except OSError:
            self._link.close()
            raise MediaRefused("no decoder could be started", "decoder_unavailable") from None

    async def ready(self) -> None:
        """Wait until it can take a job. Raises _LostError where it does not come up."""
        async with self._starting:  # `start` and a first job may both wait for it
            if self._ready:
                return
            try:
                async with asyncio.timeout(self._limits.start_seconds):
                    said = await self._receive(len(decoder.READY))
            except (OSError, EOFError):
                said = b""
            if said != decoder.READY:
                raise _LostError("no decoder could be started", "decoder_unavailable")
            self._ready = True

    async def ask(self, job: Job) -> np.ndarray[Any, Any] | MediaRefused:
        """The array, or why there is none. Raises _LostError where the process must be replaced."""
        noun = "picture" if job.what == decoder.PICTURE else "sound"
        slow = f"the {noun} takes longer than {self._limits.decode_seconds:g} seconds to decode"
        loop = asyncio.get_running_loop()
        try:
            async with asyncio.timeout(self._limits.decode_seconds + _GRACE):
                await loop.sock_sendall(self._link, job.head())
                await loop.sock_sendall(self._link, job.data)
                return await self._answer(job)
        except TimeoutError:
            raise _LostError(slow, "decoder_timeout") from None
        except (OSError, EOFError):
            if await self._ended(5.0) == decoder.TIMED_OUT:
                raise _LostError(slow, "decoder_timeout") from None
            raise _LostError(f"the {noun} made its decoder fail", "decoder_died") from None
        except ValueError:  # what came is no answer to the job
            raise _LostError(f"the {noun} made its decoder fail", "decoder_died") from None

    async def _answer(self, job: Job) -> np.ndarray[Any, Any] | MediaRefused:
        head = await self._receive(decoder.ANSWER.size)
        what, height, width, length = decoder.ANSWER.unpack(head)
        if what == decoder.REFUSED and length <= decoder.MAX_LINE:
            text = (await self._receive(length)).decode("utf-8", "replace")
            code, _, line = text.partition("\n")
            line = "".join(c if c.isprintable() else "?" for c in line)
            return MediaRefused(line, code if code in CODES else "broken_media")
        shape = (height, width, 3) if what == decoder.PICTURE else (height,)
        if what != job.what or not self._fits(job, shape, length):
            raise ValueError("no answer to this job")
        array = np.empty(shape, np.uint8 if what == decoder.PICTURE else np.float32)
        await self._fill(array.data.cast("B"))
        return array

    def _fits(self, job: Job, shape: tuple[int, ...], length: int) -> bool:
        limits = self._limits
        if length > limits.decoded_bytes or not length:
            return False
        if job.what == decoder.SOUND:
            return length == shape[0] * 4 and shape[0] <= (limits.seconds + 1) * SAMPLE_RATE
        allowed = shape[:2] == job.fit if all(job.fit) else shape[0] * shape[1] <= limits.pixels
        return allowed and length == shape[0] * shape[1] * 3

    async def _receive(self, length: int) -> bytes:
        data = bytearray(length)
        await self._fill(memoryview(data))
        return bytes(data)

    async def _fill(self, view: memoryview) -> None:
        """Receive as much as `view` holds. Raises EOFError where the process closes before."""
        loop, have = asyncio.get_running_loop(), 0
        while have < len(view):
            got = await loop.sock_recv_into(self._link, view[have:])
            if not got:
                raise EOFError
            have += got

    def kill(self) -> None:
        """End the process and its forks at once; who waits for its answer is told."""
        if self.process.returncode is not None:
            return  # its number may be another's by now; what it forked has a clock of its own
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self.process.pid, signal.SIGKILL)

    async def close(self) -> None:
        """Kill it, see it gone, and close the socket."""
        self.kill()
        await self._ended(5.0)
        self._link.close()

    async def _ended(self, seconds: float) -> int | None:
        """The exit status, waited for that long; None where it still runs."""
        until = time.monotonic() + seconds
        while (status := self.process.poll()) is None and time.monotonic() < until:
            await asyncio.sleep(0.005)
        return status
