"""Checkpoints of others on disk or on the Hugging Face hub: config.json, tokenizer.json, and weights as safetensors.

A checkpoint is a folder, or the name of a repository and a revision of it. Files are data: weights in pickles
(`pytorch_model.bin`) are refused, and so is a checkpoint that brings code of its own; nothing of it is run. What is
downloaded goes through `huggingface_hub`, into its cache or into a folder that can be deleted afterwards.
"""

from __future__ import annotations

import fnmatch
import json
import re
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import numpy as np

CONFIG, TOKENIZER, TOKENIZER_CONFIG = "config.json", "tokenizer.json", "tokenizer_config.json"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
DESCRIPTION = (CONFIG, TOKENIZER, TOKENIZER_CONFIG, INDEX)  # small files, which are looked at before any weights
PICKLES = ("*.bin", "*.pt", "*.pth", "*.ckpt", "*.pkl")
MAIN = "main"
_REPOSITORY = re.compile(r"[\w.-]+(/[\w.-]+)?")


def is_local(name: str) -> bool:
    """Whether a name is that of a folder here; else it is one of the hub.

    Raises:
        FileNotFoundError: for what is neither.
    """
    if Path(name).expanduser().is_dir():
        return True
    if name.startswith((".", "/", "~")) or not _REPOSITORY.fullmatch(name):
        raise FileNotFoundError(f"pretrained: there is no folder {name}; name a folder, or OWNER/NAME on the hub")
    return False


def revisions(name: str, wanted: tuple[str, ...]) -> list[str]:
    """The revisions that are asked for, patterns such as step*000 written out in the order of their numbers.

    Args:
        name: a folder, whose revisions are the folders in it, or a repository, whose revisions are branches and tags.
        wanted: names or patterns; none: the folder itself, or the branch "main".

    Raises:
        ValueError: for a name or pattern that fits none, or a revision that is named twice. OSError: no connection.
    """
    local = is_local(name)
    if not wanted:
        return [MAIN]
    patterns = [pattern for pattern in wanted if set(pattern) & set("*?[")]
    if local:
        there = [path.name for path in Path(name).expanduser().iterdir() if path.is_dir()]
    else:
        there = _references(name, needed=bool(patterns)) or list(wanted)
    result: list[str] = []
    for pattern in wanted:
        matches = sorted(fnmatch.filter(there, pattern), key=_by_number) if pattern in patterns else [pattern]
        known = matches and (set(matches) <= set(there) or re.fullmatch("[0-9a-f]{40}", pattern))  # or a commit
        if not known:
            some = ", ".join(sorted(there, key=_by_number)[:8]) or "none"
            raise ValueError(
                f"pretrained: {name} has no revision {pattern!r}; it has {some}{', ...' * (len(there) > 8)}"
            )
        result += matches
    twice = next((revision for revision in result if result.count(revision) > 1), None)
    if twice:
        raise ValueError(f"pretrained: revision {twice!r} is asked for twice; name it once")
    return result


def description(name: str, revision: str) -> Path:
    """The folder with the small files of a checkpoint: configuration and tokenizer, perhaps without weights."""
    return _folder(name, revision) if is_local(name) else _download(name, revision, DESCRIPTION)


def whole(name: str, revision: str, keep_in: Path | None = None) -> Path:
    """The folder of a checkpoint with its weights, downloaded where it is not here.

    Args:
        keep_in: folder to download into; None: the hub's own cache.

    Raises:
        ValueError: no safetensors there. OSError: what cannot be downloaded.
    """
    local = is_local(name)
    folder = _folder(name, revision) if local else _download(name, revision, (*DESCRIPTION, "*.safetensors"), keep_in)
    weight_files(folder, pickles=None if local else _repository_files(name, revision))
    return folder


def read_json(file: Path) -> dict[str, Any]:
    """A JSON file with a mapping.

    Raises:
        FileNotFoundError: no such file. ValueError: something else in it.
    """
    try:
        values = json.loads(file.read_text("utf-8"))
    except FileNotFoundError:
        raise FileNotFoundError(f"pretrained: {file.parent} has no {file.name}; name the folder of a model") from None
    except ValueError as error:
        raise ValueError(f"pretrained: {file} is not JSON ({error}); download it again") from None
    if not isinstance(values, dict):
        raise ValueError(f"pretrained: {file} holds {type(values).__name__}, not a mapping; download it again")
    return values


