"""The commit that records name: "-dirty" where code or plans were changed, not where results were written."""

from __future__ import annotations

import subprocess
from pathlib import Path

import pytest

from tsl_jax.training.provenance import git_commit

FILES = (
    "tsl_jax/fitting/solver.py",
    "experiments/temporal_fit/study.py",
    "experiments/temporal_fit/plans/cpu.yaml",
    "experiments/temporal_fit/README.md",
    "experiments/temporal_fit/results/cpu/fit.csv",
    "experiments/forecast_evidence/results/development.parquet",
    "experiments/results/index.html",
    "runs/pool/kept.json",
)


def git(root: Path, *arguments: str) -> str:
    who = ("-c", "user.name=a", "-c", "user.email=a@b.c", "-c", "commit.gpgsign=false")
    done = subprocess.run(["git", *who, "-C", root, *arguments], check=True, capture_output=True, text=True)
    return done.stdout.strip()


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name in FILES:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("before\n")
    git(tmp_path, "init", "-q")
    git(tmp_path, "add", "-A")
    git(tmp_path, "commit", "-qm", "all")
    return tmp_path


def test_results_that_were_written_leave_a_commit_clean(checkout: Path):
    commit = git(checkout, "rev-parse", "HEAD")
    for name in FILES[3:]:
        (checkout / name).write_text("after\n")
    (checkout / FILES[4]).unlink()
    (checkout / "experiments/temporal_fit/results/cpu/new.csv").write_text("new\n")
    assert git_commit(checkout) == commit


@pytest.mark.parametrize("name", FILES[:3])
def test_code_or_plans_that_were_changed_make_it_dirty(checkout: Path, name: str):
    commit = git(checkout, "rev-parse", "HEAD")
    (checkout / name).write_text("after\n")
    assert git_commit(checkout) == f"{commit}-dirty"


def test_without_a_checkout_there_is_no_commit(tmp_path: Path):
    assert git_commit(tmp_path) is None
