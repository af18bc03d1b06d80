"""The scorers' rules one at a time: what a reader of each docstring expects of it."""

import random

import pytest

from m27.eval.scorers import caption, choice, geneval, mathvista, mmmu, pope, spoken, vqa, wer
from m27.eval.scorers.distance import common, edits

OPTIONS = {"A": "a red cat", "B": "a dog", "C": "a blue bus"}


@pytest.mark.parametrize(
    ("reply", "letter"),
    [
        ("B", "B"),
        ("(A) is wrong, it is (C)", "C"),
        ("A or B .", "B"),
        ("I am quite sure that this is a dog", "B"),
        ("this is a dog", None),  # too short for the text to count
        ("A.!", None),  # marks come off in one fixed order
        ("", None),
    ],
)
def test_mmmu_takes_the_last_letter_and_guesses_apart(reply, letter):
    assert mmmu.choice(reply, OPTIONS) == letter


def test_mmmu_pro_listens_to_the_last_answer_mark():
    assert mmmu.choice("(A) it is. Answer: B", OPTIONS) == "A"
    assert mmmu.pro_choice("(A) it is. Answer: B", OPTIONS) == "B"
    assert mmmu.pro_choice("(A) it is. Answer: B or C", OPTIONS) == "A"
    assert mmmu.pro_choice("so A.", OPTIONS) == "A"


def test_a_guess_depends_on_the_question_alone_and_is_fair():
    letters = list("ABCD")
    drawn = [mmmu.guess(f"q{n}", letters) for n in range(4000)]
    assert drawn == [mmmu.guess(f"q{n}", letters) for n in range(4000)]
    assert all(900 < drawn.count(letter) < 1100 for letter in letters)
    assert mmmu.guess("q0", letters, seed=1) != mmmu.guess("q0", letters, seed=3)
    official, known = mmmu.official_guesser(), random.Random(42)
    assert [official(letters) for _ in range(5)] == [known.choice(letters) for _ in range(5)]


@pytest.mark.parametrize(
    ("reply", "gold", "right"),
    [
        ("the answer is 1,234.567", "1234.57", True),
        ("the answer is 1,234.567 units", "1234.57", False),  # sic: it reads 1234 and 234.57
        ("x = 3", "3.0", True),
        ("x = 3", "3.1", False),
        ("it is a big brown dog", "brown dog", True),
        ("it is c", "c", True),
        ("it is abc", "c", False),  # one letter must stand with a space beside it
        ("so it is c", ["d", "it"], False),
        ("about 5\nso it is 7", "5", False),  # the line without a lead says nothing
    ],
)
def test_mmmu_open_answers(reply, gold, right):
    assert mmmu.right_open(mmmu.open_answers(reply), gold) is right


def test_mathvista_cuts_whole_numbers_rounds_others_and_takes_the_nearest_choice():
    assert mathvista.normalised("3.9", "free_form", "integer") == "3"
    assert mathvista.normalised("3.14159", "free_form", "float", None, 2.0) == "3.14"
    assert mathvista.normalised("three", "free_form", "float", None, 2) is None
    assert mathvista.normalised("inf", "free_form", "integer") is None
    assert mathvista.normalised([1, 2], "free_form", "list") == "[1, 2]"
    choices = ["12 cm", "15 cm", "20 cm"]
    for text, expected in (("(b) 15", "15 cm"), ("C", "20 cm"), ("12cm", "12 cm"), ("D", "12 cm")):
        assert mathvista.normalised(text, "multi_choice", "text", choices) == expected
    assert mathvista.normalised(" ", "multi_choice", "text", choices, None, True) is None
    assert not mathvista.right("1.20", "1.2")
    with pytest.raises(ValueError, match="needs choices"):
        mathvista.normalised("A", "multi_choice", "text", None)
    with pytest.raises(ValueError, match="answer_type must be"):
        mathvista.normalised("1", "free_form", "text")


def test_mathvista_says_where_the_official_program_would_ask_a_model():
    assert mathvista.extract("12", "free_form", "integer") == "12"
    assert mathvista.extract("about 12", "free_form", "integer") is None
    assert mathvista.extract('The answer is "4".', "free_form", "integer") is None
    assert mathvista.extract('The answer is "4".', "free_form", "integer", quick=True) == "4"


def test_mmbench_letters_texts_and_refusals():
    assert choice.mmbench_letter("The answer is B.", OPTIONS) == "B"
    assert choice.mmbench_letter("a dog!", OPTIONS) == "B"
    assert choice.mmbench_letter("A or B", OPTIONS) is None
    assert choice.mmbench_letter("I can't process this file.", OPTIONS) == choice.NONE
    assert choice.mmbench_letter("nothing here", OPTIONS) is None


def test_circular_needs_every_rotation():
    right = {7: True, 1_000_007: True, 2_000_007: True, 8: True, 1_000_008: False, 1_000_009: True}
    assert choice.circular(right) == {7: True, 8: False}
    assert choice.accuracy(choice.circular(right).values()) == 0.5
    assert choice.accuracy([]) == 0


def test_vqa_counts_the_others():
    assert vqa.agreement("x", ["x"] * 3 + ["y"] * 7) == pytest.approx((3 * 2 / 3 + 7) / 10)
    assert vqa.vqav2("Yes", ["yes"] * 10) == 0  # one voice: nothing is normalised
    assert vqa.vqav2("Yes!", ["yes"] * 9 + ["no"]) == 1
    assert vqa.vqav2("two dogs", ["2 dogs"] * 4 + ["the 2 dogs"] * 6) == 1
    assert vqa.textvqa("Bob's, Diner?", ["bob 's diner"] * 10) == 1
    with pytest.raises(ValueError, match="10 people"):
        vqa.textvqa("x", ["x"] * 9)


