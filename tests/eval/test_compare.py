"""Several models on the same questions: the page, the JSON, the prices, and what is called noise."""

import json
import os
import re
import shutil
from dataclasses import replace
from html import escape
from pathlib import Path

import numpy as np
import pytest

from m27.cli import main
from m27.cli.compare import _labels
from m27.codec import media
from m27.eval.answerers import Answer, Facts
from m27.eval.ask import Plan, ask
from m27.eval.compare import prices
from m27.eval.compare.charts import power_of_ten
from m27.eval.compare.gather import Wish
from m27.eval.compare.write import write
from m27.eval.figures import Figures
from m27.eval.metrics import METRICS
from m27.eval.samples import Sample

ROOT = Path(__file__).resolve().parents[2]
BOTH = ("stored:good.jsonl", "stored:bad.jsonl")
BAD = '<script>alert("x")</script>'


class Model:
    """Right on what `knows` says, at some speed; a local one or an API."""

    def __init__(self, name, knows, kind="checkpoint", seconds=0.4):
        self.name, self.knows, self.kind, self.seconds = name, knows, kind, seconds

    def facts(self):
        goes = "to api.example.com" if self.kind == "openai" else "nowhere: it runs on this machine"
        memory = None if self.kind == "openai" else 800_000_000
        return Facts(self.name, self.kind, self.name, "int8", "cpu", "apache-2.0", goes, memory, 8)

    def answer(self, asked):
        for n, one in enumerate(asked):
            text = one.key if self.knows(n) else f"I cannot tell {BAD}"
            yield Answer(one.key, text, self.seconds + n / 100, self.seconds / 4, 900, 40)

    def close(self):
        pass


MODELS = {
    "ours": Model("ours", lambda n: n % 3 != 0),
    "small": Model("small", lambda n: n % 5 == 0, seconds=1.9),
    "gpt-4o-mini": Model("gpt-4o-mini", lambda n: n % 3 != 1, "openai", 0.8),
}


@pytest.fixture(autouse=True)
def same_commit(monkeypatch):
    monkeypatch.setattr("m27.eval.ask.commit", lambda: "0123456789ab")


def compared(out, models=MODELS):
    rgb = np.full((300, 200, 3), 255, np.uint8)
    rgb[60:240, 40:160] = (200, 60, 20)
    part = {"type": "image", "image": rgb}
    asked = [[part, {"type": "text", "text": f"What is {i}? {BAD}"}] for i in range(60)]
    samples = [Sample(f"q{i}", [{"role": "user", "content": parts}], (f"q{i}",)) for i, parts in enumerate(asked)]
    plans = [Plan("shop.jsonl", samples, METRICS[m], "0123456789ab") for m in ("exact", "wer")]
    results = {
        label: [ask(plan, model, out / label / plan.metric.name, say=len) for plan in plans]
        for label, model in models.items()
    }
    for one in [result for each in results.values() for result in each]:
        one.speed["wall_seconds"] = 60 * (1.0 if one.facts.name == "ours" else 3.0)
    table = prices.read()
    wish = Wish(table, table.devices["cpu-2-vcpu"], table.apis["gpt-4o"])
    return write(out, results, plans, wish, "Three models")


def test_the_report_says_who_is_better_and_what_is_noise(tmp_path):
    report = compared(tmp_path)
    exact, wer = report["tasks"]
    assert [round(s["score"], 3) for s in exact["scores"].values()] == [0.667, 0.2, 0.667]
    says = {(p["a"], p["b"]): p for p in exact["pairs"]}
    assert says["ours", "small"]["says"].startswith("ours is better than small")
    assert says["ours", "gpt-4o-mini"]["says"].startswith("within noise")
    assert says["ours", "gpt-4o-mini"]["test"] == "McNemar exact"
    (less,) = [p for p in wer["pairs"] if (p["a"], p["b"]) == ("ours", "small")]
    assert less["says"].startswith("ours is better than small")
    assert all(p["p_corrected"] >= p["p"] for p in exact["pairs"])
    assert report["samples"][0]["apart"] >= report["samples"][-1]["apart"]
    assert json.loads((tmp_path / "report.json").read_text()) == report


def test_figures_besides_the_score_stand_side_by_side(tmp_path, monkeypatch):
    def told(answered):
        return Figures({f"shop: {BAD}": sum(one.score for one in answered) / len(answered)})

    monkeypatch.setitem(METRICS, "exact", replace(METRICS["exact"], figures=told))
    exact, wer = compared(tmp_path)["tasks"]
    assert [round(s["figures"][f"shop: {BAD}"], 3) for s in exact["scores"].values()] == [0.667, 0.2, 0.667]
    assert all(s["figures"] == {} for s in wer["scores"].values())
    text = (tmp_path / "report.html").read_text("utf-8")
    assert text.count("Besides the score:") == 1 and f"<td>shop: {escape(BAD)}</td>" in text
    assert '<td class="n">0.667</td>' in text and BAD not in text


