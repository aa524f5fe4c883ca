"""Text in Parquet: every way to write it is read, and small files that stand for large ones are refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tsl_jax import cli
from tsl_jax.data import parquet_text

MB = 1 << 20


def texts(file: Path, max_bytes: int = 1 << 30) -> list[str]:
    return list(parquet_text.texts(file, "text", max_bytes))


def repeated(text: str, times: int) -> pa.Table:
    """One text in many rows, which take no room."""
    return pa.table({"text": pa.DictionaryArray.from_arrays(np.zeros(times, np.int32), [text])})


def write(file: Path, table: pa.Table, **options: Any) -> Path:
    """As a column of text, whatever it is in memory."""
    pq.write_table(table, file, store_schema=False, **options)
    return file


@pytest.mark.parametrize("encoding", [None, "PLAIN", "DELTA_LENGTH_BYTE_ARRAY", "DELTA_BYTE_ARRAY"])
@pytest.mark.parametrize("version", ["1.0", "2.0"])
@pytest.mark.parametrize("compression", ["none", "snappy", "gzip", "zstd"])
def test_every_way_to_write_text_is_read(encoding: str | None, version: str, compression: str, tmp_path: Path) -> None:
    rows = [None if n % 7 == 0 else f"story {n % 90} " + "über the hill " * (n % 40) for n in range(1000)]
    table = pa.table({"id": list(range(1000)), "nested": [{"text": "no"}] * 1000, "text": rows})
    options: dict[str, Any] = {"column_encoding": {"text": encoding}} if encoding else {}
    file = write(
        tmp_path / "a.parquet",
        table,
        data_page_version=version,
        compression=compression,
        use_dictionary=[] if encoding else ["text"],
        row_group_size=300,
        data_page_size=1000,
        write_page_checksum=True,
        write_page_index=True,
        **options,
    )
    assert texts(file) == [text for text in rows if text is not None]
    with pq.ParquetFile(file) as table_file:
        largest = parquet_text._largest_page(file, "text", table_file.metadata)
        chunks = [table_file.metadata.row_group(i).column(2) for i in range(4)]
    assert 500 < largest < max(chunk.total_uncompressed_size for chunk in chunks)


def test_small_files_that_stand_for_large_ones_are_refused(tmp_path: Path) -> None:
    """In the memory of a page or two, however many rows there are."""
    rng = np.random.default_rng(0)
    word = "".join(rng.choice(list("abcdefgh "), MB))
    bombs = {
        "dictionary": (repeated(word, 100_000), {"dictionary_pagesize_limit": 4 * MB}),
        "delta": (repeated(word, 200), {"use_dictionary": False, "column_encoding": "DELTA_BYTE_ARRAY"}),
        "page": (repeated("a " * 48 * MB, 1), {"use_dictionary": False, "compression": "zstd"}),
    }
    pool, before = pa.proxy_memory_pool(pa.default_memory_pool()), pa.default_memory_pool()
    for name, (table, options) in bombs.items():
        file = write(tmp_path / f"{name}.parquet", table, **{"compression": "none", **options})
        assert file.stat().st_size < 2 * MB, name
        pa.set_memory_pool(pool)
        try:
            with pytest.raises(ValueError, match=r"bytes of .*parquet unpack to [\d,]+ or more, as those of no text"):
                sum(map(len, parquet_text.texts(file, "text", 1 << 30)))
        finally:
            pa.set_memory_pool(before)
    assert pool.max_memory() < 3 * parquet_text.AT_ONCE


def test_one_text_is_bounded_as_one_that_was_compressed_is(tmp_path: Path) -> None:
    file = write(tmp_path / "a.parquet", pa.table({"text": ["short", "x" * 2000]}))
    assert len(texts(file)[1]) == 2000
    with pytest.raises(ValueError, match=r"holds a text of more than 1,000 bytes; raise data.max_bytes, or leave"):
        texts(file, 1000)


def test_a_bomb_is_a_sentence_of_the_command(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = write(
        tmp_path / "a.parquet", pa.table({"text": pa.nulls(70_000_000, pa.string())}), row_group_size=70_000_000
    )
    arguments = ["--out", str(tmp_path / "run"), "--text", f"{file}", "--model.preset", "tiny"]
    assert cli.run_verb("train", arguments, debug=False) == 2
    said = capsys.readouterr().err
    assert "unpack to" in said
    assert "Traceback" not in said


@pytest.mark.parametrize("seed", range(40))
def test_flipped_bits_are_a_sentence_or_do_no_harm(seed: int, tmp_path: Path) -> None:
    rng = np.random.default_rng(seed)
    raw = bytearray(write(tmp_path / "a.parquet", pa.table({"text": ["some text"] * 50})).read_bytes())
    for place in rng.integers(0, len(raw), 4):
        raw[place] ^= 1 << int(rng.integers(8))
    (tmp_path / "b.parquet").write_bytes(raw)
    try:
        texts(tmp_path / "b.parquet")
    except ValueError as error:
        assert str(error).startswith("data: ")  # noqa: PT017
