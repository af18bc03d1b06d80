"""A server that fails every tenth request changes no score and no answer."""

import json

import pytest

from m27.eval.answerers import Settings
from m27.eval.answerers.server import Server
from m27.eval.ask import Plan, ask
from m27.eval.metrics import METRICS
from m27.eval.samples import Sample
from tests.eval.fake_openai import serving

PLAN = Plan(
    "set", [Sample(f"s{n}", [{"role": "user", "content": f"{n}"}], (f"says {n - n % 3}",)) for n in range(60)],
    METRICS["exact"], "rev",
)  # fmt: skip


@pytest.mark.parametrize("status", [500, 503, 429, 408, -1], ids=["500", "503", "429", "408", "broken off"])
def test_every_tenth_request_failing_changes_no_score(tmp_path, monkeypatch, status):
    monkeypatch.setattr("m27.eval.ask.commit", lambda: "0123456789ab")

    def run(folder, fault):
        with serving(lambda body: f"says {body['messages'][-1]['content']}", fault) as server:
            model = Server("fake", server.base, Settings(at_once=4), sleep=lambda seconds: None)
            result = ask(PLAN, model, tmp_path / folder, say=len)
            return result.row, [as_text(r) for r in result.records], server.count

    row, records, count = run("whole", lambda number: 0)
    failed, others, asked = run("failing", lambda number: status if number % 10 == 0 else 0)
    assert (row["score"], row["n"], row["refused"], count) == (20 / 60, 60, 0, 60)
    assert asked > 65
    assert others == records
    assert {k: v for k, v in failed.items() if k != "model"} == {k: v for k, v in row.items() if k != "model"}


def as_text(record):
    return json.dumps(record, sort_keys=True)
