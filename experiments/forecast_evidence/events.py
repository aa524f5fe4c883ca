"""How soon does `tsl watch` see that a run left its course, and how often does it say so of a healthy one?

    python -m experiments.forecast_evidence.events --curves FOLDER [--choose]

(a) False alarms: every log whole, row by row. All events of these logs count, spikes that are really there too, but
    for rates whose recorded drop is said; events below the course of logs without a rate are counted apart, since
    rates fall in them unseen (`rate_drop, no rate recorded`).
(b) Detection: events put into the test logs at half of their rows, and at three quarters (training losses at ten
    places); real decays of the rate; restarts; the kept runs of mid_run_changes, whose rate or mixture was changed.
(c) The same by two rules of others: 6 standard deviations over 128 rows, and a robust z of 6 over 21.

`--choose` replays the development half under GRID: the smallest thresholds with at most MOST alarms of a kind in 1,000
rows, and alarms in at most MOST_LOGS of the logs of evaluations, are those of `course.Rules`. The form of the rules was
found while looking at logs of both halves, the two thresholds on the development half alone. The logs, and which belong
to which half: `injected_events.py`.
"""

from __future__ import annotations

import argparse
import os
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.figure import Figure
from rich.progress import track

from experiments.forecast_evidence.injected_events import (
    OTHERS,
    Log,
    events_after,
    first_flag,
    groups,
    injected,
    rate_falls,
    read_logs,
    replayed,
)
from tsl_jax.forecasting.course import RULES, Course, Rules
from tsl_jax.reporting.plots.style import PALETTE, marker

RESULTS = Path(__file__).parent / "results"
CHANGED = "own/mid_run_changes"
OURS = "tsl watch"  # the rules of course.py, by the name of the command that applies them
GRID = tuple(product((6.0, 8.0, 10.0), (6.0, 8.0, 12.0)))  # spike, alarm
SPIKES = {"evaluations": (0.02, 0.05, 0.1, 0.2), "training losses": (4.0, 6.0, 8.0, 12.0, 20.0)}  # nats; scatters
SIZES = {
    "divergence": (2.0, 5.0, 10.0),
    "data_switch": (0.02, 0.05, 0.1, 0.2, -0.05, -0.1, -0.2),
    "plateau": (0.0,),
}
ABOVE = ("spike", "divergence", "data_switch", "plateau")
SEEN_AS = {  # kinds that count as seeing an event: the first row of most that rise is a spike as yet
    "spike": ("spike",), "divergence": ABOVE, "data_switch": (*ABOVE, "rate_drop"), "plateau": ABOVE[1:],
    "rate falls": ("rate_drop", "data_switch"),
}  # fmt: skip
FEWEST = 40  # rows of a log that something is put into
MOST, MOST_LOGS = 0.5, 0.05  # alarms of a kind in 1,000 rows, half of what is aimed at; share of logs with any


def alarms(logs: list[Log], rules: Rules) -> pd.DataFrame:
    """A row a log and kind of event: how many."""
    rows = []
    for log in track(logs, "replayed", disable=not sys.stderr.isatty()):
        found: dict[str, int] = {}
        for _, event in replayed(log, rules):
            said = "the learning rate falls" in event.sentence
            known = bool(np.isfinite(log.lr).any())
            kind = f"{event.kind}{' (recorded)' if said else ''}"
            if event.kind in ("rate_drop", "data_switch") and not known and "below" in event.sentence:
                kind = "rate_drop, no rate recorded"
            found[kind] = found.get(kind, 0) + 1
        labels = {"log": log.name, "data": log.data, "logs": log.kind, "part": log.part, "rows": len(log.loss)}
        rows += [{**labels, "rule": OURS, "kind": kind, "count": count} for kind, count in found.items()]
        for name, rule in OTHERS.items():
            rows.append({**labels, "rule": name, "kind": "spike", "count": groups(rule(log.loss))})
        rows.append({**labels, "rule": OURS, "kind": "", "count": 0})  # the log was read
    return pd.DataFrame(rows)


