"""The server's benchmark on the tiny model: the three ways of asking write the same, and faults are told."""

import json
from pathlib import Path

import pytest
import torch

from benchmarks import load_client, serve
from benchmarks.serving import record
from tests.serve import live

for name in ("fastapi", "uvicorn", "python_multipart"):
    pytest.importorskip(name)


def test_all_ways_write_as_many_tokens() -> None:
    torch.set_num_threads(1)
    engine = live.engine()
    requests = serve.asked(7)
    with live.running() as server:
        found = {
            "engine": serve.over_engine(engine, requests, 3, 6),
            "threads": serve.over_threads(engine, requests, 3, 6),
            "server": serve.over_http(server.url, requests, 3, 6),
        }
    engine.close()
    for timings in found.values():
        assert [t.fault for t in timings] == [""] * 7
        assert all(0 < t.first <= t.whole and t.tokens > 0 for t in timings)
    tokens = {way: sorted(t.tokens for t in timings) for way, timings in found.items()}
    assert tokens["engine"] == tokens["threads"] == tokens["server"]
    rows = {way: [serve.summary(timings, 1.0)] for way, timings in found.items()}
    assert rows["server"][0]["requests"] == 7 and rows["server"][0]["failed"] == 0


def test_what_the_server_adds_is_told_with_an_interval() -> None:
    wholes = {"server": [[1.1, 1.1, 9.0], [1.3, 1.3, 0.2]], "engine": [[1.0, 1.0, 1.0], [1.0, 1.0, 1.0]]}
    found = serve.added(wholes, "engine")
    assert found["rounds"] == pytest.approx([0.1, 0.3])
    assert found["share"] == pytest.approx(0.2)
    assert (found["low"], found["high"]) == pytest.approx((0.1, 0.3))


def test_a_request_that_fails_is_told() -> None:
    timings = serve.over_http("http://127.0.0.1:9", serve.asked(2), 2, 4)
    assert [bool(t.fault) for t in timings] == [True, True]


def test_guidellm_is_given_as_many_pictures() -> None:
    rows = [json.loads(line) for line in load_client.rows(9, 5).splitlines()]
    assert sum(bool(row["image"]) for row in rows) == 3
    assert all(row["prompt"] and row["output_tokens_count"] == 5 for row in rows)


def test_results_of_others_stay(tmp_path: Path) -> None:
    record(tmp_path / "r.json", "one", {"a": 1})
    record(tmp_path / "r.json", "two", {"b": 2})
    record(tmp_path / "r.json", "one", {"a": 3})
    assert json.loads((tmp_path / "r.json").read_text()) == {"one": {"a": 3}, "two": {"b": 2}}
