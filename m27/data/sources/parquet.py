"""Reader of Parquet files in the Hub's schema, whose media columns hold `{bytes, path}`.

The same reader serves the files under `../shared/data` and any data set downloaded from the Hub.
Reads row group by row group: memory stays small whatever the file's size.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from m27.data.sources.base import SourceError


def rows(
    path: Path, columns: Sequence[str] | None = None, batch: int = 512
) -> Iterator[dict[str, Any]]:
    """Yield rows as dicts; media cells become their bytes (None where null or empty).

    columns: only these, all of which must exist. Raises SourceError naming the file.
    """
    import pyarrow as pa  # an extra: only the data room's users need it
    import pyarrow.parquet as pq

    try:
        file = pq.ParquetFile(path)
    except (OSError, pa.ArrowInvalid) as error:
        raise SourceError(f"{path}: not a readable Parquet file: {error}") from error
    names = file.schema_arrow.names
    missing = [name for name in columns or () if name not in names]
    if missing:
        raise SourceError(f"{path}: no column {missing[0]!r}; there are: {', '.join(names)}")
    media = {name for name in names if is_media(file.schema_arrow.field(name).type)}
    wanted = list(columns) if columns else None
    for part in file.iter_batches(batch_size=batch, columns=wanted):
        for row in part.to_pylist():
            yield {name: _bytes(cell) if name in media else cell for name, cell in row.items()}


def is_media(kind: Any) -> bool:
    """Whether an Arrow type is the Hub's Image or Audio storage: a struct with bytes and path."""
    fields = {kind.field(i).name for i in range(kind.num_fields)} if kind.num_fields else set()
    return {"bytes", "path"} <= fields


def _bytes(cell: dict[str, Any] | None) -> bytes | None:
    data = cell.get("bytes") if cell else None
    return data or None
