"""The issue in a browser: everything works as a file, by keyboard, on a telephone, in the dark."""

import os
import re
import shutil
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest
from playwright.sync_api import Browser, BrowserContext, Page, sync_playwright

from zeitgeist.report.site import Site

ARGUMENTS = (
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
)
PAGES = (
    "index.html",
    "systems/knots.html",
    "systems/lines.html",
    "systems/probes.html",
    "systems/quiet.html",
    "areas/merging.html",
    "areas/inspection.html",
    "runs/knots/quick.html",
    "runs/knots/quick-me-my-model.html",
    "runs/gone/quick.html",
)
FOCUSABLE = "a[href], button, input, summary, [tabindex='0']"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    """The system's Chromium."""
    path = shutil.which("chromium") or shutil.which("chromium-browser")
    if path is None:
        if os.environ.get("CI"):
            pytest.fail("no chromium is installed, and CI must look at the pages")
        pytest.skip("no chromium is installed")
    with sync_playwright() as playwright:
        started = playwright.chromium.launch(executable_path=path, args=list(ARGUMENTS))
        yield started
        started.close()


@dataclass
class Opened:
    """A page and everything it complained of."""

    page: Page
    complaints: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)


@pytest.fixture(scope="module")
def open_page(browser: Browser) -> Iterator[Callable[..., Opened]]:
    """Opens an address in a context of its own and waits until its charts are drawn."""
    contexts: list[BrowserContext] = []

    def open_it(address: str, **options: Any) -> Opened:
        context = browser.new_context(**{"viewport": {"width": 1000, "height": 800}, **options})
        context.set_default_timeout(10_000)
        contexts.append(context)
        opened = Opened(context.new_page())
        page, complain = opened.page, opened.complaints.append
        page.on("console", lambda m: complain(m.text) if m.type == "error" else None)
        page.on("pageerror", lambda error: complain(str(error)))
        page.on("requestfailed", lambda request: complain(f"failed: {request.url}"))
        page.on("response", lambda r: complain(f"{r.status}: {r.url}") if not r.ok else None)
        page.on("request", lambda request: opened.requests.append(request.url))
        page.goto(address)
        if options.get("java_script_enabled", True):
            wait_for_charts(page)
        return opened

    yield open_it
    for context in contexts:
        context.close()


def wait_for_charts(page: Page, look: str = "") -> None:
    """Until every figure says that it was drawn, in this look."""
    page.wait_for_function(
        """look => [...document.querySelectorAll("figure")].every(
            f => look ? f.dataset.drawn === look : f.dataset.drawn)""",
        arg=look,
    )


@pytest.fixture(scope="module")
def axe() -> str:
    """The accessibility engine's source."""
    return (files("axe_playwright_python") / "axe.min.js").read_text(encoding="utf-8")


@pytest.fixture(scope="module", params=PAGES)
def opened(
    request: pytest.FixtureRequest, site: Site, open_page: Callable[..., Opened]
) -> Iterator[Opened]:
    """Every page, opened once as a file, in light."""
    made = open_page((site.place / request.param).as_uri(), color_scheme="light")
    yield made
    made.page.context.close()


def violations(page: Page, axe: str) -> list[str]:
    """What axe finds, a line each."""
    page.evaluate(axe)
    found = page.evaluate("axe.run({preload: false})")["violations"]
    return [f"{each['id']}: {node['html'][:200]}" for each in found for node in each["nodes"]]


def test_all_pages_of_the_site_are_looked_at(site: Site) -> None:
    assert {page.path for page in site.pages} == set(PAGES)


def test_a_page_opens_as_a_file_without_a_complaint_and_asks_nobody(
    opened: Opened, site: Site
) -> None:
    assert opened.complaints == []
    assert all(address.startswith(site.place.as_uri()) for address in opened.requests)


def test_every_figure_is_drawn_with_marks_and_says_what_it_is(opened: Opened) -> None:
    page = opened.page
    names = page.eval_on_selector_all("script.spec", "all => all.map(each => each.dataset.figure)")
    assert page.locator("figure").count() == len(names)
    for name in names:
        marks = page.locator(f"#chart-{name} svg g.role-mark :is(path, line, text)")
        assert marks.count() >= 3, name
        label = page.locator(f"#chart-{name}").get_attribute("aria-label") or ""
        assert len(label) > 20, name
    assert page.locator("img.still:visible").count() == 0


