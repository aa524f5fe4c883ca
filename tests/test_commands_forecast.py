"""`tsl forecast`: intervals in the table, the file and a sentence; siblings, other plans, and plans compared."""

import json
from pathlib import Path
from typing import Any

import pytest
import xarray as xr
from conftest import PLAN, TOTAL
from test_cli import tsl_command

import tsl_jax as tsl
from tsl_jax.commands import forecast as verb
from tsl_jax.forecasting import MAIN, METHODS, methods

CONSTANT = {**PLAN, "kind": "constant"}
LATER = [{"from_tokens": 0, **CONSTANT}, {"from_tokens": TOTAL // 2, **CONSTANT, "total_tokens": 2 * TOTAL}]
SHARE = 0.4


@pytest.fixture(scope="module")
def folder(simulated: xr.Dataset, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Surfaces of few positions, by which no law is fitted, and plans."""
    path = tmp_path_factory.mktemp("forecast")
    run = simulated.sel(split=["id"]).isel(position=slice(3))
    tsl.save_surface(run, path / "run.npz")
    tsl.save_surface(run.assign(loss=run.loss * 1.05), path / "sibling.npz")
    tsl.save_surface(run.assign_coords(split=["books"]), path / "books.npz")
    tsl.save_surface(run.assign_attrs(schedule={"kind": "spiral"}), path / "spiral.npz")
    tsl.save_surface(run.assign_attrs(schedule=LATER), path / "changed.npz")
    decayed = {**PLAN, "kind": "wsd", "decay_start_tokens": TOTAL // 2, "total_tokens": 2 * TOTAL}
    for name, plan in {
        "a": CONSTANT,
        "b": CONSTANT,
        "long": decayed,
        "short": {**CONSTANT, "total_tokens": 10**5},
    }.items():
        (path / f"{name}.json").write_text(json.dumps(plan))
    (path / "typo.yaml").write_text("kind: cosine\npeek: 3\n")
    return path


FEW = ("--methods", "temporal", MAIN, "last")


def forecast(folder: Path, *more: Any) -> dict[str, Any]:
    out = folder / "forecast.json"
    assert tsl_command("forecast", folder / "run.npz", "--cutoff", SHARE, "--out", out, *more) == 0
    return json.loads(out.read_text())


def test_intervals_stand_first_in_the_table_in_the_file_and_in_a_sentence(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    longer = (*FEW, "--schedule", folder / "long.json")
    rows = {row["method"]: row for row in forecast(folder, *longer, "--siblings", folder / "sibling.npz")["forecasts"]}
    output = capsys.readouterr().out
    alone = forecast(folder, *longer)["forecasts"][1]["intervals"]
    main, ends = rows[MAIN], rows[MAIN]["intervals"]
    assert list(rows) == ["temporal", MAIN, "last"]
    assert main["tokens"] == [2 * TOTAL]
    assert list(ends) == ["0.05", "0.25", "0.5", "0.75", "0.95"]
    assert ends["0.05"][0] < ends["0.5"][0] == main["loss"][0] < ends["0.95"][0]
    assert ends != alone
    repeated = rows["last"]["intervals"]
    assert repeated["0.05"][0] < rows["last"]["loss"][0] < repeated["0.95"][0]
    assert main["population_intervals"] is None
    between = f"{ends['0.05'][0]:.3f} to {ends['0.95'][0]:.3f}"
    assert output.index(f"│ {MAIN}") < output.index("│ temporal")
    assert f"│ {between} │" in output
    rest, assumed = main["intervals_rest_on"].split("; ")
    assert main["assumes"] == [assumed]
    assert output.startswith(f"{assumed}\n")
    assert f"id: {main['loss'][0]:.3f} nats at the end, 90 %: {between} on these texts ({rest})\n" in output
    assert rest.startswith("model-based")
    assert rows["last"]["intervals_rest_on"].startswith("rolling origins")


def test_the_default_method_alone_unless_others_are_named(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert [row["method"] for row in forecast(folder)["forecasts"]] == [MAIN]
    monkeypatch.setattr(methods, "METHODS", {name: METHODS[name] for name in (MAIN, "last")})
    assert [row["method"] for row in forecast(folder, "--methods", "last", "all")["forecasts"]] == [MAIN, "last"]


def test_plans_are_compared_with_the_first_draw_by_draw(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    rows = forecast(folder, "--plans", *(folder / f"{name}.json" for name in ("a", "b", "long")))["plans"]
    assert [row["tokens"] for row in rows] == [[TOTAL], [TOTAL], [2 * TOTAL]]
    assert set(rows[1]["difference"].values()) == {0.0}
    apart = rows[2]["difference"]
    assert apart["0.05"] < apart["0.5"] < apart["0.95"] < 0
    output = capsys.readouterr().out
    assert f"long.json ends {-apart['0.5']:.3f} nats lower than {folder}/a.json (90 %: {apart['0.05']:+.3f}" in output


def test_a_later_change_of_plan_is_not_known_at_the_cut_off(folder: Path) -> None:
    surface = tsl.load_surface(folder / "changed.npz")
    command = verb.ForecastCommand(folder / "changed.npz", cutoff=0.2)
    past = verb._past(surface, command)
    assert 0.3 * TOTAL < past.tokens[-1] <= 0.4 * TOTAL
    assert verb._at(surface, past, None, command) == [TOTAL]
    assert verb._at(surface, surface, None, command) == [2 * TOTAL]


MISTAKES = {
    "itself": (("--siblings", "run.npz"), "which is the run itself; its end would be known"),
    "missing": (("--siblings", "gone.npz"), "gone.npz cannot be used: surface: no surface.json"),
    "splits": (("--siblings", "books.npz"), "has the splits books, and none of the run's: id"),
    "its plan": (("--siblings", "spiral.npz"), "spiral.npz cannot be used: schedule: it needs peak"),
    "plan": (("--schedule", "typo.yaml"), "typo.yaml: a plan has no 'peek'"),
    "method": (("--methods", "mean_anealing"), "mean_cosine, or all; found 'mean_anealing'"),
    "one plan": (("--plans", "a.json"), "--plans compares two plans or more; give --schedule"),
    "both": (("--plans", "a.json", "long.json", "--schedule", "a.json"), "leave out --schedule"),
    "too short": (
        ("--plans", "long.json", "short.json"),
        "short.json ends at 100,000 tokens, the past reaches 2,500,000",
    ),
}


@pytest.mark.parametrize("name", MISTAKES)
def test_a_mistake_gets_a_sentence_and_exit_code_2(
    name: str, folder: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    options, sentence = MISTAKES[name]
    assert tsl_command("forecast", "run.npz", "--out", "wrong.json", *options) == 2
    output = capsys.readouterr()
    assert sentence in output.err.replace("\n", " ")
    assert "Traceback" not in output.err + output.out
    assert not (folder / "wrong.json").exists()


def test_a_log_is_no_surface_yet_and_the_sentence_says_how_it_becomes_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "log.csv").write_text("tokens,loss\n1000,4.0\n")
    assert tsl_command("forecast", str(tmp_path / "log.csv")) == 2
    assert "is a table; make surfaces of it by tsl import" in capsys.readouterr().err.replace("\n", " ")