def test_costs_carry_their_dates_and_break_even_is_where_the_lines_cross(tmp_path):
    report = compared(tmp_path)
    ours, small, api = report["models"]
    assert ours["cost_per_1000"] == pytest.approx(1000 * 0.0832 / 3600)
    assert api["cost_per_1000"] == pytest.approx(1000 * (900 * 0.15 + 40 * 0.6) / 1e6)
    assert api["price"]["date"] == "2026-05"
    assert api["licence"] == "closed; the provider's terms"
    at = {line["open"]: line["requests_a_month"] for line in report["break_even"]["from"]}
    device = prices.Device(**ours["price"])
    assert device.month(at["ours"], 1.0) == pytest.approx(at["ours"] * api["cost_per_1000"] / 1000)
    assert device.month(1.5 * 3600 * 730, 1.0) == 2 * device.month(1, 1.0)
    assert small["requests_per_second"] == pytest.approx(1 / 3)
    dear = prices.Device("gpu", 500.0, "2026-01-01")
    assert prices.break_even(0.0001, dear, 1.0) is None


def test_without_an_api_one_of_the_table_is_held_against(tmp_path):
    report = compared(tmp_path, {k: MODELS[k] for k in ("ours", "small")})
    (api,) = report["break_even"]["apis"]
    assert (api["label"], api["assumed"]) == ("gpt-4o", True)
    assert "gpt-4o was not asked" in (tmp_path / "report.html").read_text()


def test_the_page_holds_nothing_from_elsewhere_and_runs_nothing(tmp_path):
    compared(tmp_path)
    text = (tmp_path / "report.html").read_text("utf-8")
    assert "<script" not in text
    assert "&lt;script&gt;" in text
    # Addresses are told, as words: those of prices' sources, and nothing loads or links to any.
    assert not re.search(r"""(src|href|url\()\s*=?\s*["']?http""", text)
    assert "default-src 'none'" in text
    assert "prefers-color-scheme:dark" in text
    assert text.count("<svg") == 2 + 5 + 1
    assert text.count("data:image/png;base64,") == 40
    assert len(text) < 1_000_000


def test_a_price_table_is_checked_and_versions_of_a_model_are_found(tmp_path):
    table = prices.read()
    assert table.api("gpt-4o-mini-2024-07-18").name == "gpt-4o-mini"
    assert table.api("openai/gpt-4o").name == "gpt-4o"
    assert table.api("gpt-4omega") is None
    entries = [*table.apis.values(), *table.devices.values()]
    assert all(entry.source.startswith("https://") and entry.date >= "2026" for entry in entries)
    path = tmp_path / "p.json"
    for entry, says in (
        ({"per_hour": -1, "date": "2026-01-01", "source": "me"}, "a price is a number"),
        ({"per_hour": 1, "date": "today", "source": "me"}, "date must be"),
        ({"per_hour": 1, "date": "2026-13", "source": "me"}, "date must be"),
        ({"per_hour": 1, "date": "2026"}, "source must say where"),
        ({"hourly": 1}, "unexpected keyword"),
    ):  # fmt: skip
        path.write_text(json.dumps({"devices": {"mine": entry}}))
        with pytest.raises(prices.PriceError, match=says):
            prices.read(path)
    assert [power_of_ten(n) for n in (-2, 0, 1, 3, 4, 6)] == ["0.01", "1", "10", "1k", "10k", "1M"]


