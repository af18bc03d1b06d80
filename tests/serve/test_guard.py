"""Who may ask, from where, how much: keys, Host, origins, sizes, depths, and what is said to whom."""

import http.client
import json
import socket
from contextlib import suppress
from pathlib import Path

import pytest

from m27.serve.auth import Keys, KeysError, load_keys
from m27.serve.errors import ApiError, clean
from m27.serve.settings import Settings, SettingsError, check_exposure, is_loopback
from tests.serve import live
from tests.serve.live import CHAT, Live

KEY, OTHER = "sk-0123456789abcdef", "sk-fedcba9876543210"
OPEN = {"/health", "/openapi.json"}


@pytest.fixture(scope="module")
def keyed() -> Live:
    settings = Settings(name="tiny", drain_seconds=1)
    keys = load_keys(settings, None, f"{KEY},{OTHER}")
    with live.running(settings=settings, keys=keys) as running:
        yield running


def bearer(key: str) -> dict[str, str]:
    return {"Authorization": f"Bearer {key}"}


def walked(server: Live) -> list[tuple[str, str]]:
    document = server.ask("GET", "/openapi.json").json
    known = [(m.upper(), path.replace("{name}", "tiny")) for path, ms in document["paths"].items() for m in ms]
    return [*known, ("GET", "/nowhere"), ("POST", "/v1"), ("GET", "//v1/models"), ("GET", "/v1/../v1/models")]


def test_every_route_without_a_key(keyed: Live) -> None:
    seen = 0
    for method, path in walked(keyed):
        if path in OPEN:
            assert keyed.ask(method, path).status == 200
            continue
        seen += 1
        for headers in ({}, bearer("sk-wrong0000000000"), {"Authorization": f"Basic {KEY}"}, bearer("")):
            answer = keyed.ask(method, path, {} if method == "POST" else None, headers)
            assert answer.status == 401, (path, answer.body)
            assert answer.headers["www-authenticate"] == "Bearer"
            assert answer.error["type"] == "authentication_error"
    assert seen >= 10


def test_a_host_header_opens_no_door(keyed: Live) -> None:
    """What a proxy or a framework makes of the Host must not decide which path is checked."""
    for host in ("127.0.0.1/health?", "localhost:8000/health", "a@127.0.0.1", "127.0.0.1\\health", ""):
        connection = keyed.connect()
        connection.putrequest("GET", "/v1/models", skip_host=True)
        connection.putheader("Host", host)
        connection.endheaders()
        assert live.Answer(connection.getresponse()).status in (400, 401, 403)
        connection.close()


def test_with_a_key(keyed: Live) -> None:
    for key in (KEY, OTHER):
        assert keyed.ask("GET", "/v1/models", headers=bearer(key)).status == 200
    assert keyed.ask("GET", "/metrics", headers=bearer(KEY)).status == 200


def test_tenants_do_not_find_each_other_s_prompts(keyed: Live) -> None:
    messages = [{"role": "user", "content": "a secret of many words " * 8}]
    body = {"messages": messages, "max_tokens": 2, "modalities": ["text"]}

    def found(key: str) -> int:
        usage = keyed.ask("POST", CHAT, body, bearer(key)).json["usage"]
        return usage["prompt_tokens_details"]["cached_tokens"]

    assert found(KEY) == 0
    assert found(KEY) > 0
    assert found(OTHER) == 0


@pytest.mark.parametrize("host", ["evil.example", "evil.example:8000", "127.0.0.1.evil.example", "10.0.0.1", "[::2]"])
def test_another_host_is_refused(server: Live, host: str) -> None:
    """DNS rebinding: a page of somebody's whose name now leads here."""
    for method, path in walked(server):
        answer = server.ask(method, path, {} if method == "POST" else None, {"Host": host})
        assert answer.status == 403 and answer.error["code"] == "host_not_allowed"


@pytest.mark.parametrize("host", ["localhost", "LOCALHOST:1", "127.0.0.1:99", "[::1]:8000"])
def test_its_own_names_are_taken(server: Live, host: str) -> None:
    assert server.ask("GET", "/health", headers={"Host": host}).status == 200


def test_pages_of_other_origins_may_not_ask(server: Live) -> None:
    for origin in ("http://evil.example", "null", f"http://127.0.0.1:{server.port + 1}"):
        answer = server.ask("POST", CHAT, {}, {"Origin": origin})
        assert answer.status == 403 and answer.error["code"] == "origin_not_allowed"
        preflight = server.ask("OPTIONS", CHAT, None, {"Origin": origin, "Access-Control-Request-Method": "POST"})
        assert preflight.status == 403
        assert "access-control-allow-origin" not in preflight.headers
    assert server.ask("POST", CHAT, {}, {"Origin": server.url}).status == 400


