"""Figures for print: they hold what was given, read without colour, no word lies on another, files are reproducible."""

import re
import subprocess
import sys
from collections.abc import Callable
from types import SimpleNamespace

import matplotlib as mpl
import numpy as np
import pandas as pd
import pytest
import reporting_material as material
import xarray as xr
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.text import Text

from tsl_jax.reporting import plots
from tsl_jax.reporting.figures import round_ticks
from tsl_jax.reporting.plots import style

POSITION = np.arange(1, 33)
RNG = np.random.default_rng(0)
ARMS = {name: RNG.normal(0, 0.01, 32) for name in ("head down-weighted", "middle down-weighted", "tail", "adaptive")}
THREE = np.arange(3)[:, None]
# Machado, Oliveira & Fernandes (2009), severity 1: what a person without one kind of cone sees of linear RGB.
SIGHTS = {
    "protan": [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
    "deutan": [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.011820, 0.042940, 0.968881]],
    "tritan": [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.303900]],
}


@pytest.fixture(scope="module")
def run():
    surface = material.surface()
    fit = material.position_fit(surface)
    r2 = xr.Dataset({"plain": fit.r2, "expected": fit.r2 * 0 + 0.99})
    judged = material.with_main_method(material.backtest(surface, material.temporal_fits(fit)), surface)
    return SimpleNamespace(surface=surface, fit=fit, r2=r2, backtest=judged)


def with_band(values: np.ndarray, half: float = 0.01) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    return values, values - half, values + half


def errors() -> pd.DataFrame:
    rows = [(name, cut, value, value / 2, value * 2) for name, value in (("power law", 0.03), ("annealing law", 0.2))
            for cut in (0.1, 0.2, 0.4)]  # fmt: skip
    return pd.DataFrame(
        [*rows, ("none at all", 0.1, np.nan, np.nan, np.nan)], columns=["method", "cutoff", "value", "low", "high"]
    )


def forest() -> pd.DataFrame:
    rows = [
        (name, values.mean(), values.mean() - 0.01, values.mean() + 0.01, values[:4]) for name, values in ARMS.items()
    ]
    return pd.DataFrame(rows, columns=["arm", "mean", "low", "high", "seeds"])


def path(fit, split: str):
    return fit.params.sel(split=split), fit.stderr.sel(split=split), (fit.status <= 1).sel(split=split)


def drawings(run) -> dict[str, Callable[[], Figure]]:
    """Every figure once, with all that it can show."""
    tokens, mean = run.surface.tokens.values, run.surface.loss.mean("position").sel(split="id")
    later = mean.values[8:]
    forecasts = {
        "annealing law": (tokens[8:], *with_band(later, 0.1)),
        "power law": (tokens[8:], later + 1, None, None),
    }
    expected = np.full(len(tokens), 0.99)
    return {
        "position_curves": lambda: plots.position_curves(run.surface, run.fit, "id"),
        "parameter_paths": lambda: plots.parameter_paths({s: path(run.fit, s) for s in ("id", "ood")}, marks=[2e5]),
        "prediction": lambda: plots.prediction(mean, forecasts, float(tokens[7])),
        "predictions": lambda: plots.predictions(
            mean, {f"{k} seen": (float(tokens[k - 1]), forecasts) for k in (7, 8, 9)}
        ),
        "position_curves_of_sizes": lambda: plots.position_curves_of_sizes({
            size: (POSITION, floor + 1 / POSITION, POSITION, floor + 1 / POSITION)
            for floor, size in ((3, "25k"), (2, "5M"))
        }),
        "decline_rates": lambda: plots.decline_rates(
            POSITION, {k: with_band(v + 0.5) for k, v in ARMS.items()}, margin=0.02
        ),
        "differences_by_position": lambda: plots.differences_by_position(
            POSITION, {k: with_band(v) for k, v in ARMS.items()}, {k: v + 0.001 * THREE for k, v in ARMS.items()}, 0.02
        ),
        "differences_overall": lambda: plots.differences_overall(forest(), 0.02),
        "residual_map": lambda: plots.residual_map((run.surface.loss - run.fit.predict()).sel(split="id")),
        "errors_by": lambda: plots.errors_by(errors()),
        "r2_against_expected": lambda: plots.r2_against_expected(tokens, run.r2.plain.sel(split="id").values, expected),
        "lines_with_bands": lambda: plots.lines_with_bands(
            {"one": (tokens, *with_band(later[0] + 1 / tokens)), "two": (tokens, 1e6 / tokens, None, None)},
            "tokens seen", "loss (nats)", log="xy",
        ),
    }  # fmt: skip


