"""fetch.py: what is asked of the network, against a server of the test's own."""

import asyncio
import shutil
import ssl
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from m27.serve.gate import GateLimits, MediaRefused
from tests.serve import samples
from tests.serve.conftest import Door, plain

PNG = samples.picture("PNG")


def answer(body: bytes, *lines: str, status: str = "200 OK") -> bytes:
    head = [f"HTTP/1.1 {status}", *lines, "", ""]
    return "\r\n".join(head).encode() + body


def whole(body: bytes, *lines: str, status: str = "200 OK") -> bytes:
    return answer(body, f"Content-Length: {len(body)}", *lines, status=status)


class Site:
    """A server at 127.0.0.1 under the name of `pictures.test`, the paths it was asked, and the dialling."""

    def __init__(self, open_door: Callable[..., Door], trust: ssl.SSLContext | None = None, **limits: object) -> None:
        self.pages: dict[str, bytes] = {}
        self.asked: list[bytes] = []
        self.resolved: list[str] = []
        here, inner = "127.0.0.1", "10.0.0.1"
        self.names = {"pictures.test": [here], "inner.test": [inner], "both.test": [here, inner]}
        loop_door = open_door()
        self.server = loop_door(asyncio.start_server(self._serve, "127.0.0.1", 0, ssl=trust))
        self.port = self.server.sockets[0].getsockname()[1]
        self.stop = lambda: loop_door.loop.call_soon_threadsafe(self.server.close)

    def limits(self, **others: object) -> GateLimits:
        settings = {"fetch": True, "fetch_ports": (self.port,), "fetch_seconds": 20.0, "workers": 1, **others}
        return GateLimits(**settings)

    async def resolve(self, host: str, port: int) -> list[str]:
        self.resolved.append(host)
        if host not in self.names:
            raise OSError("no such name")
        return self.names[host]

    def url(self, path: str = "/", host: str = "pictures.test", scheme: str = "http") -> str:
        return f"{scheme}://{host}:{self.port}{path}"

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
            self.asked.append(head)
            path = head.split()[1].decode()
            if path == "/slow":
                await asyncio.sleep(30)
            writer.write(self.pages.get(path, whole(b"none", status="404 Not Found")))
            while path == "/endless":
                writer.write(bytes(65_536))
                await writer.drain()
            while path == "/headers":
                writer.write(b"X: " + bytes(b"y" * 1000) + b"\r\n")
                await writer.drain()
            await writer.drain()
        except (OSError, asyncio.IncompleteReadError):
            pass
        finally:
            writer.transport.abort()


@pytest.fixture
def site(open_door: Callable[..., Door]) -> Iterator[Site]:
    site = Site(open_door)
    yield site
    site.stop()


@pytest.fixture
def fetching(site: Site, open_door: Callable[..., Door]) -> Door:
    return open_door(site.limits(), resolve=site.resolve, allowed=lambda ip: str(ip) == "127.0.0.1")


def test_nothing_is_fetched_unless_asked_for(site: Site, open_door: Callable[..., Door]) -> None:
    door = open_door(GateLimits(fetch_ports=(site.port,)), resolve=site.resolve, allowed=lambda ip: True)
    refusal = door.no(site.url("/a.png"))
    assert refusal.code == "url_not_allowed"
    assert "data URL" in str(refusal)
    assert (site.asked, site.resolved) == ([], [])


def test_a_picture_is_fetched_and_judged_by_its_bytes(site: Site, fetching: Door) -> None:
    site.pages["/a?b"] = whole(PNG, "Content-Type: text/html")
    assert np.array_equal(fetching.picture(site.url("/a?b")), samples.gradient())
    (head,) = site.asked
    assert head.startswith(b"GET /a?b HTTP/1.1\r\n")
    assert f"host: pictures.test:{site.port}\r\n".encode() in head.lower()
    for secret in (b"cookie", b"authorization", b"referer"):
        assert secret not in head.lower()
    site.pages["/x.png"] = whole(b"<svg xmlns='x'/>", "Content-Type: image/png")
    assert "SVG" in str(fetching.no(site.url("/x.png")))
    assert fetching.gate.metrics()["fetched"] == {"files": 2, "bytes": len(PNG) + 16}


