"""The page in a real browser. Screenshots go to $WVMONITOR_SCREENSHOTS, where that is set."""

from __future__ import annotations

import math
import os
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.report import samples
from wvmonitor.report.page import RunView, render

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = [
    "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync",
]  # fmt: skip
SCREENSHOTS = os.environ.get("WVMONITOR_SCREENSHOTS")
"""Read at import: a test's environment is cleared of WVMONITOR_*."""

pytestmark = pytest.mark.skipif(
    CHROMIUM is None, reason="real part: no chromium (`make programs` installs it)"
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """One headless Chromium, without network."""
    playwright = pytest.importorskip(
        "playwright.sync_api", reason="no playwright: pip install playwright"
    )
    with playwright.sync_playwright() as driver:
        found = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield found
        found.close()


class Opened:
    """A page in the browser, and everything it complained about or asked for."""

    def __init__(self, browser: Any, text: str, folder: Path, **context: Any) -> None:
        path = folder / "page.html"
        path.write_text(text, encoding="utf-8")
        self.context = browser.new_context(viewport={"width": 1200, "height": 900}, **context)
        self.page = self.context.new_page()
        self.complaints: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.complaints.append(message.text))
        self.page.on("pageerror", lambda error: self.complaints.append(str(error)))
        self.page.on("dialog", lambda dialog: self.complaints.append(dialog.message))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())

    def close(self, name: str) -> None:
        """Nothing was complained about, nothing but the file was fetched."""
        if SCREENSHOTS:
            Path(SCREENSHOTS).mkdir(parents=True, exist_ok=True)
            self.page.screenshot(path=Path(SCREENSHOTS) / f"{name}.png", full_page=True)
        self.context.close()
        assert self.complaints == []
        assert [u for u in self.requests if not u.startswith(("file:", "data:"))] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_opens_without_complaint(browser: Any, tmp_path: Path, scheme: str) -> None:
    """In light and dark, the curves are drawn and the policy lets the page's own parts through."""
    opened = Opened(browser, render(samples.demo(), title="Four"), tmp_path, color_scheme=scheme)
    page = opened.page
    boxes = page.locator("path.score").evaluate_all(
        "paths => paths.filter(p => p.closest('.chart')).map(p => [p.getTotalLength(), "
        "p.getBoundingClientRect().width, getComputedStyle(p).stroke])"
    )
    assert len(boxes) == 4
    assert all(length > 200 and width > 200 for length, width, _ in boxes)
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(15, 18, 22)" if scheme == "dark" else "rgb(247, 247, 245)")
    assert page.evaluate("document.documentElement.scrollWidth") <= 1200
    opened.close(f"demo-{scheme}")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_has_contrast(browser: Any, tmp_path: Path, scheme: str) -> None:
    """Every word outside the charts has a contrast of at least 4.5 to what it stands on."""
    views = [samples.demo()[2], RunView("empty", [], problems=["x"])]
    opened = Opened(browser, render(views), tmp_path, color_scheme=scheme)
    poor = opened.page.evaluate(
        """() => {
          const parse = (c) => c.match(/[\\d.]+/g).map(Number);
          const light = ([r, g, b]) => [r, g, b].map((v) => v / 255)
            .map((v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4))
            .reduce((sum, v, i) => sum + v * [0.2126, 0.7152, 0.0722][i], 0);
          const ground = (node) => {
            for (; node; node = node.parentElement) {
              const c = parse(getComputedStyle(node).backgroundColor);
              if (c.length < 4 || c[3] > 0) return c;
            }
            return [255, 255, 255];
          };
          const poor = [];
          for (const node of document.querySelectorAll("body *:not(svg *):not(script)")) {
            if (![...node.childNodes].some((n) => n.nodeType === 3 && n.data.trim())) continue;
            const pair = [light(parse(getComputedStyle(node).color)), light(ground(node))].sort();
            const ratio = (Math.max(...pair) + 0.05) / (Math.min(...pair) + 0.05);
            if (ratio < 4.5) poor.push([node.textContent.trim(), ratio]);
          }
          return poor;
        }"""
    )
    assert poor == []
    opened.close(f"contrast-{scheme}")


