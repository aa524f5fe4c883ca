"""The pages of all results: they say what the findings say, and can be read on a phone and on a desk."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from html import escape
from pathlib import Path

import chromium
import pytest

from experiments import results_pages as pages

RESULTS = Path(__file__).parents[1] / "experiments" / "results"

PHONE, WIDER, DESKTOP = 360, 390, 1280


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[chromium.Browser]:
    chromium.needed()
    with chromium.browser(tmp_path_factory.mktemp("profile")) as started:
        yield started


def test_the_kept_pages_are_those_of_the_kept_findings():
    studies = pages.studies(RESULTS)
    assert list(dict.fromkeys(study.findings["study"] for study in studies)) == list(pages.ORDER)
    assert {study.findings["study"] for study in studies if study.findings["scale"] == "cpu"} == set(pages.ORDER)
    assert (RESULTS / "index.html").read_text() == pages.index(studies, RESULTS)
    assert (RESULTS / "paper_and_ours.html").read_text() == pages.paper_and_ours(studies)


def test_every_claim_note_and_figure_is_on_the_page():
    page, beside = ((RESULTS / name).read_text() for name in ("index.html", "paper_and_ours.html"))
    for path in RESULTS.parent.glob("*/results/*/findings.json"):
        findings = json.loads(path.read_text())
        for claim in findings["claims"]:
            assert escape(claim["claim"]) in page
            assert escape(claim["ours"]) in page
            assert escape(claim["paper"]) in beside
        after = "</a>" if findings["scale"] == "cpu" else " ("  # the scale, where it is another
        assert f'<a href="#{findings["study"]}-{findings["scale"]}">{escape(findings["title"])}{after}' in page
        assert all(escape(note) in page for note in findings["notes"])
        for name in findings["figures"]:
            assert f'src="../{(path.parent / name).relative_to(RESULTS.parent).as_posix()}.png"' in page
            assert (path.parent / f"{name}.png").exists()


def test_missing_numbers_are_dashes_and_main_figures_come_before_the_claims():
    page = (RESULTS / "index.html").read_text()
    assert re.findall(r"\bnan\b", page) == []
    places = [page.index(f'id="{name}"') for name in ("figures", "claims", "position_law-cpu")]
    assert page.index("<nav") < places[0] < places[1] < places[2]
    first = page[places[0] : places[1]]
    of_cpu = [study.findings for study in pages.studies(RESULTS) if study.findings["scale"] == "cpu"]
    drawn = {findings["study"]: findings["figures"] for findings in of_cpu}
    main = [f"../{study}/results/cpu/{name}.png" for study, name in pages.MAIN if name in drawn[study]]
    assert len(main) >= 3
    assert [source for source in main if source not in first] == []


def test_a_folder_without_findings_is_refused(tmp_path: Path):
    with pytest.raises(ValueError, match="run tsl reproduce NAME first"):
        pages.write(tmp_path / "results")


@pytest.mark.browser
@pytest.mark.parametrize("name", ["index.html", "paper_and_ours.html"])
@pytest.mark.parametrize(("width", "dark"), [(PHONE, True), (DESKTOP, False)])
def test_nothing_overflows_and_every_image_is_there(browser: chromium.Browser, name: str, width: int, dark: bool):
    before = len(browser.requests)
    browser.open(RESULTS / name, width, dark, scripted=False)
    browser.run("document.querySelectorAll('img').forEach(one => one.loading = 'eager')")
    browser.wait("[...document.images].every(one => one.complete)")
    assert browser.run("[...document.images].every(one => one.naturalWidth > 0)")
    assert browser.run("document.documentElement.scrollWidth") <= width
    assert all(address.startswith("file://") for address in browser.requests[before:])


@pytest.mark.browser
def test_on_a_phone_the_verdict_of_every_claim_is_seen_without_scrolling(browser: chromium.Browser):
    browser.open(RESULTS / "index.html", WIDER, scripted=False)
    verdicts = "[...document.querySelectorAll('#claims .verdict')]"
    assert browser.run(f"{verdicts}.length") == sum(len(s.findings["claims"]) for s in pages.studies(RESULTS))
    assert browser.run(
        f"{verdicts}.every(one => one.closest('tr').firstElementChild.contains(one)"
        f" && one.getBoundingClientRect().left >= 0 && one.getBoundingClientRect().right <= {WIDER})"
    )
    assert browser.run("document.querySelector('#claims .wide').scrollWidth") <= WIDER