@pytest.fixture
def m27(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    lines = [
        {"id": f"{n}", "messages": [{"role": "user", "content": f"{n}?"}, {"role": "assistant", "content": f"{n}"}]}
        for n in range(30)
    ]
    Path("my.jsonl").write_text("\n".join(map(json.dumps, lines)))
    Path("good.jsonl").write_text("\n".join(json.dumps({"id": f"{n}", "answer": f"{n}"}) for n in range(30)))
    Path("bad.jsonl").write_text("\n".join(json.dumps({"id": f"{n}", "answer": "1"}) for n in range(30)))

    def run(*arguments):
        capsys.readouterr()
        with pytest.raises(SystemExit) as left:
            main(["compare", *map(str, arguments)])
        said = capsys.readouterr()
        return int(left.value.code or 0), said.out, said.err

    return run


def test_the_command_writes_both_files_and_says_who_is_better(m27):
    status, out, err = m27("stored:good.jsonl", "stored:bad.jsonl", "--data", "my.jsonl")
    assert (status, err) == (0, "")
    assert "bad.jsonl against good.jsonl: good.jsonl is better than bad.jsonl" in out
    assert {"report.html", "report.json"} <= set(os.listdir("out/compare"))


def test_names_are_short_and_tell_models_apart():
    names = ["weights/m27-nano/", "hf:org/SmolVLM", "hf:there/x", "there/x", "openai:a/b@https://h/v1", "stored:x"]
    assert _labels(names) == ["m27-nano", "SmolVLM", "hf:x", "x", "a/b", "stored:x"]


@pytest.mark.parametrize(
    ("arguments", "says"),
    [
        (("stored:good.jsonl",), "name two or more models"),
        (("stored:good.jsonl", "stored:good.jsonl"), "each once"),
        ((*BOTH, "--metric", "exact", "--metric", "wer"), "one for each of the 1 sets"),
        ((*BOTH, "--against", "gpt-9"), "--against gpt-9: prices.json has gpt-4o"),
        ((*BOTH, "--prices", "gone.json"), "gone.json: No such file"),
    ],
)
def test_what_cannot_be_compared_is_one_line(m27, arguments, says):
    status, _, err = m27(*arguments, "--data", "my.jsonl")
    assert (status, says in err, err.count("\n")) == (2, True, 1)


EXAMPLE = ROOT / "benchmarks" / "results" / "comparison"


def test_the_example_holds_everything_that_it_promises():
    report = json.loads((EXAMPLE / "report.json").read_text())
    text = (EXAMPLE / "report.html").read_text("utf-8")
    assert sum(path.stat().st_size for path in EXAMPLE.iterdir()) < 2_000_000
    assert len(report["models"]) == 3 and len(report["tasks"]) >= 4
    for model in report["models"]:
        timed = ("seconds", "first", "requests_per_second", "cost_per_1000", "memory_bytes")
        assert all(model[name] for name in (*timed, "licence", "data_goes")), model["label"]
        assert model["licence"] != "unknown" and model["price"]["date"] in text
        assert escape(model["price"]["source"]) in text
        assert model["label"] in text and model["revision"] in text
    assert report["break_even"]["from"] and any(line["requests_a_month"] for line in report["break_even"]["from"])
    for pair in [pair for task in report["tasks"] for pair in task["pairs"]]:
        assert pair["p_corrected"] >= pair["p"] and pair["noise"] == (pair["p_corrected"] >= 0.05)
        assert pair["noise"] == pair["says"].startswith("within noise") and pair["says"] in text
    apart = [sample["apart"] for sample in report["samples"]]
    assert apart == sorted(apart, reverse=True)  # worst disagreements first; all sets are shares
    assert text.count("<svg") == len(report["tasks"]) + 5 + 1


@pytest.fixture(scope="module")
def browser():
    program = os.environ.get("M27_CHROMIUM") or shutil.which("chromium")
    if not program:
        pytest.skip("no chromium: `apt-get install -y chromium`, or name one in M27_CHROMIUM")
    api = pytest.importorskip("playwright.sync_api")
    with api.sync_playwright() as playwright:
        browser = playwright.chromium.launch(
            executable_path=program, args=["--headless", "--no-sandbox", "--disable-gpu"], timeout=120_000
        )
        yield browser
        browser.close()


# Words over words, and words that leave their drawing, by the boxes that the browser gives them.
FAULTS = """() => {
  const out = [], apart = (a, b) =>
    a.right <= b.left + 1 || b.right <= a.left + 1 || a.bottom <= b.top + 2 || b.bottom <= a.top + 2;
  for (const svg of document.querySelectorAll('svg')) {
    const whole = svg.getBoundingClientRect(), texts = [...svg.querySelectorAll('text')];
    const boxes = texts.map(text => text.getBoundingClientRect());
    boxes.forEach((box, i) => {
      if (box.left < whole.left - 1 || box.right > whole.right + 1) out.push('leaves: ' + texts[i].textContent);
      for (let j = 0; j < i; j++)
        if (!apart(box, boxes[j])) out.push(texts[i].textContent + ' over ' + texts[j].textContent);
    });
  }
  return out;
}"""


@pytest.mark.slow
@pytest.mark.parametrize("which", ["made", "example"])
def test_the_page_reads_well_in_a_browser(tmp_path, browser, which):
    path = EXAMPLE / "report.html"
    if which == "made":
        compared(tmp_path)
        path = tmp_path / "report.html"
    shots = ROOT / "out" / "compare-page"
    shots.mkdir(parents=True, exist_ok=True)
    for scheme in ("light", "dark"):
        for width in (1200, 390):
            page = browser.new_page(viewport={"width": width, "height": 900}, color_scheme=scheme)
            said, asked = [], []
            page.on("console", lambda message, said=said: said.append(message.text))
            page.on("request", lambda request, asked=asked: asked.append(request.url))
            page.goto(path.as_uri(), timeout=120_000)
            page.screenshot(path=shots / f"{which}-{scheme}-{width}.png", full_page=width == 1200)
            assert said == []
            assert [url for url in asked if not url.startswith("data:")] == [path.as_uri()]
            # Nothing is wider than the window but tables, which scroll by themselves.
            assert page.evaluate("document.documentElement.scrollWidth") <= width
            assert page.evaluate(FAULTS) == []
            heads = page.locator("h2").all_text_contents()
            assert heads == ["Quality", "Speed and memory", "Cost", "Models", "Samples side by side"]
            page.close()
    assert media.read_image(shots / f"{which}-light-1200.png").shape[1] == 1200
