"""m27 tour: fifteen exchanges, a page that shows each of them, and samples that can be read."""

import re
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest

from m27.cli import tour
from m27.cli.console import Outputs
from m27.cli.page import Card, write_page
from m27.codec import media
from m27.data.makers import scenes
from m27.data.sources import sentences


@pytest.fixture
def samples(tmp_path: Path) -> Path:
    random = np.random.default_rng(0)
    for stop in tour.STOPS:
        if stop.sample.endswith(".png"):
            rgb = random.integers(0, 255, (64, 64, 3)).astype(np.uint8)
            media.write_png(tmp_path / "samples" / stop.sample, rgb)
        elif stop.sample:
            media.write_wav(tmp_path / "samples" / stop.sample, np.zeros(1600, np.float32))
    return tmp_path / "samples"


class Sources(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.found: dict[str, list[str]] = {"img": [], "audio": [], "script": []}
        self.open: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag in self.found:
            self.found[tag].append(dict(attrs).get("src") or "")
        if tag not in ("meta", "img"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag


def test_tour_shows_fifteen_exchanges_and_writes_the_page(run, samples: Path) -> None:
    done = run("tour", "--samples", samples, "--out", "made")
    assert done.status == 0, done.err
    assert len(re.findall(r"\d+/15  [A-Z]", done.out)) == 15
    assert "made/index.html" in done.out
    assert done.out.count("▀") >= 4 * 24 * 12  # drawn and given pictures as half-blocks
    page = Path("made/index.html").read_text()
    sources = Sources()
    sources.feed(page)
    assert sources.open == []
    assert page.count("<section ") == 15
    assert len(re.findall(r"\d tokens · [\d.]+ s", page)) == 15
    for source in sources.found["img"]:
        assert media.read_image(Path("made") / source).size
    for source in sources.found["audio"]:
        assert media.read_audio(Path("made") / source).size
    given = [stop.sample for stop in tour.STOPS if stop.sample]
    pictures = sum(name.endswith(".png") for name in given)
    made = 1 + 3 + len(list(Path("made/media").glob("07-box-*")))  # drawn, the story's, the box
    assert len(sources.found["img"]) == pictures + 2 * made  # those made once more at the top
    assert len(sources.found["audio"]) == len(given) - pictures + 3
    assert sources.found["script"] == []
    assert "http" not in page


def test_a_second_tour_replaces_the_first(run, samples: Path, monkeypatch) -> None:
    monkeypatch.setattr(tour, "STOPS", tour.STOPS[6:8])
    for _ in range(2):
        assert run("tour", "--samples", samples, "--out", "made").status == 0
    assert len(list(Path("made/media").glob("02-image-*"))) == 1


def test_a_missing_sample_is_named_before_anything_runs(run, samples: Path) -> None:
    (samples / "speech.wav").unlink()
    done = run("tour", "--samples", samples)
    assert done.status == 2
    assert "speech.wav" in done.err
    assert done.out == ""


def test_shipped_samples_can_be_read() -> None:
    if not tour.SAMPLES.is_dir():
        pytest.skip("no samples in this checkout")
    for stop in tour.STOPS:
        assert tour.read_sample(stop, tour.SAMPLES)[-1]["text"]


def test_what_is_said_and_heard_is_held_out() -> None:
    heard = next(stop.right for stop in tour.STOPS if stop.task == "transcribe")
    for sentence in (tour.SENTENCE, heard):
        assert sentences.sides([sentence]) == {sentence: "test"}


def test_bounds_keep_the_tour_under_three_minutes() -> None:
    """Steps of the decoder, guided ones twice, at 10 a second (a slow core) with time to load."""
    steps = 0
    for stop in tour.STOPS:
        plan = stop.options.get("plan", ("text",))
        for medium in plan:
            if medium == "image":
                steps += 2 * 68
            elif medium == "audio":
                steps += 2 * (stop.options["max_audio_codes"] + 2)
            else:
                steps += stop.options.get("max_text", stop.options.get("max_tokens", 10_000))
    assert steps / 10 < 160


def test_what_the_model_says_cannot_write_into_the_page(tmp_path: Path) -> None:
    nasty = {"type": "text", "text": "<script>alert(1)</script>&<img src=x>"}
    card = Card("<b>", [nasty], [nasty], 1.0, 3, "<script>")
    write_page(tmp_path / "index.html", [card], 10, 1.0, "<i>")
    page = (tmp_path / "index.html").read_text()
    assert "<script>" not in page
    assert "<img" not in page
    assert "1 of 10 so far" in page


@pytest.mark.parametrize(
    ("answer", "box"),
    [
        ("3 2 6 5", (3, 2, 6, 5)), ("the box is 0 0 8 8.", (0, 0, 8, 8)), ("3 2 6", None),
        ("6 2 3 5", None), ("3 2 9 5", None), ("a bell", None), ("", None),
    ],
)  # fmt: skip
def test_a_box_is_read_from_an_answer(answer: str, box: tuple[int, ...] | None) -> None:
    assert tour.box_of(answer) == box


def test_the_box_is_drawn_into_the_picture_beside_the_right_one(tmp_path: Path, capsys) -> None:
    stop = next(stop for stop in tour.STOPS if stop.task == "scene_box")
    given = [{"type": "image", "image": np.zeros((128, 128, 3), np.uint8)}]
    said = [{"type": "text", "text": "1 1 3 4"}]
    (part,) = tour.draw_box(stop, given, said, Outputs(tmp_path, "box-"))
    assert "▀" in capsys.readouterr().out
    drawn = media.read_image(part["path"])
    unit = len(drawn) // 8
    assert drawn[unit + 2, 2 * unit].tolist() == [255, 0, 110]
    assert drawn[2 * unit, unit + 2].tolist() == [255, 0, 110]
    left, top, right, _ = tour.box_of(stop.right)
    dashes = drawn[top * unit, left * unit : right * unit].max(-1)
    assert (dashes == 255).any() and (dashes == 0).any()
    assert drawn[6 * unit, 6 * unit].tolist() == [0, 0, 0]
    assert tour.draw_box(stop, given, [{"type": "text", "text": "a bell"}], Outputs(tmp_path)) == []


def test_boxes_count_on_the_grid_of_the_scenes() -> None:
    assert tour.GRID == scenes.GRID