def test_chunks_and_bodies_without_a_length(site: Site, fetching: Door) -> None:
    pieces = [PNG[at : at + 50] for at in range(0, len(PNG), 50)]
    chunks = b"".join(b"%x\r\n%s\r\n" % (len(p), p) for p in pieces) + b"0\r\n\r\n"
    site.pages["/chunks"] = answer(chunks, "Transfer-Encoding: chunked")
    site.pages["/open"] = answer(PNG)
    for path in site.pages:
        assert np.array_equal(fetching.picture(site.url(path)), samples.gradient())


def test_redirects_are_followed_a_few_times(site: Site, fetching: Door) -> None:
    site.pages["/end"] = whole(PNG)
    for number, status in enumerate(("301 a", "302 b", "307 c", "308 d")):
        where = "/end" if not number else f"/{number - 1}"
        site.pages[f"/{number}"] = whole(b"", f"Location: {where}", status=status)
    assert fetching.picture(site.url("/2")).shape == (40, 60, 3)
    assert site.resolved == ["pictures.test"] * 4  # once a hop
    assert "redirects" in str(fetching.no(site.url("/3")))


@pytest.mark.parametrize(
    ("where", "code"),
    [
        ("http://inner.test:{port}/", "url_not_allowed"),
        ("http://both.test:{port}/", "url_not_allowed"),
        ("http://10.0.0.1:{port}/", "url_not_allowed"),
        ("http://[::1]:{port}/", "url_not_allowed"),
        ("//169.254.169.254:{port}/latest", "url_not_allowed"),
        ("http://pictures.test:22/", "url_not_allowed"),
        ("http://2130706433:{port}/", "bad_url"),
        ("http://x@pictures.test:{port}/", "bad_url"),
        ("http:\\\\10.0.0.1:{port}/", "bad_url"),
        ("file:///etc/passwd", "bad_url"),
        ("gopher://pictures.test:{port}/", "bad_url"),
        ("data:image/png;base64,QUJD", "bad_url"),
        ("", "fetch_failed"),
        ("\xe9", "fetch_failed"),
    ],
)
def test_each_redirect_is_checked_from_the_beginning(site: Site, fetching: Door, where: str, code: str) -> None:
    location = f"Location: {where.format(port=site.port)}"
    site.pages["/"] = answer(b"", status="302 Found\r\n" + location).decode().encode("latin-1")
    assert fetching.no(site.url()).code == code
    assert len(site.asked) == 1


def test_a_name_that_changes_its_answer_is_dialled_where_it_was_checked(
    site: Site, open_door: Callable[..., Door]
) -> None:
    answers = iter([["127.0.0.1"], ["10.0.0.1"], ["10.0.0.1"]])

    async def resolve(host: str, port: int) -> list[str]:
        return next(answers)

    site.pages["/"] = whole(PNG)
    door = open_door(site.limits(), resolve=resolve, allowed=lambda ip: str(ip) == "127.0.0.1")
    assert door.picture(site.url()).shape == (40, 60, 3)
    assert door.no(site.url()).code == "url_not_allowed"


@pytest.mark.parametrize("host", ["inner.test", "both.test", "nowhere.test", "127.0.0.2", "[::1]", "a" * 70])
def test_where_not_all_addresses_are_allowed_nothing_is_dialled(site: Site, fetching: Door, host: str) -> None:
    refusal = fetching.no(site.url(host=host))
    assert refusal.code == "url_not_allowed"
    assert str(refusal) == "the address is not that of a public server"  # does not tell which names exist
    assert site.asked == []


