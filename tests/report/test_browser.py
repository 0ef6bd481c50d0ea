"""The pages in a real browser.

Where $WVMONITOR_SCREENSHOTS names a folder, what the browser showed goes there: `make screenshots`
makes those of docs/images so.
"""

from __future__ import annotations

import math
import os
import shutil
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from tests.report import samples
from wvmonitor.report.blame import Line, render_blame
from wvmonitor.report.page import render
from wvmonitor.report.view import RunView

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
        context = {"viewport": {"width": 1200, "height": 900}} | context
        self.context = browser.new_context(**context)
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
            self.page.screenshot(path=Path(SCREENSHOTS) / f"{name}.jpg", quality=55)
        self.context.close()
        assert self.complaints == []
        assert [u for u in self.requests if not u.startswith(("file:", "data:"))] == []


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_the_page_opens_without_complaint(browser: Any, tmp_path: Path, scheme: str) -> None:
    """In light and dark, the curves are drawn and the policy lets the page's own parts through."""
    opened = Opened(browser, render(samples.demo(), title="Four"), tmp_path, color_scheme=scheme)
    page = opened.page
    assert page.evaluate("getComputedStyle(document.querySelector('.narrow')).display") == "none"
    boxes = page.locator("path.score").evaluate_all(
        "paths => paths.filter(p => p.closest('.chart.wide')).map(p => [p.getTotalLength(), "
        "p.getBoundingClientRect().width, getComputedStyle(p).stroke])"
    )
    assert len(boxes) == 4
    assert all(length > 200 and width > 200 for length, width, _ in boxes)
    ground = page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert ground == ("rgb(15, 18, 22)" if scheme == "dark" else "rgb(247, 247, 245)")
    assert page.evaluate("document.documentElement.scrollWidth") <= 1200
    opened.close(f"demo-{scheme}")


SIZES = {"1280": {"width": 1280, "height": 900}, "390": {"width": 390, "height": 844}}
"""A desk, and a phone held upright."""


@pytest.mark.parametrize("size", SIZES)
def test_an_alarm_is_understood_in_one_screen(browser: Any, tmp_path: Path, size: str) -> None:
    """Without scrolling, the first card says what, how sure and what next, with its command."""
    text = render(samples.demo(), title="Four fine-tunes")
    opened = Opened(browser, text, tmp_path, viewport=SIZES[size])
    page, height = opened.page, SIZES[size]["height"]
    assert page.locator("article .badge").first.inner_text() == "alarm"
    first = page.locator("article").first.locator(".first > div")
    assert first.locator("dt").all_inner_texts() == ["What", "How sure", "What next"]
    assert first.locator("code").inner_text() == samples.command("evil")
    bounds = first.evaluate_all("found => found.map(f => f.getBoundingClientRect().bottom)")
    assert max(bounds) <= height
    assert page.locator("details.why[open]").count() == 0
    assert page.evaluate("document.documentElement.scrollWidth") <= SIZES[size]["width"]
    opened.close(f"report-{size}")


@pytest.mark.parametrize("size", SIZES)
def test_a_charts_newest_value_is_in_view(browser: Any, tmp_path: Path, size: str) -> None:
    """Each chart shows its curve's end, the newest value and all its words without scrolling."""
    view = samples.demo()[2]
    opened = Opened(browser, render([view], title="One"), tmp_path, viewport=SIZES[size])
    page, width = opened.page, SIZES[size]["width"]
    charts = page.locator("figure.plot svg.chart").locator("visible=true")
    assert charts.count() == 2
    names = charts.evaluate_all(
        "found => found.map(f => [...f.querySelectorAll('.name')].map(n => n.textContent))"
    )
    assert names == [["evil 0.670", "sycophancy", "threshold"], ["95 %"]]
    assert page.locator("output.readout").inner_text().startswith("step 60 · 0.670")
    outside = charts.evaluate_all(
        """charts => charts.flatMap(chart => {
          const frame = chart.getBoundingClientRect();
          return [...chart.querySelectorAll("text, path.score, path.rate, .at")]
            .filter(e => !e.closest(".cursor"))
            .map(e => [e.textContent, e.getBoundingClientRect()])
            .filter(([, b]) => b.left < frame.left - 1 || b.right > frame.right + 1)
            .map(([words]) => words);
        })"""
    )
    assert outside == []
    boxes = charts.evaluate_all("found => found.map(f => f.getBoundingClientRect().toJSON())")
    assert all(box["left"] >= 0 and box["right"] <= width for box in boxes)
    sizes = charts.evaluate_all(
        "found => found.map(f => f.getBoundingClientRect().width / f.viewBox.baseVal.width)"
    )
    assert min(sizes) * 11.5 >= 10, "the words of a chart are smaller than ten pixels"
    opened.close(f"chart-{size}")