@pytest.fixture(scope="module")
def figures(run):
    return {name: draw() for name, draw in drawings(run).items()}


def lines_of(figure: Figure) -> list[np.ndarray]:
    return [np.asarray(line.get_ydata(), float) for panel in figure.axes for line in panel.get_lines()]


def holds(figure: Figure, values: np.ndarray) -> bool:
    return any(len(line) == len(values) and np.allclose(line, values) for line in lines_of(figure))


def words(figure: Figure) -> list[Text]:
    """The texts that are seen: not those of ticks beyond the frame."""
    figure.canvas.draw()
    visible = [word for word in figure.findobj(Text) if word.get_visible() and word.get_text().strip()]
    ticks = {}
    for panel in figure.axes:
        for axis, (low, high) in ((panel.xaxis, sorted(panel.get_xlim())), (panel.yaxis, sorted(panel.get_ylim()))):
            for tick in [*axis.get_major_ticks(), *axis.get_minor_ticks()]:
                for label in (tick.label1, tick.label2):
                    ticks[id(label)] = label.get_visible() and low <= tick.get_loc() <= high
    return [word for word in visible if ticks.get(id(word), True)]


NAMES = (
    *("position_curves", "parameter_paths", "prediction", "decline_rates", "differences_by_position"),
    *(
        "predictions",
        "position_curves_of_sizes",
        "differences_overall",
        "residual_map",
        "errors_by",
        "r2_against_expected",
        "lines_with_bands",
    ),
)


@pytest.mark.parametrize("name", NAMES)
def test_no_word_lies_on_another_or_beyond_the_sheet(figures, name):
    figure = figures[name]
    boxes = [(word.get_text(), word.get_window_extent()) for word in words(figure)]
    assert len(boxes) > 5
    for k, (text, box) in enumerate(boxes):
        assert box.x0 >= -1, text
        assert box.y0 >= -1, text
        assert box.x1 <= figure.bbox.x1 + 1, text
        assert box.y1 <= figure.bbox.y1 + 1, text
        for other, second in boxes[k + 1 :]:
            assert not box.overlaps(second), f"{text} lies on {other}"


@pytest.mark.parametrize("name", NAMES)
def test_a_legend_lies_on_no_panel(figures, name):
    figure = figures[name]
    figure.canvas.draw()
    for legend in figure.legends:
        for panel in figure.axes:
            assert not legend.get_window_extent().overlaps(panel.get_window_extent())


@pytest.mark.parametrize("name", NAMES)
def test_a_figure_fits_a_column_and_names_its_axes(figures, name):
    figure = figures[name]
    assert figure.get_figwidth() in (style.SINGLE, style.DOUBLE)
    panels = figure.axes
    assert any(panel.get_xlabel() for panel in panels)
    assert any(panel.get_ylabel() for panel in panels) or name in ("differences_overall", "errors_by")


def test_position_curves_hold_the_fitted_law_and_measured_losses(run, figures):
    last = run.surface.loss.sel(split="id").isel(tokens=-1).values
    markers = [line for line in lines_of(figures["position_curves"]) if len(line) < 32]
    assert any(np.isin(line, last).all() for line in markers)
    panel = figures["position_curves"].axes[0]
    fine = panel.get_lines()[1].get_xdata()
    assert holds(figures["position_curves"], run.fit.predict(fine).sel(split="id").isel(tokens=-1).values)


def test_paths_leave_unusable_fits_out(run, figures):
    params, _, usable = path(run.fit, "id")
    assert not usable.all()
    assert holds(figures["parameter_paths"], params.sel(param="a2").values[usable.values])
    assert not holds(figures["parameter_paths"], params.sel(param="a2").values)