def test_more_than_the_bytes_allowed_is_not_read(site: Site, open_door: Callable[..., Door]) -> None:
    limits = site.limits(fetch_bytes=100_000)
    door = open_door(limits, resolve=site.resolve, allowed=lambda ip: True)
    site.pages["/stated"] = answer(b"", "Content-Length: 100001")
    site.pages["/endless"] = answer(b"")
    tiny = b"1\r\n\0\r\n" * 99_000
    site.pages["/tiny"] = answer(tiny, "Transfer-Encoding: chunked")
    site.pages["/headers"] = b"HTTP/1.1 200 OK\r\n"
    assert door.no(site.url("/stated")).status == 413
    assert door.no(site.url("/endless")).code == "media_too_large"
    for path in ("/tiny", "/headers"):
        assert door.no(site.url(path)).code == "fetch_failed"


def test_what_does_not_come_in_time_is_given_up(site: Site, open_door: Callable[..., Door]) -> None:
    door = open_door(site.limits(fetch_seconds=0.2), resolve=site.resolve, allowed=lambda ip: True)
    assert "within 0.2 seconds" in str(door.no(site.url("/slow")))

    async def stuck(host: str, port: int) -> list[str]:
        await asyncio.sleep(30)
        return []

    door = open_door(site.limits(fetch_seconds=0.2), resolve=stuck)
    assert door.no(site.url("/slow")).code == "fetch_failed"


@pytest.mark.parametrize(
    "page",
    [
        whole(PNG, status="404 Not Found"),
        whole(PNG, status="204 No Content"),
        whole(PNG, "Content-Encoding: gzip"),
        answer(PNG, f"Content-Length: {len(PNG) + 5}"),
        answer(PNG, "Content-Length: -1"),
        answer(PNG, "Content-Length: 5", "Content-Length: 6"),
        answer(b"zz\r\n", "Transfer-Encoding: chunked"),
        b"SSH-2.0-x\r\n",
        b"",
        b"HTTP/1.1 200 OK\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\n\r\n",
    ],
)
def test_other_answers_are_failures_of_one_line(site: Site, fetching: Door, page: bytes) -> None:
    site.pages["/"] = page
    assert fetching.no(site.url()).code == "fetch_failed"


def test_nobody_there(site: Site, fetching: Door) -> None:
    site.stop()
    for _ in range(50):
        refusal = fetching.no(site.url())
        if "reached" in str(refusal):
            break
    assert "cannot be reached" in str(refusal)


@pytest.mark.skipif(shutil.which("openssl") is None, reason="needs openssl to make a certificate")
def test_https_asks_for_a_certificate_of_that_name(open_door: Callable[..., Door], tmp_path: Path) -> None:
    key, cert = tmp_path / "key", tmp_path / "cert"
    command = "openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=x".split()
    names = ["-addext", "subjectAltName=DNS:pictures.test", "-keyout", str(key), "-out", str(cert)]
    subprocess.run([*command, *names], check=True, capture_output=True, timeout=60)
    server = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    server.load_cert_chain(cert, key)
    site = Site(open_door, server)
    site.names["other.test"] = ["127.0.0.1"]
    site.pages["/"] = whole(PNG)
    site.pages["/down"] = whole(b"", f"Location: {site.url()}", status="302 Found")
    options = {"resolve": site.resolve, "allowed": lambda ip: True}
    trusting = open_door(site.limits(), trust=ssl.create_default_context(cafile=cert), **options)
    assert trusting.picture(site.url(scheme="https")).shape == (40, 60, 3)
    assert "away from https" in str(trusting.no(site.url("/down", scheme="https")))
    for door, host in ((trusting, "other.test"), (open_door(site.limits(), **options), "pictures.test")):
        with pytest.raises(MediaRefused, match="certificate") as caught:
            door.picture(site.url(host=host, scheme="https"))
        plain(str(caught.value))
    site.stop()
