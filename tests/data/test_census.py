"""The table of the mixture counts what the shards hold."""

import json
from pathlib import Path

import numpy as np

from m27.data.build import FORMAT
from m27.data.census import by_task, census, markdown

HEAD = {
    "format": FORMAT, "vocabulary": {"text": 100, "image": [110, 200], "audio": [200, 250]},
    "vocabulary_hash": "x", "unconditional": [1], "image_codec": "a", "audio_codec": "b",
}  # fmt: skip


def shard(folder: Path, documents: list[tuple[str, list[int], int]]) -> Path:
    """A shard of (task, ids, how many of its last ids are targets)."""
    folder.mkdir()
    names = list(dict.fromkeys(task for task, _, _ in documents))
    ids = [i for _, row, _ in documents for i in row]
    loss = [int(n >= len(row) - k) for _, row, k in documents for n in range(len(row))]
    np.asarray(ids, np.uint32).tofile(folder / "tokens.bin")
    np.asarray(loss, np.uint8).tofile(folder / "loss.bin")
    np.save(folder / "index.npy", np.cumsum([0, *(len(row) for _, row, _ in documents)]))
    np.save(folder / "tasks.npy", np.asarray([names.index(t) for t, _, _ in documents], np.uint16))
    meta = {**HEAD, "tasks": names, "documents": len(documents), "tokens": len(ids)}
    (folder / "meta.json").write_text(json.dumps(meta))
    return folder


def test_the_census_counts_documents_and_tokens_by_medium(tmp_path: Path) -> None:
    one = shard(
        tmp_path / "emoji",
        [("draw", [1, 2, 105, 110, 199, 106], 3), ("caption", [110, 5, 6], 2), ("draw", [1], 1)],
    )
    two = shard(tmp_path / "speech", [("speak", [1, 200, 249], 2), ("draw", [3, 150], 1)])
    rows = census([one, two], {"draw": 1.5})
    found = {(r.source, r.task): (r.documents, r.text, r.image, r.audio, r.targets) for r in rows}
    assert found == {
        ("emoji", "draw"): (2, 5, 2, 0, 4),
        ("emoji", "caption"): (1, 2, 1, 0, 2),
        ("speech", "speak"): (1, 1, 0, 2, 2),
        ("speech", "draw"): (1, 1, 1, 0, 1),
    }
    tasks = by_task(rows)
    assert [(r.task, r.source, r.documents, r.tokens) for r in tasks] == [
        ("draw", "emoji, speech", 3, 9),
        ("caption", "emoji", 1, 3),
        ("speak", "speech", 1, 3),
    ]
    table = markdown(tasks).splitlines()
    assert table[2] == "| draw | emoji, speech | 3 | 6 | 3 | 0 | 5 | 1.50 |"
    assert table[-1] == "| all |  | 5 | 9 | 4 | 2 | 9 |  |"
