"""The page to watch: one file, complete, escaped, and gone on with after a stop."""

import json
import re

from m27.train.watch import Sample, Watch


def record(step, loss=2.0):
    return {
        "step": step, "tokens": step * 100, "targets": 10, "loss": loss,
        "media": {"text": loss, "image": 2 * loss}, "tasks": {"draw": loss, "<text>": 1.0},
        "rate": 0.5, "gradient_norm": 1.0, "tokens_per_second": 900.0, "seconds": step * 2.0,
        "divergence": 0.25,
    }  # fmt: skip


def test_the_page_holds_everything_and_loads_nothing(tmp_path):
    watch = Watch(tmp_path, "nano & co")
    for step in range(1, 1001):
        watch.records.append(record(step, 4 - step / 500))
    watch.add(record(1001), 0.5, 90.0)
    watch.add_samples(
        1001, [Sample("Say <it>.", [("audio", "data:audio/wav;base64,AA=="), ("text", "a & b")])]
    )
    page = (tmp_path / "watch.html").read_text()
    assert "nano &amp; co" in page
    assert "Say &lt;it&gt;." in page
    assert "a &amp; b" in page
    assert "0:01:30" in page
    assert "&lt;text&gt;" in page
    assert "<script" not in page
    assert not re.search(r'(src|href)="(?!data:)', page)
    points = re.findall(r'points="([^"]*)"', page)
    assert len(points) == 5  # two media, the rate, two tasks
    assert all(len(p.split()) <= 240 for p in points)
    heights = [float(p.split(",")[1]) for p in points[0].split()]
    assert heights[0] < heights[-1]  # a loss that falls goes down the page


def test_samples_stand_newest_first_and_a_resumed_run_keeps_those_before_it(tmp_path):
    watch = Watch(tmp_path, "nano")
    watch.records.append(record(1))
    for step in (10, 20, 30):
        watch.add_samples(step, [Sample("Draw.", [("text", f"of {step}")])])
    page = (tmp_path / "watch.html").read_text()
    assert page.index("of 30") < page.index("of 20") < page.index("of 10")
    (tmp_path / "log.jsonl").write_text(
        "".join(json.dumps(record(s)) + "\n" for s in range(1, 31)) + '{"torn'
    )
    again = Watch(tmp_path, "nano", 20)
    assert [r["step"] for r in again.records] == list(range(1, 21))
    page = again.render()
    assert "of 20" in page
    assert "of 30" not in page


def test_no_step_no_page(tmp_path):
    Watch(tmp_path, "nano").write()
    assert not (tmp_path / "watch.html").exists()
