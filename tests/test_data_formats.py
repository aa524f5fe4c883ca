"""The formats that a user's text may have, and datasets: what is read, and the sentence for what cannot be."""

import gzip
import json
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from tsl_jax.data import corpora, hub, text_files
from tsl_jax.data.config import DataConfig

TEXTS = [f"story {n} über the hill\n" for n in range(80)]
LINES = "".join(json.dumps({"id": n, "text": text}) + "\n" for n, text in enumerate(TEXTS)).encode()


def read(place: Path | str, field: str = "text") -> list[str]:
    return [document.text for document in text_files.documents("mine", [place], field, "<|endoftext|>", 1 << 30)]


def zstd(raw: bytes) -> bytes:
    return pytest.importorskip("zstandard").ZstdCompressor().compress(raw)


def parquet(file: Path, **columns: list) -> Path:
    pq.write_table(pa.table(columns), file)
    return file


@pytest.mark.parametrize("name", ["a.txt.gz", "a.jsonl", "a.jsonl.gz", "a.ndjson.zst", "a.txt.zst", "a.parquet"])
def test_every_format_gives_the_same_documents(name: str, tmp_path: Path):
    file = tmp_path / name
    plain = "<|endoftext|>".join(TEXTS).encode() if ".txt" in name else LINES
    if name.endswith(".parquet"):
        parquet(file, text=[*TEXTS, None, " "])
    else:
        pack = {".gz": gzip.compress, ".zst": zstd}.get(file.suffix, bytes)
        half = len(plain) // 2
        file.write_bytes(pack(plain[:half]) + pack(plain[half:]))  # two frames, as `cat a.gz b.gz` makes
    assert text_files.find((str(file),)) == [file]
    assert read(file) == TEXTS


@pytest.mark.parametrize("cut", [-9, 30])
@pytest.mark.parametrize("name", ["a.jsonl.gz", "a.jsonl.zst", "a.parquet"])
def test_damaged_files_get_a_sentence(name: str, cut: int, tmp_path: Path):
    file = tmp_path / name
    whole = {".gz": gzip.compress, ".zst": zstd}.get(file.suffix)
    raw = whole(LINES) if whole else parquet(tmp_path / "whole.parquet", text=TEXTS).read_bytes()
    file.write_bytes(raw[:cut])
    with pytest.raises(ValueError, match=rf"^data: .*{name} is not a whole {file.suffix} file .*; fetch or "):
        read(file)
    file.write_bytes(b"never packed, this one")
    with pytest.raises(ValueError, match=f"is not a whole {file.suffix} file"):
        read(file)


@pytest.mark.parametrize(
    ("name", "content", "sentence"),
    [
        (
            "a.jsonl",
            b'{"text": "x"}\n{"text": "caf\xe9"}\n',
            r"line 2 of .*a.jsonl is not UTF-8 text \(byte 0xe9 at 13\)",
        ),
        ("a.dat", b"caf\xe9", r"a.dat is not UTF-8 text \(byte 0xe9 at 3\).*\.parquet, \.npy and \.bin are read"),
        ("a.pdf", b"%PDF", r"a.pdf is a \.pdf file, which is not read; \.txt and other text, \.jsonl"),
        ("a.parquet.gz", b"", r"a.parquet.gz is a .gz file, which is not read"),
        ("a.csv.xz", b"", r"is a .xz file, which is not read"),
    ],
)
def test_what_cannot_be_read_gets_a_sentence(name: str, content: bytes, sentence: str, tmp_path: Path):
    file = tmp_path / name
    file.write_bytes(content)
    with pytest.raises(ValueError, match=sentence):
        read(*text_files.find((str(file),)))


def test_a_missing_column_names_those_there_are(tmp_path: Path):
    file = parquet(tmp_path / "a.parquet", body=["x"], id=[1])
    with pytest.raises(ValueError, match=r"has no text in the column 'text'; it has 'body', 'id'; set data\.field"):
        read(file)
    with pytest.raises(ValueError, match=r"the column 'id' of .* holds int64, not text"):
        read(file, "id")


def test_only_so_much_of_a_file_is_read_as_is_needed(tmp_path: Path):
    file = tmp_path / "a.jsonl.gz"
    file.write_bytes(gzip.compress(LINES + b"not json"))
    some = text_files.documents("mine", [file], "text", "<|endoftext|>", 1 << 30)
    assert [next(some).text for _ in range(70)] == TEXTS[:70]
    with pytest.raises(ValueError, match="line 81 of"):
        list(some)


def test_entries_of_datasets_are_read():
    assert hub.parse("hf:my/set") == ("my/set", None, "train", None)
    assert hub.parse("hf:my/set:en@validation#body") == ("my/set", "en", "validation", "body")
    for wrong in ("hf:", "hf:set@", "hf:set::en"):
        with pytest.raises(ValueError, match=r"is not of the form hf:NAME"):
            hub.parse(wrong)


def test_a_missing_package_gets_a_sentence(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(hub, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"hf:set needs the package datasets; pip install 'tsl_jax\[corpora\]'"):
        corpora.find(DataConfig(("hf:set",)))


@pytest.fixture
def dataset(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder that the package `datasets` reads, which never asks the network."""
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    folder = tmp_path / "set"
    folder.mkdir()
    parquet(folder / "train.parquet", text=TEXTS, number=list(range(80)))
    return folder


def test_a_dataset_is_streamed_and_prepared(dataset: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("TSL_JAX_CACHE", str(tmp_path / "prepared"))
    assert read(f"hf:{dataset}") == read(f"hf:{dataset}@train#text") == TEXTS
    first = corpora.load(DataConfig((f"tales=hf:{dataset}@1",), vocabulary=300, heldout=0.2)).record
    assert sum(first["documents"]["tales"].values()) + sum(first["repeats_removed"]["tales"].values()) == 80
    assert first["sources"] == {"tales": [f"hf:{dataset}"]}
    parquet(dataset / "train.parquet", text=[text + "more" for text in TEXTS], number=list(range(80)))
    assert corpora.load(DataConfig((f"tales=hf:{dataset}@1",), vocabulary=300, heldout=0.2)).record != first


@pytest.mark.parametrize(
    ("entry", "sentence"),
    [
        ("hf:{}#story", "no text in the column 'story'; it has 'text', 'number'; name one as .*#COLUMN"),
        ("hf:{}#number", "no text in the column 'number'"),
        ("hf:{}@nowhere", r"cannot be read \(.*nowhere.*\); check its name, configuration and split"),
        ("hf:{}:other", r"cannot be read \(.*other.*\)"),
        ("hf:{}/gone", "cannot be read"),
    ],
)
def test_a_dataset_that_is_not_so_gets_a_sentence(entry: str, sentence: str, dataset: Path):
    with pytest.raises(ValueError, match=sentence):
        read(entry.format(dataset))
