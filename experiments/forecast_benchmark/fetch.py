"""Fetches the public curves by name and makes of them the files that the benchmark reads, each checked by its hash.

    python -m experiments.forecast_benchmark.fetch [NAME ...] --to FOLDER      without a NAME: all
    python -m experiments.forecast_benchmark.fetch --list

GitHub is asked for the files of the commit (two requests a source); those that are needed come from the raw file
addresses of that commit, https alone, and each is checked by the hash that git keeps of it. `extracts` makes of them
what the benchmark reads, and nothing is written before all files of a source have the hashes of `hashes.json`. What is
there with its hash is not fetched again; an interrupted fetch goes on (originals wait in FOLDER/.originals).
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from http.client import HTTPException
from pathlib import Path
from typing import Any
from urllib.error import URLError
from urllib.parse import quote
from urllib.request import HTTPRedirectHandler, Request, build_opener

from rich.progress import track

from experiments.forecast_benchmark import extracts
from experiments.forecast_benchmark.data import digest, hash_of, known_hashes
from experiments.forecast_benchmark.extracts import Files
from tsl_jax.atomic_write import write_atomically

API, RAW = "https://api.github.com/repos", "https://raw.githubusercontent.com"
TIMEOUT = 60  # seconds without an answer
LARGEST = 32 * 2**20  # bytes of any answer
ORIGINALS = ".originals"


@dataclass(frozen=True)
class Source:
    """Public curves in a repository.

    Attributes:
        repository, commit, licence: as GitHub names them.
        megabytes: about so much is fetched.
        wanted: pattern of the paths of the originals. count: of them there are at least so many.
        extracts: makes of the originals the files that the benchmark reads, named within the folder of the source.
    """

    repository: str
    commit: str
    licence: str
    megabytes: float
    wanted: str
    count: int
    extracts: Callable[[Files], Files]


_MULTIPOWER = r"(constant|cosine)_(24|72)000|wsd(ld)?_20000_24000|wsdcon_(3|9|18)"
_OLMO = r"(190M|370M|760M|1B)-((0\.5|2|5|10)xC|1xC(-rerun)?)"
_LR_LOG = r"(?!extend)([\w.-]*_)?slimpajama(_chunk1)?_llama_norm_nlayers(8_nhead[68]|10_nhead8|12_nhead1[02])"
_LR_LOG += r"_lr[\d.]+_sched_(wsd|cos)_warmup300_"
SOURCES = {
    "multipower": Source(
        "thu-yao-01-luo/MultiPowerLaw", "8da9f19", "MIT", 0.1,
        rf"loss_curve_repo/csv_(25|100)/({_MULTIPOWER})\.csv", 18, extracts.multipower),
    "olmo_ladder": Source(
        "allenai/OLMo-ladder", "67a3f440f787d020da35e3ca8eeae475fae754f5", "Apache-2.0", 5,
        rf"src/scripts/paper/data/ladder-runs/{_OLMO}\.csv", 24, extracts.olmo_ladder),
    "gemstones": Source(
        "mcleish7/gemstone-scaling-laws", "5f420478f6057b0cbb4d13405fb10ca64675bccb", "MIT", 0.2,
        rf"wandb_dfs/wandb_df_for_fitting_({'|'.join(extracts.GEMSTONES)})\.jsonl", 3, extracts.gemstones),
    "lr_scheduling": Source(
        "fabian-sp/lr-scheduling", "8ace3a3", "MIT", 15,
        rf"({'|'.join(extracts.LR_FOLDERS)})/{_LR_LOG}.*\.json", 158, extracts.lr_scheduling),
    "modded_nanogpt": Source(
        "KellerJordan/modded-nanogpt", "f411b3d", "MIT", 0.8,
        r"records/(track_1_short/)?2024-10-13_llmc/main\.log", 1, extracts.modded_nanogpt),
    "megatron": Source(
        "NVIDIA/Megatron-LM", "d98e8a6", "NVIDIA's, of BSD type", 3.3,
        "|".join(map(re.escape, extracts.MEGATRON)), 3, extracts.megatron),
}  # fmt: skip


class _HttpsAlone(HTTPRedirectHandler):
    def redirect_request(self, req: Any, fp: Any, code: int, msg: str, headers: Any, newurl: str) -> Request | None:
        if not newurl.startswith("https://"):
            raise URLError(f"it leads to {newurl}, which is not https")
        return super().redirect_request(req, fp, code, msg, headers, newurl)


def download(url: str, most: int = LARGEST) -> bytes:
    """What an https address holds. Raises ValueError where that cannot be read, or is more than `most` bytes."""
    if not url.startswith("https://"):
        raise ValueError(f"fetch: {url} is not https")
    try:
        with build_opener(_HttpsAlone).open(Request(url, headers={"User-Agent": "tsl_jax"}), timeout=TIMEOUT) as answer:
            content = answer.read(most + 1)
    except (OSError, HTTPException) as error:
        raise ValueError(f"fetch: {url} cannot be read: {error}; the same command goes on where this ended") from error
    if len(content) > most:
        raise ValueError(f"fetch: {url} holds more than the {most} bytes that were expected")
    return content


def listing(source: Source) -> tuple[str, dict[str, tuple[str, int]]]:
    """The whole name of the commit, and the originals: path -> git's hash, bytes."""
    url = f"{API}/{source.repository}"
    try:
        commit = json.loads(download(f"{url}/commits/{source.commit}"))
        tree = json.loads(download(f"{url}/git/trees/{commit['commit']['tree']['sha']}?recursive=1"))
        files = {file["path"]: (file["sha"], file["size"]) for file in tree["tree"] if file["type"] == "blob"}
        name, whole = str(commit["sha"]), not tree["truncated"]
    except (KeyError, TypeError, json.JSONDecodeError) as error:
        raise ValueError(f"fetch: the answer of {url} has another form than expected: {error!r}") from error
    found = {path: file for path, file in files.items() if re.fullmatch(source.wanted, path)}
    if not whole or not name.startswith(source.commit) or len(found) < source.count:
        raise ValueError(
            f"fetch: {source.repository}@{source.commit}: {source.count} files {source.wanted} were expected, "
            f"found {len(found)} in {'the' if whole else 'a part of the'} list of commit {name}"
        )
    if bad := [path for path, (sha, size) in found.items() if size > LARGEST or not re.fullmatch("[0-9a-f]{40}", sha)]:
        raise ValueError(
            f"fetch: {source.repository}@{source.commit}: {bad[0]} is larger than {LARGEST} bytes, or no hash"
        )
    return name, found


