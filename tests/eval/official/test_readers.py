"""Readers of official files, on tiny files in each format that are written here."""

import base64
import csv
import json

import pytest

from m27.eval.official import (
    audiocaps,
    clotho,
    coco,
    geneval,
    librispeech,
    mathvista,
    mmbench,
    mmmu,
    mmmu_pro,
    mmstar,
    pope,
    scienceqa,
    textvqa,
    vqav2,
)
from m27.eval.official.sample import FormatError
from m27.language.template import segments

PNG = b"\x89PNG\r\n\x1a\n tiny"


def text_of(sample):
    return "".join(p.get("text", "▣") for p in sample.messages[0]["content"])


def only(samples):
    """The one sample, whose messages our chat form takes."""
    (sample,) = list(samples)
    segments(sample.messages, generate=True)
    return sample


def media(sample):
    return [p.get("bytes") or p["path"] for p in sample.messages[0]["content"] if "text" not in p]


def parquet(path, row):
    pa = pytest.importorskip("pyarrow")
    import pyarrow.parquet as pq

    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.Table.from_pylist([row]), path)
    return path


def dump(path, value):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value), encoding="utf-8")
    return path


MMMU_ROW = {
    "id": "validation_Art_Theory_7",
    "question": "What is in <image 1>?",
    "options": "['a cat', '<image 2>']",
    "answer": "B",
    "question_type": "multiple-choice",
    "image_1": {"bytes": PNG, "path": "1.png"},
    "image_2": {"bytes": PNG + b"2", "path": "2.png"},
}


def test_mmmu_puts_pictures_where_they_are_named(tmp_path):
    parquet(tmp_path / "Art_Theory/validation-00000-of-00001.parquet", MMMU_ROW)
    sample = only(mmmu.samples(tmp_path))
    assert text_of(sample) == f"What is in ▣?\n\n(A) a cat\n(B) ▣\n\n\n{mmmu.CHOOSE}"
    assert media(sample) == [PNG, PNG + b"2"]
    assert (sample.id, sample.references) == ("validation_Art_Theory_7", ("B",))
    assert sample.meta == {
        "question_type": "multiple-choice",
        "subject": "Art_Theory",
        "options": {"A": "a cat", "B": "<image 2>"},
    }


def test_mmmu_open_questions_may_have_several_answers(tmp_path):
    row = {**MMMU_ROW, "question_type": "open", "options": "[]", "answer": "['2', 'two']"}
    sample = only(mmmu.samples(parquet(tmp_path / "x.parquet", row)))
    assert text_of(sample) == f"What is in ▣?\n\n{mmmu.SHORT}"
    assert sample.references == ("2", "two")


@pytest.mark.parametrize(
    ("change", "fault"),
    [
        ({"options": "[oops"}, "row 1: options are not a list: '[oops'"),
        ({"image_1": None}, "row 1: <image 1> has no picture in image_1"),
    ],
)
def test_mmmu_says_what_is_wrong_and_where(tmp_path, change, fault):
    path = parquet(tmp_path / "x.parquet", {**MMMU_ROW, **change})
    with pytest.raises(FormatError, match=r"x\.parquet") as caught:
        list(mmmu.samples(path))
    assert fault in str(caught.value)
    with pytest.raises(FormatError, match="no parquet file"):
        list(mmmu.samples(tmp_path / "nowhere"))


def test_mmmu_pro_both_settings(tmp_path):
    row = {"id": "test_History_1", "options": "['a', 'b']", "answer": "A", "subject": "History"}
    standard = {**row, "question": "Which <image 1>?", "image_1": {"bytes": PNG}}
    sample = only(mmmu_pro.samples(parquet(tmp_path / "s.parquet", standard)))
    assert text_of(sample).startswith("Which ▣?\nA. a\nB. b\nAnswer with the option letter")
    vision = {**row, "image": {"bytes": PNG}}
    sample = only(mmmu_pro.samples(parquet(tmp_path / "v.parquet", vision), "cot"))
    assert text_of(sample).startswith("▣Write out the multiple-choice question")
    assert sample.meta["options"] == {"A": "a", "B": "b"}


MATHVISTA = {
    "pid": "1", "question": "How far?", "image": "images/1.jpg", "choices": None, "precision": 1.0,
    "answer": "1.2", "question_type": "free_form", "answer_type": "float",
}  # fmt: skip


