"""Bytes from an http(s) address: the one place of the server that opens connections outward.

A name is resolved once, every address it has must be public, and the connection goes to one of those
very addresses, so that no second answer of the name server can move it. Each redirect starts from the
beginning. Bytes and seconds are bounded; no proxy, cookie, credential or compression is used. What the
server at the other end says of the type is not read: the bytes are judged by the gate like any others.
"""

from __future__ import annotations

import asyncio
import ipaddress
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from urllib.parse import urljoin

import h11

from m27.serve.address import IP, Address, parse, public
from m27.serve.limits import GateLimits, MediaRefused

Resolve = Callable[[str, int], Awaitable[Sequence[str]]]
_MAX_TRIES = 3  # of a name's addresses
_MAX_HEAD = 32_768
_CHUNK = 65_536
_MOVED = (301, 302, 303, 307, 308)


async def resolve(host: str, port: int) -> list[str]:
    """The addresses of a name, as the system gives them. Raises OSError or UnicodeError."""
    loop = asyncio.get_running_loop()
    found = await loop.getaddrinfo(host, port, type=socket.SOCK_STREAM, proto=socket.IPPROTO_TCP)
    return list(dict.fromkeys(str(entry[4][0]) for entry in found))


class Fetcher:
    """Fetches within the limits. `resolve` and `allowed` are for tests that ask a server of their own."""

    def __init__(
        self,
        limits: GateLimits,
        resolve: Resolve = resolve,
        allowed: Callable[[IP], bool] = public,
        trust: ssl.SSLContext | None = None,
    ) -> None:
        self._limits, self._resolve, self._allowed, self._trust = limits, resolve, allowed, trust
        self._slots = asyncio.Semaphore(limits.fetches)

    async def fetch(self, url: str) -> bytes:
        """The body of the answer. Raises MediaRefused: "bad_url", "url_not_allowed", "fetch_failed" or
        "media_too_large"."""
        try:
            async with asyncio.timeout(self._limits.fetch_seconds), self._slots:
                for _ in range(self._limits.fetch_redirects + 1):
                    address = parse(url, self._limits.fetch_ports)
                    answer = await self._get(address)
                    if isinstance(answer, bytes):
                        return answer
                    url = urljoin(url, answer)
                    if address.scheme == "https" and not url.lower().startswith("https:"):
                        raise MediaRefused("a redirect leads away from https", "url_not_allowed")
        except TimeoutError:
            what = f"the address did not answer within {self._limits.fetch_seconds:g} seconds"
            raise _failed(what) from None
        raise _failed(f"more than {self._limits.fetch_redirects} redirects")

    async def _get(self, address: Address) -> bytes | str:
        """The body, or where a redirect leads."""
        async with self._connect(address) as (reader, writer):
            try:
                return await self._ask(address, reader, writer)
            except (OSError, h11.ProtocolError) as error:
                if isinstance(error, TimeoutError):
                    raise
                raise _failed("the connection broke, or what came is not HTTP") from None

    @asynccontextmanager
    async def _connect(
        self, address: Address
    ) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
        trust = None
        if address.scheme == "https":
            trust = self._trust = self._trust or ssl.create_default_context()
        for ip in (await self._allowed_addresses(address))[:_MAX_TRIES]:
            try:
                reader, writer = await asyncio.open_connection(
                    str(ip), address.port, ssl=trust, server_hostname=address.host if trust else None
                )
            except TimeoutError:
                raise
            except ssl.SSLError:
                raise _failed("the address has no certificate that is trusted") from None
            except OSError:
                continue
            try:
                yield reader, writer
            finally:
                writer.transport.abort()
                await asyncio.sleep(0)
            return
        raise _failed("the address cannot be reached")

    async def _allowed_addresses(self, address: Address) -> list[IP]:
        """Where the host is. All must be allowed: a name that has an inner address too is a trick."""
        if address.literal:
            found = [address.literal]
        else:
            try:
                texts = await self._resolve(address.host, address.port)
                found = [ipaddress.ip_address(text) for text in texts]
            except TimeoutError:
                raise
            except (OSError, UnicodeError, ValueError):
                found = []
        if not found or not all(self._allowed(ip) for ip in found):
            # One message for both: else names of the inner network could be tried out.
            raise MediaRefused("the address is not that of a public server", "url_not_allowed")
        return found

    async def _ask(
        self, address: Address, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> bytes | str:
        link = h11.Connection(h11.CLIENT, max_incomplete_event_size=_MAX_HEAD)
        headers = [
            ("Host", address.authority), ("User-Agent", "m27"), ("Accept", "*/*"),
            ("Accept-Encoding", "identity"), ("Connection", "close"),
        ]  # fmt: skip
        request = h11.Request(method="GET", target=address.target, headers=headers)
        writer.write((link.send(request) or b"") + (link.send(h11.EndOfMessage()) or b""))
        await writer.drain()
        body, most, came = bytearray(), self._limits.fetch_bytes, 0
        while True:
            event = link.next_event()
            if event is h11.NEED_DATA:
                data = await reader.read(_CHUNK)
                came += len(data)
                if came > 2 * most + 2 * _MAX_HEAD:  # heads without end, or chunks of single bytes
                    raise _failed("the answer has more around it than in it")
                link.receive_data(data)
            elif isinstance(event, h11.Response):
                where = self._judge(event)
                if where is not None:
                    return where
            elif isinstance(event, h11.Data):
                body += event.data
                if len(body) > most:
                    raise _too_large(most)
            elif isinstance(event, h11.EndOfMessage):
                return bytes(body)
            elif isinstance(event, h11.ConnectionClosed) or event is h11.PAUSED:
                raise _failed("the connection broke")

    def _judge(self, response: h11.Response) -> str | None:
        """Where a redirect leads; None where the body is wanted."""
        headers = dict(response.headers)
        if response.status_code in _MOVED:
            where = headers.get(b"location", b"")
            if not where or not where.isascii():
                raise _failed("a redirect that leads nowhere")
            return where.decode("ascii")
        if response.status_code != 200:
            raise _failed(f"the address answers with status {response.status_code}")
        if headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise _failed("the answer is compressed, which was not asked for")
        if int(headers.get(b"content-length", b"0")) > self._limits.fetch_bytes:
            raise _too_large(self._limits.fetch_bytes)
        return None


def _failed(what: str) -> MediaRefused:
    return MediaRefused(f"fetching failed: {what}", "fetch_failed")


def _too_large(most: int) -> MediaRefused:
    return MediaRefused(f"what is at the address is larger than {most / 1e6:g} MB", "media_too_large")
