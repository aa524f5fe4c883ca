"""What the user writes and what is read from files: entries, splits, documents, near-copies."""

import ast
import json
import re
import tokenize
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest

from tsl_jax.data import deduplicate, text_files, token_files
from tsl_jax.data.config import (
    DataConfig,
    EvalConfig,
    Mixture,
    domain_sources,
    validate_data_config,
    validate_eval_config,
)
from tsl_jax.data.documents import Document, DocumentStore, hash_fraction, is_held_out
from tsl_jax.data.installed import stdlib


def entries(*text: str) -> list[tuple]:
    return [(source.name, source.where, source.weight) for source in domain_sources(DataConfig(text=text))]


def test_entries_name_domains_globs_and_weights():
    assert entries("a/*.txt") == [("text", ("a/*.txt",), 1.0)]
    assert entries("x=a/*.txt@0.25", "y=~/b=c@home/*.jsonl@0.75") == [
        ("x", ("a/*.txt",), 0.25),
        ("y", ("~/b=c@home/*.jsonl",), 0.75),
    ]
    assert entries("x=a", "y=b", "x=c") == [("x", ("a", "c"), 0.5), ("y", ("b",), 0.5)]
    assert entries() == [("code", ("installed:code",), 1.0), ("docs", ("installed:docs",), 0.0)]
    assert entries("stdlib:docs@1e0") == [("docs", ("installed:docs",), 1.0)]
    assert entries("cloud@.5", "x=installed:apis@.5") == [
        ("cloud", ("installed:cloud",), 0.5),
        ("x", ("installed:apis",), 0.5),
    ]
    assert entries("hf:my/set:en@train@0.5", "y=hf:other#body@0.5") == [
        ("text", ("hf:my/set:en@train",), 0.5),
        ("y", ("hf:other#body",), 0.5),
    ]


@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        (("x=a@0.5", "y=b@0.6"), r"must sum to one, found 1\.1 \(x 0\.5, y 0\.6\)"),
        (("x=a@0.5", "y=b"), "'y' has no weight while others have one"),
        (("x=a@-1", "y=b@2"), "weight of 'x' is a share .* found -1"),
        (("x=a@0.5", "y=b@0,5"), "'y' has no weight .*'0,5' after the @ is not a number"),
        (("x=a@0.5", "x=b@0.6"), "'x' has the weights 0.5 and 0.6"),
        (("x=a@1.2.3",), "not a number"),
        (("stdlib:poems",), "there is no installed domain 'poems'; there are code, docs, "),
        (("",), "not of the form"),
    ],
)
def test_wrong_entries_get_a_sentence(text: tuple[str, ...], sentence: str):
    with pytest.raises(ValueError, match=sentence):
        validate_data_config(DataConfig(text=text))


def test_wrong_numbers_get_a_sentence():
    for entry in ({"heldout": 1.0}, {"vocabulary": 256}, {"token_type": "int8"}, {"max_bytes": 0}, {"end_of_text": ""}):
        with pytest.raises(ValueError, match=rf"^data: .*{next(iter(entry))}"):
            validate_data_config(DataConfig(**entry))
    for entry in ({"design": "nested"}, {"stride": 0}, {"ood_offsets": 0}):
        with pytest.raises(ValueError, match=rf"^data: evaluation {next(iter(entry))}"):
            validate_eval_config(EvalConfig(**entry))
    with pytest.raises(ValueError, match=r"sum to one, found 0\.9"):
        Mixture((("a", 0.4), ("b", 0.5)))
    with pytest.raises(ValueError, match="each domain once"):
        Mixture((("a", 0.5), ("a", 0.5)))


def test_a_larger_heldout_share_keeps_what_was_held_out():
    documents = [Document(f"file {n}", "text") for n in range(2000)]
    small, large = ([document for document in documents if is_held_out(document, share)] for share in (0.1, 0.2))
    assert set(small) < set(large)
    assert abs(len(small) - 200) < 4 * np.sqrt(180)
    assert all(0 <= hash_fraction(document.key) < 1 for document in documents)