def test_an_allowed_origin_may() -> None:
    settings = Settings(name="tiny", origins=("https://app.example",))
    with live.running(settings=settings) as server:
        head = {"Origin": "https://app.example"}
        preflight = server.ask("OPTIONS", CHAT, None, {**head, "Access-Control-Request-Method": "POST"})
        assert preflight.status == 204
        answer = server.ask("GET", "/v1/models", headers=head)
        assert answer.headers["access-control-allow-origin"] == "https://app.example"


def test_simple_forms_of_a_page_are_no_json(server: Live) -> None:
    """A browser sends these without asking first."""
    body = json.dumps({"messages": [{"role": "user", "content": "x"}]}).encode()
    for kind in ("text/plain", "application/x-www-form-urlencoded", ""):
        assert server.ask("POST", CHAT, body, {"Content-Type": kind}).status == 415


def memory() -> int:
    return int(Path("/proc/self/statm").read_text().split()[1]) * 4096


@pytest.mark.skipif(not Path("/proc/self/statm").exists(), reason="needs /proc")
@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_of_a_gigabyte_is_not_kept(server: Live, chunked: bool) -> None:
    size, piece = 1_000_000_000, b"[" + b" " * 65_535
    before, most = memory(), 0
    connection = socket.create_connection(("127.0.0.1", server.port), timeout=60)
    head = f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
    head += "Transfer-Encoding: chunked\r\n\r\n" if chunked else f"Content-Length: {size}\r\n\r\n"
    connection.sendall(head.encode())
    framed = b"10000\r\n" + piece + b"\r\n" if chunked else piece
    try:
        for _ in range(size // len(piece)):
            connection.sendall(framed)
            most = max(most, memory())
    except OSError:
        pass  # it has heard enough
    said = b""
    try:
        while data := connection.recv(65_536):
            said += data
    except ConnectionResetError:
        pass
    connection.close()
    assert said.startswith(b"HTTP/1.1 413 ")
    assert b"body_too_large" in said
    assert most - before < 100_000_000
    assert server.ask("GET", "/health").status == 200
    assert server.server.bodies.held == 0


def test_deep_json_is_refused_before_it_is_parsed(server: Live) -> None:
    objects = b'{"messages":' * 10_000 + b"1" + b"}" * 10_000
    for body in (b"[" * 10_000 + b"]" * 10_000, objects, b"[" * 5_000_000):
        answer = server.ask("POST", CHAT, body, {"Content-Type": "application/json"})
        assert answer.status == 400 and answer.error["code"] == "too_deep"
    many = server.ask("POST", CHAT, b"[" + b"[]," * 5_000_000 + b"0]", {"Content-Type": "application/json"})
    assert many.status == 400 and many.error["code"] == "too_many_values"
    brackets = server.chat("[" * 10_000, modalities=["text"], max_tokens=1)
    assert "nested" not in brackets.body.decode()  # in a string they are text


BROKEN = [b"", b"{", b"\xff\xfe{}", b'{"a": NaN}', b"1" * 10_000, b'{"seed": 1e999}', b"nul\x00"]


@pytest.mark.parametrize("body", BROKEN)
def test_what_is_no_json(server: Live, body: bytes) -> None:
    answer = server.ask("POST", CHAT, body, {"Content-Type": "application/json"})
    assert answer.status == 400, answer.body


def test_a_body_that_does_not_come(server: Live) -> None:
    settings = Settings(name="tiny", body_seconds=0.3, drain_seconds=1)
    with live.running(settings=settings) as slow:
        connection = socket.create_connection(("127.0.0.1", slow.port), timeout=30)
        connection.sendall(f"POST {CHAT} HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\n"
                           "Content-Length: 100\r\n\r\n{".encode())  # fmt: skip
        assert connection.recv(65_536).startswith(b"HTTP/1.1 408 ")
        connection.close()


def test_bodies_held_at_once_have_a_budget() -> None:
    settings = Settings(name="tiny", buffered_bytes=1_000, drain_seconds=1)
    with live.running(settings=settings) as server:
        answer = server.chat("x" * 2_000)
        assert answer.status == 429 and answer.error["code"] == "too_many_bytes"
        assert int(answer.headers["retry-after"]) >= 1
        assert server.chat("x", modalities=["text"], max_tokens=2).status == 200


def test_too_much_text_and_too_many_media(server: Live) -> None:
    answer = server.chat("x" * 300_000)
    assert (answer.status, answer.error["code"]) == (400, "too_long")
    part = {"type": "image_url", "image_url": {"url": "data:,"}}
    assert server.chat([part] * 40).error["code"] == "too_many_media"
    many = [{"role": "user", "content": "x"}] * 300
    assert server.chat(many).error["param"] == "messages"


def test_ids_are_echoed_where_they_are_plain(server: Live) -> None:
    assert server.ask("GET", "/health", headers={"X-Request-Id": "abc-1.2_3"}).headers["x-request-id"] == "abc-1.2_3"
    for wrong in ("a b", "x" * 65, "a;b", ""):
        given = server.ask("GET", "/health", headers={"X-Request-Id": wrong}).headers["x-request-id"]
        assert given.startswith("req_") and given != wrong


def test_every_answer_forbids_sniffing(server: Live) -> None:
    for path in ("/health", "/nowhere", "/v1/models"):
        headers = server.ask("GET", path).headers
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"


def test_a_key_s_own_limits() -> None:
    settings = Settings(name="tiny", requests_a_minute=2, drain_seconds=1)
    keys = load_keys(settings, None, f"{KEY},{OTHER}")
    with live.running(settings=settings, keys=keys) as server:
        for _ in range(2):
            assert server.ask("GET", "/v1/models", headers=bearer(KEY)).status == 200
        refused = server.ask("GET", "/v1/models", headers=bearer(KEY))
        assert refused.status == 429 and refused.error["code"] == "rate_limit_exceeded"
        assert 1 <= int(refused.headers["retry-after"]) <= 30
        assert server.ask("GET", "/v1/models", headers=bearer(OTHER)).status == 200


def test_rates_recover_and_concurrency_is_counted() -> None:
    now = [0.0]
    keys = Keys([], rpm=60, concurrent=1, clock=lambda: now[0])
    key = keys.find(None)
    with keys.admitted(key), pytest.raises(ApiError, match="under way"), keys.admitted(key):
        pass
    for _ in range(59):
        with keys.admitted(key):
            pass
    with pytest.raises(ApiError) as caught, keys.admitted(key):
        pass
    assert caught.value.status == 429 and caught.value.retry_after == pytest.approx(1.0)
    now[0] += 1.1
    with keys.admitted(key):
        pass


def test_a_file_of_keys(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"# ours\nann {KEY} rpm=5 body=1000\n\nbob {OTHER}  # his\n")
    keys = load_keys(Settings(), file, None)
    ann = keys.find(f"Bearer {KEY}")
    assert (ann.name, ann.rpm, ann.body) == ("ann", 5, 1000)
    assert KEY.encode() not in ann.digest and len(ann.tenant) == 16
    assert keys.find(f"bearer {OTHER}").tenant != ann.tenant
    for text in ("ann", f"ann {KEY} speed=9", "ann short", f"a {KEY}\nb {KEY}", f"a {KEY}\na {OTHER}", "# none\n"):
        file.write_text(text)
        with pytest.raises(KeysError) as caught:
            load_keys(Settings(), file, None)
        assert KEY not in str(caught.value)
    with pytest.raises(KeysError, match="cannot be read"):
        load_keys(Settings(), tmp_path / "none", None)


def test_a_public_address_needs_a_key_or_force() -> None:
    for host in ("0.0.0.0", "::", "192.168.1.5", "example.org"):
        with pytest.raises(SettingsError, match="--force"):
            check_exposure(Settings(host=host), 0, False)
        check_exposure(Settings(host=host), 1, False)
        check_exposure(Settings(host=host), 0, True)
    for host in ("127.0.0.1", "::1", "localhost", "127.0.0.9"):
        assert is_loopback(host)
        check_exposure(Settings(host=host), 0, False)


def test_messages_show_nothing_of_the_process() -> None:
    assert clean("<x at 0x7f0012ab> in /home/a/b.py\n  line 2") == "<x at …> in … line 2"


def test_a_key_with_a_smaller_body(tmp_path: Path) -> None:
    file = tmp_path / "keys"
    file.write_text(f"ann {KEY} body=500")
    settings = Settings(name="tiny", drain_seconds=1)
    with live.running(settings=settings, keys=load_keys(settings, file, None)) as server:
        body = {"messages": [{"role": "user", "content": "x" * 600}]}
        assert server.ask("POST", CHAT, body, bearer(KEY)).status == 413


def test_many_connections_that_say_nothing(server: Live) -> None:
    """They cost nothing, and others are answered meanwhile."""
    idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(50)]
    assert server.ask("GET", "/health").status == 200
    for connection in idle:
        connection.close()


def test_headers_have_a_limit(server: Live) -> None:
    # The connection may be closed before all of it has been sent.
    with suppress(http.client.HTTPException, OSError):
        assert server.ask("GET", "/health", headers={"X-Long": "a" * 200_000}).status in (400, 431)
    assert server.ask("GET", "/health").status == 200