def test_values_by_pointer_and_keyboard(browser: Any, tmp_path: Path) -> None:
    """Pointing at a chart, or walking it with the arrow keys, reads out one reading at a time."""
    opened = Opened(browser, render([samples.demo()[2]], title="One"), tmp_path)
    page = opened.page
    readout, chart = page.locator("output.readout"), page.locator("svg[data-hover]")
    resting = readout.inner_text()
    assert resting.startswith("step 60 · 0.67")
    box = chart.bounding_box()
    page.mouse.move(box["x"] + 60, box["y"] + 80)
    assert readout.inner_text().startswith("step 0 · ")
    assert page.locator(".cursor.on .ring").is_visible()
    page.mouse.move(5, 5)
    assert readout.inner_text() == resting
    chart.focus()
    for key in ("Home", "ArrowRight", "ArrowRight", "ArrowLeft"):
        page.keyboard.press(key)
    assert readout.inner_text().startswith("step 2 · ")
    page.keyboard.press("End")
    assert readout.inner_text() == resting
    opened.close("one")


def test_it_works_without_its_script(browser: Any, tmp_path: Path) -> None:
    """With scripts switched off, verdicts, charts and tables are all there."""
    text = render(samples.demo(), title="Four")
    opened = Opened(browser, text, tmp_path, java_script_enabled=False)
    assert opened.page.locator("path.score").first.is_visible()
    assert opened.page.get_by_text("Drifts towards evil since step 14 of 60.").is_visible()
    opened.page.locator("details.more > summary").first.click()
    assert opened.page.get_by_text("How it was measured", exact=True).first.is_visible()
    opened.close("without-script")


def test_an_injected_name_stays_text(browser: Any, tmp_path: Path) -> None:
    """A run named like markup or script is shown letter by letter, and nothing of it runs."""
    name = "<script>alert(1)</script><img src=x onerror=alert(2)><svg onload=alert(3)>"
    values = {name: 0.5, "b": 0.0, "c": 0.0}
    view = RunView(name, [samples.row(s, values) for s in (4, 8, 12)])
    opened = Opened(browser, render([view, view], title=name), tmp_path)
    assert opened.page.locator("h1").inner_text() == name
    assert opened.page.locator("img").count() == 0
    assert opened.page.locator("script").count() == 1
    opened.close("injected")


def test_it_prints_with_details(browser: Any, tmp_path: Path) -> None:
    """On paper the folded details of several runs are printed too."""
    opened = Opened(browser, render(samples.demo(), title="Four"), tmp_path)
    opened.page.evaluate("window.dispatchEvent(new Event('beforeprint'))")
    assert opened.page.locator("details.more[open]").count() == 4
    assert len(opened.page.pdf(format="A4")) > 20_000
    opened.page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert opened.page.locator("details.more[open]").count() == 0
    opened.close("printed")


def test_a_hundred_thousand_readings(browser: Any, tmp_path: Path) -> None:
    """A page of 100,000 readings is under 3 MB, opens in 2 s, and still shows its one alarm."""
    cycle = [
        samples.row(9, {"evil": 0.1 + 0.05 * math.sin(i / 80) + 0.02 * math.sin(7 * i), "fr": 0.0})
        for i in range(1000)
    ]
    rows = [
        replace(row, scores=replace(row.scores, step=step))
        for step in range(100_000)
        for row in [cycle[step % 1000]]
    ]
    rows[77_777] = samples.row(77_777, {"evil": 1.1, "fr": 0.0})
    text = render([RunView("long", rows, planned_steps=99_999)], title="Long")
    assert len(text.encode()) < 3_000_000
    assert "Drifts towards evil since step 77,777 of 99,999." in text
    assert "100,000, every step (steps 0 to 99,999)" in text
    start = time.perf_counter()
    opened = Opened(browser, text, tmp_path)
    assert time.perf_counter() - start < 2
    hover = opened.page.locator("svg[data-hover]").get_attribute("data-hover")
    assert '77777,"1.10","0.220",4]' in hover
    marks = opened.page.locator(".chart .at.alarm title").all_text_contents()
    assert any(words.startswith("step 77777: 1.") for words in marks)
    opened.close("long")
