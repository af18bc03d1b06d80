"""The card says what the figures say: bars, failing ones too, from results alone; its head is the Hub's."""

import json
from pathlib import Path

import pytest

from m27.eval.report import origin, weights_revision
from recipes import card, card_sections, card_text
from recipes.card import CardRecipe
from recipes.card_sections import CardError


def row(task: str, score: float, **more: object) -> dict:
    return {
        "task": task, "n": 500, "score": score, "low": score - 0.02, "high": score + 0.02,
        "chance": 0.1, "frequent": 0.12, "by_kind": None, "passed": True, "bar": "above chance",
        "data": "abcdef012345", "seconds": 3.0, "unit": "share", "note": "says most: cat 30",
        "seed": 0, "commit": "0123456789ab", "weights": "ba9876543210", "torch": "2.13.0",
        "m27": "1.0",
    } | more  # fmt: skip


RESULTS = {
    "image-codec.json": {
        "revision": "aaaa11112222",
        "fidelity": [{"kind": "emoji", "n": 40, "psnr": 18.9, "ssim": 0.73, "lpips": None}],
        "codebook": {"codes": 15360.0, "used": 0.38, "perplexity": 4316.0},
        "probe": {"train": 4000, "test": 1000, "codes": 0.665, "pixels": 0.38},
        "probes": {"shapes": {"train": 9, "codes": {"accuracy": 0.8, "interval": [0.75, 0.85], "classes": 5},
                              "single codes": {"accuracy": 0.4}, "constant": 0.2}},
    },
    "audio-codec.json": {
        "revision": "bbbb11112222", "codes": 15744, "codes_used": 4674, "perplexity": 2514.0,
        "by_source": {
            "speech": {"sounds": 24, "log_mel_distance_db": 7.6, "pitch_within_half_semitone": 0.85,
                       "wer": {"original": 0.35, "codec": 1.21}},
            "esc10": {"sounds": 24, "log_mel_distance_db": 5.9},
        },
        "probe": {"instruments": {"codes": 0.325, "mel": 0.498, "classes": 24}},
    },
    "image-ablation.json": {
        "variants": {"none": {"revision": "a", "probe": 0.41}, "both": {"revision": "b", "probe": 0.7}}
    },
    "audio-ablation.json": {
        "steps": 400,
        "variants": {
            "no teacher": {"log_mel_db": [6.0, 5.5, 6.5],
                           "probes": {"words": {"codes": {"accuracy": 0.2, "interval": [0.1, 0.3]}}}},
            "Whisper": {"log_mel_db": [6.1, 5.6, 6.6],
                        "probes": {"words": {"codes": {"accuracy": 0.5, "interval": [0.4, 0.6]}}}},
        },
    },
    "census.json": {
        "sources": [{"source": "emoji", "documents": 6320, "text": 10_000, "image": 400_000, "audio": 0,
                     "licence": "MIT"}],
        "tasks": [{"task": "draw", "documents": 3000, "text": 5_000, "image": 200_000, "audio": 0,
                   "epochs": 1.5}],
    },
    "samples.json": {
        "seed": 27,
        "sheets": [{"file": "drawn.png", "title": "drawn", "about": "Sixteen held-out concepts."}],
        "sounds": [{"file": "speak-1.wav", "asked": "Say: a dog", "heard": "a log"}],
    },
}  # fmt: skip
SPENT = [
    {"stage": "image codec", "device": "AMD EPYC", "threads": 2, "seconds": 1800.0},
    {"stage": "image codec", "device": "AMD EPYC", "threads": 2, "seconds": 1800.0},
    {"stage": "joint", "device": "NVIDIA H200", "threads": 16, "seconds": 900.0},
]
ROWS = [
    row("cifar10", 0.64, bar="floor 50 %, goal 85 %"),
    row("easy-vqa", 0.975, bar="floor 85 %, goal 97 %", goal=True),
    row("grounding", 0.21, bar="floor 30 %, goal 70 %", passed=False),
    row("hear-speech", 0.55, bar="at most 40 %, goal 12 %", chance=None, passed=False),
    row("perplexity", 1.013, unit="ratio", bar="at most 1.05, goal 1.02", goal=True, chance=None),
    row("structure", 1.0, bar="every output valid"),
]


