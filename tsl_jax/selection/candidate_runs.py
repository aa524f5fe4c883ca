"""Runs of candidates, from rows of checkpoints: curves, ends, and which runs are of one candidate."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

SAME = 1e-4  # in each share: one mixture
ENDED = 0.98  # of its planned tokens: a run that has come so far has ended
FEWEST = 3  # checkpoints of a curve; a run of fewer rows is taken to have ended where they do


@dataclass(frozen=True)
class Runs:
    """Runs of candidates.

    Attributes:
        table: a row a run: run, candidate, n_params, tokens (last seen), planned (tokens at its end), loss (nats, the
            last), schedule (its plan of the learning rate, JSON), pace (tokens a second), NaN where not known; ended:
            whether it has reached its end; curve: whether it has checkpoints, has_plan: whether its plan was given
            rather than taken from the longest run of its size.
        curves: of each run its (tokens, loss); one point where only the end is known, none without losses.
        shares: (candidate, domain); None where runs have no mixtures. available: domain -> tokens, where runs say it.
        notes: sentences on how the input was read.
    """

    table: pd.DataFrame
    curves: tuple[tuple[np.ndarray, np.ndarray], ...]
    shares: pd.DataFrame | None
    available: Mapping[str, float]
    notes: tuple[str, ...]

    def seen(self, share: float, at: np.ndarray) -> Runs:
        """The same as it was when the runs `at` (a mask) had come as far as `share` of their plans; 0: not begun."""
        table, curves = self.table.copy(), list(self.curves)
        for k in np.flatnonzero(at):
            tokens, loss = curves[k]
            past = tokens <= share * table.planned[k] * (1 + 1e-9)
            curves[k] = tokens[past], loss[past]
            table.loc[k, ["tokens", "loss"]] = (tokens[past][-1], loss[past][-1]) if past.any() else (0.0, np.nan)
            table.loc[k, "ended"] = False
        return Runs(table, tuple(curves), self.shares, self.available, self.notes)


def runs_of_rows(
    rows: pd.DataFrame, shares: pd.DataFrame | None, available: Mapping[str, float], needs_loss: bool, notes: list[str]
) -> Runs:
    """Runs from rows, one each or one a checkpoint.

    Args:
        rows: loss, and what there is of run, candidate, n_params, tokens, planned, seed, pace.
        shares: (row, domain). needs_loss: rows without a loss are left out, which is said.

    Raises:
        ValueError: where no row has a loss, or one run has two mixtures.
    """
    rows, mixed = rows.reset_index(drop=True), shares is not None
    of_rows: Any = shares
    if needs_loss:
        known = np.isfinite(rows.loss.to_numpy(float))
        if not known.any():
            raise ValueError("select: no row has a loss that is a number; see --loss")
        if not known.all():
            named = rows["run"].astype(str) if "run" in rows else rows.index.to_series().add(1).map("row {}".format)
            lost = list(dict.fromkeys(named.to_numpy()[~known].tolist()))
            which = ", ".join(lost[:4]) + (f" and {len(lost) - 4} more" if len(lost) > 4 else "")
            notes.append(f"{int((~known).sum())} of {len(rows)} rows have no finite loss and are left out: {which}")
        index = np.flatnonzero(known)
        rows, of_rows = rows.take(index).reset_index(drop=True), of_rows.take(index) if mixed else None
    code = np.zeros(len(rows), int)
    if mixed:
        of_rows = of_rows.reset_index(drop=True)
        code = pd.factorize(pd.Series(map(tuple, np.round(of_rows.to_numpy() / SAME).astype(int))))[0]
    run = _run_codes(rows, code)
    if mixed:
        several: Any = pd.Series(code).groupby(run).nunique()
        if bool((several > 1).any()):
            row = int(np.argmax(run == several.index[several > 1][0]))
            name = rows["run"][row] if "run" in rows else f"row {row + 1}"
            raise ValueError(f"select: {name} has two mixtures; name its runs apart, or leave one out")
    names = _candidate_names(rows, code, mixed)
    table, curves, dropped = [], [], 0
    for _, index in pd.Series(np.arange(len(rows))).groupby(run, sort=False):
        part = rows.iloc[index.to_numpy()]
        tokens = part.tokens.to_numpy(float) if "tokens" in part else np.full(len(part), np.nan)
        order = np.argsort(tokens, kind="stable")
        keep = order[np.append(np.diff(tokens[order]) > 0, True)] if np.isfinite(tokens).all() else order[-1:]
        keep = keep[tokens[keep] > 0] if (tokens[keep] > 0).any() else keep  # not the loss before training
        dropped += len(order) - len(np.unique(tokens))
        first, last = part.iloc[0], part.iloc[keep[-1]]
        finite = np.isfinite(part.loss.to_numpy(float)[keep])
        curves.append((tokens[keep][finite], part.loss.to_numpy(float)[keep][finite]))
        facts = {
            name: last[name] if name in part else np.nan
            for name in ("n_params", "tokens", "planned", "schedule", "pace")
        }
        label = str(first["run"]) if "run" in part else f"row {index.iloc[0] + 1}"
        table.append({"run": label, "candidate": names[index.iloc[0]], **facts, "loss": last["loss"]})
    if "run" not in rows and any(len(at) > 1 for at, _ in curves):
        notes.append("rows of one mixture, size and seed at several tokens are taken for checkpoints of one run")
    if dropped:
        notes.append(f"{dropped} rows repeat the tokens of another row of their run: the last is taken")
    if needs_loss and len({row["candidate"] for row in table}) == 1:
        notes.append("all runs are of one candidate: there is nothing to choose between")
    runs = _with_plans(pd.DataFrame(table), curves, notes)
    by_candidate = None
    if mixed:
        first_rows = np.flatnonzero(~pd.Series(names).duplicated().to_numpy())
        by_candidate = of_rows.take(first_rows).set_axis(pd.Index(np.array(names)[first_rows], name="candidate"))
    return Runs(runs, tuple(curves), by_candidate, dict(available), tuple(notes))


def _run_codes(rows: pd.DataFrame, mixture: np.ndarray) -> np.ndarray:
    """Which run a row belongs to.

    Without a name, rows of one mixture (or candidate), size and seed with different tokens are one run, others are
    repeats of it.
    """
    identity = [name for name in ("run", "n_params", "seed") if name in rows]
    identity += ["planned"] if "planned" in rows and "run" not in rows else []
    identity += ["candidate"] if "candidate" in rows and "run" not in rows else []
    keys = rows[identity].assign(mixture=mixture) if "run" not in rows else rows[identity]
    code = keys.groupby(list(keys), dropna=False, sort=False).ngroup().to_numpy()
    if "tokens" not in rows:
        return np.arange(len(rows))
    twice: Any = pd.DataFrame({"code": code, "tokens": rows.tokens}).duplicated(keep=False).groupby(code).any()
    repeats = np.isin(code, twice.index[twice]) if "run" not in rows else np.zeros(len(rows), bool)
    return np.where(repeats, len(rows) + np.arange(len(rows)), code)


def _candidate_names(rows: pd.DataFrame, code: np.ndarray, mixed: bool) -> list[str]:
    """The name of each row's candidate: one for all runs of a mixture."""
    label = "candidate" if "candidate" in rows else "run" if "run" in rows else ""
    if not mixed:
        return list(map(str, rows[label])) if label else [f"row {k + 1}" for k in range(len(rows))]
    first = pd.Series(np.arange(len(rows))).groupby(code).transform("first").to_numpy()
    names = [str(rows[label].iloc[k]) if label else f"mixture {code[k] + 1}" for k in first]
    taken: dict[str, int] = {}
    for name, k in zip(names, first, strict=True):  # two mixtures of one name
        taken.setdefault(name, k)
    return [name if taken[name] == k else f"{name} (row {k + 1})" for name, k in zip(names, first, strict=True)]