def alarm_rates(table: pd.DataFrame) -> pd.DataFrame:
    """Alarms in 1,000 rows, and the share of logs with any, by part, kind of log, rule and kind of event."""
    out = []
    for (part, of), group in table.groupby(["part", "logs"]):
        logs = group.drop_duplicates("log")
        total, count = logs.rows.sum(), len(logs)
        for (rule, kind), some in group[group["count"] > 0].groupby(["rule", "kind"]):
            number = int(some["count"].sum())
            out.append(
                {"part": part, "logs": of, "rule": rule, "kind": kind, "alarms": number, "rows": int(total),
                 "per_1000": 1000 * number / total, "of_logs": some.log.nunique() / count, "count": count}
            )  # fmt: skip
    return pd.DataFrame(out)


def detection(logs: list[Log], rules: Rules) -> pd.DataFrame:
    """A row an event put into a log: rows until it was said, by rule, and as what."""
    rows = []
    for log in track(logs, "events put in", disable=not sys.stderr.isatty()):
        if len(log.loss) < FEWEST:
            continue
        places = (0.5, 0.75) if log.kind == "evaluations" else np.linspace(0.1, 0.95, 10)
        for share, (event, sizes) in product(places, {"spike": SPIKES[log.kind], **SIZES}.items()):
            at = int(share * len(log.loss))
            falling = bool(log.lr[at] < 0.98 * np.max(log.lr[: at + 1]))
            for size in sizes:
                changed = injected(log, at, event, size)
                labels = {"log": log.name, "logs": log.kind, "event": event, "size": size, "rate_falls": falling}
                rows.append({**labels, "rule": OURS, **_seen(events_after(changed, at, rules), event, event)})
                for name, rule in OTHERS.items():
                    rows.append({**labels, "rule": name, "delay": first_flag(changed, at, rule), "right": np.nan})
    return pd.DataFrame(rows)


def _seen(said: list[tuple[int, str]], event: str, kind: str) -> dict[str, float]:
    """Rows until the first event of SEEN_AS, and whether the right kind was among them."""
    counted = [(row, name) for row, name in said if name in SEEN_AS[event]]
    if not counted:
        return {"delay": np.nan, "right": np.nan}
    return {"delay": counted[0][0], "right": float(kind in {name for _, name in counted})}


def real_events(logs: list[Log], rules: Rules) -> pd.DataFrame:
    """Rates that fall, recorded and hidden, and restarts: a row each."""
    rows: list[dict[str, Any]] = []
    for log in logs:
        at = rate_falls(log)
        if at is not None and len(log.loss) - at >= 3:
            hidden = Log(log.data, log.run, log.split, log.tokens, log.loss, np.full(len(log.lr), np.nan))
            for name, one in (("rate falls, recorded", log), ("rate falls, hidden", hidden)):
                seen = _seen(events_after(one, at, rules), "rate falls", "rate_drop")
                rows.append({"log": log.name, "logs": log.kind, "event": name, **seen})
        if len(log.loss) >= FEWEST:
            rows.append({"log": log.name, "logs": log.kind, "event": "restart", **_restarted(log, rules)})
    return pd.DataFrame(rows)


def _restarted(log: Log, rules: Rules) -> dict[str, Any]:
    """The log begins again five rows back, with other noise, as a job from its last checkpoint does."""
    at = len(log.loss) // 2
    course = Course(log.split, rules)
    course.update(log.tokens[:at], log.loss[:at], log.lr[:at])
    other = log.loss[:at] + np.where(np.arange(at) >= at - 5, 1e-4, 0.0)
    for row in range(at - 4, at + 1):
        if found := course.update(log.tokens[:row], other[:row], log.lr[:row]):
            return {"delay": row - (at - 5), "right": float(found[0].kind == "restart")}
    return {"delay": np.nan, "right": np.nan}


def summary(table: pd.DataFrame, by: list[str]) -> pd.DataFrame:
    """Share that was seen, median and 90 % of the rows until then, and share of those named by the right kind."""
    out = []
    for key, group in table.groupby(by):
        seen = group.delay.dropna()
        out.append(
            {**dict(zip(by, key, strict=True)), "trials": len(group), "seen": len(seen) / len(group),
             "median": seen.median(), "p90": seen.quantile(0.9),
             "right": group.right.mean()}
        )  # fmt: skip
    return pd.DataFrame(out)