def git_hash(content: bytes) -> str:
    """The name that git gives to a file: SHA-1 of its header and content."""
    return hashlib.sha1(b"blob %d\0" % len(content) + content, usedforsecurity=False).hexdigest()


def originals(source: Source, kept: Path) -> Files:
    """The originals, each checked by git's hash; those in `kept` are not fetched again."""
    commit, found = listing(source)
    kept.mkdir(parents=True, exist_ok=True)
    files = {}
    for path, (sha, size) in track(found.items(), source.repository):
        here = kept / sha
        content = here.read_bytes() if here.is_file() else b""
        if git_hash(content) != sha:
            content = download(f"{RAW}/{source.repository}/{commit}/{quote(path)}", size)
            if git_hash(content) != sha:
                raise ValueError(
                    f"fetch: {path} of {source.repository}@{commit}: git's hash is {sha}, found {git_hash(content)}"
                )
            write_atomically(here, content)
        files[path] = content
    return files


def fetch(name: str, folder: Path) -> str:
    """Fetch one source into `folder`, and say what was done.

    Raises:
        ValueError: something cannot be read, or has another hash than expected; the folder of the source is as it was.
    """
    source, expected = SOURCES[name], {file: sha for file, sha in known_hashes().items() if file.startswith(f"{name}/")}
    there = {file: hash_of(folder / file) for file in expected if (folder / file).exists()}
    for file, sha in there.items():
        if sha != expected[file]:
            raise ValueError(
                f"fetch: {folder / file} is another file: expected SHA-256 {expected[file]}, found {sha}; move it"
            )
    if len(there) == len(expected):
        return f"{name}: its {len(there)} files are there"
    kept = folder / ORIGINALS / name
    files = originals(source, kept)
    try:
        made = {f"{name}/{file}": content for file, content in source.extracts(files).items()}
    except (LookupError, TypeError, ValueError) as error:
        raise ValueError(f"fetch: the files of {name} are other than expected: {error!r}") from error
    for file, sha in expected.items():
        found = digest(made[file]) if file in made else "none"
        if found != sha:
            raise ValueError(
                f"fetch: {file}, made of {source.repository}@{source.commit}: expected SHA-256 {sha}, found {found}"
            )
    for file in expected:
        (folder / file).parent.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / file, made[file])
    shutil.rmtree(kept)
    return f"{name}: {len(expected)} files written, all with their hashes"


def main(arguments: Sequence[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"{', '.join(SOURCES)}; without one all")
    parser.add_argument("--to", type=Path, metavar="FOLDER", help="where the files go: --curves of the benchmark")
    parser.add_argument("--list", action="store_true", help="what there is, with licence and size")
    command = parser.parse_args(arguments)
    if unknown := [name for name in command.names if name not in SOURCES]:
        parser.error(f"no curves {', '.join(unknown)}; there are {', '.join(SOURCES)}")
    if command.list:
        for name, source in SOURCES.items():
            where = f"{source.repository}@{source.commit[:7]}"
            print(f"{name:15} {where:44} {source.licence:22} {source.megabytes:4} MB")
        return
    if command.to is None:
        parser.error("--to FOLDER, or --list")
    failed = []
    for name in command.names or SOURCES:
        try:
            print(fetch(name, command.to))
        except (ValueError, OSError) as error:  # the other sources go on
            failed.append(str(error))
    if failed:
        parser.error("\n".join(failed))


if __name__ == "__main__":
    main()
