"""The Hub's schema is read as it is written, a few rows at a time."""

from pathlib import Path

import pytest

from m27.data.sources import cifar10, parquet, storybooks
from m27.data.sources.base import SourceError, shared_file

pa = pytest.importorskip("pyarrow")
pq = pytest.importorskip("pyarrow.parquet")


def write(path: Path, name: str, cells: list[bytes | None], **columns: list[object]) -> None:
    media = [None if cell is None else {"bytes": cell, "path": "x"} for cell in cells]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table({name: pa.array(media, kind), **columns}), path, row_group_size=2)


def test_media_cells_become_bytes(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", "image", [b"1", None, b"", b"4", b"5"], label=[1, 2, 3, 4, 5])
    rows = list(parquet.rows(tmp_path / "a.parquet", batch=2))
    assert [row["image"] for row in rows] == [b"1", None, None, b"4", b"5"]
    assert [row["label"] for row in rows] == [1, 2, 3, 4, 5]
    assert next(iter(parquet.rows(tmp_path / "a.parquet", ("label",)))) == {"label": 1}


def test_errors_name_the_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path / "a.parquet", "image", [b"1"])
    with pytest.raises(SourceError, match=r"a\.parquet: no column 'label'"):
        list(parquet.rows(tmp_path / "a.parquet", ("label",)))
    (tmp_path / "b.parquet").write_bytes(b"no parquet")
    with pytest.raises(SourceError, match=r"b\.parquet: not a readable"):
        list(parquet.rows(tmp_path / "b.parquet"))
    monkeypatch.setenv("M27_SHARED_DATA", str(tmp_path))
    with pytest.raises(SourceError, match=r"c\.parquet is missing; its origin is somewhere"):
        shared_file("c.parquet", "somewhere")


def test_sources_read_the_schema(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("M27_SHARED_DATA", str(tmp_path))
    write(tmp_path / "cifar10/cifar10-train.parquet", "img", [b"1", b"2"], label=[5, 0])
    write(tmp_path / "cifar10/cifar10-test.parquet", "img", [b"3"], label=[9])
    found = [(item.key, item.text, item.meta["split"]) for item in cifar10.items()]
    assert found == [
        ("cifar10/train/00000", "dog", "train"),
        ("cifar10/train/00001", "airplane", "train"),
        ("cifar10/test/00000", "truck", "test"),
    ]
    write(
        tmp_path / "storybooks/storybooks-en.parquet",
        "image",
        [b"1", None, b"3"],
        story=["a", "a", "b"],
        page=[0, 1, 0],
        title=["T", "T", "U"],
        text=["T", " one\n two ", "U"],
        credits=["", "", ""],
    )
    pages = [[(page.text, page.image) for page in pages] for pages in storybooks.books()]
    assert pages == [[("T", b"1"), ("one two", None)], [("U", b"3")]]
