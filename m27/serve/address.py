"""Which addresses may be fetched from: http(s) addresses of public machines, strictly written.

Written by the grammar below or refused, so that no other reader of the same text can take it for
another host. Numbers that other programs read as IPv4 (decimal, octal, hex, short forms) are refused.
Opens nothing and resolves nothing.
"""

from __future__ import annotations

import ipaddress
import re
from dataclasses import dataclass

from m27.serve.limits import MediaRefused

IP = ipaddress.IPv4Address | ipaddress.IPv6Address
PORTS = {"http": 80, "https": 443}
MAX_URL = 2048
_URL = re.compile(
    r"(?P<scheme>https?)://(?P<host>\[[0-9a-f:.]{2,45}\]|[a-z0-9._-]{1,253})(?::(?P<port>[0-9]{1,5}))?"
    r"(?P<target>(?:/[!-~]*)?(?:\?[!-~]*)?)",
    re.IGNORECASE | re.ASCII,
)
_NUMBER = re.compile(r"(0x[0-9a-f]*|[0-9]+)", re.IGNORECASE | re.ASCII)

# What `is_global` of some Python version lets through, and what carries another address in itself.
_CLOSED = tuple(
    ipaddress.ip_network(text)
    for text in (
        "0.0.0.0/8", "100.64.0.0/10", "169.254.0.0/16", "192.0.0.0/24", "192.88.99.0/24",
        "198.18.0.0/15", "224.0.0.0/3",
        "168.63.129.16/32",  # the metadata of Azure, at a public address
        "2001::/23", "2001:db8::/32", "2002::/16", "3fff::/20",
    )
)  # fmt: skip
_UNICAST = ipaddress.ip_network("2000::/3")  # all of IPv6 that is given out


@dataclass(frozen=True)
class Address:
    """A checked http(s) address: `host` in small letters, without brackets; `target` from the path on."""

    scheme: str
    host: str
    port: int
    target: str

    @property
    def literal(self) -> IP | None:
        """The host where it is an IP address itself."""
        try:
            return ipaddress.ip_address(self.host)
        except ValueError:
            return None

    @property
    def authority(self) -> str:
        """As in a Host header."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port == PORTS[self.scheme] else f"{host}:{self.port}"


def public(ip: IP) -> bool:
    """Whether it is a machine's address on the public internet.

    Not loopback, private, link-local (where clouds keep their metadata), shared, multicast, reserved or
    for documentation; and no IPv6 that means an IPv4 address: mapped, compatible, 6to4, Teredo, NAT64.
    """
    if not ip.is_global or ip.is_multicast or ip.is_reserved or ip.is_unspecified:
        return False
    if ip.version == 6 and ip not in _UNICAST:
        return False
    return not any(ip in network for network in _CLOSED if network.version == ip.version)


def parse(url: str, ports: tuple[int, ...]) -> Address:
    """The address that `url` writes; a fragment is dropped. Raises MediaRefused ("bad_url")."""
    if len(url) > MAX_URL:
        raise _bad(f"is longer than {MAX_URL} characters")
    if "\\" in url:
        raise _bad("holds a backslash")
    if "@" in re.split(r"[/?#]", url.partition("//")[2], maxsplit=1)[0]:
        raise _bad("holds a name or password")
    found = _URL.fullmatch(url.partition("#")[0])
    if not found:
        raise _bad("is not a plain http or https address")
    scheme, host = found["scheme"].lower(), found["host"].lower()
    port = int(found["port"] or PORTS[scheme])
    if port not in ports:
        raise MediaRefused(f"the address asks for port {port}, which is not allowed", "url_not_allowed")
    try:
        if host.startswith("["):
            host = str(ipaddress.IPv6Address(host[1:-1]))
        elif _NUMBER.fullmatch(host.rstrip(".").rpartition(".")[2]):
            host = str(ipaddress.IPv4Address(host))
    except ValueError:
        raise _bad("writes its host as a number that is no IP address") from None
    target = found["target"]
    return Address(scheme, host, port, target if target.startswith("/") else "/" + target)


def _bad(what: str) -> MediaRefused:
    return MediaRefused(f"the address {what}", "bad_url")