def test_pope_reads_the_first_sentence_and_counts():
    assert pope.says_yes("Yes, there is. No.") and not pope.says_yes("No, there is not")
    assert pope.says_yes("NO")  # sic
    got = pope.figures([(True, True), (True, False), (False, True), (False, False), (True, True)])
    assert (got.accuracy, got.precision, got.recall, got.yes) == (0.6, 2 / 3, 2 / 3, 0.6)
    assert got.f1 == pytest.approx(2 / 3)
    assert pope.figures([]) == pope.Figures(0, 0, 0, 0, 0)


def test_words_of_captions():
    said = "A man's (big) T-shirt isn't 1,000 \"red\" ones..."
    assert caption.coco_words(said) == (
        "a man 's -lrb- big -rrb- t-shirt is n't 1,000 red ones".split()
    )


def test_captions_refuse_what_has_no_reference():
    with pytest.raises(ValueError, match="candidate 1 has no reference"):
        caption.bleu([["a"], ["b"]], [[["a"]], []])
    with pytest.raises(ValueError, match="references of 1"):
        caption.bleu([["a"], ["b"]], [[["a"]]])
    assert caption.rouge_l("a b c d".split(), ["a b c d".split()]) == pytest.approx(1)
    assert caption.rouge_l([], [["a"]]) == 0


def test_distances():
    assert edits("kitten", "sitting") == 3 == edits("sitting", "kitten")
    assert edits("", "ab") == 2
    assert common("a b c d".split(), "b x d".split()) == 2


def test_spoken_words_and_rates():
    assert spoken.english("Mr. Smith can't pay twenty-one dollars!").strip() == (
        "mister smith can not pay $21"
    )
    assert spoken.english("two and a half million [laughs] (x)").strip() == "2500000"
    assert spoken.english("the colour", {"colour": "color"}) == "the color"
    assert spoken.english("the colour") == "the colour"
    assert spoken.basic("Öl, (nein) JA!").strip() == "öl ja"
    assert wer.word_errors("a b c", "a x c d") == (2, 3)
    assert wer.character_errors(" ab ", "ac") == (1, 2)
    assert wer.rate([(2, 3), (0, 5)]) == 0.25
    with pytest.raises(ValueError, match="no words"):
        wer.rate([(1, 0)])


def box(left, top, size=10.0, sure=0.95):
    return geneval.Box(left, top, left + size, top + size, sure)


def colours(picture, boxes, name):
    return [picture[name]] * len(boxes)


@pytest.mark.parametrize(
    ("request_", "found", "right"),
    [
        ({"include": [{"class": "cat", "count": 2}]}, {"cat": [box(0, 0), box(50, 0)]}, True),
        ({"include": [{"class": "cat", "count": 2}]}, {"cat": [box(0, 0)]}, False),
        (
            {
                "include": [{"class": "cat", "count": 2}],
                "exclude": [{"class": "cat", "count": 3}],
            },
            {"cat": [box(0, 0), box(50, 0), box(90, 0)]},
            False,
        ),
        ({"include": [{"class": "cat", "count": 1, "color": "red"}]}, {"cat": [box(0, 0)]}, True),
        ({"include": [{"class": "cat", "count": 1, "color": "blue"}]}, {"cat": [box(0, 0)]}, False),
        (
            {
                "include": [
                    {"class": "cat", "count": 1, "color": "red"},
                    {"class": "dog", "count": 1, "color": "red"},
                ]
            },
            {"cat": [box(0, 0)], "dog": [box(50, 0)]},
            False,
        ),
    ],
)
def test_geneval_objects_counts_and_colours(request_, found, right):
    verdict = geneval.judge(request_, found, colours, {"cat": "red", "dog": "blue"})
    assert verdict.right is right and bool(verdict.faults) is not right


@pytest.mark.parametrize(
    ("relation", "place", "right"),
    [
        ("left of", (0, 50), True),
        ("right of", (0, 50), False),
        ("above", (50, 0), True),
        ("below", (51, 50), False),  # too near to tell
    ],
)
def test_geneval_positions(relation, place, right):
    clauses = [
        {"class": "dog", "count": 1},
        {"class": "cat", "count": 1, "position": [relation, 0]},
    ]
    found = {"dog": [box(50, 50)], "cat": [box(*place)]}
    assert geneval.judge({"include": clauses}, found, colours).right is right
    assert not geneval.judge({"include": clauses}, {"cat": found["cat"]}, colours).right


def test_geneval_keeps_the_surest_over_the_threshold():
    found = {"cat": [box(0, 0, sure=0.5), box(0, 1, sure=0.95), box(99, 0, sure=0.2)], "dog": []}
    assert [b.confidence for b in geneval.kept(found, "two_object")["cat"]] == [0.95, 0.5]
    assert [b.confidence for b in geneval.kept(found, "counting")["cat"]] == [0.95]
    assert len(geneval.kept(found, "colors", most_overlap=0.5)["cat"]) == 1
    assert "dog" not in geneval.kept(found, "colors")
    many = {"cat": [box(20 * n, 0) for n in range(30)]}
    assert len(geneval.kept(many, "colors")["cat"]) == geneval.MOST
    assert geneval.overall([("a", True), ("a", True), ("b", False)]) == (0.5, {"a": 1, "b": 0})


def test_geneval_takes_any_detector():
    request = {"tag": "counting", "include": [{"class": "cat", "count": 2}]}

    def found(picture):
        return {"cat": [box(0, 0, sure=picture), box(50, 0)]}

    assert geneval.assess(0.95, request, found, colours).right
    unsure = geneval.assess(0.85, request, found, colours)  # counting asks for more confidence
    assert unsure == geneval.Verdict(False, ("expected cat>=2, found 1",))
