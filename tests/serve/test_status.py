"""/v1/models, /health, /metrics, /openapi.json and the playground's files."""

import re
import socket
from pathlib import Path

import pytest

from m27.infer.runner import Adapter
from m27.serve.app import POLICY, WEB, pages
from m27.serve.metrics import Metrics
from tests import tiny
from tests.infer import mixed
from tests.serve import live
from tests.serve.live import Live


def test_small_pieces_are_not_held_back(server: Live) -> None:
    """A token's piece would wait for the client to acknowledge the one before, for up to 40 ms."""
    connection = server.connect()
    connection.connect()
    try:
        connection.request("GET", "/health")
        assert connection.getresponse().read()
        links = [c.transport.get_extra_info("socket") for c in server.service.server_state.connections]
        assert links and all(link.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) for link in links)
    finally:
        connection.close()


def test_models_and_adapters() -> None:
    engine = live.engine()
    adapter: Adapter = mixed.adapter(tiny.CONFIG, "sea", 1)
    engine.add_adapter("sea", adapter)
    with live.running(engine, adapters=("sea",)) as server:
        assert [m["id"] for m in server.ask("GET", "/v1/models").json["data"]] == ["tiny", "sea"]
        assert server.ask("GET", "/v1/models/sea").json["id"] == "sea"
        assert server.ask("GET", "/v1/models/land").status == 404
        options = {"modalities": ["text"], "max_tokens": 12, "temperature": 0}
        named = server.chat("x", model="sea", **options).json
        assert named["model"] == "sea"
        asked = server.chat("x", adapter="sea", **options).json
        plain = server.chat("x", **options).json
        texts = [answer["choices"][0]["message"]["content"] for answer in (named, asked, plain)]
        assert texts[0] == texts[1] != texts[2]


def test_health(server: Live) -> None:
    answer = server.ask("GET", "/health")
    assert answer.status == 200
    body = answer.json
    assert body["status"] == "ok" and body["model"] == "tiny"
    assert body["modalities"] == ["text", "image", "audio"]


ROW = re.compile(r'^[a-z_0-9]+(\{[a-z_]+="[^"]*"(,[a-z_]+="[^"]*")*\})? -?[0-9.e+-]+$')


def test_metrics_are_prometheus_text(server: Live) -> None:
    server.chat("hello", modalities=["text"], max_tokens=3)
    answer = server.ask("GET", "/metrics")
    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    text = answer.body.decode()
    seen: set[str] = set()
    for line in text.splitlines():
        if line.startswith("# TYPE "):
            name = line.split()[2]
            assert name not in seen
            seen.add(name)
        elif not line.startswith("#"):
            assert ROW.match(line.replace("+Inf", "Inf")), line
            assert any(line.startswith(name) for name in seen), line
    wanted = """m27_requests_total m27_refused_total m27_tokens_total m27_request_seconds m27_media_seconds
        m27_time_to_first_token_seconds m27_time_per_output_token_seconds m27_engine_running m27_engine_waiting
        m27_cache_blocks m27_prefix_cache_hit_tokens_total m27_prefix_cache_query_tokens_total m27_engine_state
        m27_decoders m27_requests_in_flight m27_disconnects_total""".split()
    assert set(wanted) <= seen
    assert server.metric('m27_requests_total{route="/v1/chat/completions",status="200"}') >= 1
    assert server.metric("m27_time_to_first_token_seconds_count") >= 1


def test_a_path_of_a_stranger_s_is_no_label(server: Live) -> None:
    server.ask("GET", '/x"}evil')
    assert "evil" not in server.ask("GET", "/metrics").body.decode()


def test_tokens_are_counted_by_medium(server: Live) -> None:
    before = {m: server.metric(f'm27_tokens_total{{medium="{m}"}}') for m in ("image", "audio", "prompt")}
    usage = server.chat("x", plan=["image", "audio"], max_tokens=100, temperature=1).json["usage"]
    details = usage["completion_tokens_details"]
    for medium, count in (
        ("image", details["image_codes"]), ("audio", details["audio_codes"]), ("prompt", usage["prompt_tokens"]),
    ):  # fmt: skip
        assert server.metric(f'm27_tokens_total{{medium="{medium}"}}') - before[medium] == count


def test_histograms_are_cumulative() -> None:
    metrics = Metrics()
    for value in (0.001, 0.3, 100.0):
        metrics.observe("m27_request_seconds", value, route='a"b\\c\n')
    rows = [r for r in metrics.render({}, "ok", {}).splitlines() if r.startswith("m27_request_seconds")]
    counts = [int(row.rpartition(" ")[2]) for row in rows if "_bucket" in row]
    assert counts == sorted(counts) and counts[0] == 1 and counts[-1] == 3
    assert 'route="a\\"b\\\\c\\n"' in rows[0]


def test_every_route_and_status_is_documented(server: Live) -> None:
    document = server.ask("GET", "/openapi.json").json
    assert document["openapi"].startswith("3.")
    assert set(document["paths"]) == {
        "/v1/chat/completions", "/v1/images/generations", "/v1/images/edits", "/v1/audio/speech",
        "/v1/audio/sounds", "/v1/audio/transcriptions", "/v1/models", "/v1/models/{name}", "/health", "/metrics",
    }  # fmt: skip
    for path, methods in document["paths"].items():
        for method in methods.values():
            statuses = set(method["responses"])
            assert {"200", "400", "403", "500", "503"} <= statuses and "422" not in statuses
            if path not in ("/health",):
                assert "401" in statuses
            if "requestBody" in method:
                assert {"408", "413", "415", "429", "504"} <= statuses
    text = str(document)
    for name in re.findall(r"#/components/schemas/(\w+)", text):
        assert name in document["components"]["schemas"]


def test_only_the_playground_s_files_are_served(tmp_path: Path) -> None:
    web = tmp_path / "web"
    web.mkdir()
    (web / "index.html").write_text("<!doctype html><title>m27</title>")
    (web / "main.js").write_text("export {};")
    (web / "notes.txt").write_text("not for the world")
    (tmp_path / "secret.html").write_text("secret")
    assert sorted(pages(web)) == ["/", "/index.html", "/main.js"]
    with live.running(web=web) as server:
        page = server.ask("GET", "/")
        assert page.status == 200 and page.headers["content-type"].startswith("text/html")
        assert page.headers["content-security-policy"] == POLICY
        assert page.headers["x-content-type-options"] == "nosniff"
        assert page.headers["referrer-policy"] == "no-referrer"
        assert server.ask("GET", "/main.js").headers["content-type"].startswith("text/javascript")
        for path in ("/notes.txt", "/../secret.html", "/%2e%2e/secret.html", "/main.js/", "//main.js", "/main.js%00"):
            assert server.ask("GET", path).status == 404, path
        assert server.ask("POST", "/").status == 405


@pytest.mark.skipif(not (WEB / "index.html").is_file(), reason="no playground here")
def test_the_shipped_playground_needs_nothing_inline() -> None:
    page = (WEB / "index.html").read_text(encoding="utf-8")
    assert not re.search(r"<script(?![^>]*\bsrc=)|\son\w+=|<style|\sstyle=|https?://(?!www\.w3\.org)", page)
    for name in re.findall(r'(?:src|href)="([^"#:]+)"', page):
        assert f"/{name}" in pages(WEB), name