def drawn(table: pd.DataFrame) -> Figure:
    """Share of spikes and switches that each rule sees, by size, in evaluations and in training losses."""
    figure = Figure(figsize=(7.0, 3.6), layout="constrained")
    panels = figure.subplots(2, 2, sharey=True)
    for row, of in zip(panels, ("evaluations", "training losses"), strict=True):
        for panel, (event, unit) in zip(row, (("spike", "times the scatter"), ("data_switch", "nats")), strict=True):
            unit = "nats" if of == "evaluations" else unit
            some = table[(table.logs == of) & (table.event == event) & (table["size"] > 0)]
            for k, rule in enumerate((OURS, *OTHERS)):
                group = some[some.rule == rule]
                panel.plot(group["size"], group["seen"], marker=marker(k), color=PALETTE[k], label=rule, clip_on=False)
            panel.set(xscale="log", ylim=(0, 1), xlabel=f"{event.replace('_', ' ')} in {of} ({unit})")
            sizes = sorted(set(some["size"]))
            panel.set_xticks(sizes, [f"{size:g}" for size in sizes])
            panel.minorticks_off()
            panel.spines[["top", "right"]].set_visible(False)
        row[0].set_ylabel("share seen")
    panels[0, 0].legend(frameon=False, fontsize=7)
    return figure


def choose(logs: list[Log]) -> pd.DataFrame:
    """A row a pair of thresholds: the worst rate of a kind, and share of logs, on the development half."""
    out = []
    for spike, alarm in GRID:
        rates = alarm_rates(alarms(logs, Rules(spike=spike, alarm=alarm)))
        of_course = rates[(rates.rule == OURS) & ~rates.kind.str.contains("recorded")]
        evaluations = of_course[of_course.logs == "evaluations"]
        out.append(
            {"spike": spike, "alarm": alarm, "spikes": of_course[of_course.kind == "spike"].per_1000.max(),
             "others": of_course[of_course.kind != "spike"].per_1000.max(), "of_logs": evaluations.of_logs.sum()}
        )  # fmt: skip
        print(out[-1], flush=True)
    table = pd.DataFrame(out)
    return table.assign(allowed=(table[["spikes", "others"]].max(axis=1) <= MOST) & (table.of_logs <= MOST_LOGS))


def main(arguments: list[str] | None = None) -> None:
    """Print the tables, and write them with the figure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--curves", type=Path, default=os.environ.get("TSL_JAX_CURVES"), help="folder of public curves")
    parser.add_argument("--choose", action="store_true", help="replay the development half under other thresholds")
    parser.add_argument("--out", type=Path, default=RESULTS)
    options = parser.parse_args(arguments)
    if options.curves is None or not Path(options.curves).is_dir():
        print("events: no folder of public curves (--curves, TSL_JAX_CURVES): the kept runs alone", flush=True)
        options.curves = None
    logs = list(read_logs(options.curves and Path(options.curves)))
    healthy = [log for log in logs if log.data != CHANGED]
    options.out.mkdir(parents=True, exist_ok=True)
    show = {"index": False, "float_format": "{:.3g}".format}
    if options.choose:
        table = choose([log for log in healthy if log.part == "development"])
        table.to_csv(options.out / "events_chosen.csv", index=False, float_format="%.4g")
        return print(table.to_string(**show))
    test = [log for log in healthy if log.part == "test"]
    rates = alarm_rates(alarms(healthy, RULES))
    found = detection(test, RULES)
    seen = summary(found, ["logs", "event", "size", "rate_falls", "rule"])
    real = summary(real_events(test, RULES), ["logs", "event"])
    changed = alarms([log for log in logs if log.data == CHANGED], RULES)
    changed = changed[(changed.rule == OURS) & (changed["count"] > 0)]
    for name, table in (("false_alarms", rates), ("detection", seen), ("real", real), ("changed", changed)):
        table.to_csv(options.out / f"events_{name}.csv", index=False, float_format="%.4g")
        print(f"\n{name}\n{table.to_string(**show)}")
    if len(found):
        by_size = summary(found, ["logs", "event", "size", "rule"])
        drawn(by_size).savefig(options.out / "events.png", dpi=110)


if __name__ == "__main__":
    main()