def test_it_fits_a_telephone(opened: Opened) -> None:
    page = opened.page
    page.set_viewport_size({"width": 360, "height": 740})
    page.wait_for_timeout(100)
    width, over = page.evaluate(
        """[document.documentElement.scrollWidth,
            [...document.querySelectorAll("main *")].filter(e => !e.closest(".scroll, .hidden")
              && e.getBoundingClientRect().right > 361).map(e => e.outerHTML.slice(0, 120))]"""
    )
    page.set_viewport_size({"width": 1000, "height": 800})
    assert (width, over) == (360, [])


def test_tab_reaches_everything_that_can_be_used_and_shows_where_it_is(opened: Opened) -> None:
    page = opened.page
    page.evaluate("document.activeElement.blur(); scrollTo(0, 0)")
    number = page.evaluate(
        f"""[...document.querySelectorAll("{FOCUSABLE}")]
            .filter(e => e.checkVisibility()).map((e, i) => e.dataset.order = i).length"""
    )
    reached, unseen = set(), []
    for _ in range(number + 1):
        page.keyboard.press("Tab")
        order, style, name = page.evaluate(
            """() => { const e = document.activeElement;
                return [e.dataset.order, getComputedStyle(e).outlineStyle, e.outerHTML] }"""
        )
        if order is None:
            break
        reached.add(order)
        unseen += [name[:120]] if style == "none" else []
    assert reached == {str(i) for i in range(number)}
    assert unseen == []


def test_axe_finds_nothing_in_light_and_nothing_in_dark(opened: Opened, axe: str) -> None:
    page = opened.page
    assert violations(page, axe) == []
    page.get_by_role("button", name="Dark").click()
    wait_for_charts(page, "dark")
    assert violations(page, axe) == []
    assert opened.complaints == []


@pytest.fixture(scope="module")
def front(site: Site, open_page: Callable[..., Opened]) -> Page:
    page: Page = open_page(site.index.as_uri()).page
    return page


def test_every_internal_link_can_be_followed(site: Site, front: Page) -> None:
    seen, waiting = set(), [site.index.as_uri()]
    while waiting:
        address = waiting.pop()
        seen.add(address)
        front.goto(address, wait_until="domcontentloaded")
        for link in front.eval_on_selector_all("a[href]", "all => all.map(a => a.href)"):
            place, _, anchor = link.partition("#")
            if not place.startswith("file:"):
                assert re.match("https://arxiv.org/abs/", place)
                continue
            assert Path(place.removeprefix("file://")).is_file(), link
            if place == address and anchor:
                assert front.locator(f"[id='{anchor}']").count() == 1, link
            if place.endswith(".html") and place not in seen and place not in waiting:
                waiting.append(place)
    assert {(site.place / name).as_uri() for name in PAGES} == seen


@pytest.mark.parametrize(
    ("asked", "found", "because"),
    [
        ("svd KNOTS", ["Model Merging with SVD to Tie the KnOTS"], ""),
        ("muller know more", ["LLMs Know More Than They Show"], "Stoica, Ramesh, Müller"),
        (
            "prevents TIES alone",
            ["LiNeS: Post-training Layer Scaling Prevents Forgetting"],
            "Aligned adapters keep more accuracy than TIES alone",
        ),
        ("theory nothing", ["Breaking out </script><b>of markup"], ""),
    ],
)
def test_search_finds_systems_by_words_of_title_claim_author_and_section(
    site: Site, front: Page, asked: str, found: list[str], because: str
) -> None:
    front.goto(site.index.as_uri())
    front.get_by_role("searchbox").fill(asked)
    results = front.locator("#found li")
    assert results.get_by_role("link").all_text_contents() == found
    assert front.locator("#said").text_content() == f"1 system found for “{asked}”"
    assert because in (results.first.text_content() or "")
    assert not front.locator("#issue").is_visible()


def test_search_says_when_nothing_is_found_and_gives_the_issue_back(
    site: Site, front: Page, axe: str
) -> None:
    front.goto(site.index.as_uri())
    box = front.get_by_role("searchbox")
    box.fill("quantum <b>gravity")
    said = front.locator("#said")
    assert (said.text_content() or "").startswith("Nothing found for “quantum <b>gravity”")
    assert said.get_attribute("aria-live") == "polite"
    assert front.locator("#found li").count() == 0
    assert violations(front, axe) == []
    box.fill("  ")
    assert said.text_content() == "" and front.locator("#issue").is_visible()


