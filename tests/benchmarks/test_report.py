"""What is made of the measurements: bars, table, plots."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree as ET

import pytest

from benchmarks import engine, machine, plot, report
from benchmarks.race import Result

FORMATS = {
    "m27 int8": {"perplexity": 20.1, "kl": 0.001, "same": 0.99},
    "m27 int4": {"perplexity": 20.8, "kl": 0.01, "same": 0.9},
    "m27 bfloat16": {"perplexity": 20.0, "kl": 0.0, "same": 1.0},
    "llama.cpp Q8_0": {"perplexity": 20.1, "kl": 0.001, "same": 0.99},
    "llama.cpp Q4_1": {"perplexity": 20.9, "kl": 0.01, "same": 0.9},
    "llama.cpp Q4_0": {"perplexity": 26.0, "kl": 0.1, "same": 0.7},
}


def row(**median: float) -> dict[str, Any]:
    values = {name: [value] * 5 for name, value in median.items()}
    return {"median": median, "values": values, "failed": {}, "resident_mb": 300, "bytes": 10**8}


def rows() -> dict[str, dict[str, Any]]:
    return {
        "m27 int4": row(decode=200, prefill=500, ttft=1.0, many=380),
        "m27 int8": row(decode=160, prefill=520, ttft=0.9, many=390),
        "llama.cpp Q8_0": row(decode=100, prefill=400, ttft=1.2, many=200),
        "llama.cpp Q4_0": row(decode=150, prefill=450, ttft=1.1),
        "llama-server Q8_0": row(many=150),
        "OpenVINO int8": row(decode=80, prefill=500, ttft=1.0, many=300),
        "transformers float32": row(decode=20, prefill=300, ttft=1.7, many=500),
    }


def found() -> dict[str, Any]:
    return {
        "date": "2026-01-01", "commit": "abc", "limits": {"read_gb_s": 20.0, "float32_gflop_s": 90},
        "machine": machine.describe(2), "failed": {"vLLM float32": "needs AVX-512"},
        "shape": {"one": [512, 128], "many": [16, 256, 128], "rounds": 5},
        "config": {"num_hidden_layers": 30, "num_key_value_heads": 3, "head_dim": 64},
        "contenders": rows(),
    }  # fmt: skip


def test_bars_take_the_right_peer() -> None:
    bars = {bar["bar"].split(",")[0] + " " + str(bar["ours"]): bar for bar in report.bars(rows(), FORMATS)}
    fast = bars["decode m27 int4"]  # Q4_0 is faster and worse; Q8_0 is no worse
    assert (fast["peer"], fast["ratio"], fast["met"]) == ("llama.cpp Q8_0", 2.0, True)
    assert bars["decode m27 int8"]["ratio"] == 1.6
    many = bars["16 requests m27 int8"]  # transformers is no server
    assert (many["peer"], many["ratio"], many["met"]) == ("OpenVINO int8", 1.3, False)
    assert bars["prefill m27 int8"]["peer"] == "OpenVINO int8"
    assert bars["perplexity m27 int8"]["met"] and bars["perplexity m27 int4"]["met"]


def test_a_worse_int4_is_told() -> None:
    formats = {**FORMATS, "m27 int4": {"perplexity": 22.0, "kl": 0.2, "same": 0.8}}
    bars = [bar for bar in report.bars(rows(), formats) if bar["ours"] == "m27 int4"]
    assert [bar["met"] for bar in bars] == [True, False]


def test_files_and_table(tmp_path: Path) -> None:
    whole = report.complete(found(), FORMATS)
    report.write(tmp_path, whole)
    assert json.loads((tmp_path / "engine.json").read_text())["bars"] == whole["bars"]
    ET.parse(tmp_path / "engine.svg")
    text = report.table(whole)
    assert "| m27 int8 | 520 | 0.900 | 160.0 |" in text
    assert "vLLM float32: could not take part: needs AVX-512" in text
    # 10^8 bytes of weights and 13 MB of cache at 20 GB/s
    assert whole["contenders"]["m27 int8"]["decode_limit"] == pytest.approx(176.6, abs=0.2)
    assert whole["contenders"]["llama-server Q8_0"]["quality"] == FORMATS["llama.cpp Q8_0"]


def test_without_quality_and_without_some_peers() -> None:
    few = {**found(), "contenders": {"m27 int8": row(decode=1.0)}}
    few["limits"] = {"read_gb_s": None, "float32_gflop_s": None}
    assert report.complete(few, {})["bars"] == []
    assert "| m27 int8 | – | – | 1.0 | – |" in report.table(few)


def test_figures_hold_medians_and_agreement() -> None:
    result = Result({"decode": [1.0, 9.0, 2.0]}, {"one1": [[1, 2]]}, 10**8, {})
    truth = Result({"decode": [1.0]}, {"one1": [[1, 3]]}, 10**8, {})
    out = report.figures({"x": result, "naive float32": truth}, {"x": {"bytes": 3}})
    assert out["x"]["median"] == {"decode": 2.0}
    assert out["x"]["agreement"]["equal"] == 0.5
    assert out["x"]["bytes"] == 3


def test_plots_are_xml_and_escape_their_words() -> None:
    drawn = plot.bars("a <b>", [("speed & more", [("x<y", 3.0, True), ("z", 0.0, False)], 4.0)])
    ET.fromstring(drawn)
    curves = {"one": [(1, 2.0), (2, 3.0), (64, 90.0)], "two": [(1, 1.0), (64, 2.0)]}
    ET.fromstring(plot.lines("t", "x", "ms", curves))


@pytest.mark.parametrize(("most", "step"), [(90, 20), (100, 20), (7, 1), (3.9, 0.5), (1.4, 0.2)])
def test_grid_lines_are_round(most: float, step: float) -> None:
    assert plot._step(most) == pytest.approx(step)


def test_the_faster_of_two_measurements() -> None:
    one, other = {"a": 1.0, "b": None, "c": None}, {"a": 2.0, "b": 3.0, "c": None}
    assert machine.faster(one, other) == {"a": 2.0, "b": 3.0, "c": None}


def test_an_unknown_contender_is_status_2(capsys: pytest.CaptureFixture[str]) -> None:
    assert engine.main(["--contenders", "nobody"]) == 2
    assert capsys.readouterr().err.startswith("nobody: no such contender")
