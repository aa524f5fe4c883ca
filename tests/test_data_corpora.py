"""Corpora as a whole: the embedded default, a user's text, the cache."""

import ast
import json
from pathlib import Path

import numpy as np
import pytest
from tokenizers import Tokenizer

from tsl_jax.data import cache, corpora, preparation, tokenizer, windows
from tsl_jax.data.config import DataConfig, EvalConfig
from tsl_jax.data.corpora import Corpus, Part
from tsl_jax.data.documents import hash_fraction
from tsl_jax.data.installed import stdlib


@pytest.fixture(autouse=True)
def own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """No test reads or fills the user's cache."""
    monkeypatch.setenv("TSL_JAX_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def words(seed: int, number: int) -> str:
    return " ".join(f"w{n}" for n in np.random.default_rng(seed).integers(0, 5000, number))


def write_texts(folder: Path, number: int, first: int = 0, length: int = 60) -> None:
    folder.mkdir(exist_ok=True)
    for n in range(first, first + number):
        (folder / f"{n:04}.txt").write_text(words(n, length))


def documents(part: Part, corpus: Corpus) -> list[str]:
    """The texts of a part."""
    tokenizer = Tokenizer.from_file(str(corpus.tokenizer_file))
    return [tokenizer.decode(tokens.tolist()) for tokens in np.split(part.tokens, part.documents[1:])]


SMALL = {"vocabulary": 300, "heldout": 0.2}


@pytest.fixture(scope="module")
def default(tmp_path_factory: pytest.TempPathFactory) -> Corpus:
    """The real default, prepared once."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("TSL_JAX_CACHE", str(tmp_path_factory.mktemp("cache")))
        return corpora.load(DataConfig())


def test_the_default_shares_next_to_nothing_across_the_split(default: Corpus):
    assert set(default.record["shared_block_rate"]) == {"code", "docs"}
    assert all(rate < 0.02 for rate in default.record["shared_block_rate"].values())


def test_the_default_has_64_documents_for_the_windows_of_each_split(default: Corpus):
    splits = windows.for_splits(default, 128, EvalConfig())
    assert splits["id"].n_clusters == 64
    assert splits["ood"].n_clusters >= 56  # a few documents may hold two stretches, by version of Python
    assert splits["id"].tokens.shape == (64 * 64, 129)
    assert splits["ood"].tokens.shape == (64 * 8, 129)


def test_the_default_holds_out_whole_files(default: Corpus):
    assert default.splits == {"id": ("code",), "ood": ("docs",)}
    assert default.vocabulary == 2048
    assert default.record["tokens"]["code"]["train"] > 1_000_000
    root = stdlib.folder()
    names = [name for name in stdlib.files(root) if (root / name).stat().st_size > 10_000]
    stream = np.asarray(default.domains["code"].train.tokens).tobytes()
    tokenizer = Tokenizer.from_file(str(default.tokenizer_file))

    def trained_on(name: str) -> bool:
        source = (root / name).read_bytes()
        ids = tokenizer.encode(stdlib._strip(source, stdlib._docstrings(ast.parse(source), source)).decode()).ids
        middle = ids[len(ids) // 2 :][:40]
        return np.array(middle, default.domains["code"].train.tokens.dtype).tobytes() in stream

    held = [name for name in names if hash_fraction(name) < preparation.INSTALLED_HELDOUT]
    rest = [name for name in names if name not in held and name != stdlib.TOPICS]
    assert sum(trained_on(name) for name in held[:20]) <= 2  # boilerplate may be shared
    assert all(trained_on(name) for name in rest[:5])


def test_a_second_load_is_the_same_and_prepares_nothing(tmp_path: Path):
    write_texts(tmp_path / "a", 80)
    stages = []
    first = corpora.load(DataConfig((f"{tmp_path}/a",), **SMALL), lambda stage, done, total: stages.append(stage))
    assert list(dict.fromkeys(stages)) == ["read", "deduplicate", "tokenizer", "tokens"]
    stages.clear()
    second = corpora.load(DataConfig((f"{tmp_path}/a",), **SMALL), lambda stage, done, total: stages.append(stage))
    assert not stages
    assert second.record == first.record == json.loads(json.dumps(first.record))
    assert isinstance(second.domains["text"].train.tokens, np.memmap)


def test_preparing_anew_gives_the_same_tokens(tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch):
    write_texts(tmp_path / "a", 80)
    first = corpora.load(DataConfig((f"{tmp_path}/a",), **SMALL))
    (tmp_path / "a").rename(tmp_path / "moved")
    monkeypatch.setenv("TSL_JAX_CACHE", str(tmp_path / "other"))
    second = corpora.load(DataConfig((f"{tmp_path}/moved/*.txt",), **SMALL))
    assert first.record == second.record
    for part in ("train", "heldout"):
        np.testing.assert_array_equal(
            getattr(first.domains["text"], part).tokens, getattr(second.domains["text"], part).tokens
        )
    (tmp_path / "moved/0000.txt").write_text("changed")
    assert corpora.load(DataConfig((f"{tmp_path}/moved",), **SMALL)).record["hash"] != first.record["hash"]


def test_every_document_is_on_one_side_and_survives_tokenisation(tmp_path: Path):
    write_texts(tmp_path / "a", 80)
    corpus = corpora.load(DataConfig((f"{tmp_path}/a",), **SMALL))
    train, held = (documents(part, corpus) for part in (corpus.domains["text"].train, corpus.domains["text"].heldout))
    assert sorted(train + held) == sorted(words(n, 60) for n in range(80))
    assert len(held) > 4
    end = Tokenizer.from_file(str(corpus.tokenizer_file)).token_to_id("<|endoftext|>")
    stream = corpus.domains["text"].train
    assert np.count_nonzero(stream.tokens == end) == len(stream.documents)
    assert corpus.splits == {"id": ("text",)}
    assert stream.tokens.max() < corpus.vocabulary == 300


def test_text_that_spells_the_end_token_does_not_become_it(tmp_path: Path):
    lines = [json.dumps({"text": f"<|endoftext|> {words(n, 30)}"}) for n in range(80)]
    (tmp_path / "a.jsonl").write_text("\n".join(lines))
    corpus = corpora.load(DataConfig((str(tmp_path / "a.jsonl"),), **SMALL))
    end = Tokenizer.from_file(str(corpus.tokenizer_file)).token_to_id("<|endoftext|>")
    part = corpus.domains["text"].train
    assert np.count_nonzero(part.tokens == end) == len(part.documents)


def test_the_tokenizer_never_sees_other_than_training_text(tmp_path: Path):
    write_texts(tmp_path / "a", 80)
    (tmp_path / "b").mkdir()
    for n in range(80):
        (tmp_path / "b" / f"{n}.txt").write_text(f"xyzzy{n} " * 30 + words(n + 500, 30))
    text = (f"a={tmp_path}/a@1", f"b={tmp_path}/b@0")
    corpus = corpora.load(DataConfig(text, vocabulary=600, heldout=0.2))
    assert corpus.splits == {"id": ("a",), "ood": ("b",)}
    assert corpus.mixture.shares == (("a", 1.0),)
    assert not any("xy" in token for token in Tokenizer.from_file(str(corpus.tokenizer_file)).get_vocab())


def test_held_out_near_copies_of_any_training_text_leave(tmp_path: Path):
    write_texts(tmp_path / "a", 100)
    write_texts(tmp_path / "b", 60, first=100)
    texts = {n: (tmp_path / "a" / f"{n:04}.txt").read_text() for n in range(100)}
    train = [text for text in texts.values() if hash_fraction(text) >= 0.2]
    copies = [text + f" copy {n}" for n, text in enumerate(train)]
    for n, text in enumerate(copies):
        (tmp_path / "b" / f"copy{n}.txt").write_text(text)
    for _ in range(2):  # prepared, and from the cache
        with pytest.warns(UserWarning, match=r"of the \d+ held-out documents of domain 'b' are near-copies"):
            corpus = corpora.load(DataConfig((f"a={tmp_path}/a", f"b={tmp_path}/b"), **SMALL))
    held = documents(corpus.domains["b"].heldout, corpus)
    assert sum(hash_fraction(text) < 0.2 for text in copies) == corpus.record["near_copies_removed"]["b"] > 0
    assert not any("copy" in text for text in held)
    assert corpus.record["shared_block_rate_before"]["b"] > 0.3
    assert corpus.record["shared_block_rate"]["b"] < 0.02


def test_a_domain_that_copies_another_gets_a_sentence():
    stream = np.random.default_rng(0).integers(0, 250, 5000)
    held = {"a": [stream[-900:]], "b": [stream[3:1000], stream[2000:2900]]}
    with pytest.raises(ValueError, match="all 2 held-out documents of domain 'b' are near-copies of training text"):
        preparation._overlaps([stream[:4000]], held, 64, lambda stage, done, total: None)


def test_repeats_within_a_part_leave_and_are_counted(tmp_path: Path):
    write_texts(tmp_path / "a", 80)
    for n in range(0, 80, 4):  # other keys, so some fall on the other side of the split
        text = (tmp_path / "a" / f"{n:04}.txt").read_text()
        (tmp_path / "a" / f"copy{n}.txt").write_text(text.replace(" ", "\n"))
    record = corpora.load(DataConfig((f"{tmp_path}/a",), **SMALL)).record
    repeats, near = record["repeats_removed"]["text"], record["near_copies_removed"]["text"]
    left = sum(record["documents"]["text"].values())
    assert repeats["train"] > 0
    assert near > 0
    assert left == 80  # of a text and its copy on the other side the held-out one has left
    assert sum(repeats.values()) + near == 20


def test_the_tokenizer_sees_as_much_of_each_domain(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(tokenizer, "SAMPLE", 60_000)
    write_texts(tmp_path / "a", 80)
    write_texts(tmp_path / "b", 300, first=100)
    record = corpora.load(DataConfig((f"a={tmp_path}/a", f"b={tmp_path}/b"), **SMALL)).record
    assert record["tokenizer_characters"]["a"] == record["tokenizer_characters"]["b"] == record["bytes"]["a"]["train"]


def test_runs_choose_domains_and_shares_of_a_corpus_that_was_built(tmp_path: Path):
    for number, name in enumerate("abc"):
        write_texts(tmp_path / name, 80, first=100 * number)
    text = tuple(f"{name}={tmp_path}/{name}" for name in "abc")
    out = tmp_path / "built"
    manifest = corpora.build(DataConfig(text, **SMALL), out)
    assert corpora.build(DataConfig(text, **SMALL), out) == manifest  # nothing to do
    whole = corpora.load(DataConfig(corpus=str(out)))
    assert whole.mixture.shares == (("a", 1 / 3), ("b", 1 / 3), ("c", 1 / 3))
    some = corpora.load(DataConfig(("c@1", "a@0"), corpus=str(out)))
    assert some.splits == {"id": ("c",), "ood": ("a",)}
    assert some.vocabulary == corpora.vocabulary_size(DataConfig(corpus=str(out))) == 300
    for name in "ca":
        np.testing.assert_array_equal(some.domains[name].train.tokens, whole.domains[name].train.tokens)
        assert some.record["checksums"][name] == whole.record["checksums"][name]
    assert some.record["weights"] == {"c": 1.0, "a": 0.0}
    assert set(some.record["tokens"]) == {"c", "a"}
    assert some.record["hash"] == manifest["record"]["hash"]


def test_a_corpus_that_is_not_so_gets_a_sentence(tmp_path: Path):
    write_texts(tmp_path / "a", 80)
    config, out = DataConfig((f"{tmp_path}/a",), **SMALL), tmp_path / "built"
    corpora.build(config, out)
    with pytest.raises(FileExistsError, match="built is there and holds something else; remove it"):
        corpora.build(DataConfig((f"{tmp_path}/a",), vocabulary=280), out)
    with pytest.raises(ValueError, match=r"built has no domain 'b'; it has text"):
        corpora.load(DataConfig(("b",), corpus=str(out)))
    with pytest.raises(ValueError, match=r"built has no domain 'text=x'"):
        corpora.load(DataConfig(("text=x",), corpus=str(out)))
    (out / "0.train.tokens.npy").write_bytes(b"damage")
    for folder in (out, tmp_path / "nowhere"):
        with pytest.raises(ValueError, match=rf"{folder} holds no whole corpus .*; check the path, or make it"):
            corpora.load(DataConfig(corpus=str(folder)))


def test_an_interrupted_build_leaves_nothing(tmp_path: Path):
    def stop(stage: str, done: int, total: int) -> None:
        if stage == "tokens":
            raise KeyboardInterrupt

    write_texts(tmp_path / "a", 80)
    with pytest.raises(KeyboardInterrupt):
        corpora.build(DataConfig((f"{tmp_path}/a",), **SMALL), tmp_path / "out/built", stop)
    assert not list((tmp_path / "out").iterdir())


@pytest.mark.parametrize("kind", ["npy", "bin"])
def test_token_ids_go_the_same_way(tmp_path: Path, kind: str):
    rng = np.random.default_rng(0)
    stream = rng.integers(1, 70_000, 50_000).astype(np.uint32)
    stream[np.arange(499, 50_000, 500)] = 0
    np.save(tmp_path / "a.npy", stream)
    stream.tofile(tmp_path / "a.bin")
    corpus = corpora.load(DataConfig((f"{tmp_path}/a.{kind}",), token_type="uint32", end_token=0))
    domain = corpus.domains["text"]
    np.testing.assert_array_equal(np.concatenate([domain.train.tokens, domain.heldout.tokens]), stream)
    np.testing.assert_array_equal(domain.heldout.documents, np.arange(0, 5000, 500))
    assert len(domain.heldout.tokens) == 5000
    assert corpus.vocabulary == stream.max() + 1
    assert corpus.tokenizer_file is None


def test_near_copies_in_token_ids_leave(tmp_path: Path):
    """The head of what is trained on stands in the tail again, as two of the held-out documents."""
    stream = np.random.default_rng(0).integers(1, 60_000, 50_000).astype(np.uint16)
    stream[np.arange(499, 50_000, 500)] = 0
    stream[46_000:47_000] = stream[:1000]
    np.save(tmp_path / "a.npy", stream)
    corpus = corpora.load(DataConfig((f"{tmp_path}/a.npy",), end_token=0))
    held = corpus.domains["text"].heldout
    np.testing.assert_array_equal(held.tokens, np.concatenate([stream[45_000:46_000], stream[47_000:]]))
    np.testing.assert_array_equal(held.documents, np.arange(0, 4000, 500))
    np.testing.assert_array_equal(corpus.domains["text"].train.tokens, stream[:45_000])
    assert corpus.record["near_copies_removed"] == {"text": 2}
    assert corpus.record["documents"]["text"] == {"train": 90, "heldout": 8}
    assert corpus.record["tokens"]["text"]["heldout"] == 4000
    assert corpus.record["shared_block_rate_before"]["text"] == pytest.approx(0.2)
    assert corpus.record["shared_block_rate"]["text"] == 0


def test_checksums_are_of_the_tokens(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Versions of what prepares the text change its hash, and not these."""
    write_texts(tmp_path / "a", 80)
    first = corpora.load(DataConfig((f"{tmp_path}/a",), **SMALL)).record
    monkeypatch.setattr(corpora, "python_version", lambda: "3.99.0")
    second = corpora.load(DataConfig((f"{tmp_path}/a",), **SMALL)).record
    assert second["hash"] != first["hash"]
    assert second["checksums"] == first["checksums"]
    assert set(first["checksums"]["text"]) == {"train", "heldout"}
    (tmp_path / "a/0000.txt").write_text("changed")
    assert corpora.load(DataConfig((f"{tmp_path}/a",), **SMALL)).record["checksums"] != first["checksums"]


def test_a_named_tokenizer_is_used(tmp_path: Path):
    write_texts(tmp_path / "a", 80)
    first = corpora.load(DataConfig((f"{tmp_path}/a",), **SMALL))
    assert first.tokenizer_file
    own = tmp_path / "tokenizer.json"
    own.write_bytes(first.tokenizer_file.read_bytes())
    again = corpora.load(DataConfig((f"{tmp_path}/a",), heldout=0.2, tokenizer=str(own)))
    assert again.vocabulary == 300
    np.testing.assert_array_equal(again.domains["text"].train.tokens, first.domains["text"].train.tokens)
    for change, sentence in [({"end_of_text": "</s>"}, r"no token '</s>'; its special tokens are \['<\|endof")]:
        with pytest.raises(ValueError, match=sentence):
            corpora.load(DataConfig((f"{tmp_path}/a",), tokenizer=str(own), **change))
    with pytest.raises(FileNotFoundError, match="there is no tokenizer"):
        corpora.load(DataConfig((f"{tmp_path}/a",), tokenizer=str(tmp_path / "nowhere.json")))
    own.write_text("{}")
    with pytest.raises(ValueError, match=r"not a tokenizer\.json"):
        corpora.load(DataConfig((f"{tmp_path}/a",), tokenizer=str(own)))


def test_text_and_token_ids_do_not_mix(tmp_path: Path):
    np.save(tmp_path / "a.npy", np.zeros(100, np.uint16))
    (tmp_path / "b.txt").write_text("text")
    with pytest.raises(ValueError, match=r"a\.npy is pretokenised and .*b\.txt is text"):
        corpora.load(DataConfig((f"{tmp_path}/*",)))


def test_too_little_text_gets_a_sentence(tmp_path: Path):
    (tmp_path / "a.txt").write_text("just this")
    with pytest.raises(
        ValueError, match=r"'text' has . documents or tokens for training and . held out; give it more text"
    ):
        corpora.load(DataConfig((f"{tmp_path}/a.txt",)))


def test_an_unreadable_file_gets_a_sentence(tmp_path: Path):
    with pytest.raises(OSError, match=r"^data: .*gone\.txt cannot be read .*; make it readable"):
        cache.key({}, [(".txt", tmp_path / "gone.txt")])


@pytest.mark.parametrize("damage", [b"", b"x" * 300])
def test_a_damaged_cache_is_made_anew(tmp_path: Path, own_cache: Path, damage: bytes):
    write_texts(tmp_path / "a", 80)
    first = corpora.load(DataConfig((f"{tmp_path}/a",), **SMALL))
    tokens = np.array(first.domains["text"].train.tokens)
    for name in ("0.train.tokens.npy", "manifest.json", "tokenizer.json"):
        (own_cache / first.record["hash"] / name).write_bytes(damage)
        again = corpora.load(DataConfig((f"{tmp_path}/a",), **SMALL))
        np.testing.assert_array_equal(again.domains["text"].train.tokens, tokens)
        assert again.record == first.record


def test_a_full_disk_gets_a_sentence_and_leaves_nothing(
    tmp_path: Path, own_cache: Path, monkeypatch: pytest.MonkeyPatch
):
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    write_texts(tmp_path / "a", 80)
    monkeypatch.setattr(preparation.np, "save", full)
    with pytest.raises(OSError, match=r"^data: prepared text cannot be written .*No space left.*TSL_JAX_CACHE"):
        corpora.load(DataConfig((f"{tmp_path}/a",), **SMALL))
    assert not list(own_cache.iterdir())


def test_two_processes_that_prepare_the_same_text_do_not_disturb_each_other(tmp_path: Path):
    def write(folder: Path) -> dict:
        if not (tmp_path / "x").exists():  # the other one is quicker
            cache.make(tmp_path / "x", write_one)
        return write_one(folder)

    def write_one(folder: Path) -> dict:
        (folder / "file").write_text("content")
        return {"record": 1}

    cache.make(tmp_path / "x", write)
    assert [path.name for path in tmp_path.iterdir()] == ["x"]
    manifest = cache.read(tmp_path / "x")
    assert manifest
    assert manifest["record"] == 1