def test_search_works_by_keyboard_alone(site: Site, front: Page) -> None:
    front.goto(site.index.as_uri())
    while front.evaluate("document.activeElement.id") != "query":
        front.keyboard.press("Tab")
    front.keyboard.type("lines")
    front.keyboard.press("Enter")
    assert front.evaluate("document.activeElement.textContent").startswith("LiNeS")
    front.keyboard.press("Enter")
    front.wait_for_url("**/systems/lines.html")


def test_the_first_tab_skips_to_the_content(site: Site, front: Page) -> None:
    front.goto((site.place / "systems/knots.html").as_uri())
    front.keyboard.press("Tab")
    assert front.evaluate("document.activeElement.className") == "skip"
    assert front.locator(".skip").bounding_box()["x"] >= 0  # type: ignore[index]
    front.keyboard.press("Enter")
    assert front.evaluate("document.activeElement.id") == "content"
    front.keyboard.press("Tab")
    assert front.evaluate("document.activeElement.closest('main') !== null")


def test_the_theme_follows_the_system_then_the_reader_who_is_remembered(
    site: Site, open_page: Callable[..., Opened]
) -> None:
    page = open_page((site.place / "areas/merging.html").as_uri(), color_scheme="dark").page
    button = page.get_by_role("button", name="Dark")

    def paper() -> str:
        return str(page.evaluate("getComputedStyle(document.documentElement).backgroundColor"))

    def ink() -> str | None:
        return page.locator("#chart-kept svg .role-axis-title text").first.get_attribute("fill")

    assert button.get_attribute("aria-pressed") == "true"
    dark = paper(), ink()
    page.emulate_media(color_scheme="light")
    wait_for_charts(page, "light")
    light = paper(), ink()
    page.emulate_media(color_scheme="dark")
    wait_for_charts(page, "dark")
    button.click()
    wait_for_charts(page, "light")
    assert button.get_attribute("aria-pressed") == "false"
    assert (paper(), ink()) == light != dark
    page.goto(site.index.as_uri())
    assert page.get_by_role("button", name="Dark").get_attribute("aria-pressed") == "false"
    assert paper() == light[0]


def test_pointing_at_a_mark_tells_its_numbers(site: Site, front: Page) -> None:
    front.goto((site.place / "systems/knots.html").as_uri())
    wait_for_charts(front)
    front.locator("#chart-claims path[aria-roledescription='point']").first.hover()
    tooltip = front.locator("#vg-tooltip-element")
    tooltip.wait_for(state="visible")
    assert "holds: difference" in (tooltip.text_content() or "")
    front.mouse.move(0, 0)
    tooltip.wait_for(state="hidden")


def test_paper_shows_still_pictures_without_controls(site: Site, front: Page) -> None:
    front.goto((site.place / "systems/knots.html").as_uri())
    wait_for_charts(front)
    front.emulate_media(media="print")
    assert front.locator("img.still:visible").count() == 3
    assert front.locator(".chart:visible").count() == 0
    assert not front.locator("#theme").is_visible()
    front.emulate_media(media="screen")


def test_without_scripts_stills_are_shown_and_everything_can_be_read(
    site: Site, open_page: Callable[..., Opened]
) -> None:
    address = (site.place / "systems/knots.html").as_uri()
    page = open_page(address, java_script_enabled=False).page
    stills = page.locator("img.still:visible")
    assert stills.count() == 3
    assert all(still.bounding_box()["height"] > 50 for still in stills.all())  # type: ignore[index]
    assert page.locator("noscript p:visible").count() == 3
    assert not page.locator("#theme").is_visible()
    page.goto(site.index.as_uri())
    assert not page.locator("#search").is_visible()
    assert page.locator("article.card").first.is_visible()


def test_a_server_serves_it_as_well(site: Site, open_page: Callable[..., Opened]) -> None:
    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, *_: object) -> None:
            pass

    handler = partial(Quiet, directory=str(site.place))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            address = f"http://127.0.0.1:{server.server_port}"
            opened = open_page(f"{address}/systems/knots.html")
            assert opened.page.locator("#chart-kept svg g.role-mark path").count() >= 3
            assert opened.complaints == []
            assert all(request.startswith(address) for request in opened.requests)
            opened.page.context.close()
        finally:
            server.shutdown()
            thread.join()
