"""The page as people see it: opened in headless Chromium, wide and narrow, light and dark, used, and printed.

Skipped where there is no Chromium, unless TSL_JAX_REQUIRE_BROWSER=1, as in CI.
"""

import re
from collections.abc import Iterator
from pathlib import Path

import chromium
import numpy as np
import pytest
import reporting_material as material
import xarray as xr

from tsl_jax import laws
from tsl_jax.fitting import fit
from tsl_jax.reporting import report

pytestmark = pytest.mark.browser
PHONE, DESKTOP = 360, 1280


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = material.surface(run="a run", corpus={"hash": "9bd1" * 40}, document_boundary="Windows never cross. " * 12)
    by_position = material.position_fit(run)
    sizes = np.geomspace(1e5, 1e9, 8)
    kaplan = fit(laws.KAPLAN_N, (8.8e13 / sizes) ** 0.076 * (1 + 1e-3 * np.cos(sizes)), x=sizes)
    r2 = xr.Dataset({"plain": by_position.r2, "additive": by_position.r2, "expected": by_position.r2 * 0 + 0.99})
    judged = material.with_main_method(material.backtest(run, material.temporal_fits(by_position)), run)
    path = tmp_path_factory.mktemp("browser") / "report.html"
    return report(path, run, by_position, judged, kaplan, r2=r2, title="Loss dynamics of an averylongnameforarun" * 2)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Browser]:
    chromium.needed()
    with chromium.browser(tmp_path_factory.mktemp("profile")) as running:
        yield running


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
@pytest.mark.parametrize("dark", [False, True])
def test_every_figure_is_drawn_without_an_error_and_nothing_overflows(
    browser: chromium.Browser, page: Path, width: int, dark: bool
) -> None:
    browser.open(page, width, dark)
    assert browser.run("document.documentElement.dataset.errors") is None
    assert browser.run("document.documentElement.dataset.drawn") == "9"
    assert browser.run("document.documentElement.scrollWidth") <= width
    drawn = browser.run(
        "[...document.querySelectorAll('.plot')].map(plot => plot.querySelectorAll('.js-line, .point').length)"
    )
    assert min(drawn) >= 1
    assert min(drawn[k] for k in (0, 1, 4, 6)) >= 10, drawn
    browser.run("document.querySelectorAll('#errors details').forEach((one) => { one.open = true; })")
    tables = "[...document.querySelectorAll('#errors .wide')].map((one) => one.scrollWidth - one.clientWidth)"
    assert max(browser.run(tables)) <= 0


@pytest.mark.parametrize("width", [PHONE, DESKTOP])
def test_no_label_of_a_figure_is_cut_off_or_on_top_of_another(
    browser: chromium.Browser, page: Path, width: int
) -> None:
    browser.open(page, width)
    faults = browser.run(
        """(() => {
          const faults = [];
          for (const plot of document.querySelectorAll(".plot")) {
            const frame = plot.getBoundingClientRect();
            const labels = [...plot.querySelectorAll(".xtick, .ytick, .y2tick, .y3tick, .annotation-text, .xtitle")]
              .map((one) => [one.textContent, one.getBoundingClientRect()]).filter(([, box]) => box.width > 0);
            if (labels.length < 6) faults.push(`only ${labels.length} labels found`);
            for (const one of plot.querySelectorAll(".xtick text"))
              if (/rotate\\((?!0,)/.test(one.getAttribute("transform"))) faults.push(`${one.textContent} is turned`);
            labels.forEach(([name, box], k) => {
              if (box.left < frame.left - 1 || box.right > frame.right + 1) faults.push(`${name} is cut off`);
              for (const [other, its] of labels.slice(k + 1)) {
                const apart = box.right <= its.left + 1 || its.right <= box.left + 1
                  || box.bottom <= its.top + 3 || its.bottom <= box.top + 3;
                if (!apart) faults.push(`${name} on ${other}`);
              }
            });
          }
          return faults;
        })()"""
    )
    assert faults == []


def test_page_asks_the_network_for_nothing(browser: chromium.Browser, page: Path) -> None:
    browser.requests.clear()
    browser.open(page, DESKTOP)
    urls = [url for url in browser.requests if not url.startswith(("data:", "blob:"))]
    assert urls == [page.resolve().as_uri()]


LINE = "document.querySelector('#figure-forecast .js-line').style.stroke"


def test_figures_follow_the_theme_when_it_changes(browser: chromium.Browser, page: Path) -> None:
    browser.open(page, DESKTOP, dark=False)
    light = browser.run(LINE)
    browser.theme(dark=True)
    browser.wait(f"{LINE} !== '{light}'")
    browser.theme(dark=False)
    browser.wait(f"{LINE} === '{light}'")


def test_choices_and_legend_change_what_is_drawn_and_the_legend_is_remembered(
    browser: chromium.Browser, page: Path
) -> None:
    browser.open(page, DESKTOP)
    pressed = "document.querySelector('#figure-forecast [data-key=power]').getAttribute('aria-pressed')"
    traces = "document.querySelectorAll('#figure-forecast .scatterlayer .trace').length"
    before = browser.run(traces)
    browser.run("document.querySelector('#figure-forecast [data-key=power]').click()")
    browser.wait(f"{traces} === {before - 1}")
    range_now = "document.querySelector('#figure-forecast .plot').layout.yaxis.range.join()"
    at_40 = browser.run(range_now)
    browser.run('document.querySelector(\'#figure-forecast input[name$="-1"][value="0"]\').click()')
    browser.wait(f"{range_now} !== '{at_40}'")
    assert browser.run(pressed) == "false"
    assert browser.run("document.documentElement.dataset.errors") is None


def test_printing_is_light_and_fits_the_paper_even_from_a_dark_screen(
    browser: chromium.Browser, page: Path, tmp_path: Path
) -> None:
    browser.open(page, DESKTOP, dark=False)
    light = browser.run(LINE)
    browser.theme(dark=True)
    browser.wait(f"{LINE} !== '{light}'")
    widest = "Math.max(...[...document.querySelectorAll('.plot .main-svg')].map(one => one.clientWidth))"
    browser.run("dispatchEvent(new Event('beforeprint'))")
    browser.wait(f"{LINE} === '{light}' && {widest} <= 700")
    assert browser.run("document.querySelectorAll('details:not([open])').length") == 0
    browser.run("dispatchEvent(new Event('afterprint'))")
    browser.wait(f"{LINE} !== '{light}' && {widest} > 700")
    browser.pdf(tmp_path / "page.pdf")
    assert re.findall(rb"/Type\s*/Page\b", (tmp_path / "page.pdf").read_bytes())


def test_a_figure_that_cannot_be_drawn_is_reported_on_the_page(
    browser: chromium.Browser, page: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.html"
    broken.write_text(page.read_text(encoding="utf-8").replace('"legend":[', '"legend":null,"no":[', 1))
    browser.open(broken, DESKTOP)
    assert browser.run("document.documentElement.dataset.errors")
    assert not browser.run("document.getElementById('trouble').hidden")
