"""The card's census: every source and task of the shards, with licences and the epochs that were drawn."""

import json

from m27.data import catalogue
from recipes import census
from tests.train import fixtures


def test_the_census_counts_and_says_how_often(tmp_path):
    for name in ("emoji", "speech"):
        fixtures.write_shard(tmp_path / "shards" / name, 40, len(name))
    folder = tmp_path / "runs" / "m27-nano" / "step-000007"
    folder.mkdir(parents=True)
    state = {"loader": {"mixture": {"drawn": {"draw": 1000, "speak": 10}}}}
    (folder / "state.json").write_text(json.dumps(state))
    out = tmp_path / "census.json"
    given = ["--shards", tmp_path / "shards", "--runs", tmp_path / "runs", "--out", out]
    assert census.main([str(part) for part in given]) == 0
    made = json.loads(out.read_text())
    assert [row["source"] for row in made["sources"]] == ["emoji", "speech"]
    assert sum(row["documents"] for row in made["sources"]) == 80
    assert "MIT" in made["sources"][0]["licence"]
    assert made["drawn"] == 1010
    draw = next(row for row in made["tasks"] if row["task"] == "draw")
    tokens = draw["text"] + draw["image"] + draw["audio"]
    assert draw["epochs"] == round(1000 / tokens, 3)


def test_no_shards_are_said_in_one_line(tmp_path, capsys):
    assert census.main(["--shards", str(tmp_path), "--out", str(tmp_path / "x.json")]) == 2
    assert "--stage build" in capsys.readouterr().err


def test_every_source_has_a_licence():
    assert [name for name in [*catalogue.EVERY, "replay"] if census.licence(name) == "–"] == []


def test_parts_and_altered_copies_are_told_apart() -> None:
    found = [census.source_of(name) for name in ("emoji", "more_speech-3", "emoji-100", "esc-50x")]
    assert found == ["emoji", "more_speech", "emoji, altered", "esc-50x"]
    assert census.licence("emoji, altered") == census.licence("emoji") != "–"
