"""The locked test set: every opening is counted, and none starts from a tree that no commit names."""

from __future__ import annotations

import json
import subprocess
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from tsl_jax.atomic_write import write_atomically
from tsl_jax.training.provenance import environment

OPENINGS, LOG = "forecast_evidence/openings.json", "LOG.md"


def clean_commit(home: Path, own: tuple[str, ...] = ()) -> str:
    """The commit of the checkout that holds `home`.

    Args:
        home: the folder of experiments. own: files within it whose changes do not count.

    Raises:
        ValueError: if anything else differs from the commit, or there is no checkout.
    """

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(home), *arguments]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout

    try:
        changes = git("status", "--porcelain", "--", ":/", *[f":(exclude){name}" for name in own])
        head = git("rev-parse", "--short=12", "HEAD").strip()
    except subprocess.CalledProcessError as error:
        raise ValueError(f"locked test set: {home} is no git checkout with a commit ({error.stderr.strip()})") from None
    if changes:
        raise ValueError(f"locked test set: the tree differs from its commit ({changes.splitlines()[0]}); commit first")
    return head


def openings(home: Path) -> list[dict[str, Any]]:
    """All openings so far."""
    record = home / OPENINGS
    return json.loads(record.read_text())["openings"] if record.exists() else []


def open_once(home: Path, commit: str) -> dict[str, Any]:
    """Count an opening before anything is read; one that was broken off at the same commit goes on."""
    counted = openings(home)
    if not counted or counted[-1]["finished"] or counted[-1]["commit"] != commit:
        machine = environment()
        hardware = f"{machine['machine']}, {machine['cores']} cores, {machine['device']}"
        date = datetime.now(UTC).date().isoformat()
        facts = {"date": date, "commit": commit, "hardware": hardware, "finished": False}
        counted.append({"number": len(counted) + 1, **facts})
        _write(home, counted)
    return counted[-1]


def close(home: Path, opening: dict[str, Any], command: str, text: str) -> None:
    """Put what came out at the head of the log, which is newest first, and mark the opening as finished."""
    log = home / LOG
    head, mark, rest = log.read_text().partition("\n## ")
    title = f"{opening['date']} · Evidence about forecasts on the locked test set, opening {opening['number']}"
    facts = f"* Command: `{command}` at commit {opening['commit']}. Hardware: {opening['hardware']}."
    entry = f"\n## {title}\n\n{facts}\n\n{text}\n"
    written = head + entry + mark + rest if mark else head.rstrip("\n") + "\n" + entry
    write_atomically(log, written)
    _write(home, [*openings(home)[:-1], {**opening, "finished": True}])


def _write(home: Path, counted: list[dict[str, Any]]) -> None:
    text = json.dumps({"openings": counted}, indent=1) + "\n"
    (home / OPENINGS).parent.mkdir(parents=True, exist_ok=True)
    write_atomically(home / OPENINGS, text)