def weight_files(folder: Path, pickles: list[str] | None = None) -> list[Path]:
    """The safetensors of a folder: what the index names, or the one file there is.

    Args:
        pickles: names of all files of the checkpoint, where not all are in the folder.

    Raises:
        ValueError: none, some missing, or pickles in their place.
    """
    if (folder / INDEX).exists():
        shards = read_json(folder / INDEX).get("weight_map", {})
        names = sorted(set(shards.values())) if isinstance(shards, dict) else []
        # names come from the file: none may lead out of the folder
        if not names or any(Path(str(name)).name != name for name in names):
            raise ValueError(f"pretrained: {folder / INDEX} names no files of its folder; download it again")
        missing = [name for name in names if not (folder / name).is_file()]
        if missing:
            raise ValueError(
                f"pretrained: {folder} lacks {', '.join(missing)}, which its index names; download it again"
            )
        return [folder / name for name in names]
    files = [folder / WEIGHTS] if (folder / WEIGHTS).is_file() else sorted(folder.glob("*.safetensors"))
    if len(files) == 1:
        return files
    if files:
        raise ValueError(
            f"pretrained: {folder} has {len(files)} .safetensors files and no {INDEX}; which are the model?"
        )
    here = pickles if pickles is not None else [path.name for path in folder.iterdir()]
    pickled = next((name for name in here if any(fnmatch.fnmatch(name, pattern) for pattern in PICKLES)), None)
    if pickled:
        convert = "transformers' AutoModelForCausalLM.from_pretrained(...).save_pretrained(FOLDER) makes some of it"
        raise ValueError(
            f"pretrained: {folder} has {pickled}, a pickle, which could run code; give safetensors: {convert}"
        )
    raise ValueError(f"pretrained: {folder} has no .safetensors; name the folder of a checkpoint")


class TensorFiles:
    """The tensors of a checkpoint, read one at a time."""

    def __init__(self, where: dict[str, Any]):
        """By name, the open file that holds each."""
        self._where = where

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Name -> shape of every tensor; nothing is read."""
        return {name: tuple(file.get_slice(name).get_shape()) for name, file in self._where.items()}

    def read(self, name: str) -> np.ndarray:
        """A tensor in float32."""
        return np.asarray(self._where[name].get_tensor(name)).astype(np.float32)


@contextmanager
def opened(folder: Path) -> Iterator[TensorFiles]:
    """The tensors of all files of a checkpoint.

    Raises:
        ValueError: for a damaged file (named), a type that is no floating-point number, a name that two files hold.
    """
    from safetensors import SafetensorError, safe_open

    where: dict[str, Any] = {}
    with ExitStack() as stack:
        for path in weight_files(folder):
            try:
                file: Any = stack.enter_context(safe_open(str(path), framework="np"))
            except (SafetensorError, OSError) as error:
                raise ValueError(f"pretrained: {path} is damaged ({error}); download it again") from None
            for name in file.keys():  # noqa: SIM118 (it is no mapping)
                kind = file.get_slice(name).get_dtype()
                if kind not in ("F64", "F32", "F16", "BF16") and not name.endswith("bias"):  # masks are called so
                    problem = f"{name} in {path} is of type {kind}: quantised weights are not read"
                    raise ValueError(f"pretrained: {problem}; give the checkpoint in float32, bfloat16 or float16")
                if name in where:
                    raise ValueError(f"pretrained: {folder} holds {name} in two files; download it again")
                where[name] = file
        yield TensorFiles(where)


def _by_number(name: str) -> tuple[list[int], str]:
    return [int(number) for number in re.findall(r"\d+", name)], name


def _folder(name: str, revision: str) -> Path:
    folder = Path(name).expanduser()
    return folder if revision == MAIN and not (folder / MAIN).is_dir() else folder / revision


def _references(name: str, needed: bool) -> list[str] | None:
    """Branches and tags; None where the hub cannot be asked and they are not needed: all may have been downloaded."""
    from huggingface_hub import HfApi

    try:
        with _hub_errors(name, ""):
            found = HfApi().list_repo_refs(name)
    except OSError:
        if needed:
            raise
        return None
    return [reference.name for reference in (*found.branches, *found.tags)]


def _repository_files(name: str, revision: str) -> list[str] | None:
    """Names of all files of a revision; None where the hub cannot be asked."""
    from huggingface_hub import HfApi

    try:
        with _hub_errors(name, revision):
            return list(HfApi().list_repo_files(name, revision=revision))
    except OSError:
        return None


def _download(name: str, revision: str, patterns: tuple[str, ...], keep_in: Path | None = None) -> Path:
    from huggingface_hub import snapshot_download

    with _hub_errors(name, revision):
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(patterns), local_dir=keep_in))


@contextmanager
def _hub_errors(name: str, revision: str) -> Iterator[None]:
    """What the hub's client raises becomes one sentence that names the checkpoint."""
    try:
        yield
    except Exception as error:  # OSErrors, those of its HTTP client, and ValueErrors
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        which = f"{name} at revision {revision}" if revision else name
        remedy = "check name, revision and connection; a gated model needs `hf auth login`"
        raise OSError(f"pretrained: {which} cannot be read from the hub ({reason}); {remedy}") from None