@pytest.fixture
def recipe(tmp_path: Path) -> CardRecipe:
    made = CardRecipe(tmp_path / "m27-nano")
    made.results.mkdir(parents=True)
    (made.model / "m27.json").write_text(
        json.dumps({"vocabulary": {"image_size": 16384, "audio_size": 8192}})
    )
    steps = [
        {"step": n, "tokens": 2048 * n, "loss": 9 - n / 10, "media": {"text": 9 - n / 10, "image": 10 - n / 20},
         "seconds": 3.6 * n}
        for n in range(1, 41)
    ]  # fmt: skip
    write_lines(made.model / "training.jsonl", steps)
    (made.model / "big.safetensors").write_bytes(b"\0" * 1_200_000)
    for name, value in RESULTS.items():
        (made.results / name).write_text(json.dumps(value))
    write_lines(made.results / "spent.jsonl", SPENT)
    held = weights_revision(made.model)
    write_lines(made.results / "rows.jsonl", [row | {"weights": held} for row in ROWS])
    return made


def write_lines(path: Path, values: list) -> None:
    path.write_text("".join(json.dumps(value) + "\n" for value in values))


def test_the_head_is_what_the_hub_reads(recipe):
    hub = pytest.importorskip("huggingface_hub")
    read = hub.ModelCard(card.card(recipe)).data
    assert read.license == "apache-2.0"
    assert read.pipeline_tag == "any-to-any"
    assert read.base_model == card_text.BASE
    results = {(r.task_name, r.metric_type): r for r in read.eval_results}
    assert len(results) == len(ROWS)
    photographs = results[("recognise photographs", "accuracy")]
    assert photographs.dataset_type == "uoft-cs/cifar10"
    assert photographs.metric_value == 64.0
    assert photographs.metric_args == {"n": 500, "low": 62.0, "high": 66.0}
    assert results[("hear speech", "wer")].metric_value == 55.0
    assert results[("stay a language model", "perplexity-ratio")].metric_value == 1.013


def test_a_bar_that_is_not_met_is_said_with_its_figure(recipe):
    text = card.card(recipe)
    assert "**Fails its bar**: grounding, 21.0 % (floor 30 %, goal 70 %)" in text
    assert "**Fails its bar**: hear speech, 55.0 % (at most 40 %, goal 12 %)" in text
    assert "Fails its bar**: recognise" not in text
    assert "4 of the 6 bars below are met, 2 failed" in text
    assert "Its boxes are mostly wrong (right at IoU 0.5: 21.0 %)" in text


def test_floor_goal_and_neither_are_told_apart():
    assert [card_text.reached(r) for r in ROWS] == ["floor", "goal", "no", "no", "goal", "yes"]


def test_the_sections_hold_the_figures(recipe):
    text = card.card(recipe)
    for expected in (
        "| emoji | 40 | 18.9 | 0.73 | – |", "| speech | 24 | 7.6 | 85.0 % | 35.0 % | 121.0 % |",
        "| probe | 0.410 | 0.700 |",
        "- shapes: 80.0 % [75.0 %, 85.0 %] of 5 classes, single codes 40.0 %, most frequent 20.0 %",
        "| log mel db | 6.000 [5.500, 6.500] | 6.100 [5.600, 6.600] |", "Each with steps 400.",
        "| probes words codes | 20.0 % [10.0 %, 30.0 %] | 50.0 % [40.0 %, 60.0 %] |",
        "| emoji | 6,320 | 10,000 | 400,000 | 0 | MIT |", "| `draw` | 3,000 | 5,000 | 200,000 | 0 | 1.50 |",
        "| `training.jsonl` | 40 | 81,920 | 0.04 |", "text 8.85 → 5.05", "81,920 tokens in all",
        "| image codec | AMD EPYC | 1.00 | 2 | 0.024 |",
        "| joint | NVIDIA H200 | 0.25 | 16 | 0.210 |", "1.25 device hours in all",
        "| `big.safetensors` | 1.2 |", "a log", "samples/drawn.png",
    ):  # fmt: skip
        assert expected in text, expected


