"""address.py: which addresses may be fetched from, and how strictly they must be written."""

import ipaddress

import pytest

from m27.serve.address import parse, public
from m27.serve.limits import MediaRefused

PORTS = (80, 443)


@pytest.mark.parametrize(
    ("url", "host", "port", "target", "authority"),
    [
        ("http://example.org", "example.org", 80, "/", "example.org"),
        ("HTTPS://Example.ORG/a/b.png?x=1&y=%20#part", "example.org", 443, "/a/b.png?x=1&y=%20", "example.org"),
        ("http://example.org?x", "example.org", 80, "/?x", "example.org"),
        ("http://example.org:443/", "example.org", 443, "/", "example.org:443"),
        ("https://example.org:443/a@b", "example.org", 443, "/a@b", "example.org"),
        ("http://8.8.8.8/", "8.8.8.8", 80, "/", "8.8.8.8"),
        ("http://[2606:4700::0:1]/x", "2606:4700::1", 80, "/x", "[2606:4700::1]"),
    ],
)
def test_plain_addresses_are_read(url: str, host: str, port: int, target: str, authority: str) -> None:
    address = parse(url, PORTS)
    assert (address.host, address.port, address.target, address.authority) == (host, port, target, authority)
    assert (address.literal is not None) == (host[0] in "28")


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://user@example.org/", "name or password"),
        ("http://user:secret@example.org/", "name or password"),
        ("http://example.org@10.0.0.1/", "name or password"),
        ("http://example.org\\@10.0.0.1/", "backslash"),
        ("http:\\\\example.org/", "backslash"),
        ("http://example.org/\\..", "backslash"),
        ("http:///x", "not a plain"),
        ("http:/example.org", "not a plain"),
        ("http:example.org", "not a plain"),
        ("//example.org/x", "not a plain"),
        ("http://", "not a plain"),
        ("http://exa mple.org/", "not a plain"),
        ("http://example.org/a b", "not a plain"),
        (" http://example.org/", "not a plain"),
        ("http://example.org/\r\nX: y", "not a plain"),
        ("http://example.org\t/", "not a plain"),
        ("http://exämple.org/", "not a plain"),
        ("http://①②⑦.⓪.⓪.①/", "not a plain"),
        ("http://example。org/", "not a plain"),
        ("http://%31%30.0.0.1/", "not a plain"),
        ("http://example.org:/", "not a plain"),
        ("http://example.org:x/", "not a plain"),
        ("http://example.org:80:80/", "not a plain"),
        ("http://[::1/", "not a plain"),
        ("http://[fe80::1%25eth0]/", "not a plain"),
        ("http://[::1]x/", "not a plain"),
        ("http://[example.org]/", "not a plain"),
        ("http://[:::]/", "no IP address"),
        ("http://[1.2.3.4]/", "no IP address"),
        ("http://2130706433/", "no IP address"),
        ("http://0x7f000001/", "no IP address"),
        ("http://0x7f.0.0.1/", "no IP address"),
        ("http://017700000001/", "no IP address"),
        ("http://0177.0.0.1/", "no IP address"),
        ("http://127.0.0.01/", "no IP address"),
        ("http://127.1/", "no IP address"),
        ("http://127.0.1/", "no IP address"),
        ("http://127.0.0.1./", "no IP address"),
        ("http://1.2.3.4.5/", "no IP address"),
        ("http://256.1.1.1/", "no IP address"),
        ("http://1.2.3.0x4/", "no IP address"),
        ("http://example.0x/", "no IP address"),
        ("ftp://example.org/", "not a plain"),
        ("file:///etc/passwd", "not a plain"),
        ("gopher://example.org/", "not a plain"),
        ("javascript:alert(1)", "not a plain"),
        ("http://example.org/" + "a" * 3000, "longer than"),
    ],
)
def test_anything_else_is_refused(url: str, reason: str) -> None:
    with pytest.raises(MediaRefused, match=reason) as caught:
        parse(url, PORTS)
    assert caught.value.code == "bad_url"
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("port", [0, 22, 6379, 8080, 65535, 99999])
def test_other_ports_are_not_asked(port: int) -> None:
    with pytest.raises(MediaRefused, match=f"port {port}") as caught:
        parse(f"http://example.org:{port}/", PORTS)
    assert caught.value.code == "url_not_allowed"


@pytest.mark.parametrize(
    "ip",
    "0.0.0.0 0.1.2.3 10.0.0.1 10.255.255.255 100.64.0.1 100.100.100.200 127.0.0.1 127.255.0.1 "
    "169.254.169.254 169.254.170.2 172.16.0.1 172.31.255.255 192.0.0.1 192.0.0.9 192.0.0.192 192.0.2.1 "
    "192.88.99.1 192.168.1.1 198.18.0.1 198.51.100.1 203.0.113.1 224.0.0.1 233.252.0.1 239.255.255.255 "
    "240.0.0.1 255.255.255.255 168.63.129.16 "
    ":: ::1 ::7f00:1 ::127.0.0.1 ::ffff:127.0.0.1 ::ffff:8.8.8.8 ::ffff:0:127.0.0.1 64:ff9b::7f00:1 "
    "64:ff9b::808:808 64:ff9b:1::a00:1 100::1 2001::1 2001:0:4136:e378:8000:63bf:3fff:fdd2 2001:db8::1 "
    "2002:7f00:1:: 2002:808:808::1 3fff::1 4000::1 fc00::1 fd00:ec2::254 fe80::1 fec0::1 ff02::1 5f00::1".split(),
)
def test_inner_and_special_addresses_are_not_public(ip: str) -> None:
    assert not public(ipaddress.ip_address(ip))


@pytest.mark.parametrize(
    "ip", "1.1.1.1 8.8.8.8 93.184.215.14 172.15.0.1 172.32.0.1 2606:4700::1111 2a00:1450::1 2001:4860::8888".split()
)
def test_ordinary_addresses_are_public(ip: str) -> None:
    assert public(ipaddress.ip_address(ip))
