"""The page in Chromium: nothing overflows, every image loads, and everything is reachable by keyboard."""

import re
from itertools import pairwise

import pytest
from helpers.chromium import Chromium, find_chromium

from trainer import write_report

# Elements that overflow the window, except those inside a scrolling box.
OVERFLOWING = """
[...document.querySelectorAll('body *')].filter(e => !e.closest('.scroll') || e.matches('.scroll'))
  .filter(e => {
    const r = e.getBoundingClientRect();
    return r.width && r.left > -900 && r.right > innerWidth + 0.5
  }).map(e => e.tagName + '.' + e.className)
"""

# Shown size, own size and alternative text of each image.
SHAPES = """
[...document.images].map(i => [i.clientWidth, i.clientHeight, i.naturalWidth, i.naturalHeight, i.alt])
"""

# Texts with a contrast below 4.5 (WCAG 2.2, 1.4.3) against the nearest opaque background.
LOW_CONTRAST = """
(() => {
  const light = c => { const [r, g, b] = c.match(/[\\d.]+/g).map(Number).map(v => v / 255)
    .map(v => v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
    return 0.2126 * r + 0.7152 * g + 0.0722 * b }
  const ground = e => { for (; e; e = e.parentElement) {
    const bar = e.matches('.bars li') && e.querySelector('i');
    const c = getComputedStyle(bar || e).backgroundColor; if (!/, 0\\)|transparent/.test(c)) return c }
    return 'rgb(255, 255, 255)' }
  const texts = [...document.querySelectorAll('body *')].filter(e =>
    [...e.childNodes].some(n => n.nodeType === 3 && n.textContent.trim()));
  const contrast = (a, b) => (Math.max(a, b) + 0.05) / (Math.min(a, b) + 0.05);
  const found = e => contrast(light(getComputedStyle(e).color), light(ground(e)));
  return texts.map(e => [found(e), e.outerHTML.slice(0, 60)])
    .filter(([share]) => share < 4.5)
})()
"""


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    program = find_chromium()
    if program is None:
        pytest.skip("no Chromium found: install Debian's `chromium`, or name one in CHROMIUM")
    with Chromium(program, tmp_path_factory.mktemp("profile")) as browser:
        yield browser


@pytest.fixture
def page(made):
    return made.file.as_uri()


@pytest.mark.parametrize("width", [360, 768, 1440])
def test_it_fits_and_is_whole_at_any_width(browser, page, width):
    browser.open(page, width)
    assert browser.complaints() == []
    assert browser.requests() == [page]
    assert browser.evaluate("innerWidth") == width
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    assert browser.evaluate(OVERFLOWING) == []
    assert browser.evaluate("document.images.length") > 50
    assert browser.evaluate("[...document.images].filter(i => !i.complete || !i.naturalWidth).length") == 0
    for shown_width, shown_height, own_width, own_height, alt in browser.evaluate(SHAPES):
        assert shown_width >= 60, alt
        assert shown_width / shown_height == pytest.approx(own_width / own_height, rel=0.05), alt


@pytest.mark.parametrize("width", [360, 1440])
def test_hostile_and_long_names_run_nothing_and_do_not_overflow(browser, hostile_page, width):
    browser.open(hostile_page.as_uri(), width)
    assert browser.complaints() == []
    assert browser.evaluate("document.documentElement.scrollWidth") == width
    assert browser.evaluate(OVERFLOWING) == []
    assert browser.evaluate("document.scripts.length") == 0


def test_it_has_a_language_and_one_outline(browser, page):
    browser.open(page, 1440)
    assert browser.evaluate("document.documentElement.lang") == "en"
    assert browser.evaluate("document.title").startswith("tiny-run")
    levels = browser.evaluate("[...document.querySelectorAll('h1,h2,h3,h4,h5,h6')].map(h => +h.tagName[1])")
    assert levels.count(1) == 1
    assert levels[0] == 1
    assert all(after - before <= 1 for before, after in pairwise(levels))
    for landmark in ("header", "nav", "main", "footer"):
        assert browser.evaluate(f"document.querySelectorAll('body > {landmark}').length") == 1
    outside = browser.evaluate(
        "[...document.body.children].filter(e => !e.matches('header, nav, main, footer, .skip')).length"
    )
    assert outside == 0


def test_text_is_dark_enough(browser, page):
    browser.open(page, 360)
    assert browser.evaluate(LOW_CONTRAST) == []


def test_a_screen_reader_learns_what_everything_is(browser, page):
    browser.open(page, 1440)
    unnamed = [
        node["role"]["value"]
        for node in browser.accessibility_tree()
        if node["role"]["value"] in ("image", "link", "region", "heading", "navigation", "columnheader")
        and not node.get("name", {}).get("value", "").strip()
    ]
    assert unnamed == []
    headless = browser.evaluate(
        "[...document.querySelectorAll('table')].filter(t => !t.querySelector('th[scope]')).length"
    )
    assert headless == 0
    names = browser.evaluate("[...document.querySelectorAll('[role=region]')].map(r => r.ariaLabel)")
    assert len(set(names)) == len(names) > 0


def test_a_keyboard_gets_everywhere_and_out_again(browser, page):
    browser.open(page, 360)
    wanted = browser.evaluate("document.querySelectorAll('a[href], summary, [tabindex=\"0\"]').length")
    hidden = browser.evaluate("document.querySelectorAll('details:not([open]) [tabindex=\"0\"]').length")
    seen = []
    for _ in range(wanted + 5):
        browser.press("Tab")
        where = browser.evaluate(
            "(e => e === document.body ? '' : e.tagName + (e.getAttribute('href') || e.ariaLabel || ''))"
            "(document.activeElement)"
        )
        if not where:  # focus left the page
            break
        seen.append(where)
        assert browser.evaluate("getComputedStyle(document.activeElement).outlineStyle") != "none"
        shown = browser.evaluate("document.activeElement.getBoundingClientRect().left >= 0")
        assert shown, where
    assert seen[0] == "A#main"
    assert len(seen) == len(set(seen)) == wanted - hidden


def test_the_skip_link_skips_and_what_scrolls_inside_can_be_reached_by_keyboard(browser, page):
    browser.open(page, 360)
    browser.press("Tab")
    browser.press("Enter")
    assert browser.evaluate("document.activeElement.id") == "main"
    lost = browser.evaluate(
        "[...document.querySelectorAll('body *')].filter(e => e.scrollWidth > e.clientWidth + 1 &&"
        "/auto|scroll/.test(getComputedStyle(e).overflowX) && e.tabIndex !== 0).length"
    )
    assert lost == 0


def test_a_page_with_parts_left_out_is_whole_too(browser, tiny_run, tmp_path):
    skip = ["curves", "throughput", "kernels", "predictions", "neighbors", "confusion", "data", "recipe"]
    browser.open(write_report(tiny_run, tmp_path / "r.html", skip=skip).file.as_uri(), 360)
    assert browser.complaints() == []
    assert browser.evaluate("document.documentElement.scrollWidth") == 360
    text = browser.evaluate("document.querySelector('[aria-labelledby=left-out]').innerText")
    assert len(re.findall(r"skipped \(--skip\)", text)) == len(skip)
