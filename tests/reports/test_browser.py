"""Reports in a real browser, from a file and without a network."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from scalelab.launch.reporting import summarise_and_report
from scalelab.reports.page.write import write_sweep_report

from tests.support.reported import HOSTILE, made_run
from tests.support.sweep_example import example_summary

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
sync_api = pytest.importorskip("playwright.sync_api")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on this machine")


DRAWINGS = """[...document.querySelectorAll('.drawing')].map(
    drawing => [drawing.id, drawing.dataset.drawn, drawing.querySelectorAll('svg').length])"""
ALL_DRAWN = "colours => [...document.querySelectorAll('.drawing')].every(each => each.dataset.drawn === colours)"
TOP = """document.activeElement === document.body
    ? null : document.activeElement.getBoundingClientRect().top + scrollY"""


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with sync_api.sync_playwright() as playwright:
        # Its sandbox needs more than root has in a container; the pages are ours.
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run's page, one with hostile names everywhere, one of a run that failed, and a sweep's."""
    place = tmp_path_factory.mktemp("reports")
    breakout, turned, formula, control, long = HOSTILE
    cause = {"state": "failed", "exit_code": 7, "cause": control + breakout, "hint": formula, "consequences": []}
    failed = {**cause, "culprit": {"rank": 0, "host": turned, "phase": breakout, "step": 3}}
    hostile = {
        "name": breakout + long,
        "device_name": turned,
        "notes": list(HOSTILE),
        "model": {"name": breakout, "parameters": 1},
    }
    environment = {"environment": dict.fromkeys(HOSTILE, breakout), "command": list(HOSTILE)}
    folders = {
        "run": made_run(place),
        "hostile": made_run(place, **hostile, **environment),
        "failed": made_run(place, status=failed, **hostile),
    }
    for folder in folders.values():
        summarise_and_report(folder)
    sweep = place / "sweep"
    sweep.mkdir()
    write_sweep_report(sweep, example_summary())
    return {"sweep": sweep / "report.html", **{name: each.path / "report.html" for name, each in folders.items()}}


def opened(browser: Any, path: Path, width: int = 1400, scheme: str = "light", script: bool = True) -> Any:
    """The page, and what it complained of or asked for."""
    context = browser.new_context(
        viewport={"width": width, "height": 900}, color_scheme=scheme, java_script_enabled=script
    )
    page = context.new_page()
    page.said = []
    page.on("console", lambda message: page.said.append(f"{message.type}: {message.text}"))
    page.on("pageerror", lambda error: page.said.append(str(error)))
    page.on("dialog", lambda dialog: page.said.append("dialog"))
    page.on("request", lambda request: page.said.append(request.url) if request.url != path.as_uri() else None)
    page.goto(path.as_uri())
    return page


@pytest.mark.parametrize(("width", "scheme"), [(1400, "light"), (420, "dark")])
@pytest.mark.parametrize("name", ["run", "hostile", "failed", "sweep"])
def test_charts_draw_and_nothing_else_happens(
    browser: Any, pages: dict[str, Path], name: str, width: int, scheme: str
) -> None:
    """Every chart is drawn in the colours asked for, anew when that changes; nothing is wider than the page, no
    error, no request."""
    page = opened(browser, pages[name], width, scheme)
    for colours in (scheme, "light" if scheme == "dark" else "dark"):
        page.emulate_media(color_scheme=colours)
        page.wait_for_function(ALL_DRAWN, arg=colours)
        drawings = page.evaluate(DRAWINGS)
        assert len(drawings) >= 3
        assert all(drawn == colours and pictures for _, drawn, pictures in drawings), drawings
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.said == []
    page.context.close()


@pytest.mark.fault(61)
@pytest.mark.parametrize("name", ["hostile", "failed"])
def test_names_stay_text(browser: Any, pages: dict[str, Path], name: str) -> None:
    """Markup in a name, a path, a host or an error is shown as it is and does nothing."""
    page = opened(browser, pages[name])
    assert page.evaluate("window.harmed") is None
    assert page.evaluate("document.images.length") == 0
    assert "<img src=x onerror=" in page.inner_text("h1")
    assert page.evaluate("document.querySelectorAll('b b, h1 b, td b').length") == 0
    page.context.close()


def test_the_policy_forbids_requests(browser: Any, pages: dict[str, Path]) -> None:
    """Script that would ask for something is refused by the page itself."""
    page = opened(browser, pages["run"])
    blocked = page.evaluate(
        """new Promise(done => {
            document.addEventListener('securitypolicyviolation', event => done(event.violatedDirective));
            const image = new Image(); image.src = 'https://example.test/x.png';
            setTimeout(() => done('nothing was refused'), 3000);
        })"""
    )
    assert blocked == "img-src"
    page.context.close()


def test_keyboard_goes_down_the_page(browser: Any, pages: dict[str, Path]) -> None:
    """Tab comes first to the link that skips the sections, then through the sections in order, then down the report."""
    page = opened(browser, pages["run"])
    titles = page.evaluate("[...document.querySelectorAll('nav a')].map(a => a.textContent)")
    seen = []
    for _ in range(len(titles) + 1):
        page.keyboard.press("Tab")
        seen.append(page.evaluate("document.activeElement.textContent"))
    assert seen == ["Skip to the report", *titles]
    places = []
    for _ in range(40):
        page.keyboard.press("Tab")
        at = page.evaluate(TOP)
        if at is None:
            break
        places.append(at)
    assert places == sorted(places)
    page.context.close()


def test_without_script_the_page_says_everything(browser: Any, pages: dict[str, Path]) -> None:
    """Figures and tables are there, and no empty place of a picture."""
    page = opened(browser, pages["run"], script=False)
    text = page.inner_text("main")
    assert "samples/s" in text
    assert "backward" in text
    assert page.locator("figure.chart").first.is_hidden()
    page.context.close()


CUT_OFF = """[...document.querySelectorAll('div.scroll')].filter(
    each => each.scrollWidth > each.clientWidth + 1 && !each.querySelector('th.num')).map(each => each.textContent)"""
UNSEEN = """[...document.querySelectorAll('.scroll')].filter(each => each.scrollWidth > each.clientWidth + 1
    && (each.tabIndex !== 0 || !getComputedStyle(each).backgroundImage.includes('gradient'))).length"""


@pytest.mark.parametrize("width", [1400, 420])
@pytest.mark.parametrize("name", ["run", "sweep"])
def test_text_wraps_and_what_scrolls_shows_it(browser: Any, pages: dict[str, Path], name: str, width: int) -> None:
    """Tables of text alone are never wider than their place; others that are have a shadow at the end that is not
    seen, and can be scrolled by keys. A wide window is used."""
    page = opened(browser, pages[name], width)
    page.evaluate("document.querySelectorAll('details').forEach(each => each.open = true)")
    assert page.evaluate(CUT_OFF) == []
    assert page.evaluate(UNSEEN) == 0
    right = page.evaluate("document.querySelector('section').getBoundingClientRect().right")
    assert right > width - 40
    page.context.close()