def _with_plans(table: pd.DataFrame, curves: list, notes: list[str]) -> pd.DataFrame:
    """The table with `planned` filled in and `ended`.

    Where no plan is known, curves are planned to end where the longest curve of their size does; single rows are ends.
    """
    size = table.n_params.fillna(0.0)
    curve = np.array([len(tokens) >= FEWEST for tokens, _ in curves])
    table["curve"], table["has_plan"] = curve, table.planned.notna()
    longest = table.tokens.where(curve).groupby(size).transform("max")
    table["planned"] = table.planned.where(table.planned.notna(), longest.where(curve, table.tokens))
    table["ended"] = ~(curve & (table.tokens < ENDED * table.planned)) & table.loss.notna()
    running = int((~table.ended & table.loss.notna()).sum())
    if running:
        notes.append(f"{running} runs have not reached the end of their plan")
    return table


def surface_rows(
    path: Path, split: str, weights: Mapping[str, float]
) -> tuple[pd.DataFrame, dict[str, float], dict[str, str]]:
    """Of a run a row a checkpoint: mixture, size, tokens, plan, pace and the mean loss of each split; the tokens that
    there are of each domain; and for each loss a digest of the text it was measured on, where the run says it.

    Raises:
        ValueError: for a run that counts no tokens, lacks a split, or changed its mixture. OSError: as `load_surface`.
    """
    from tsl_jax.forecasting.recorded_pace import recorded_pace
    from tsl_jax.surface import load_surface

    surface = load_surface(path)
    facts = surface.attrs
    clock = facts.get("log", {}).get("clock", "tokens")
    if clock != "tokens":
        raise ValueError(f"select: {path} counts {clock}, expected tokens; import its log with --tokens-per-step N")
    splits = [str(name) for name in surface.split.values]
    unknown = [name for name in ([split] if split else list(weights)) if name not in splits]
    if unknown:
        raise ValueError(f"select: {path} has the splits {', '.join(splits)}, found {unknown[0]!r}")
    if any("mixture=" in str(change) for change in facts.get("changes", ())):
        raise ValueError(f"select: {path} changed its mixture in mid-run ({facts['changes']}); leave it out")
    means = surface.loss.mean("position")
    rows = pd.DataFrame({name: means.sel(split=name).values for name in splits})
    rows["run"], rows["tokens"] = str(facts.get("run") or path.stem), surface.tokens.values.astype(float)
    designs: Any = facts.get("windows")
    designs = designs if isinstance(designs, dict) else {}
    digests = {name: str(designs[name]["digest"]) for name in splits if "digest" in designs.get(name, {})}
    if not (split or weights or "loss" in splits):
        rows = rows.rename(columns={splits[0]: "loss"})
        digests = {"loss": digests[splits[0]]} if splits[0] in digests else {}
    for name, value in (("n_params", facts.get("n_params")), ("seed", facts.get("seed"))):
        if isinstance(value, int | float):
            rows[name] = value
    plan = facts.get("schedule")
    if isinstance(plan, dict) and isinstance(plan.get("total_tokens"), int | float):
        rows["planned"], rows["schedule"] = float(plan["total_tokens"]), json.dumps(plan, sort_keys=True)
    pace = recorded_pace(surface)
    if pace is not None:
        rows["pace"] = pace.tokens_per_second
    corpus: Any = facts.get("corpus")
    corpus = corpus if isinstance(corpus, dict) else {}
    mixed = corpus.get("weights") or {}
    if len(mixed) > 1:
        rows = rows.assign(**{f"mixture.{domain}": float(share) for domain, share in mixed.items()})
    counts = corpus.get("tokens") or {}
    available = {
        str(domain): float(count["train"])
        for domain, count in counts.items()
        if mixed.get(domain) and count.get("train")
    }
    return rows.assign(table=path.name), available, digests
