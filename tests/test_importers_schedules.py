"""Plans in files: YAML or JSON, and a sentence that names the file and its mistake."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

import tsl_jax as tsl
from tsl_jax.importers import read_plans
from tsl_jax.laws import Schedule

CHANGED = """
- {from_tokens: 0, kind: wsd, peak: 3e-4, warmup_tokens: 1e8, total_tokens: 1e10,
   final_ratio: 0, decay_start_tokens: 9e9}
- from_tokens: 5_000_000_000
  kind: table
  tokens: [5e9, 2.0e+10]
  lr: [2e-4, 0]
"""


def test_a_plan_is_read_from_yaml_and_from_json(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(CHANGED)
    schedule = read_plans(tmp_path / "a.yaml")
    first = Schedule("wsd", 3e-4, 10**8, 10**10, 0.0, 9 * 10**9)
    assert schedule.known_at(4.9e9) == first
    assert (schedule.total_tokens, schedule.plans[1].table) == (2 * 10**10, ((5e9, 2e-4), (2e10, 0.0)))
    (tmp_path / "a.json").write_text(json.dumps(schedule.to_plan(), indent="\t"))
    assert read_plans(tmp_path / "a.json") == schedule
    (tmp_path / "one.yaml").write_text("kind: constant\npeak: 3e-4\nwarmup_tokens: 0\ntotal_tokens: 1e10\n")
    assert read_plans(str(tmp_path / "one.yaml")) == Schedule("constant", 3e-4, 0, 10**10)


MISTAKES = {
    "empty.yaml": ("", "expected a plan .* found 'None'"),
    "broken.yaml": ("kind: [", "not YAML .while parsing .*; write the plan as in surface.json"),
    "broken.json": ("{'kind'}", "not JSON .*; write the plan as in surface.json"),
    "bytes.yaml": (b"\xff", "not YAML"),
    "typo.yaml": ("kind: cosine\npeek: 3", "a plan has no 'peek'; it has kind, peak, warmup_tokens"),
    "list.yaml": (CHANGED.replace("lr: [2e-4, 0]", "rates: []"), "a plan has no 'rates'"),
    "short.yaml": (
        CHANGED.replace("lr: [2e-4, 0]", "lr: [1]"),
        "plan 2 of 2: a table needs lr, a list of at least two",
    ),
    "twice.yaml": (CHANGED.replace("kind: wsd", "kind: wsd, kind: cosine"), "not YAML .has the entry 'kind' twice"),
    "twice.json": ('{"kind": "cosine", "peak": 1, "peak": 2}', "not JSON .peak is given twice"),
    "word.yaml": ("{kind: cosine, peak: high}", "peak is 'high', expected a number"),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_is_named_with_its_file(tmp_path: Path, name: str) -> None:
    text, sentence = MISTAKES[name]
    (tmp_path / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(ValueError, match=f"{name}: {sentence}"):
        read_plans(tmp_path / name)


def test_a_file_that_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"none\.yaml"):
        read_plans(tmp_path / "none.yaml")


def test_imported_runs_may_have_changed_their_plan(tmp_path: Path) -> None:
    (tmp_path / "runs.csv").write_text("run,tokens,loss\na,100,4\na,200,3\nb,100,5\nb,200,4\n")
    plans = [
        {"from_tokens": n, "kind": "constant", "peak": 1e-3, "warmup_tokens": 0, "total_tokens": 300} for n in (0, 150)
    ]
    surfaces = tsl.read_table(tmp_path / "runs.csv", schedule=plans)
    assert [surface.attrs["schedule"] for surface in surfaces.values()] == [plans, plans]
    surfaces = tsl.read_table(tmp_path / "runs.csv", schedule={"b": plans, "a": plans[0]})
    assert [surface.attrs["schedule"] for surface in surfaces.values()] == [plans[0], plans]
    saved = tsl.load_surface(tsl.save_surface(surfaces["b"], tmp_path / "b"))
    assert Schedule.from_plan(saved.schedule) == Schedule.from_plan(plans)
    again = tsl.save_surface(surfaces["b"].assign_attrs(schedule=Schedule.from_plan(plans)), tmp_path / "c")
    assert Schedule.from_plan(tsl.load_surface(again).schedule) == Schedule.from_plan(plans)
    with pytest.raises(ValueError, match=r"the schedule cannot be read \(schedule: expected a plan"):
        tsl.read_table(tmp_path / "runs.csv", schedule=[])
