"""What a run was made with: versions, processor, flags, commit, and text. Bits agree between runs only where these do.

Text is the same where documents are, and the token ids for them. Versions of Python and of the tokenizer library do not
count, nor does the hash in the cache, which holds them: where another version makes the same tokens the run goes on,
and `differences` names it.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tsl_jax.training import run_dir

if TYPE_CHECKING:
    from tsl_jax.data.corpora import Corpus
    from tsl_jax.models.config import ModelConfig

PACKAGES = ("tsl_jax", "jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "grain", "numpy", "tokenizers")
FLAGS = ("XLA_FLAGS", "JAX_PLATFORMS", "JAX_ENABLE_X64", "JAX_DEFAULT_MATMUL_PRECISION", "LIBTPU_INIT_ARGS")
# The bits of a run depend on these; the other facts are for the reader.
DECISIVE = ("versions", "cores", "machine", "device", "devices", "mesh", "flags")
# Entries of a model that leave its function as it is: a name for its sizes, and how it is executed.
NOT_THE_FUNCTION = ("preset", "layers", "attention", "experts", "remat")
TEXT_COUNTS = ("bytes", "documents", "tokens")
TEXT_VERSIONS = ("python", "tokenizers")
ROOT = Path(__file__).resolve().parents[2]
# What commands write and what is said about it: a change there leaves code and plans as they are. "*" takes in "/".
WRITTEN = ("runs", "experiments/results", "experiments/*/results/*", "*.md")


def versions() -> dict[str, str]:
    """Versions of Python and of the packages that have a part in the numbers."""
    result = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            result[name] = metadata.version(name)
        except metadata.PackageNotFoundError:  # run from a source tree that is not installed
            result[name] = "not installed"
    return result


def environment() -> dict[str, Any]:
    """Versions, hardware and flags of this process."""
    import jax

    devices = jax.devices()
    return {
        "versions": versions(),
        "cores": visible_cores(),
        "machine": f"{platform.system()} {platform.machine()} {_processor()}",
        "device": devices[0].device_kind,
        "devices": len(devices),
        "flags": {name: os.environ[name] for name in FLAGS if name in os.environ},
        "allocator": os.environ.get("GLIBC_TUNABLES", ""),
        "git_commit": git_commit(),
    }


def differences(then: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """Sentences, one for each fact that decides about bits and is not as it was."""
    return [
        f"{name}: {then.get(name)!r}, now {now.get(name)!r}" for name in DECISIVE if then.get(name) != now.get(name)
    ]


def history(record: Mapping[str, Any], now: Mapping[str, Any], step: int) -> dict[str, Any]:
    """The environment a run was begun in, and those it went on in, each with the step from which on.

    Args:
        record: so far, or nothing. now: environment of this process. step: the last one before it.
    """
    first, later = record.get("environment", now), record.get("later_environments", [])
    last = later[-1]["environment"] if later else first
    if now != last:
        later = [*later, {"after_step": step, "environment": now}]
    return {"environment": first, "later_environments": later}


def visible_cores() -> int:
    """Cores this process may use: XLA splits its sums by them."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def git_commit(root: Path = ROOT) -> str | None:
    """Commit of the checkout this library is imported from; None elsewhere.

    "-dirty" is added where code or plans were changed; results, runs and texts do not count.
    """
    if not (root / ".git").exists():
        return None
    commit = _git(root, "rev-parse", "HEAD")
    others = [f":(exclude){pattern}" for pattern in WRITTEN]
    changed = _git(root, "status", "--porcelain", "--untracked-files=no", "--", ".", *others)
    return f"{commit}-dirty" if commit and changed else commit


def model_hash(model: Mapping[str, Any]) -> str:
    """Twelve hexadecimal digits that name a resolved model, which checkpoints carry.

    Args:
        model: "model" of record.json, so that the digits stay those of the run's first checkpoint when a later version
            gives models more entries.
    """
    facts = {name: value for name, value in model.items() if name not in NOT_THE_FUNCTION}
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def check_text(run: Path, recorded: Mapping[str, Any], corpus: Corpus) -> None:
    """Nothing, where the text is that of the run.

    Args:
        run: its folder. recorded: "corpus" of its record. corpus: the text as it is now.

    Raises:
        ValueError: naming what differs.
    """
    # a record from before there were checksums has only the hash of everything the text was prepared from
    compared = (*TEXT_COUNTS, "checksums" if "checksums" in recorded else "hash")
    differ = [name for name in compared if recorded.get(name) != corpus.record[name]]
    if differ:
        then_now = [(name, recorded.get(name), corpus.record[name]) for name in TEXT_VERSIONS]
        versions = [f"prepared with {name} {then}, now {now}" for name, then, now in then_now if then != now]
        _refuse_text(run, "; ".join([f"{', '.join(differ)} differ", *versions]))


def check_tokenizer(run: Path, corpus: Corpus, end_of_text: str) -> None:
    """Nothing, where the corpus has the tokenizer that the run keeps, or there is none to compare.

    Raises:
        ValueError: where they differ, or one is damaged.
    """
    from tsl_jax.data import tokenizer

    recorded, current = run / run_dir.TOKENIZER, corpus.tokenizer_file
    if current is None or not recorded.exists() or recorded.read_bytes() == current.read_bytes():
        return
    # two versions of the library may write one tokenizer in two ways
    if tokenizer.load(recorded, end_of_text).to_str() != tokenizer.load(current, end_of_text).to_str():
        _refuse_text(run, f"its tokenizer is not that of {recorded}")


def _refuse_text(run: Path, reason: str) -> None:
    change = f"the text has changed since {run} was begun ({reason})"
    raise ValueError(f"training: {change}; restore it, or train anew in a new folder")


def check_vocabulary(corpus: Corpus, model: ModelConfig) -> None:
    """Nothing, where the model knows every token.

    Raises:
        ValueError: for a model with a smaller vocabulary.
    """
    if model.vocabulary < corpus.vocabulary:
        sizes = f"the corpus has {corpus.vocabulary} tokens, the model {model.vocabulary}"
        raise ValueError(f"training: {sizes}; raise model.vocabulary, or leave it 0")


def _git(root: Path, *arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return (done.stdout.strip() or None) if done.returncode == 0 else None


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")
