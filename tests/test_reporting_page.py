"""The page as a file: what stands in it, what never does, and how it is written. No browser is needed."""

import json
import re
from dataclasses import replace
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import plotly.graph_objects as go
import pytest
import reporting_material as material
import xarray as xr

from tsl_jax import forecasting, laws
from tsl_jax.fitting import fit
from tsl_jax.forecasting import ForecastFlag, ForecastStatus
from tsl_jax.importers import from_losses
from tsl_jax.reporting import report
from tsl_jax.reporting.forecast_figures import every_method
from tsl_jax.reporting.material import forecast_parameters, sort

HOSTILE = "</script><img src=x onerror=alert(1)><a href='http://evil.example/'>\"'&amp;"


class Page(HTMLParser):
    """The elements of a page, the text of its scripts, and its sections by id."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self.scripts: list[str] = []
        self.words: list[str] = []
        self._in = ""
        self.feed(path.read_text(encoding="utf-8"))

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append((tag, dict(attrs)))
        self._in = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag: str) -> None:
        self._in = ""

    def handle_data(self, data: str) -> None:
        if self._in == "script":
            self.scripts[-1] += data
        elif self._in != "style":
            self.words.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.words).split())

    @property
    def sections(self) -> list[str]:
        return [attrs["id"] or "" for tag, attrs in self.tags if tag == "section"]

    @property
    def drawings(self) -> list[dict[str, Any]]:
        return [json.loads(script) for script in self.scripts if script.startswith('{"views"')]


@pytest.fixture(scope="module")
def run() -> xr.Dataset:
    return material.surface()


@pytest.fixture(scope="module")
def by_position(run: xr.Dataset) -> Any:
    return material.position_fit(run)


@pytest.fixture(scope="module")
def backtest(run: xr.Dataset, by_position: Any) -> Any:
    return material.backtest(run, material.temporal_fits(by_position))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory, run: xr.Dataset, by_position: Any, backtest: Any) -> Path:
    path = tmp_path_factory.mktemp("page") / "new" / "report.html"
    return report(path, backtest, by_position, run, title="A run", facts={"command": "tsl demo"})


def test_page_has_every_section_that_its_inputs_allow_in_reading_order(whole: Path) -> None:
    page = Page(whole)
    assert page.sections == ["by-position", "parameters", "forecast", "errors", "quality", "facts"]
    assert len(page.drawings) == 5


def test_page_needs_no_network(whole: Path) -> None:
    page = Page(whole)
    named = [(tag, key, value) for tag, attrs in page.tags for key, value in attrs.items() if key in ("src", "href")]
    assert named == []
    assert not any(tag in ("link", "iframe", "object", "embed", "img") for tag, _ in page.tags)
    style = re.findall(r"<style>(.*?)</style>", whole.read_text(encoding="utf-8"), re.S)
    assert not any("@import" in text or "url(" in text for text in style)
    policy = [attrs["content"] for tag, attrs in page.tags if attrs.get("http-equiv") == "Content-Security-Policy"]
    assert policy[0] is not None
    assert policy[0].startswith("default-src 'none'")


def test_plotly_stands_in_the_page_once_and_not_at_all_without_figures(whole: Path, tmp_path: Path) -> None:
    assert sum("plotly.js v" in script for script in Page(whole).scripts) == 1
    two = laws.KAPLAN_ND
    sizes = {"n_params": np.geomspace(1e6, 1e9, 12), "tokens": np.tile([1e9, 1e10], 6)}
    fitted = fit(two, 2 + sizes["n_params"] ** -0.1, x=sizes)
    page = report(tmp_path / "small.html", fitted)
    assert page.stat().st_size < 100_000
    assert "kaplan nd" in Page(page).text


def test_every_view_is_valid_plotly_but_for_the_names_of_colours(
    tmp_path: Path, whole: Path, run: xr.Dataset, backtest: Any
) -> None:
    bands = report(tmp_path / "bands.html", run, material.with_main_method(backtest, run))
    for drawing in (*Page(whole).drawings, *Page(bands).drawings):
        assert ",".join(drawing["start"]) in drawing["views"]
        for view in drawing["views"].values():
            assert {trace["legendgroup"] for trace in view["data"]} >= {entry["key"] for entry in view["legend"]} - {
                "unseen"
            }
            plain = json.dumps({"data": view["data"], "layout": view["layout"]})
            go.Figure(json.loads(re.sub(r'"(--[a-z]+|seq:[\d.]+)"', '"#123456"', plain)))


def test_headline_is_of_a_method_chosen_beforehand_and_the_best_is_said_apart(whole: Path) -> None:
    text = Page(whole).text
    opening = "From the first 40% of the run, temporal (temporal laws of a0, a1 and a2, by position) forecast a final"
    assert opening in text
    assert "nats on in-distribution text (id)" in text
    assert "nats on out-of-distribution text (ood)" in text
    assert "an error of +0.300." in text
    assert "Its errors on id from less of the run: 10%: +0.300." in text
    assert "Of 5 methods on id power had the smallest error, −0.010, which is known only afterwards; " in text
    assert "the smallest of the methods by position was +0.020." in text


def test_headline_says_where_the_method_chosen_beforehand_was_best(tmp_path: Path, run: xr.Dataset) -> None:
    judged = material.backtest(run, {}, {"temporal": 0.001, "power": 0.1, "last": 0.5})
    text = Page(report(tmp_path / "won.html", judged)).text
    assert "Of 3 methods on id it had the smallest error" in text
    assert "the smallest of the methods that use the mean loss alone was +0.100." in text


def test_best_of_each_cutoff_is_bold_and_absurd_or_missing_forecasts_break_nothing(whole: Path) -> None:
    source = whole.read_text(encoding="utf-8")
    rows = re.findall(r'<tr><th scope="row">(?:<b>)?([^<]*)(?:</b>)?</th>(.*?)</tr>', source)
    signed = dict(reversed(rows))
    assert signed["power"].count("<strong>−0.010</strong>") == len(material.CUTOFFS)
    assert signed["of_my_own"].count("+40.0") == len(material.CUTOFFS)
    assert signed["reciprocal"].count("<td>–</td>") == len(material.CUTOFFS)


def test_loss_axis_follows_the_observed_loss_not_an_absurd_forecast(whole: Path, run: xr.Dataset) -> None:
    drawing = Page(whole).drawings[2]
    assert any(trace["legendgroup"] == "of_my_own" for trace in drawing["views"]["0,1"]["data"])
    low, high = drawing["views"]["0,1"]["layout"]["yaxis"]["range"]
    mean = run.loss.sel(split="id").mean("position")
    assert low > float(mean.min()) - 1
    assert high < float(mean.max()) + 1


def test_intervals_open_from_the_last_loss_seen_and_are_compared_with_what_was_observed(
    tmp_path: Path, run: xr.Dataset, backtest: Any
) -> None:
    page = Page(report(tmp_path / "bands.html", run, material.with_main_method(backtest, run)))
    fan, coverage, methods, curves, _ = page.drawings[1:6]
    wide, narrow, median, observed, _ = fan["views"]["0,1"]["data"]
    here = run.loss.sel(split="id").mean("position")
    seen = here.sel(tokens=slice(None, 0.4 * material.TOTAL))
    n = len(median["x"])
    assert (n, wide["x"][n:]) == (1 + here.sizes["tokens"] - seen.sizes["tokens"], median["x"][::-1])
    for band, half in ((wide, 0.2), (narrow, 0.03)):
        high, low = band["y"][:n], band["y"][n:][::-1]
        assert high[0] == low[0] == median["y"][0] == pytest.approx(float(seen[-1]), abs=1e-5)
        assert (high[-1], low[-1]) == pytest.approx((median["y"][-1] + half, median["y"][-1] - half), abs=1e-4)
    assert len(observed["x"]) == run.sizes["tokens"]
    assert fan["start"] == methods["start"] == ["0", "1"]
    inside = [trace["y"] for trace in coverage["views"]["0"]["data"] if trace["mode"] == "markers"]
    assert inside == [[100.0, 100.0], [0.0, 0.0]]
    drawn = [entry["key"] for entry in curves["views"]["0"]["legend"]]
    assert drawn == ["mean_annealing", "temporal", "power", "last"]
    final = float(here[-1])
    interval = f"(90% interval {final - 0.15:.3f} to {final + 0.25:.3f}); {final:.3f} was observed, inside, an error"
    claim = f"a final loss of {final + 0.05:.3f} nats on in-distribution text (id) {interval} of +0.050."
    assert f"40% of the run, mean_annealing (saturating annealing of the mean loss) forecast {claim}" in page.text


def test_the_end_of_an_unfinished_run_is_forecast_with_its_interval(
    tmp_path: Path, run: xr.Dataset, backtest: Any
) -> None:
    part = run.isel(tokens=slice(None, -3))
    last = float(part.tokens[-1])
    ahead = replace(material.with_interval(run, last / material.TOTAL), cutoff=last)
    page = Page(report(tmp_path / "ahead.html", part, ahead, title="A run"))
    assert ahead.quantiles is not None
    low, middle, high = (float(ahead.quantiles.sel(split="id", quantile=q)[-1]) for q in (0.05, 0.5, 0.95))
    sentence = f"{middle:.3f} nats on id (90% interval {low:.3f} to {high:.3f} on these texts)"
    assert f"Forecast at the end of the plan by mean_annealing: {sentence}" in page.text
    assert f"forecast at the end of the plan, id {middle:.3f} 90%: {low:.3f} to {high:.3f}" in page.text
    assert page.sections == ["by-position", "forecast", "facts"]
    (fan,) = (drawing["views"]["0,0"] for drawing in page.drawings[1:])  # a single forecast is drawn once
    assert fan["legend"][-1]["label"] == "not yet observed"
    bottom, top = fan["layout"]["yaxis"]["range"]
    assert bottom < middle < top
    assert "a prior from other runs" in page.text
    without_plan = Page(report(tmp_path / "no-plan.html", part.assign_attrs(schedule={}), ahead)).text
    assert f"Forecast at 1M tokens by mean_annealing: {sentence}" in without_plan
    assert "end of the plan" not in without_plan
    other = Page(report(tmp_path / "other.html", part, replace(ahead, method="power")))
    assert "when it forecast later checkpoints of that part from earlier ones" in other.text
    assert "a prior from other runs" not in other.text


def test_a_warning_about_a_forecast_that_no_score_judges_is_shown(
    tmp_path: Path, run: xr.Dataset, backtest: Any
) -> None:
    status = ForecastStatus(ForecastFlag.SAMPLER_NOT_CONVERGED, ("the sampler did not converge",))
    ahead = material.with_interval(run, 1.0)
    ahead = replace(ahead, mean=ahead.mean.reindex(tokens=[2 * material.TOTAL]), cutoff=float(run.tokens[-1]))
    ahead = replace(ahead, quantiles=None, status={"id": status, "ood": ForecastStatus()})
    source = report(tmp_path / "warned.html", run, backtest, ahead).read_text(encoding="utf-8")
    (warnings,) = re.findall(r"<summary>Warnings</summary>(.*?)</details>", source, re.S)
    assert re.findall("<td>(.*?)</td>", warnings) == ["now", "id", "the sampler did not converge"]


def test_text_from_data_is_escaped_everywhere(tmp_path: Path) -> None:
    run = material.surface((HOSTILE, "ood"), run=HOSTILE, model={HOSTILE: {"deep": HOSTILE}}, corpus=HOSTILE * 3)
    judged = material.backtest(run, {}, {HOSTILE: 0.1, "power": 0.2})
    path = report(tmp_path / "page.html", run, judged, title=HOSTILE, facts={HOSTILE: HOSTILE})
    page = Page(path)
    assert not any(tag in ("img", "a") for tag, _ in page.tags)
    assert not any(key.startswith("on") for _, attrs in page.tags for key in attrs)
    plotly = page.scripts[-2]
    assert "plotly.js v" in plotly
    assert "<img" not in path.read_text(encoding="utf-8").replace(plotly, "")
    hovers = [trace["hovertemplate"] for drawing in page.drawings for view in drawing["views"].values()
              for trace in view["data"]]  # fmt: skip
    assert not any("<a" in text or "<img" in text for text in hovers)


def test_page_of_each_result_alone(tmp_path: Path, run: xr.Dataset, by_position: Any, backtest: Any) -> None:
    alone = backtest.forecasts[(0.4, "power")]
    expected = {
        "surface": (run, ["by-position", "facts"]),
        "fit": (by_position, ["by-position", "parameters", "quality"]),
        "backtest": (backtest, ["forecast", "errors"]),
        "forecast": (alone, ["forecast"]),
    }
    for name, (result, sections) in expected.items():
        assert Page(report(tmp_path / f"{name}.html", result)).sections == sections, name


def test_forecast_beside_its_surface_is_judged_by_the_final_loss(
    tmp_path: Path, run: xr.Dataset, backtest: Any
) -> None:
    page = Page(report(tmp_path / "one.html", backtest.forecasts[(0.4, "temporal")], run))
    assert "by position) forecast a final loss of" in page.text
    assert "errors" in page.sections


def test_fits_of_bare_arrays_of_other_axes_and_of_one_curve(tmp_path: Path, run: xr.Dataset) -> None:
    x = np.arange(1.0, 33.0)
    bare = fit(laws.HYPERBOLIC, run.loss.values[0], x=x)
    single = fit(laws.HYPERBOLIC, run.loss[0, -1], over="position")
    sizes = np.geomspace(1e5, 1e9, 8)
    kaplan = fit(laws.KAPLAN_N, (8.8e13 / sizes) ** 0.076, x=sizes)
    assert Page(report(tmp_path / "bare.html", bare)).sections == ["by-position", "parameters"]
    assert Page(report(tmp_path / "single.html", single)).sections == ["by-position"]
    page = Page(report(tmp_path / "three.html", kaplan, single, bare))
    assert page.sections == ["by-position", "parameters", "other-fits"]
    assert "0.076 ±" in page.text
    assert "× 10¹³" in page.text


def test_surface_without_schedule_or_with_nan_or_one_checkpoint(tmp_path: Path, run: xr.Dataset) -> None:
    bare = run.copy()
    bare.attrs = {"schedule": {"kind": "of my own"}}
    bare["loss"] = bare.loss.where(bare.tokens > 6000)
    fitted = material.position_fit(bare)
    nothing = material.backtest(bare, {}, {"temporal": np.nan, "power": np.nan})
    page = Page(report(tmp_path / "nan.html", bare, fitted, nothing))
    assert "No forecast could be made: from 10%, 40% by temporal, power." in page.text
    assert "errors" not in page.sections
    assert report(tmp_path / "one.html", bare.isel(tokens=[3])).exists()


def test_an_unfinished_run_is_called_so_wherever_its_last_loss_is_named(
    tmp_path: Path, run: xr.Dataset, by_position: Any, whole: Path
) -> None:
    part = run.isel(tokens=slice(None, -1))
    share = f"{float(part.tokens[-1]) / material.TOTAL:.0%} of the plan"
    judged = material.backtest(part, material.temporal_fits(by_position))
    text = Page(report(tmp_path / "part.html", part, judged)).text
    assert f"Unfinished: {share}. From the first 40% of the plan, temporal (" in text
    assert "by position) forecast the last loss so far of " in text
    assert f"The run is unfinished: {share}, where the observed losses end." in text
    for word in ("final loss", "end of the run", "of the run seen"):
        assert word not in text, word
    assert "final loss" in Page(whole).text
    assert "nfinished" not in Page(whole).text
    assert f"Unfinished: {share}." in Page(report(tmp_path / "alone.html", part)).text


def test_cut_offs_that_see_the_same_checkpoints_are_named(tmp_path: Path, run: xr.Dataset, backtest: Any) -> None:
    same = {key: replace(forecast, cutoff=1e5) for key, forecast in backtest.forecasts.items()}
    sentence = "From 10% and 40% the same checkpoints are seen"
    assert sentence in Page(report(tmp_path / "same.html", run, replace(backtest, forecasts=same))).text
    assert sentence not in Page(report(tmp_path / "two.html", run, backtest)).text


def test_a_forecast_without_cut_off_is_drawn_and_not_judged_by_losses_that_it_saw(
    tmp_path: Path, run: xr.Dataset, by_position: Any, backtest: Any
) -> None:
    saw_all = replace(backtest.forecasts[(0.4, "temporal")], cutoff=float(run.tokens[-1]))
    page = Page(report(tmp_path / "now.html", run, by_position, saw_all))
    assert page.sections == ["by-position", "parameters", "forecast", "quality", "facts"]
    assert "by position) from all checkpoints so far; where points leave it" in page.text
    assert "first now" not in page.text


def test_cut_offs_that_differ_little_have_names_that_differ(tmp_path: Path, run: xr.Dataset) -> None:
    near = material.backtest(run, {}, {"power": 0.1, "last": 0.2}, cutoffs=(0.1, 0.4, 0.403))
    path = report(tmp_path / "near.html", run, material.with_main_method(near, run))
    source = path.read_text(encoding="utf-8")
    for name in ("10.0%", "40.0%", "40.3%"):
        assert f"<span>{name}</span>" in source, "a choice of the figures"
        assert f'<th scope="col">{name}</th>' in source, "a column of the errors"
        assert f"{name} seen" in source, "an entry of the legend"
    assert len(Page(path).drawings[3]["views"]) == 6, "two splits, three cut-offs"


def test_a_law_of_the_mean_that_knows_the_rate_is_no_baseline_and_its_intervals_are_model_based(
    tmp_path: Path, run: xr.Dataset, backtest: Any
) -> None:
    errors = {"mean_multi_power": 0.001, "power": 0.1, "reciprocal": 0.2, "temporal": 0.3}
    judged = material.with_main_method(material.backtest(run, {}, errors), run)
    drawings = Page(report(tmp_path / "law.html", run, judged)).drawings
    by_share = [entry["key"] for entry in drawings[4]["views"]["0"]["legend"]]
    assert by_share == ["mean_annealing", "temporal", "power", "reciprocal"]
    alone = replace(material.with_interval(run, 0.4), method="mean_multi_power")
    text = Page(report(tmp_path / "alone.html", run, alone)).text
    assert "If the law holds, the loss on this validation set lies in the light interval" in text
    assert "from earlier ones; they grow with the logarithm of tokens" not in text


def test_facts_of_one_name_from_caller_and_surface_are_both_shown(tmp_path: Path) -> None:
    page = Page(report(tmp_path / "facts.html", material.surface(seed=7), facts={"seed": "of the data: 3"}))
    assert "seed of the data: 3 learning-rate schedule" in page.text
    assert "seed 7" in page.text


def test_r2_expected_under_the_noise_is_drawn_as_a_band_and_stated(tmp_path: Path, by_position: Any) -> None:
    expected = by_position.r2 * 0 + 0.99
    r2 = xr.Dataset({"plain": by_position.r2, "additive": by_position.r2, "expected": expected})
    r2 = r2.assign(expected_low=expected - 0.01, expected_high=expected + 0.005)
    page = Page(report(tmp_path / "r2.html", by_position, r2=r2))
    assert "0.990 (expected)" in page.text
    assert "0.980 (" not in page.text, "the ends of the band are drawn, and no median is made of them"
    drawing = page.drawings[-1]["views"]["0"]
    labels = [entry["label"] for entry in drawing["legend"]]
    assert labels == ["90% of true laws", "plain mean", "additive estimate", "expected under the noise"]
    band = next(trace for trace in drawing["data"] if trace["legendgroup"] == "band")
    assert (min(band["y"]), max(band["y"])) == pytest.approx((0.98, 0.995))


def test_parameters_are_drawn_as_the_method_that_knows_the_learning_rate_forecasts_them(
    tmp_path: Path, run: xr.Dataset, by_position: Any
) -> None:
    """Draws of a0, log a1 and a2: median and 90 % interval beyond the cut-off; temporal laws only without them."""
    plain = forecasting.forecast(run.sel(tokens=slice(None, 400_000)), run.tokens[-4:], method="annealing")
    curves = forecast_parameters(plain)
    assert set(curves) == {"a0", "a1", "a2"}
    assert float(curves["a1"].min()) > 0, "a1 itself, and not its logarithm"
    page = Page(report(tmp_path / "paths.html", run, by_position, plain))
    view = next(drawing for drawing in page.drawings if len(drawing["views"]) == 2 and "yaxis3" in
                drawing["views"]["0,0"]["layout"])["views"]["0,0"]  # fmt: skip
    ahead = [trace for trace in view["data"] if trace["legendgroup"] == "ahead"]
    assert [trace["x"][0] for trace in ahead] == [float(plain.mean.tokens.min())] * 3
    assert sum(trace["legendgroup"] == "90%" for trace in view["data"]) == 3
    assert "the forecast of annealing (area annealing of a0, a1 and a2, by position) from the first 34%" in page.text


def test_an_r2_near_one_is_a_point_and_not_beyond_the_axis(tmp_path: Path, by_position: Any) -> None:
    r2 = xr.Dataset({"plain": by_position.r2 * 0 + 0.9995})
    (points,) = Page(report(tmp_path / "r2.html", by_position, r2=r2)).drawings[-1]["views"]["0"]["data"]
    assert set(points["marker"]["symbol"]) == {"circle"}
    assert points["y"] == points["customdata"]


def test_facts_are_all_there_long_ones_folded(tmp_path: Path) -> None:
    facts = {"git_commit": "c0ffee" * 7, "versions": {f"package{k}": "1.0" for k in range(20)}, "n_params": 791680}
    page = report(tmp_path / "facts.html", material.surface(**facts), facts={"hardware": "2 cores"})
    text = Page(page).text
    assert all(word in text for word in ("2 cores", "c0ffee" * 7, "package19", "791,680", "kind cosine"))
    assert "<details><summary>package0" in page.read_text(encoding="utf-8")


def test_a_plan_that_changed_is_drawn_with_its_jump_and_named_in_the_facts(
    tmp_path: Path, run: xr.Dataset, backtest: Any
) -> None:
    half = material.TOTAL // 2
    plans = [{**material.PLAN, "from_tokens": n, "kind": "constant", "peak": p} for n, p in ((0, 0.008), (half, 0.002))]
    surface = run.assign_attrs(schedule=plans)
    assert "kind constant" in Page(report(tmp_path / "facts.html", surface)).text
    figure = every_method(sort([surface, backtest]))
    assert figure is not None
    (rate,) = (trace for trace in next(iter(figure.views.values()))["data"] if trace.get("yaxis") == "y2")
    jump = int(np.argmin(np.diff(rate["y"])))
    np.testing.assert_allclose([*rate["x"][jump : jump + 2], *rate["y"][jump : jump + 2]], [half, half, 0.008, 0.002])


def test_failed_writing_leaves_the_old_page_and_no_rest(tmp_path: Path, run: xr.Dataset) -> None:
    path = tmp_path / "report.html"
    path.mkdir()  # a folder stands where the page should go
    with pytest.raises(OSError, match=re.escape("report.html")):
        report(path, run)
    assert [entry.name for entry in tmp_path.iterdir()] == ["report.html"]


def test_errors_say_what_was_found_and_what_to_give(tmp_path: Path, run: xr.Dataset, backtest: Any) -> None:
    with pytest.raises(ValueError, match="report: nothing to show; give a surface"):
        report(tmp_path / "page.html")
    with pytest.raises(ValueError, match="report: cannot show a dict; give a loss surface"):
        report(tmp_path / "page.html", {})
    with pytest.raises(ValueError, match="report: found 2 of the kind backtest"):
        report(tmp_path / "page.html", backtest, replace(backtest))
    with pytest.raises(ValueError, match="surface: expected a variable loss"):
        report(tmp_path / "page.html", xr.Dataset())
    assert not list(tmp_path.iterdir())


def test_of_very_many_checkpoints_some_are_drawn_and_the_page_says_so(tmp_path):
    tokens = np.linspace(1000, material.TOTAL, 1200)
    loss = 2.5 + (tokens / 1000)[:, None] ** -0.3 + np.zeros((1, 1))
    log = from_losses(loss, tokens=tokens, schedule=material.PLAN)
    page = Page(report(tmp_path / "page.html", log, material.forecast(log, 0.4, "power", 0.1, {})))
    assert "Of 1,200 checkpoints 1,000 are drawn, evenly picked." in page.text
    (drawing,) = [drawing for drawing in page.drawings if "0,0" in drawing["views"]][:1]
    (observed,) = [trace for trace in drawing["views"]["0,0"]["data"] if trace["legendgroup"] == "observed"]
    assert len(observed["x"]) == 1000
    assert observed["marker"]["size"] < 4  # larger dots would merge into a band
    assert (observed["x"][0], observed["x"][-1]) == (1000, material.TOTAL)