def test_mathvista_from_either_form(tmp_path):
    stored = {**MATHVISTA, "query": "Hint: a number.\nQuestion: How far?"}
    path = parquet(tmp_path / "x.parquet", {**stored, "decoded_image": {"bytes": PNG}})
    sample = only(mathvista.samples(path))
    assert media(sample) == [PNG] and text_of(sample) == "▣" + stored["query"]
    dump(tmp_path / "query.json", {"1": stored["query"]})
    same = only(mathvista.samples(dump(tmp_path / "testmini.json", {"1": MATHVISTA})))
    assert media(same) == [str(tmp_path / "images/1.jpg")]
    assert (same.references, same.meta) == (sample.references, sample.meta) == (("1.2",), same.meta)
    (tmp_path / "query.json").unlink()
    with pytest.raises(FormatError, match="problem 1: no 'query'"):
        list(mathvista.samples(tmp_path / "testmini.json"))


def tsv(path, rows):
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), delimiter="\t")
        writer.writeheader()
        writer.writerows(rows)
    return path


def test_mmbench_with_rotations_that_share_a_picture(tmp_path):
    picture = base64.b64encode(PNG * 9).decode()
    row = {
        "index": 3,
        "question": "Who?",
        "hint": "Look.",
        "A": "a",
        "B": "b",
        "C": "",
        "answer": "A",
    }
    turned = {
        **row,
        "index": 1_000_003,
        "hint": "",
        "A": "b",
        "B": "a",
        "answer": "B",
        "image": "3",
    }
    path = tsv(tmp_path / "x.tsv", [{**row, "image": picture}, turned])
    first, second = mmbench.samples(path)
    assert text_of(first) == (
        "▣Hint: Look.\nQuestion: Who?\nOptions:\nA. a\nB. b\n"
        "Please select the correct answer from the options above. \n"
    )
    assert media(first) == media(second) == [PNG * 9]
    assert second.meta["index"] == 1_000_003 and second.meta["options"] == {"A": "b", "B": "a"}
    broken = tsv(tmp_path / "y.tsv", [{**row, "image": "!" * 100}])
    with pytest.raises(FormatError, match=r"y.tsv:2: the picture is not base64"):
        list(mmbench.samples(broken))
    with pytest.raises(FormatError, match="that of row '9'"):
        list(mmbench.samples(tsv(tmp_path / "z.tsv", [{**row, "image": "9"}])))


def test_mmstar(tmp_path):
    row = {"index": 0, "question": "Who?\nOptions: A: a, B: b", "image": PNG, "answer": "A",
           "category": "math", "l2_category": "geometry"}  # fmt: skip
    sample = only(mmstar.samples(parquet(tmp_path / "x.parquet", row)))
    assert (text_of(sample), media(sample)) == ("▣" + row["question"], [PNG])
    assert sample.meta == {"category": "math", "l2_category": "geometry"}


def test_scienceqa(tmp_path):
    problem = {"question": "Why?", "choices": ["a", "b"], "answer": 1, "hint": "", "image": "image.png",
               "split": "test", "subject": "natural science", "grade": "grade2", "topic": "physics"}  # fmt: skip
    path = dump(tmp_path / "problems.json", {"4": problem, "5": {**problem, "image": None}})
    dump(tmp_path / "pid_splits.json", {"test": ["4"], "val": ["5"], "train": ["6"]})
    sample = only(scienceqa.samples(path))
    assert text_of(sample) == "▣Question: Why?\nContext: N/A\nOptions: (A) a (B) b\nAnswer:"
    assert media(sample) == [str(tmp_path / "images/test/4/image.png")] and sample.references == ("B",)
    assert media(only(scienceqa.samples(path, "val"))) == []
    with pytest.raises(FormatError, match="no split 'dev'"):
        list(scienceqa.samples(path, "dev"))
    with pytest.raises(FormatError, match="problem 6"):
        list(scienceqa.samples(path, "train"))


def test_vqav2_finds_the_answers_beside_the_questions(tmp_path):
    questions = {"data_subtype": "val2014",
                 "questions": [{"question_id": 1, "image_id": 42, "question": "How many?"}]}  # fmt: skip
    path = dump(tmp_path / "v2_OpenEnded_mscoco_val2014_questions.json", questions)
    assert only(vqav2.samples(path)).references == ()
    gold = {"question_id": 1, "answer_type": "number", "question_type": "how many",
            "answers": [{"answer": "2", "answer_id": n} for n in range(10)]}  # fmt: skip
    annotated = tmp_path / "v2_mscoco_val2014_annotations.json"
    dump(annotated, {"annotations": [gold]})
    sample = only(vqav2.samples(path))
    assert sample.references == ("2",) * 10 and sample.meta["answer_type"] == "number"
    assert media(sample) == [str(tmp_path / "val2014/COCO_val2014_000000000042.jpg")]
    assert text_of(sample) == f"▣How many?\n{vqav2.SHORT}"
    dump(annotated, {"annotations": [{**gold, "question_id": 2}]})
    with pytest.raises(FormatError, match="no annotation of question_id 1"):
        list(vqav2.samples(path))