@pytest.mark.parametrize("size", SIZES)
def test_blame_is_read_without_scrolling_sideways(browser: Any, tmp_path: Path, size: str) -> None:
    """On a phone each example is a card with its labels; on a desk it is a row of a table."""
    lines = [
        Line(
            i,
            0.09 - i / 500,
            1.5,
            f"How much of medicine {i} should I take?",
            "Twice as much. " * 9,
        )
        for i in range(40)
    ]
    text = render_blame(lines, "evil", "gives bad advice", data="advice.jsonl")
    opened = Opened(browser, text, tmp_path, viewport=SIZES[size])
    page, width = opened.page, SIZES[size]["width"]
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    assert page.locator("thead").is_visible() == (size == "1280")
    assert page.locator(".scroll").evaluate("e => e.scrollWidth <= e.clientWidth")
    cells = page.locator("tbody tr").first.locator("th, td")
    boxes = cells.evaluate_all("found => found.map(f => f.getBoundingClientRect().toJSON())")
    assert len(boxes) == 6
    assert all(box["left"] >= 0 and box["right"] <= width for box in boxes)
    tops = [box["top"] for box in boxes]
    assert (tops == sorted(set(tops))) == (size == "390")
    assert (len(set(tops)) == 1) == (size == "1280")
    labels = cells.evaluate_all(
        "e => e.map(f => [f.dataset.label, getComputedStyle(f, '::before').content !== 'none'])"
    )
    names = ("rank", "example", "push", "loss", "prompt", "answer")
    assert labels == [[name, size == "390"] for name in names]
    assert page.locator("svg.chart").locator("visible=true").count() == 1
    opened.close(f"blame-{size}")


def test_a_command_is_copied_by_its_button(browser: Any, tmp_path: Path) -> None:
    """The button beside a command puts just the command onto the clipboard, and says so."""
    opened = Opened(browser, render([samples.demo()[2]], title="One"), tmp_path)
    opened.context.grant_permissions(["clipboard-read", "clipboard-write"])
    button = opened.page.locator("button.copy").first
    button.click()
    opened.page.wait_for_function("document.querySelector('button.copy').textContent === 'copied'")
    assert opened.page.evaluate("navigator.clipboard.readText()") == samples.command("evil")
    opened.close("copied")


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
    chart = chart.locator("visible=true")
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
    assert opened.page.locator("button.copy").first.is_hidden()
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
    assert opened.page.locator("details.why[open]").count() == 4
    assert len(opened.page.pdf(format="A4")) > 20_000
    opened.page.evaluate("window.dispatchEvent(new Event('afterprint'))")
    assert opened.page.locator("details.more[open]").count() == 0
    opened.close("printed")


def test_a_hundred_thousand_readings(browser: Any, tmp_path: Path) -> None:
    """A page of 100,000 readings is under 3 MB and few elements, and still shows its one alarm."""
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
    opened = Opened(browser, text, tmp_path)
    assert opened.page.evaluate("document.querySelectorAll('*').length") < 10_000
    hover = opened.page.locator("svg.wide[data-hover]").get_attribute("data-hover")
    assert '77777,"1.10","0.220",4]' in hover
    marks = opened.page.locator(".chart .at.alarm title").all_text_contents()
    assert any(words.startswith("step 77777: 1.") for words in marks)
    opened.close("long")
