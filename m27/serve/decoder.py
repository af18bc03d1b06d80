"""The process that decodes: it reads jobs from a socket, and answers with arrays or one line.

Run by the pool as `python -m m27.serve.decoder FD LIMITS`. It loads the decoders, gives up what it
can (memory, processor time, files), and then forks for every job: only the fork sees untrusted bytes,
so nothing that a file does to a decoder outlives that file. A fork that does not end well takes the
process with it, and the pool starts another. No pickles: a packed header, then plain bytes, both ways.

Shapes: H W pixels, T samples.
"""

from __future__ import annotations

import json
import os
import resource
import signal
import socket
import struct
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np

from m27.codec import media
from m27.serve import payload
from m27.serve.limits import MediaRefused

PICTURE, SOUND = 1, 2  # what a job asks for, and what an answer holds
REFUSED = 3
LETTERBOX, BASE64 = 1, 2  # flags
JOB = struct.Struct("<BBHHQ")  # what, flags, height and width to fit it in or 0, bytes that follow
ANSWER = struct.Struct("<BIIQ")  # what, H, W (T, 0 of a sound), bytes that follow
READY = b"m27 decoder\n"
TIMED_OUT = 75  # the exit status when a job took too long
MAX_LINE = 500


def main(arguments: list[str]) -> None:
    """Serve until the other side closes the socket, or a job does not end well."""
    settings: dict[str, Any] = json.loads(arguments[1])
    link = socket.socket(fileno=int(arguments[0]))
    _load()
    _give_up(settings)
    link.sendall(READY)
    while len(head := _receive(link, JOB.size)) == JOB.size:
        child = os.fork()
        if child == 0:
            status = 1
            try:
                status = _job(link, head, settings)
            finally:
                os._exit(status)
        _, status = os.waitpid(child, 0)
        if status:
            slow = os.WIFSIGNALED(status) and os.WTERMSIG(status) in (signal.SIGALRM, signal.SIGXCPU)
            os._exit(TIMED_OUT if slow else 1)  # at once: the pool waits for it


def _load() -> None:
    """Import and use what decodes, so that the forks find it loaded."""
    media.read_image(media.png_bytes(np.zeros((2, 2, 3), np.uint8)))
    media.resample(np.zeros(100, np.float32), 48_000, media.SAMPLE_RATE)
    with suppress(media.MediaError):
        media.read_audio(b"fLaC" + bytes(60))


def _give_up(settings: dict[str, Any]) -> None:
    """What no decoder needs. Where the system has no such limit, there is the pool's clock."""
    with suppress(OSError):  # if memory runs out all the same, let it be this one that goes
        Path("/proc/self/oom_score_adj").write_text("1000")
    with suppress(OSError):
        pages = int(Path("/proc/self/statm").read_text().split()[0])
        room = pages * resource.getpagesize() + int(settings["decode_memory"])
        resource.setrlimit(resource.RLIMIT_AS, (room, room))
    for limit, value in (
        (resource.RLIMIT_CORE, 0),  # a dump would hold what clients sent
        (resource.RLIMIT_FSIZE, 0),
        (resource.RLIMIT_NOFILE, 16),
    ):
        resource.setrlimit(limit, (value, value))
    os.dup2(os.open(os.devnull, os.O_WRONLY), 2)  # libraries complain of broken files there


def _job(link: socket.socket, head: bytes, settings: dict[str, Any]) -> int:
    """One job from its first byte to the last of its answer. The exit status of the fork."""
    seconds = float(settings["decode_seconds"])
    signal.setitimer(signal.ITIMER_REAL, seconds)  # SIGALRM ends the process, whatever it is doing
    spent = sum(resource.getrusage(resource.RUSAGE_SELF)[:2])
    processor = int(spent + seconds) + 1
    resource.setrlimit(resource.RLIMIT_CPU, (processor, processor + 1))  # SIGXCPU, then SIGKILL
    what, flags, height, width, length = JOB.unpack(head)
    data = _receive(link, length)
    if len(data) < length:
        return 1
    try:
        array = _decode(what, flags, (height, width), data, settings)
    except (media.MediaError, MediaRefused) as error:
        line = f"{error.code}\n{error}".encode("utf-8", "replace")[:MAX_LINE]
        link.sendall(ANSWER.pack(REFUSED, 0, 0, len(line)) + line)
        return 0
    size = array.shape[:2] if what == PICTURE else (len(array), 0)
    link.sendall(ANSWER.pack(what, *size, array.nbytes))
    link.sendall(array.data if array.flags.c_contiguous else array.tobytes())
    return 0


def _decode(
    what: int, flags: int, fit: tuple[int, int], data: bytes, settings: dict[str, Any]
) -> np.ndarray[Any, Any]:
    """uint8 [H, W, 3] or float32 [T]. Raises MediaError or MediaRefused."""
    pixels, seconds, most = settings["pixels"], settings["seconds"], settings["decoded_bytes"]
    if not all(fit):
        pixels = min(pixels, most // 3)
    seconds = min(seconds, most / (4 * media.SAMPLE_RATE))
    limits = media.Limits(
        settings["file_bytes"], pixels, seconds, settings["samples"], tuple(settings["formats"])
    )
    if flags & BASE64:
        data = payload.decode(data, limits.max_bytes)
    if what == SOUND:
        return media.read_audio(data, limits)
    rgb = media.read_image(data, limits)
    if all(fit):
        rgb = media.fit_image(rgb, *fit, letterbox=bool(flags & LETTERBOX), crop=True)
    return rgb


def _receive(link: socket.socket, length: int) -> bytes:
    """So many bytes, or those that came before the other side closed."""
    data = bytearray(length)
    view, have = memoryview(data), 0
    while have < length and (got := link.recv_into(view[have:])):
        have += got
    return bytes(view[:have])


if __name__ == "__main__":
    main(sys.argv[1:])