def test_files_are_found_by_glob_folder_and_path(tmp_path: Path):
    for name in ("a.txt", "b/c.txt", "b/d.md", "b/.hidden"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text("x")

    def names(*patterns: str) -> list[str]:
        paths = text_files.find(tuple(str(tmp_path / path) for path in patterns))
        return [str(path.relative_to(tmp_path)) for path in paths]

    assert names("**/*.txt") == ["a.txt", "b/c.txt"]
    assert names("b") == ["b/c.txt", "b/d.md"]
    assert names("b/d.md", "*.txt", "a.txt") == ["a.txt", "b/d.md"]
    with pytest.raises(FileNotFoundError, match="matches no file"):
        names("*.rst")
    with pytest.raises(FileNotFoundError, match="'half' after the @ is not a number"):
        names("*.txt@half")
    with pytest.raises(FileNotFoundError, match=r"\.md' matches no file; check"):
        names("me@home/*.md")


def read(*files: Path, field: str = "text", max_bytes: int = 1 << 30) -> list[str]:
    return [document.text for document in text_files.documents("mine", list(files), field, "<|endoftext|>", max_bytes)]


def test_a_file_of_several_documents_and_a_jsonl_file_give_them_all(tmp_path: Path):
    texts = [f"story {n}\n" for n in range(100)]
    (tmp_path / "a.txt").write_text("<|endoftext|>".join([*texts, "  \n"]))
    (tmp_path / "b.jsonl").write_text(
        "".join(json.dumps({"id": n, "body": text}) + "\n" for n, text in enumerate(texts))
    )
    assert read(tmp_path / "a.txt") == texts
    assert read(tmp_path / "b.jsonl", field="body") == texts


def test_a_book_is_cut_at_paragraphs_and_nothing_is_lost(tmp_path: Path):
    book = "".join(f"Paragraph {n}. " + "word " * (n % 50) + "\n\n" for n in range(5000))
    (tmp_path / "book.txt").write_text(book)
    blocks = read(tmp_path / "book.txt")
    assert "".join(blocks) == book
    assert len(blocks) > text_files.FEW
    assert all(block.startswith("Paragraph") for block in blocks)


def test_text_without_any_line_end_is_cut_too(tmp_path: Path):
    (tmp_path / "a.txt").write_text("abcdefghij" * 30_000)
    blocks = read(tmp_path / "a.txt")
    assert "".join(blocks) == "abcdefghij" * 30_000
    assert len(blocks) >= text_files.FEW


def test_text_beyond_the_cap_is_left_out_with_a_warning(tmp_path: Path):
    for name in "abc":
        (tmp_path / name).write_text(name * 1000)
    with pytest.warns(UserWarning, match="more than 2500 bytes .*c and what follows is left out"):
        texts = read(*sorted(tmp_path.iterdir()), max_bytes=2500)
    assert set("".join(texts)) == {"a", "b"}


def test_unusable_text_gets_a_sentence(tmp_path: Path):
    (tmp_path / "empty.txt").write_text(" \n")
    (tmp_path / "latin.txt").write_bytes("caf\xe9".encode("latin-1"))
    (tmp_path / "a.jsonl").write_text('{"text": "x"}\n{"body": "x", "id": 3}\n')
    (tmp_path / "b.jsonl").write_text('{"text": "x"}\nnot json\n')
    (tmp_path / "c.jsonl").write_text("[1]\n")
    for name, sentence in {
        "empty.txt": "domain 'mine' is empty",
        "latin.txt": r"not UTF-8 text \(byte 0xe9 at 3\)",
        "a.jsonl": "line 2 of .* no text in the field 'text'; it has 'body', 'id'",
        "b.jsonl": "line 2 of .* is not JSON",
        "c.jsonl": "line 1 of .*; it is a list",
    }.items():
        with pytest.raises(ValueError, match=sentence):
            read(tmp_path / name)


def test_unusable_token_files_get_a_sentence(tmp_path: Path):
    np.save(tmp_path / "a.npy", np.zeros(5))
    np.save(tmp_path / "b.npy", np.zeros((5, 2), np.uint16))
    (tmp_path / "c.npy").write_bytes(b"\x93NUMPY nothing")
    (tmp_path / "d.bin").write_bytes(b"123")
    (tmp_path / "e.bin").write_bytes(b"")
    for name, sentence in {
        "a": "float64",
        "b": r"\(5, 2\)",
        "c": "not a NumPy array",
        "d": "not a multiple of 2",
    }.items():
        with pytest.raises(ValueError, match=sentence):
            token_files.read(list(tmp_path.glob(f"{name}.*")), "uint16")
    with pytest.raises(ValueError, match="'mine' are empty"):
        token_files.join(token_files.read([tmp_path / "e.bin"], "uint16"), "mine")


def test_a_token_stream_is_cut_between_documents():
    stream = np.array([5, 5, 0, 6, 6, 6, 0, 7, 0, 8], np.uint16)
    at = token_files.cut(stream, 0.5, 0)
    assert stream[:at].tolist() == [5, 5, 0, 6, 6, 6, 0]
    assert [tokens.tolist() for tokens in token_files.documents(stream, 0)] == [[5, 5, 0], [6, 6, 6, 0], [7, 0], [8]]
    assert token_files.cut(stream, 0.5, -1) == 5
    assert token_files.starts(np.zeros(10_000, np.uint16), -1).tolist() == [0, 4096, 8192]


def test_shared_blocks_are_found_at_any_place_and_indentation_does_not_hide_them():
    rng = np.random.default_rng(0)
    lines = ["".join(map(chr, rng.integers(97, 123, 40))) + "\n" for _ in range(400)]
    train, fresh = "".join(lines[:300]), "".join(lines[300:])
    copy = train[777:5000].replace("\n", "\n        ")
    held = [deduplicate.characters(text) for text in (copy, fresh, copy + fresh, "short")]
    blocks, shared = deduplicate.shared_blocks([deduplicate.characters(train)], held, deduplicate.CHARACTERS)
    assert blocks.tolist() == [len(text) // 64 for text in held]
    assert shared[0] == blocks[0]
    assert shared[1] == 0
    assert abs(shared[2] - blocks[0]) <= 1
    assert deduplicate.near_copies(blocks, shared).tolist() == [True, False, True, False]


def test_repeats_are_documents_of_which_most_stands_in_earlier_ones_that_stayed():
    rng = np.random.default_rng(0)
    a, b, c = ("".join(map(chr, rng.integers(97, 123, 20_000))) for _ in range(3))
    documents = [a, a[100:12_000], a[:12_000] + b, b[:9000], b[9000:] + c, "short", "short ", "other"]
    leave = deduplicate.repeats([deduplicate.sample(text) for text in documents])
    assert leave.tolist() == [False, True, False, True, False, False, False, False]
    assert deduplicate.repeats([deduplicate.sample(text) for text in ("short", "short")]).tolist() == [False, True]
    assert deduplicate.repeats([]).tolist() == []


def test_a_store_gives_back_what_it_keeps_and_samples_by_size(tmp_path: Path):
    texts = [f"{n}: " + "é\ud800" * n for n in range(50)]
    store = DocumentStore(tmp_path / "texts")
    for text in texts:
        store.add(Document(text, text))
    store.close()
    assert list(store) == texts
    store.keep(np.arange(50) % 5 > 0)
    store.keep(np.arange(40) < 20)
    left = [text for n, text in enumerate(texts) if n % 5][:20]
    assert list(store) == left
    assert len(store) == 20
    assert store.bytes() == sum(len(text.encode("utf-8", "surrogatepass")) for text in left)
    assert list(store.sample(10**6)) == left
    some = list(store.sample(300))
    assert 0 < len(some) < 20
    assert all(any(text.startswith(start) for text in left) for start in some)
    assert some == list(store.sample(300))


def test_shared_blocks_equal_a_direct_search_across_pieces(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(deduplicate, "_PIECE", 1000)
    rng = np.random.default_rng(1)
    train = [rng.integers(0, 3, size).astype(np.uint16) for size in (10, 900, 5000, 3)]
    held = [rng.integers(0, 3, 800).astype(np.uint16), train[2][900:1300], train[1][-16:]]
    places = {tuple(text[i : i + 16]) for text in train for i in range(len(text) - 15)}
    direct = [sum(tuple(text[i : i + 16]) in places for i in range(0, len(text) - 15, 16)) for text in held]
    _, shared = deduplicate.shared_blocks(train, held, 16)
    assert shared.tolist() == direct
    assert direct[1:] == [25, 1]


SOURCE = '''#!/usr/bin/env python
"""Module docstring with # no comment."""

# A comment.
import os  # another


class A:
    "One."

    def f(self):
        """Two.

        Indented.
        """

    def g(self, x="# not a comment", y=\'\'\'also
# not\'\'\'):
        r"""Three."""
        return f"{x}#{y}"  # gone
'''


def test_stripping_leaves_the_same_program_without_docstrings_and_comments(tmp_path: Path):
    (tmp_path / "a.py").write_text(SOURCE)
    result = stdlib.documents(tmp_path)
    (code,), (docs,) = result[stdlib.CODE], result[stdlib.DOCS]
    assert docs.text == "Module docstring with # no comment.\n\nOne.\n\nTwo.\n\nIndented.\n\nThree.\n"
    assert "omment." not in code.text
    assert "gone" not in code.text
    assert dumped(code.text) == dumped(SOURCE)


def dumped(source: str) -> str:
    """The program, without docstrings."""
    tree = ast.parse(source)
    for node in ast.walk(tree):
        if stdlib._docstring_of(node):
            node.body = node.body[1:] or [ast.Pass()]
    return re.sub(r"\\n|\s", "", ast.dump(tree))


def test_stripping_agrees_with_tokenize_on_the_standard_library():
    root = stdlib.folder()
    for name in ("argparse.py", "inspect.py", "tokenize.py", "asyncio/tasks.py", "turtle.py"):
        source = (root / name).read_bytes()
        stripped = stdlib._strip(source, stdlib._docstrings(ast.parse(source), source))
        assert dumped(stripped.decode()) == dumped(source.decode())
        assert not any(token.type == tokenize.COMMENT for token in tokenize.tokenize(BytesIO(stripped).readline))


def test_a_python_without_source_gets_a_sentence(tmp_path: Path):
    with pytest.raises(FileNotFoundError, match="holds no source of the standard library"):
        stdlib.documents(tmp_path)