def test_paths_take_given_ends_of_a_band(run):
    params, stderr, usable = path(run.fit, "id")
    wide = {"id": (params, (params - 2 * stderr, params + 2 * stderr), usable)}
    band = plots.parameter_paths(wide).axes[2].collections[0].get_paths()[0].vertices[:, 1]
    upper = (params + 2 * stderr).sel(param="a2").values[usable.values]
    assert np.isclose(band[:, None], upper).any(axis=0).all()


def test_a_prediction_holds_its_curves_and_does_not_follow_an_absurd_one(run, figures):
    mean = run.surface.loss.mean("position").sel(split="id")
    tokens, later = mean.tokens.values, mean.values[8:]
    assert holds(figures["prediction"], later)
    absurd = plots.prediction(mean, {"absurd": (tokens[8:], later * 100, None, None)}, float(tokens[7]))
    assert absurd.axes[0].get_ylim()[1] < 2 * mean.values.max()


def test_differences_hold_means_seeds_and_margin(figures):
    figure = figures["differences_by_position"]
    assert all(holds(figure, values) for values in ARMS.values())
    assert sum(np.allclose(curve, 0.02) for curve in lines_of(figure)) == len(ARMS)
    seeds = [line.get_xdata() for line in figures["differences_overall"].axes[0].get_lines()]
    assert any(np.array_equal(curve, ARMS["tail"][:4]) for curve in seeds)


def test_the_map_means_over_cells_and_hatches_what_is_below_zero():
    position, tokens = np.arange(1, 101), np.array([1e3, 1e4, 1e5])
    values = np.where(position < 50, 0.3, -0.3) * np.ones((3, 1))
    residual = xr.DataArray(values, {"tokens": tokens, "position": position}, ("tokens", "position"))
    colours, hatched = plots.residual_map(residual).axes[0].collections
    assert set(np.round(np.unique(colours.get_array()), 6)) >= {0.3, -0.3}
    assert hatched.get_hatch()
    assert (hatched.get_array().compressed() < 0).all()
    assert hatched.get_array().count() == 3 * int((colours.get_array()[0] < 0).sum())


def test_errors_without_a_value_are_named(figures):
    labels = [word.get_text() for word in words(figures["errors_by"])]
    assert "none at all" in labels
    assert "none" in labels