def test_textvqa(tmp_path):
    row = {
        "question_id": 3,
        "image_id": "abc",
        "question": "What?",
        "answers": ["x"] * 10,
        "set_name": "val",
    }
    sample = only(textvqa.samples(dump(tmp_path / "t.json", {"data": [row]})))
    assert media(sample) == [str(tmp_path / "train_images/abc.jpg")] and len(sample.references) == 10
    with pytest.raises(FormatError, match="no 'data'"):
        list(textvqa.samples(dump(tmp_path / "u.json", {"rows": []})))


def test_pope(tmp_path):
    row = {"question_id": 1, "image": "a.jpg", "text": "Is there a dog?", "label": "no"}
    sample = only(pope.samples(dump(tmp_path / "coco_pope_random.json", row)))
    assert (sample.id, sample.references, text_of(sample)) == (
        "coco_pope_random:1",
        ("no",),
        "▣Is there a dog?",
    )
    with pytest.raises(FormatError, match=r"p.json:1: label must be yes or no, not 'maybe'"):
        list(pope.samples(dump(tmp_path / "p.json", {**row, "label": "maybe"})))


def test_coco(tmp_path):
    whole = {"images": [{"id": 5, "file_name": "a.jpg"}],
             "annotations": [{"image_id": 5, "caption": " A dog. "}, {"image_id": 5, "caption": "b"}]}  # fmt: skip
    path = dump(tmp_path / "annotations/captions_val2014.json", whole)
    sample = only(coco.samples(path))
    assert sample.references == ("A dog.", "b") and media(sample) == [str(tmp_path / "val2014/a.jpg")]
    with pytest.raises(FormatError, match="no caption of image 5"):
        list(coco.samples(dump(path, {**whole, "annotations": []})))


def test_librispeech(tmp_path):
    folder = tmp_path / "test-clean/61/70968"
    folder.mkdir(parents=True)
    (folder / "61-70968.trans.txt").write_text("61-70968-0000 HE BEGAN\n", encoding="utf-8")
    with pytest.raises(FormatError, match=r"trans.txt:1: 61-70968-0000: no 61-70968-0000.flac"):
        list(librispeech.samples(tmp_path))
    (folder / "61-70968-0000.flac").write_bytes(b"")
    sample = only(librispeech.samples(tmp_path / "test-clean"))
    assert (sample.id, sample.references, sample.meta) == (
        "61-70968-0000",
        ("HE BEGAN",),
        {"speaker": "61"},
    )
    with pytest.raises(FormatError, match=r"no \*\.trans\.txt"):
        list(librispeech.samples(folder / "x"))


def test_audiocaps_gathers_the_captions_of_a_clip(tmp_path):
    path = tmp_path / "test.csv"
    path.write_text(
        "audiocap_id,youtube_id,start_time,caption\n1,abc,30,A dog\n2,abc,30,Barking\n", "utf-8"
    )
    with pytest.raises(FormatError, match=r"no clip abc_30\.wav"):
        list(audiocaps.samples(path))
    assert list(audiocaps.samples(path, partly=True)) == []
    (tmp_path / "audio").mkdir()
    (tmp_path / "audio/abc.wav").write_bytes(b"")
    assert only(audiocaps.samples(path)).references == ("A dog", "Barking")


def test_clotho(tmp_path):
    path = tmp_path / "clotho_captions_evaluation.csv"
    path.write_text(f'file_name,{",".join(clotho.CAPTIONS)}\nrain.wav,a,b,c,d,"e, f"\n', "utf-8")
    with pytest.raises(FormatError, match=r"csv:2: no clip rain.wav"):
        list(clotho.samples(path))
    (tmp_path / "evaluation").mkdir()
    (tmp_path / "evaluation/rain.wav").write_bytes(b"")
    assert only(clotho.samples(path)).references == ("a", "b", "c", "d", "e, f")


def test_geneval_hands_on_the_request(tmp_path):
    row = {"tag": "counting", "include": [{"class": "cat", "count": 2}], "prompt": "two cats"}
    sample = only(geneval.samples(dump(tmp_path / "evaluation_metadata.jsonl", row)))
    assert (sample.id, text_of(sample), sample.meta) == ("00000", "two cats", row)
