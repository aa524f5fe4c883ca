"""The seal of the final data: every opening is counted, and nothing is opened from a tree that no commit names."""

from __future__ import annotations

import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tsl_jax.atomic_write import write_atomically
from tsl_jax.training.provenance import environment

RECORD, LOG = "forecast_seal.json", "LOG.md"


def commit(home: Path, own: tuple[str, ...] = ()) -> str:
    """The commit of the checkout that holds `home`.

    Args:
        home: the folder of experiments. own: files within it whose changes do not count.

    Raises:
        ValueError: if anything else differs from the commit, or there is no checkout.
    """
    try:
        changed = [f":(exclude){name}" for name in own]
        changes = _git(home, "status", "--porcelain", "--", ":/", *changed)
        head = _git(home, "rev-parse", "--short=12", "HEAD").strip()
    except subprocess.CalledProcessError as error:
        raise ValueError(f"seal: {home} is no git checkout with a commit ({error.stderr.strip()})") from None
    if changes:
        raise ValueError(f"seal: the tree differs from its commit ({changes.splitlines()[0]}); commit first")
    return head


def openings(home: Path) -> list[dict[str, Any]]:
    """All openings so far."""
    record = home / RECORD
    return json.loads(record.read_text())["openings"] if record.exists() else []


def open_seal(home: Path, head: str) -> dict[str, Any]:
    """Count an opening before anything is read; one that was broken off at the same commit goes on."""
    every = openings(home)
    if not every or every[-1]["finished"] or every[-1]["commit"] != head:
        machine = environment()
        hardware = f"{machine['machine']}, {machine['cores']} cores, {machine['device']}"
        date = datetime.now(UTC).date().isoformat()
        every.append({"number": len(every) + 1, "date": date, "commit": head, "hardware": hardware, "finished": False})
        _write(home, every)
    return every[-1]


def close(home: Path, opening: dict[str, Any], command: str, text: str) -> None:
    """Put what came out at the head of the log, which is newest first, and mark the opening as finished."""
    log = home / LOG
    head, mark, rest = log.read_text().partition("\n## ")
    title = f"{opening['date']} · Sealed evidence about forecasts, opening {opening['number']}"
    facts = f"* Command: `{command}` at commit {opening['commit']}. Hardware: {opening['hardware']}."
    entry = f"\n## {title}\n\n{facts}\n\n{text}\n"
    written = head + entry + mark + rest if mark else head.rstrip("\n") + "\n" + entry
    write_atomically(log, lambda file: file.write(written.encode()))
    _write(home, [*openings(home)[:-1], {**opening, "finished": True}])


def _write(home: Path, every: list[dict[str, Any]]) -> None:
    text = json.dumps({"openings": every}, indent=1) + "\n"
    write_atomically(home / RECORD, lambda file: file.write(text.encode()))


def _git(home: Path, *arguments: str) -> str:
    command = ["git", "-C", str(home), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout
