"""gate.py and pool.py: what comes in is what was sent, and what happens to a decoder stays there."""

import asyncio
import base64
import os
import signal
import stat
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from m27.codec import media
from m27.serve import decoder, pool
from m27.serve.gate import GateLimits, MediaRefused
from tests.serve import samples
from tests.serve.conftest import PATIENCE, Door, data_url

SLOW = 20_000  # scans: most of a minute of decoding in less than a megabyte


def until(true: Callable[[], object]) -> None:
    deadline = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)


def forks(pid: int) -> list[int]:
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def resident(pid: int | str = "self") -> int:
    """Bytes of memory that are the process's own."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


def number(value: int) -> np.ndarray:
    return np.full((16, 16, 3), value, np.uint8)


@pytest.mark.parametrize("kind", samples.PICTURES)
def test_every_picture_comes_as_the_codec_reads_it(door: Door, kind: str) -> None:
    data = samples.picture(kind)
    expected = media.read_image(data)
    assert np.array_equal(door.picture(data), expected)
    for claimed in ("image/png", "image/svg+xml", "text/html", ""):  # what is claimed does not count
        assert np.array_equal(door.picture(data_url(data, claimed)), expected)


@pytest.mark.parametrize("kind", samples.SOUNDS)
def test_every_sound_comes_as_the_codec_reads_it(door: Door, kind: str) -> None:
    data = samples.sound(kind, samples.tone(0.5, 44_100), 44_100)
    expected = media.read_audio(data)
    assert np.array_equal(door.sound(data), expected)
    for claimed in ("wav", "MP3", "flac", "ogg"):
        heard = door(door.gate.sound(base64.encodebytes(data).decode(), claimed))
        assert np.array_equal(heard, expected)
        assert heard.dtype == np.float32


@pytest.mark.parametrize("letterbox", [False, True])
def test_a_picture_can_come_in_the_size_it_is_wanted_in(door: Door, letterbox: bool) -> None:
    rgb = samples.gradient(300, 200)
    fitted = door.picture(samples.picture("PNG", rgb), fit=(64, 96), letterbox=letterbox)
    assert np.array_equal(fitted, media.fit_image(rgb, 64, 96, letterbox=letterbox, crop=True))
    for wrong in ((0, 5), (5, 70_000), (60_000, 60_000), (-1, 5)):
        with pytest.raises(ValueError, match=f"{wrong[0]} x {wrong[1]}"):
            door.picture(samples.picture("PNG"), fit=wrong)


def test_what_comes_out_is_bounded_too(open_door: Callable[..., Door]) -> None:
    door = open_door(GateLimits(workers=1, decoded_bytes=7200))
    assert door.picture(samples.picture("PNG")).nbytes == 7200
    assert "more than the 0.0024 million" in str(door.no(samples.picture("PNG", samples.gradient(41, 60))))
    assert door.picture(samples.picture("PNG", samples.gradient(41, 60)), fit=(8, 8)).shape == (8, 8, 3)
    assert len(door.sound(samples.wav(bytes(1800), width=1))) == 1800
    assert "longer than 0.1125 seconds" in str(door.no(samples.wav(bytes(1801), width=1), "sound"))
    assert door.gate.metrics()["replaced"] == 0


def test_pictures_of_one_length_are_not_taken_for_each_other(door: Door) -> None:
    first, second = (samples.picture("BMP", number(value)) for value in (10, 20))
    assert len(first) == len(second)
    wide, high = (samples.picture("BMP", np.zeros(shape, np.uint8)) for shape in ((32, 100, 3), (100, 32, 3)))
    assert len(wide) == len(high)
    for data, value in ((first, 10), (second, 20), (first, 10)):
        assert (door.picture(data) == value).all()
    assert door.picture(wide).shape == (32, 100, 3)
    assert door.picture(high).shape == (100, 32, 3)


def test_many_at_once_each_get_their_own(door: Door) -> None:
    async def ask(value: int) -> bool:
        if value % 3 == 0:
            heard = await door.gate.sound_bytes(media.wav_bytes(np.full(value + 1, 0.5, np.float32)))
            return len(heard) == value + 1
        if value % 3 == 1:
            try:
                await door.gate.picture_bytes(samples.picture("PNG")[: 60 + value % 5])
            except MediaRefused as error:
                return error.code == "broken_media"
            return False
        return bool((await door.gate.picture(data_url(samples.picture("PNG", number(value)))) == value).all())

    async def all_of_them() -> list[bool]:
        return await asyncio.gather(*(ask(value) for value in range(60)))

    assert all(door(all_of_them()))


def test_memory_is_flat_over_many_decodings(door: Door) -> None:
    data = samples.picture("PNG", np.random.default_rng(0).integers(0, 256, (200, 200, 3), np.uint8))

    async def some(count: int) -> None:
        for _ in range(count // 10):
            await asyncio.gather(*(door.gate.picture_bytes(data) for _ in range(10)))

    door(some(20))
    pids = sorted(door.workers())
    grown = []
    for _ in range(5):  # one lost picture in six is 4 MB a round; the allocator takes its own only now and then
        before = [resident(), *(resident(pid) for pid in pids)]
        door(some(200))
        grown.append([resident() - before[0], *(resident(pid) - b for pid, b in zip(pids, before[1:], strict=True))])
        if max(grown[-1]) < 4_000_000:
            break
    assert sorted(door.workers()) == pids
    assert max(grown[-1]) < 4_000_000, grown


def test_a_worker_killed_at_a_job_costs_that_job_alone(open_door: Callable[..., Door]) -> None:
    door = open_door(GateLimits(workers=2))
    door(door.gate.start())
    victim, other = door.workers()[::-1]  # the last to come idle is the first to be asked
    os.kill(victim, signal.SIGSTOP)
    lost = door.begin(door.gate.picture_bytes(samples.picture("PNG")))
    until(lambda: door.gate.metrics()["busy"] == 1)
    assert (door.picture(samples.picture("PNG", number(7))) == 7).all()
    os.kill(victim, signal.SIGKILL)
    with pytest.raises(MediaRefused, match="made its decoder fail") as caught:
        lost.result(PATIENCE)
    assert (caught.value.code, caught.value.status) == ("decoder_died", 400)
    assert door.gate.metrics()["replaced"] == 1
    assert other in door.workers()
    assert len(door.workers()) == 2
    assert (door.picture(samples.picture("PNG", number(8))) == 8).all()


@pytest.mark.parametrize("way", [signal.SIGSEGV, signal.SIGABRT, signal.SIGKILL])
def test_a_decoder_that_crashes_costs_its_own_job_alone(open_door: Callable[..., Door], way: int) -> None:
    door = open_door(GateLimits(workers=1, decode_seconds=PATIENCE))
    door(door.gate.start())
    (worker,) = door.workers()
    lost = door.begin(door.gate.picture_bytes(samples.jpeg_of_scans(2000, SLOW)))
    until(lambda: forks(worker))
    waiting = door.begin(door.gate.picture_bytes(samples.picture("PNG", number(9))))
    os.kill(forks(worker)[0], way)
    with pytest.raises(MediaRefused, match="made its decoder fail"):
        lost.result(PATIENCE)
    assert (waiting.result(PATIENCE) == 9).all()
    assert not runs(worker)


def test_an_idle_worker_that_dies_costs_nothing(open_door: Callable[..., Door]) -> None:
    door = open_door(GateLimits(workers=1))
    door(door.gate.start())
    (worker,) = door.workers()
    os.kill(worker, signal.SIGKILL)
    until(lambda: not runs(worker))
    assert (door.picture(samples.picture("PNG", number(3))) == 3).all()


def test_what_takes_too_long_is_ended(open_door: Callable[..., Door], monkeypatch: pytest.MonkeyPatch) -> None:
    door = open_door(GateLimits(workers=1, decode_seconds=1.0))
    assert (door.picture(samples.picture("PNG", number(4))) == 4).all()
    (worker,) = door.workers()
    refusal = door.no(samples.jpeg_of_scans(2000, SLOW))
    assert refusal.code == "decoder_timeout"
    assert "longer than 1 seconds" in str(refusal)
    assert not runs(worker)
    # One that does not even see its own clock any more is killed from outside.
    assert (door.picture(samples.picture("PNG", number(5))) == 5).all()
    monkeypatch.setattr(pool, "_GRACE", 0.1)
    (worker,) = door.workers()
    os.kill(worker, signal.SIGSTOP)
    assert door.no(samples.picture("PNG")).code == "decoder_timeout"
    assert not runs(worker)


def test_what_takes_too_much_memory_is_refused(open_door: Callable[..., Door]) -> None:
    door = open_door(GateLimits(workers=1, decode_memory=32_000_000))
    refusal = door.no(samples.png(4000, 4000))
    assert refusal.code == "media_too_large"
    assert "too large to decode" in str(refusal)
    assert (door.picture(samples.picture("PNG", number(6))) == 6).all()
    assert door.gate.metrics()["replaced"] == 0


def test_one_that_nobody_waits_for_any_more_is_no_trouble(open_door: Callable[..., Door]) -> None:
    door = open_door(GateLimits(workers=1))
    door(door.gate.start())
    (worker,) = door.workers()
    os.kill(worker, signal.SIGSTOP)
    begun = door.begin(door.gate.picture_bytes(samples.picture("PNG", number(1))))
    until(lambda: door.gate.metrics()["busy"] == 1)
    queued = door.begin(door.gate.picture_bytes(samples.picture("PNG", number(2))))
    until(lambda: door.gate.metrics()["waiting"] == 1)
    begun.cancel()
    queued.cancel()
    until(lambda: door.gate.metrics()["waiting"] == 0)
    os.kill(worker, signal.SIGCONT)
    assert (door.picture(samples.picture("PNG", number(3))) == 3).all()
    assert door.workers() == [worker]


def test_more_than_may_wait_are_told_to_come_again(open_door: Callable[..., Door]) -> None:
    door = open_door(GateLimits(workers=1, queue=1))
    door(door.gate.start())
    (worker,) = door.workers()
    os.kill(worker, signal.SIGSTOP)
    data = samples.picture("PNG")
    kept = [door.begin(door.gate.picture_bytes(data)) for _ in range(2)]
    until(lambda: door.gate.metrics()["waiting"] == 1)
    refusal = door.no(data)
    assert (refusal.code, refusal.status) == ("decoder_busy", 429)
    os.kill(worker, signal.SIGCONT)
    assert all(future.result(PATIENCE).shape == (40, 60, 3) for future in kept)


def test_closing_ends_what_is_under_way(open_door: Callable[..., Door]) -> None:
    door = open_door(GateLimits(workers=2))
    door(door.gate.start())
    workers = door.workers()
    for worker in workers:
        os.kill(worker, signal.SIGSTOP)
    asked = [door.begin(door.gate.picture_bytes(samples.picture("PNG"))) for _ in range(4)]
    until(lambda: door.gate.metrics()["waiting"] == 2)
    door(door.gate.aclose())
    for future in asked:
        with pytest.raises(MediaRefused, match="going down") as caught:
            future.result(PATIENCE)
        assert caught.value.status == 503
    assert not any(runs(worker) for worker in workers)
    assert door.no(samples.picture("PNG")).code == "gate_closed"
    door(door.gate.aclose())


def test_decoders_end_with_the_server(tmp_path: Path) -> None:
    code = """
        import asyncio, os
        from m27.serve.gate import Gate
        async def main():
            gate = Gate()
            await gate.start()
            print(*gate._pool.pids(), flush=True)
            os._exit(1)
        asyncio.run(main())
    """
    root = Path(decoder.__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=root, capture_output=True, text=True, timeout=PATIENCE, check=False,
    )  # fmt: skip
    pids = [int(pid) for pid in done.stdout.split()]
    assert len(pids) == 2
    until(lambda: not any(runs(pid) for pid in pids))


def test_a_decoder_has_nothing_it_does_not_need(
    open_door: Callable[..., Door], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("M27_API_KEY", "secret")
    door = open_door(GateLimits(workers=1, decode_memory=100_000_000))
    door(door.gate.start())
    (worker,) = door.workers()
    assert b"secret" not in Path(f"/proc/{worker}/environ").read_bytes()
    assert Path(f"/proc/{worker}/oom_score_adj").read_text() == "1000\n"
    rows = limits_of(worker)
    assert rows["Max file size"] == rows["Max core file size"] == ["0", "0"]
    assert rows["Max open files"] == ["16", "16"]
    assert 100_000_000 < int(rows["Max address space"][1]) < 1_000_000_000
    names = [os.readlink(fd) for fd in Path(f"/proc/{worker}/fd").iterdir()]
    assert all(name == os.devnull or name.startswith("socket:") for name in names)
    assert sum(name.startswith("socket:") for name in names) == 1
    lost = door.begin(door.gate.picture_bytes(samples.jpeg_of_scans(2000, SLOW)))
    until(lambda: forks(worker) and limits_of(forks(worker)[0])["Max cpu time"] == ["11", "12"])
    os.kill(forks(worker)[0], signal.SIGXCPU)
    with pytest.raises(MediaRefused, match="longer than 10 seconds"):
        lost.result(PATIENCE)


def limits_of(pid: int) -> dict[str, list[str]]:
    rows = Path(f"/proc/{pid}/limits").read_text().splitlines()
    return {row[:26].strip(): row[26:].split()[:2] for row in rows}


@pytest.mark.parametrize(
    "says",
    [
        "ANSWER.pack(PICTURE, 60000, 60000, 60000 * 60000 * 3)",  # beyond the limits
        "ANSWER.pack(PICTURE, 4, 4, 4 * 4 * 3 + 1) + bytes(49)",  # not what its shape makes
        "ANSWER.pack(PICTURE, 0, 0, 0)",
        "ANSWER.pack(SOUND, 4, 0, 16) + bytes(16)",  # not what was asked
        "ANSWER.pack(REFUSED, 0, 0, 1 << 40)",
        "ANSWER.pack(9, 4, 4, 48) + bytes(48)",
        "bytes(3)",
        "b''",
    ],
)
def test_a_decoder_that_lies_is_not_believed(
    open_door: Callable[..., Door], monkeypatch: pytest.MonkeyPatch, tmp_path: Path, says: str
) -> None:
    monkeypatch.setattr(sys, "executable", liar(tmp_path, says))
    door = open_door(GateLimits(workers=1))
    assert door.no(samples.picture("PNG")).code == "decoder_died"


def liar(folder: Path, says: str) -> str:
    """A program that answers every job with the same bytes, whatever the job."""
    program = folder / "liar"
    program.write_text(
        f"#!{sys.executable}\n"
        "import socket, sys\n"
        "from m27.serve.decoder import ANSWER, JOB, PICTURE, READY, REFUSED, SOUND\n"
        "link = socket.socket(fileno=int(sys.argv[4]))\n"
        "link.sendall(READY)\n"
        "link.recv(JOB.size)\n"
        f"link.sendall({says})\n"
    )
    program.chmod(program.stat().st_mode | stat.S_IXUSR)
    return str(program)


def test_what_a_decoder_says_is_cleaned(
    open_door: Callable[..., Door], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    says = r"ANSWER.pack(REFUSED, 0, 0, 14) + b'evil\na\r\nb\x1b[2Jc'"
    monkeypatch.setattr(sys, "executable", liar(tmp_path, says))
    door = open_door(GateLimits(workers=1))
    refusal = door.no(samples.picture("PNG"))
    assert (refusal.code, str(refusal)) == ("broken_media", "a??b?[2Jc")


@pytest.mark.parametrize("program", ["/bin/false", "/nonexistent"])
def test_without_a_decoder_the_gate_says_so(
    open_door: Callable[..., Door], monkeypatch: pytest.MonkeyPatch, program: str
) -> None:
    door = open_door()
    monkeypatch.setattr(sys, "executable", program)
    with pytest.raises(MediaRefused, match="no decoder could be started") as caught:
        door(door.gate.start())
    assert (caught.value.code, caught.value.status) == ("decoder_unavailable", 503)
    assert door.no(samples.picture("PNG")).code == "decoder_unavailable"
    monkeypatch.undo()
    assert door.picture(samples.picture("PNG")).shape == (40, 60, 3)


def test_limits_hold_before_and_after_decoding(open_door: Callable[..., Door]) -> None:
    limits = GateLimits(
        file_bytes=4000, pixels=2400, decoded_bytes=13_000, seconds=0.2, samples=3880, formats=("PNG", "BMP", "WAV"),
        media=2, workers=1,
    )  # fmt: skip
    door = open_door(limits)
    fine = samples.picture("PNG")
    assert door.picture(fine).nbytes == 7200
    assert len(door.sound(media.wav_bytes(samples.tone(0.1)))) == 1600
    for data in (bytes(4001), data_url(bytes(4001)), samples.picture("PNG", samples.gradient(40, 61))):
        assert door.no(data).status == 413
    assert "GIF is not accepted" in str(door.no(samples.gif((4, 4), (1, 1))))
    assert "longer than 0.2 seconds" in str(door.no(samples.wav(bytes(3900), width=1), "sound"))
    assert "more than 3880 samples" in str(door.no(samples.wav(bytes(3900), width=1, rate=48_000), "sound"))
    many = samples.wav(bytes(3840), channels=3, width=1, rate=48_000)
    assert len(door.sound(many)) == 427
    door.gate.check_count(2)
    with pytest.raises(MediaRefused, match="3 pictures and sounds") as caught:
        door.gate.check_count(3)
    assert caught.value.code == "too_many_media"


@pytest.mark.parametrize(
    "wrong", [{"workers": 0}, {"queue": -1}, {"seconds": 0.0}, {"decode_seconds": float("nan")}, {"formats": ("SVG",)}]
)
def test_limits_that_make_no_sense_are_refused(wrong: dict[str, object]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        GateLimits(**wrong)


@pytest.mark.parametrize(
    ("url", "code"),
    [
        ("", "bad_url"),
        ("cat.png", "bad_url"),
        ("/etc/passwd", "bad_url"),
        ("file:///etc/passwd", "bad_url"),
        ("ftp://example.org/a.png", "bad_url"),
        ("javascript:alert(1)", "bad_url"),
        ("blob:http://x/1", "bad_url"),
        ("http://example.org/a.png", "url_not_allowed"),
        ("data:;base64,", "empty_media"),
        ("data:;base64,====", "bad_encoding"),
        ("data:;base64,\n", "empty_media"),
        ("data:,abc", "bad_encoding"),
    ],
)
def test_other_addresses_are_refused(door: Door, url: str, code: str) -> None:
    assert door.no(url).code == code


@pytest.mark.parametrize("format", ["pcm16", "opus", "aac", "", "x" * 1000, "/etc/passwd\n"])
def test_other_names_of_sounds_are_refused(door: Door, format: str) -> None:
    with pytest.raises(MediaRefused, match="sounds are wav, flac, ogg, mp3") as caught:
        door(door.gate.sound(base64.b64encode(samples.sound("WAV")).decode(), format))
    assert len(str(caught.value)) < 100


def test_a_job_may_come_while_the_gate_starts(open_door: Callable[..., Door]) -> None:
    door = open_door(GateLimits(workers=1))

    async def both() -> np.ndarray:
        picture, _ = await asyncio.gather(door.gate.picture_bytes(samples.picture("PNG")), door.gate.start())
        return picture

    async def other_way() -> np.ndarray:
        _, picture = await asyncio.gather(door.gate.start(), door.gate.picture_bytes(samples.picture("PNG")))
        return picture

    assert door(both()).shape == door(other_way()).shape == (40, 60, 3)
    door = open_door(GateLimits(workers=1))
    assert door(other_way()).shape == (40, 60, 3)
    assert len(door.workers()) == 1


def test_what_the_gate_did_is_counted(open_door: Callable[..., Door]) -> None:
    door = open_door(GateLimits(workers=1))
    door.picture(samples.picture("PNG"))
    door.sound(samples.sound("WAV"))
    door.no(b"")
    door.no(b"<svg/>")
    door.no(data_url(b"<svg/>"))
    counts = door.gate.metrics()
    assert counts["decoded"] == {"image": 1, "audio": 1}
    assert all(0 < seconds < PATIENCE for seconds in counts["seconds"].values())
    assert counts["refused"] == {"empty_media": 1, "unsupported_format": 2}
    assert (counts["replaced"], counts["workers"], counts["busy"], counts["waiting"]) == (0, 1, 0, 0)
