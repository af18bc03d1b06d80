"""Small files of OpenING's and ISG-Bench's forms, and models that answer them by rule."""

import json

import numpy as np

from m27.codec.media import write_png
from m27.eval.answerers import AnswererError, Facts
from m27.eval.interleaved.makers import Made


def png(path, shade):
    path.parent.mkdir(parents=True, exist_ok=True)
    write_png(path, np.full((8, 8, 3), shade, np.uint8))
    return str(path)


def opening_file(folder, count=4):
    """`count` instances: a picture and words are asked, two steps of words and a picture are the answer."""
    rows = []
    for k in range(count):
        png(folder / f"images/Story/{k}-i-1.jpg", 10 * k)
        steps = []
        for n in (1, 2):
            png(folder / f"images/Story/{k}-o-{n}.jpg", 10 * k + n)
            steps.append({"image": f"./images/Story/{k}-o-{n}.jpg", "text": f"Step {n} of {k}. <image>"})
        asked = [{"image": f"./images/Story/{k}-i-1.jpg", "text": f"<BEGIN> Go on with story {k}. <image>"}]
        rows.append({
            "total_uid": f"030{k}", "meta_task_id": "3", "meta_task_name": "Story", "subtask_id": "1",
            "subtask_name": "Story Completion", "data_id": str(k),
            "conversations": [{"input": asked}, {"output": steps}],
        })  # fmt: skip
    path = folder / "test_data.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def isg_file(folder, count=2):
    """Questions whose golden answer is words, then two pictures."""
    rows = []
    for k in range(count):
        for name in ("q1", "g1", "g2"):
            png(folder / f"images/{k:04}_{name}.png", 20 * k)
        rows.append({
            "id": f"{k:04}", "Category": "Prediction" if k % 2 == 0 else "HowTo",
            "Query": [{"type": "text", "content": "What comes next?"},
                      {"type": "image", "content": f"images/{k:04}_q1.png"}],
            "Golden": [{"type": "text", "content": "They wash."},
                       {"type": "image", "content": f"images/{k:04}_g1.png"},
                       {"type": "image", "content": f"images/{k:04}_g2.png"}],
            "predict": {
                "block_qa": {"questions": [
                    {"subject": "<gen_text1>", "object": "<query_img1>", "relation": "describes",
                     "Question": "Does <gen_text1> describe this image?"},
                    {"subject": "<gen_img1>", "object": "<gen_img9>", "Question": "Is it there?"},
                    {"subject": "<gen_img1>", "object": "<gen_img2>", "relation": "comes before",
                     "Question": "Does the first image come before the second image?"},
                    {"subject": "<gen_img1>", "Question": "lacks an object"}]},
                "image_qa": {"questions": [
                    {"image": "<gen_img1>", "Question": "Are there hands?", "id": 0, "Preliminary": []},
                    {"image": "<gen_img1>", "Question": "Are the hands wet?", "id": 1, "Preliminary": [0]},
                    {"image": "<gen_img2>", "Question": "Is there a dragon?", "id": 2, "Preliminary": []},
                    {"image": "<gen_img2>", "Question": "Is the dragon green?", "id": 3, "Preliminary": [2]}]},
            },
        })  # fmt: skip
    path = folder / "ISG-Bench.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


class Artist:
    """Makes what `content(key)` says (None: refuses), and ends after `most` answers."""

    def __init__(self, content, most=None, name="artist"):
        self.content, self.most, self.name, self.asked = content, most, name, 0

    def facts(self):
        return Facts(self.name, "fake", "0123456789ab", "float32", "cpu")

    def make(self, asked):
        for one in asked:
            if self.asked == self.most:
                raise AnswererError("gone")
            self.asked += 1
            made = self.content(one.key)
            yield Made(one.key, made or [], 0.1, error="" if made is not None else "too long")

    def close(self):
        pass


def drawn(*shades, words="A step."):
    """An answer of words and a picture for each shade."""
    out = []
    for shade in shades:
        out += [{"type": "text", "text": words}, {"type": "image", "image": np.full((8, 8, 3), shade, np.uint8)}]
    return out