@pytest.mark.parametrize("name", list(card.RESULTS))
def test_a_missing_result_is_one_line_and_status_2(recipe, name, capsys):
    (recipe.results / name).unlink()
    assert card.main(["--model", str(recipe.model)]) == 2
    said = capsys.readouterr().err
    assert said.count("\n") == 1
    assert name in said and card.RESULTS[name][1] in said
    assert not (recipe.model / "README.md").exists()


def test_what_is_left_out_is_said_not_to_be_measured(recipe):
    for name in card.OPTIONAL["ablations"]:
        (recipe.results / name).unlink()
    assert card.main(["--model", str(recipe.model), "--without", "ablations"]) == 0
    text = (recipe.model / "README.md").read_text()
    assert "### What the teachers do for the codes\n\nNot measured for this release.\n" in text


def test_gather_takes_fresh_results_and_keeps_the_rest(recipe, tmp_path):
    out = tmp_path / "out"
    (out / "eval").mkdir(parents=True)
    write_lines(out / "eval" / "rows.jsonl", [row("cifar10", 0.71, weights=weights_revision(recipe.model))])
    assert card.main(["--model", str(recipe.model), "--gather", str(out)]) == 0
    assert "71.0 %" in (recipe.model / "README.md").read_text()
    assert json.loads((recipe.results / "census.json").read_text()) == RESULTS["census.json"]


def test_a_broken_result_is_named(recipe):
    (recipe.results / "image-codec.json").write_text('{"revision": "x"}')
    with pytest.raises(CardError, match="image codec is not as expected"):
        card.card(recipe)
    (recipe.results / "rows.jsonl").write_text('{"task": "a"}\n{"task"\n')
    with pytest.raises(CardError, match=r"rows\.jsonl: line 2"):
        card.card(recipe)


def test_a_task_that_failed_is_not_a_result(recipe):
    lost = row("draw-emoji", 0.0, n=0, passed=False, bar="–", note="failed: OSError: no file")
    write_lines(
        recipe.results / "rows.jsonl",
        [r | {"weights": weights_revision(recipe.model)} for r in [*ROWS, lost]],
    )
    text = card.card(recipe)
    assert "**Not measured**: draw a concept, failed: OSError: no file." in text
    assert "4 of the 7 bars below are met, 3 failed" in text
    assert text.count("text-to-image") == 0
    assert "Drawings" not in text


def test_rows_stay_where_a_decoder_alone_changed_that_they_do_not_hang_on(recipe, capsys):
    (recipe.model / "image_codec.safetensors").write_bytes(b"an image codec")
    (recipe.model / "audio_codec.safetensors").write_bytes(b"an audio codec")
    held = origin(recipe.model, 0)
    older = {"weights": "of old decoders", "reads": held.reads, "image": held.image, "audio": "old"}
    drawn = row("draw-emoji", 0.1) | older | {"decodes": "image", "weights": held.weights}
    write_lines(recipe.results / "rows.jsonl", [*(r | older | {"decodes": ""} for r in ROWS), drawn])
    assert card.main(["--model", str(recipe.model)]) == 0
    assert "Rows of other weights than the folder's" in (recipe.model / "README.md").read_text()
    drawn |= {"weights": "of old decoders"}
    said = row("speak", 0.9, bar="at most 50 %") | older | {"decodes": "audio"}
    for wrong in (said, drawn | {"reads": "others"}, drawn | {"image": "old"}):
        write_lines(recipe.results / "rows.jsonl", [wrong])
        assert card.main(["--model", str(recipe.model)]) == 2
        assert f"{wrong['task']} was measured on weights of old decoders" in capsys.readouterr().err


def test_figures_of_other_weights_are_refused(recipe, capsys):
    (recipe.model / "big.safetensors").write_bytes(b"other")
    assert card.main(["--model", str(recipe.model)]) == 2
    assert "cifar10 was measured on weights" in capsys.readouterr().err
    assert card.main(["--model", str(recipe.model), "--other-weights"]) == 0


def test_a_cell_cannot_break_the_table():
    made = card_sections.table(("a", "b"), [["x|y", "1"], ["z", "12"]])
    assert made == "| a | b |\n| --- | ---: |\n| x\\|y | 1 |\n| z | 12 |\n"