def linear(colour: str) -> np.ndarray:
    rgb = np.array(to_rgb(colour))
    return np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIE L*a*b* (D65) of linear RGB."""
    to_xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.0721750], [0.0193339, 0.1191920, 0.9503041]]
    t = np.array(to_xyz) @ np.clip(rgb, 0, 1) / [0.95047, 1, 1.08883]
    x, y, z = np.where(t > 0.008856, np.cbrt(t), 7.787 * t + 16 / 116)
    return np.array([116 * y - 16, 500 * (x - y), 200 * (y - z)])


def test_members_of_the_palette_differ_in_lightness_from_each_other_and_from_paper():
    lightness = sorted(lab(linear(colour))[0] for colour in (style.INK, *style.PALETTE))
    assert np.diff(lightness).min() >= 9
    assert lightness[-1] <= 75


@pytest.mark.parametrize("sight", SIGHTS)
def test_members_of_the_palette_stay_apart_without_one_kind_of_cone(sight):
    seen = [lab(np.array(SIGHTS[sight]) @ linear(colour)) for colour in (style.INK, *style.PALETTE)]
    apart = [np.linalg.norm(a - b) for k, a in enumerate(seen) for b in seen[k + 1 :]]
    assert min(apart) >= 15


def test_neighbouring_lines_differ_in_dash_and_marker_as_well():
    several = range(len(style.PALETTE))
    assert len({str(style.line(k)["linestyle"]) for k in several}) == len(style.PALETTE)
    assert len({style.marker(k) for k in several}) == len(style.PALETTE)
    assert len({str(style.line(k)) for k in range(25)}) == 25


def test_the_sequential_scale_darkens_evenly():
    assert (np.diff([lab(linear(colour))[0] for colour in style.sequential(6)]) < -8).all()


def test_files_are_the_same_bytes_whenever_they_are_written(run, tmp_path, monkeypatch):
    chosen = ("residual_map", "prediction")  # hatches and clips; bands and dashes
    for clock, folder in (("0", "first"), ("86400", "second")):
        monkeypatch.setenv("SOURCE_DATE_EPOCH", clock)  # where a date got in, the two would differ
        for name in chosen:
            plots.save(drawings(run)[name](), tmp_path / folder / name)
    first = sorted((tmp_path / "first").iterdir())
    assert len(first) == 3 * len(chosen)
    for file in first:
        assert file.read_bytes() == (tmp_path / "second" / file.name).read_bytes(), file.name


def test_text_stays_text(figures, tmp_path):
    pdf, svg, png = plots.save(figures["differences_overall"], tmp_path / "new" / "forest")
    assert re.search(r"<text[^>]*>head down-weighted</text>", svg.read_text())
    assert b"/Type3" not in pdf.read_bytes()
    assert b"/TrueType" in pdf.read_bytes() or b"/CIDFontType2" in pdf.read_bytes()
    assert png.read_bytes()[:4] == b"\x89PNG"
    assert sorted(path.name for path in (tmp_path / "new").iterdir()) == ["forest.pdf", "forest.png", "forest.svg"]


def test_drawing_leaves_no_setting_changed(tmp_path):
    names = [name for name in mpl.rcParams if name != "backend"]  # asking for it would choose one
    before = [mpl.rcParams[name] for name in names]
    plots.save(plots.lines_with_bands({"a": ([1, 2], [1, 2], None, None)}, "x", "y"), tmp_path / "a")
    assert [mpl.rcParams[name] for name in names] == before


def test_a_users_settings_do_not_reach_a_figure():
    with mpl.rc_context({"font.size": 30, "lines.linewidth": 9}):
        (line,) = plots.lines_with_bands({"a": ([1, 2], [1, 2], None, None)}, "x", "y").axes[0].get_lines()
    assert line.get_linewidth() < 2


def test_a_run_has_its_figures(run):
    surface = run.surface.sel(split=["id"])
    figures = dict(plots.figures_of(surface, run.fit, run.backtest, run.r2))
    assert list(figures) == [
        "position-curves-id",
        "residual-id",
        "r2-id",
        "parameters",
        "prediction-10-id",
        "prediction-40-id",
    ]
    labels = [text.get_text() for text in figures["prediction-40-id"].legends[0].get_texts()]
    assert set(labels) == {"observed", "seen", "90 % interval", "mean_annealing", "temporal", "power"}
    assert "forecast" in [text.get_text() for text in figures["parameters"].legends[0].get_texts()]


def test_cut_offs_that_differ_little_have_figures_of_their_own(run):
    near = material.backtest(run.surface, {}, {"power": 0.1}, cutoffs=(0.4, 0.403))
    names = [name for name, _ in plots.figures_of(run.surface.sel(split=["id"]), run.fit, near)]
    assert names[-2:] == ["prediction-40.0-id", "prediction-40.3-id"]
    rows = [("power law", cutoff, 0.1, 0.05, 0.2) for cutoff in (0.4, 0.403)]
    table = pd.DataFrame(rows, columns=["method", "cutoff", "value", "low", "high"])
    legend = [text.get_text() for text in plots.errors_by(table).legends[0].get_texts()]
    assert legend == ["40.0% seen", "40.3% seen"]


def test_matplotlib_is_loaded_for_these_figures_alone_and_pyplot_never():
    code = (
        "import sys, tsl_jax as tsl; tsl.report; tsl.fit; assert 'matplotlib' not in sys.modules, 'loaded unasked'\n"
        "from tsl_jax.reporting.plots import lines_with_bands as draw; draw({'a': ([1], [1], None, None)}, 'x', 'y')\n"
        "sys.exit('matplotlib.pyplot' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code], timeout=300).returncode == 0


@pytest.mark.parametrize(
    ("low", "high", "most", "expected"),
    [(0.0285, 0.0525, 3, [0.03, 0.04, 0.05]), (0.02, 0.06, 3, [0.02, 0.05]), (1, 1000, 5, [1, 10, 100, 1000])],
)
def test_a_narrow_logarithmic_axis_has_more_than_one_tick(low: float, high: float, most: int, expected: list) -> None:
    np.testing.assert_allclose(round_ticks(low, high, most), expected)
