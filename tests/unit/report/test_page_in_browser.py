"""The page in Chromium: that its script does what it says, and that what comes from a run stays text."""

from __future__ import annotations

import os
import re
import shutil
import time
from dataclasses import replace

import pytest
from training_run import CWD, LOSS, MASK, NONZERO, TRAIN, report_of, sync

from syncagent.events import CallSite, Phase, Span, SyncKind
from syncagent.report.compare import compare
from syncagent.report.compared import page as compared
from syncagent.report.formats import html
from syncagent.report.merge import merge
from syncagent.report.model import BusyRow, CostRow, SourceRow

api = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="Chromium is not installed")
EVIL = "</script><script>alert(1)</script><img src=x onerror=alert(2)>\"'&`${alert(3)}{{7*7}}"
WIDTHS = (1280, 820, 390)


@pytest.fixture(scope="module")
def browser():
    with api.sync_playwright() as playwright:
        started = playwright.chromium.launch(
            executable_path=CHROMIUM, args=["--no-sandbox"] if hasattr(os, "geteuid") and os.geteuid() == 0 else []
        )
        yield started
        started.close()


@pytest.fixture
def opened(browser, tmp_path):
    """Opens a report's page, or the text of one; if it logs or loads anything, or shows a dialog, the test fails."""
    said, pages = [], []

    def open_page(report, *, width=1280, **options):
        file = tmp_path / "report.html"
        file.write_text(report if isinstance(report, str) else html.render(report), encoding="utf-8")
        page = browser.new_page(viewport={"width": width, "height": 900}, **options)
        pages.append(page)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("dialog", lambda dialog: (said.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda request: said.append(request.url) if not request.url.startswith("file:") else None)
        page.goto(file.as_uri())
        return page

    yield open_page
    for page in pages:
        page.close()
    assert said == []


READ = CallSite(TRAIN, 90, "main", "total += loss.item()", span=Span(13, 90, 24, indent=4))
FLAG = CallSite("/v/lib/python3.12/site-packages/torchmetrics/metric.py", 9, "update", "if bad.any():")


def whole_events(steps=3):
    """Three lines in steps, one of them in a library and one allowed."""
    events = []
    for step in range(steps):
        begin = 100.0 * step
        events += [
            sync(NONZERO, ms=20 + step, at_ms=begin + 10, step=step, module="head"),
            sync(READ, ms=5, at_ms=begin + 40, step=step, kind=SyncKind.SCALAR_READ, phase=Phase.OPTIMIZER),
            sync(MASK, ms=1, at_ms=begin + 60, step=step, library_site=FLAG, thread="loader", allowed="wanted"),
        ]
    return events


def whole(steps=6):
    """Those, and one before them."""
    early = CallSite(f"{CWD}/setup.py", 3, "load", "weights.to(device)")
    report = report_of(sync(early, ms=40, kind=SyncKind.COPY_H2D), *whole_events(steps), steps=steps)
    begin_ns = report.step_times[0].start_ns
    busy = tuple(BusyRow(begin_ns + step * 10**8, begin_ns + step * 10**8 + 6 * 10**7) for step in range(steps))
    return replace(
        report,
        sites=tuple(replace(site, advice=f"advice for {site.line}") for site in report.sites),
        sources=(
            SourceRow(TRAIN, 88, ("def main():", "    for x in data:", "    total += loss.item()", "    return")),
        ),
        cost=CostRow(1, 100.0, 100.0, 1.0, None, gpu_busy=busy),
    )


def counted(page, words):
    """Wait until the page says that so many lines are shown."""
    api.expect(page.locator("#found")).to_have_text(words)


def over(page, chart):
    """Where the drawing of a chart is, once it can be seen: left, top, width, height."""
    drawing = page.locator(f"#{chart} .u-over")
    drawing.scroll_into_view_if_needed()
    box = drawing.bounding_box()
    return box["x"], box["y"], box["width"], box["height"]


def places(page):
    """The lines that can be seen, from above."""
    return page.locator(".site:visible h3 span").all_inner_texts()


def test_its_lines_can_be_searched_filtered_sorted_and_grouped(opened):
    page = opened(whole())
    all_of_them = ["loss.py:41", "train.py:90", "loss.py:57", "setup.py:3"]
    assert places(page) == all_of_them
    assert page.locator("#found").inner_text() == "4 lines"
    for words, found in {
        "loss.ITEM": ["train.py:90"],
        "Masked_Loss nonzero(labels": ["loss.py:41"],
        "torchmetrics": ["loss.py:57"],
        "scalar_read": ["train.py:90"],
        f"{CWD}/setup": ["setup.py:3"],
        "no such": [],
        "": all_of_them,
    }.items():
        page.fill("#search", words)
        api.expect(page.locator(".site:visible h3 span")).to_have_text(found)
        counted(page, f"{len(found)} of 4 lines" if words else "4 lines")
    page.select_option("[data-filter=phase]", "optimizer")
    counted(page, "1 of 4 lines")
    assert places(page) == ["train.py:90"]
    page.select_option("[data-filter=phase]", "")
    page.check("#hide-allowed")
    counted(page, "3 of 4 lines")
    page.uncheck("#hide-allowed")
    page.select_option("#sort", "place")
    api.expect(page.locator(".site h3 span")).to_have_text(["loss.py:41", "loss.py:57", "train.py:90", "setup.py:3"])
    page.select_option("#group", "file")
    page.wait_for_selector(".group")
    assert page.locator(".group h3").all_inner_texts() == [
        "loss.py 2 lines, 24.0 %", "train.py 1 line, 5.0 %", "setup.py 1 line, 0.0 %",
    ]  # fmt: skip
    page.select_option("#group", "")
    page.wait_for_selector(".group", state="detached")


def test_a_link_shows_its_line_whatever_is_filtered_out(opened):
    page = opened(whole())
    page.fill("#search", "no such line")
    counted(page, "0 of 4 lines")
    site = page.locator(".site", has_text="train.py:90").first
    address = site.get_attribute("id")
    page.evaluate("id => { location.hash = '#' + id; }", address)
    api.expect(site).to_be_focused()
    assert site.locator("details").get_attribute("open") is not None
    assert page.input_value("#search") == ""
    assert site.locator("pre.source mark").first.inner_text() == "loss.item()"
    assert site.locator("pre.around").inner_text().splitlines()[2].split() == ["90", "total", "+=", "loss.item()"]


def is_in_view(site):
    box = site.bounding_box()
    return box is not None and 0 <= box["y"] <= 900


def test_a_link_leads_to_its_line_on_a_long_page_and_does_so_again(opened):
    lines = [CallSite(LOSS, number, "step", f"x{number}.item()") for number in range(1, 401)]
    page = opened(report_of(*(sync(line, at_ms=line.line) for line in lines), steps=6))
    site = page.locator(".site").nth(300)
    address = site.get_attribute("id")
    page.evaluate("id => { location.hash = '#' + id; }", address)
    api.expect(site).to_be_focused()
    page.wait_for_timeout(200)
    assert is_in_view(site)
    page.evaluate("scrollTo(0, 0)")
    page.fill("#search", "no such line")
    counted(page, "0 of 400 lines")
    page.evaluate(
        """id => {
          const link = Object.assign(document.createElement("a"), {href: `#${id}`});
          document.body.append(link);
          link.click();
        }""",
        address,
    )
    counted(page, "400 lines")
    page.wait_for_timeout(200)
    assert is_in_view(site)


def test_labels_are_not_searched(opened):
    page = opened(whole())
    page.fill("#search", "per step")
    counted(page, "0 of 4 lines")


def test_the_last_steps_are_shown_whichever_rank_has_ended_early(opened):
    ranks = [report_of(*whole_events(steps), steps=steps, rank=rank) for rank, steps in ((0, 20), (1, 2))]
    page = opened(merge(ranks))
    assert shown(page, "chart-time") == "1600 ms to 2000 ms."


def painted(page, chart, name):
    """How many pixels of a chart have one of the page's colours."""
    return painted_in(page, f"#{chart}", name)


def painted_in(page, selector, name):
    return page.evaluate(
        """([selector, name]) => {
          const drawn = document.querySelector(`${selector} canvas`);
          const canvas = new OffscreenCanvas(drawn.width, drawn.height);
          canvas.getContext("2d", {willReadFrequently: true}).drawImage(drawn, 0, 0);
          const probe = new OffscreenCanvas(1, 1).getContext("2d", {willReadFrequently: true});
          probe.fillStyle = getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();
          probe.fillRect(0, 0, 1, 1);
          const wanted = probe.getImageData(0, 0, 1, 1).data;
          const {data} = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height);
          let found = 0;
          for (let at = 0; at < data.length; at += 4)
            found += data[at] === wanted[0] && data[at + 1] === wanted[1] && data[at + 2] === wanted[2];
          return found;
        }""",
        [selector, name],
    )


def test_charts_are_painted_in_the_colours_of_their_lines(opened):
    page = opened(whole())
    page.wait_for_selector("#chart-time canvas")
    steps = [painted(page, "chart-steps", f"color-{number}") for number in range(3)]
    assert steps[0] > 3 * steps[1] > 3 * steps[2] > 0
    assert painted(page, "chart-steps", "color-others") < steps[2], "all lines have a colour of their own"
    assert all(painted(page, "chart-time", name) for name in ("color-0", "color-2", "step", "busy"))


def shown(page, chart):
    return page.get_attribute(f"#{chart}", "aria-label").partition("Shown: ")[2]


def test_the_time_line_opens_where_the_gpus_work_is_known(opened):
    report = whole(steps=20)
    cost = replace(report.cost, gpu_busy=report.cost.gpu_busy[7:12])
    page = opened(replace(report, cost=cost))
    assert shown(page, "chart-time") == "800 ms to 1200 ms."
    assert page.inner_text("#hint") == "The GPU's work is known from 700 ms to 1160 ms."
    assert painted(page, "chart-time", "busy")


def test_the_time_line_zooms_and_moves_by_keys_buttons_wheel_and_mouse(opened):
    page = opened(whole(steps=10))
    assert shown(page, "chart-time") == "600 ms to 1000 ms.", "the last steps"
    page.focus("#chart-time")
    page.keyboard.press("+")
    assert shown(page, "chart-time") == "700 ms to 900 ms."
    page.keyboard.press("ArrowLeft")
    assert shown(page, "chart-time") == "640 ms to 840 ms."
    page.click("[data-do=all]")
    assert shown(page, "chart-time") == "0 ms to 1000 ms."
    page.click("[data-do=right]")
    assert shown(page, "chart-time") == "0 ms to 1000 ms.", "there is nothing beyond"
    left, top, width, height = over(page, "chart-time")
    middle = top + height / 2
    page.mouse.move(left + width / 2, middle)
    page.mouse.wheel(0, -1)
    assert shown(page, "chart-time") == "0 ms to 1000 ms.", "the wheel alone scrolls the page"
    left, top, width, height = over(page, "chart-time")
    middle = top + height / 2
    page.mouse.move(left + width / 2, middle)
    page.keyboard.down("Control")
    page.mouse.wheel(0, -100)
    page.keyboard.up("Control")
    api.expect(page.locator("#chart-time")).to_have_attribute(
        "aria-label", re.compile("Shown: (149|150).* ms to (849|850)")
    )
    page.mouse.dblclick(left + width / 2, middle)
    assert shown(page, "chart-time") == "0 ms to 1000 ms."
    page.mouse.move(left + width * 0.25, middle)
    page.mouse.down()
    page.mouse.move(left + width * 0.75, middle, steps=4)
    page.mouse.up()
    begin, end = (float(words.split()[0]) for words in shown(page, "chart-time").split(" to "))
    assert (begin, end) == (pytest.approx(250, abs=5), pytest.approx(750, abs=5))
    page.focus("#chart-steps")
    page.keyboard.press("+")
    assert shown(page, "chart-steps") == "step 2 to step 7."
    page.keyboard.press("0")
    assert shown(page, "chart-steps") == "step 0 to step 9."


def written(page):
    """Have the page keep what a chart writes from now on, and return what gives that: the texts, in their order."""
    page.evaluate(
        """() => {
          const said = window.written = [], write = CanvasRenderingContext2D.prototype.fillText;
          CanvasRenderingContext2D.prototype.fillText = function (text, ...rest) {
            said.push(text);
            return write.call(this, text, ...rest);
          };
        }"""
    )
    return lambda: page.evaluate("written.splice(0)")


def pressed(page, chart, *keys):
    """Press keys on a chart, and wait until it is drawn."""
    page.focus(f"#{chart}")
    for key in keys:
        page.keyboard.press(key)
    page.wait_for_timeout(100)


def long_run(apart_s=60, steps=200):
    """One wait in each of the steps of a run that takes hours."""
    return report_of(*(sync(ms=20, at_ms=1000.0 * apart_s * step, step=step) for step in range(steps)), steps=steps)


def test_moments_of_a_long_run_are_hours_minutes_and_seconds_as_precise_as_the_part_that_is_shown(opened):
    page = opened(long_run())
    texts = written(page)
    pressed(page, "chart-time", "0")
    assert shown(page, "chart-time") == "0:00:00 to 3:19:00."
    labels = [text for text in texts() if ":" in text]
    assert labels[:4] == ["0:00:00", "0:15:00", "0:30:00", "0:45:00"]
    pressed(page, "chart-time", *"+" * 24)
    labels = [text for text in texts() if ":" in text][-4:]
    assert len(set(labels)) == 4, "each tick has a label of its own"
    assert all(re.fullmatch(r"1:39:30\.0[01]\d\d", label) for label in labels), labels
    begin, end = shown(page, "chart-time").rstrip(".").split(" to ")
    assert begin != end


def test_steps_have_ticks_however_far_apart_their_numbers_are(opened):
    report = long_run(apart_s=1, steps=100)
    for apart in (1, 300, 7_000_000):
        far = replace(
            report,
            events=tuple(replace(event, step=event.step * apart) for event in report.events),
            step_times=tuple(replace(step, step=step.step * apart) for step in report.step_times),
        )
        page = opened(far, width=390)
        texts = written(page)
        pressed(page, "chart-steps", "+", "0")
        numbers = [int(text.replace(",", "")) for text in texts() if re.fullmatch("[0-9,]+", text) and text != "0"]
        assert len(set(numbers)) >= 2, apart
        assert max(numbers) <= 99 * apart


@pytest.mark.parametrize("width", WIDTHS)
def test_the_name_of_a_lane_that_does_not_fit_keeps_both_ends_and_stands_whole_in_a_list(opened, width):
    name = "loader of the large training set, worker number 17"
    page = opened(
        report_of(*(sync(thread=thread, at_ms=9.0 * n) for n, thread in enumerate((name, "short")))), width=width
    )
    texts = written(page)
    pressed(page, "chart-time", "+")
    assert any(re.fullmatch("loader.*….*17", text) for text in texts())
    page.click("#lanes summary")
    assert page.locator("#lanes li").all_inner_texts() == [name, "short"]
    left, top, _, height = over(page, "chart-time")
    page.mouse.move(left + 200, top + height / 4)
    assert page.inner_text("#hint") == name
    page = opened(report_of(sync(thread="short")))
    assert not page.locator("#lanes").is_visible()


def test_all_of_a_long_line_can_be_reached_by_keyboard_and_is_on_paper(opened):
    text = "total += " + " + ".join(f"losses[{number}]" for number in range(60))
    site = CallSite(TRAIN, 90, "main", text)
    page = opened(replace(report_of(sync(site)), sources=(SourceRow(TRAIN, 90, (text,)),)), width=390)
    page.click(".site summary")
    around = page.locator("pre.around")
    around.focus()
    page.keyboard.press("End")
    page.keyboard.press("ArrowRight")
    while not around.evaluate("element => element.scrollLeft"):  # the page lets nobody else look again and again
        page.wait_for_timeout(20)
    page.emulate_media(media="print")
    assert around.evaluate("one => one.scrollWidth - one.clientWidth") == 0


def test_a_wait_under_the_pointer_is_named_and_leads_to_its_line(opened):
    page = opened(whole())
    page.click("[data-do=all]")
    left, top, width, height = over(page, "chart-time")
    x, y = left + width * 0.02, top + height * 1.5 / 4
    page.mouse.move(x, y)
    assert page.inner_text("#hint") == "loss.py:41: 20.0 ms in step 0, MainThread"
    page.mouse.click(x, y)
    api.expect(page.locator(".site", has_text="loss.py:41").first).to_be_focused()
    left, top, width, height = over(page, "chart-steps")
    page.mouse.move(left + width / 12, top + 20)
    assert page.locator("#legend output").all_inner_texts() == ["20.0 ms", "40.0 ms", "5.0 ms", "1.0 ms", "0"]


def ranks_of(number=4, steps=20, slow=2):
    """A report of so many ranks, of which one takes 30 ms longer in step 5."""
    reports = [report_of(*whole_events(steps), steps=steps, rank=rank) for rank in range(number)]
    late = reports[slow].step_times[5]
    times = tuple(
        replace(step, end_ns=step.end_ns + 30_000_000) if step == late else step for step in reports[slow].step_times
    )
    return merge([*reports[:slow], replace(reports[slow], step_times=times), *reports[slow + 1 :]])


@pytest.mark.parametrize("width", WIDTHS)
def test_a_rank_that_takes_longer_is_a_cell_that_keys_and_the_pointer_name(opened, width):
    page = opened(ranks_of(), width=width)
    heat, hint = page.locator(".heat"), page.locator(".heat + .hint")
    assert painted_in(page, ".heat", "heat-0") > 50 * painted_in(page, ".heat", "heat-5") > 0
    heat.focus()
    page.keyboard.press("ArrowDown")
    assert hint.inner_text() == "step 5, rank 2: 20.0 ms or more"
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowUp")
    assert hint.inner_text() == "step 6, rank 1: less than 1.0 ms"
    for _ in range(30):
        page.keyboard.press("ArrowLeft")
    assert hint.inner_text() == "step 0, rank 1: less than 1.0 ms"
    page.keyboard.press("Escape")
    assert hint.inner_text().strip() == ""
    canvas = heat.locator("canvas").bounding_box()
    page.mouse.move(canvas["x"] + canvas["width"] - 20, canvas["y"] + 5)
    assert hint.inner_text() == "step 19, rank 0: less than 1.0 ms"
    page.click("section:has(.heat) summary")
    assert page.locator("section:has(.heat) tbody tr").all_inner_texts() == ["5\t2\t30.0 ms"]
    assert "Rank 2 has most of it: 30.0 ms" in heat.get_attribute("aria-label")
    page.set_viewport_size({"width": 700, "height": 900})
    api.expect(heat.locator("canvas")).to_have_css("width", re.compile("6[0-9]{2}px"))


def test_a_thousand_ranks_and_steps_without_waits_are_drawn(opened):
    report = ranks_of(number=2, slow=0)
    first = report.step_times[0]
    times = tuple(
        replace(first, step=step, rank=rank, end_ns=first.end_ns + (rank % 5) * 1_000_000)
        for rank in range(1_024)
        for step in range(10)
    )
    page = opened(replace(report, step_times=times, events=()))
    assert painted_in(page, ".heat", "heat-5") > 100
    assert page.locator(".heat canvas").bounding_box()["height"] < 450
    assert page.locator("#chart-time").count() == 0


def test_pictures_are_light_on_paper_whatever_the_screen_is(opened):
    page = opened(ranks_of(), color_scheme="dark")
    page.locator(".heat canvas").wait_for()
    dark = page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--heat-0').trim()")
    page.emulate_media(media="print", color_scheme="dark")
    light = page.evaluate("getComputedStyle(document.documentElement).getPropertyValue('--heat-0').trim()")
    assert dark != light
    page.wait_for_timeout(100)
    assert painted_in(page, ".heat", "heat-0") > 1_000
    assert painted(page, "chart-time", "color-0") > 0


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_screen_reader_finds_the_ranks(opened, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
    page = opened(ranks_of(), color_scheme=scheme)
    page.locator("details").evaluate_all("all => all.forEach((one) => { one.open = true; })")
    found = axe.Axe().run(page).response["violations"]
    assert [(rule["id"], [node["target"] for node in rule["nodes"]]) for rule in found] == []


def test_hostile_names_and_source_stay_text(opened):
    site = CallSite(f"{CWD}/{EVIL}.py", 1, EVIL, EVIL)
    event = sync(
        site, op=EVIL, api=EVIL, module=EVIL, ranges=(EVIL,), thread=EVIL, forward_site=site, stack=(site,), at_ms=150
    )  # fmt: skip
    report = report_of(event, steps=3, notes=[EVIL], problems=[EVIL], script=EVIL, device=EVIL, host=EVIL)
    evil = replace(report.sites[0], advice=EVIL, kind=EVIL, phase=EVIL)
    page = opened(replace(report, sites=(evil,), sources=(SourceRow(site.file, 1, (EVIL,)),)))
    page.select_option("#group", "module")
    page.wait_for_selector(".group")
    page.fill("#search", "onerror")
    assert page.locator(".group h3").inner_text().startswith(EVIL)
    page.click(".site summary")
    assert page.locator("img, script[src]").count() == 0
    assert page.locator(".site .advice").inner_text() == f"→ {EVIL}"


@pytest.mark.parametrize("width", [*WIDTHS, 320])
def test_it_fits_the_width(opened, width):
    long = "/a/folder" * 40
    report = report_of(*whole_events(6), steps=6, notes=[long], problems=[long], script=f"{long}.py", host=long)
    page = opened(replace(whole(), notes=report.notes, problems=report.problems, run=report.run), width=width)
    page.locator("details").evaluate_all("all => all.forEach((one) => { one.open = true; })")
    assert page.evaluate("document.documentElement.scrollWidth") <= width
    page.set_viewport_size({"width": 1000, "height": 900})
    api.expect(page.locator("#chart-time .uplot")).to_have_css("width", re.compile("9[0-9]{2}px"))


def test_it_is_dark_where_that_is_wanted_and_light_on_paper(opened):
    page = opened(whole(), color_scheme="dark")
    background = "getComputedStyle(document.body).backgroundColor"
    dark = page.evaluate(background)
    assert painted(page, "chart-time", "color-0")
    page.emulate_media(color_scheme="light")
    assert page.evaluate(background) == "rgb(255, 255, 255)" != dark
    give_up = time.monotonic() + 20
    while not painted(page, "chart-time", "color-0") and time.monotonic() < give_up:
        page.wait_for_timeout(50)
    assert painted(page, "chart-time", "color-0"), "painted again"
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate(background) == "rgb(255, 255, 255)"
    assert not page.locator("#controls").is_visible()
    assert page.pdf().startswith(b"%PDF")


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_screen_reader_finds_its_way(opened, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
    page = opened(whole(), color_scheme=scheme)
    page.locator("details").evaluate_all("all => all.forEach((one) => { one.open = true; })")
    found = axe.Axe().run(page).response["violations"]
    assert [(rule["id"], [node["target"] for node in rule["nodes"]]) for rule in found] == []


def test_the_keyboard_reaches_search_and_charts(opened):
    page = opened(whole())
    page.keyboard.press("/")
    assert page.evaluate("document.activeElement.id") == "search"
    page.keyboard.type("a/b")
    assert page.input_value("#search") == "a/b", "there it is a letter"
    page.keyboard.press("Escape")
    assert page.input_value("#search") == ""
    page.evaluate("document.activeElement.blur()")
    reached = []
    for _ in range(40):
        page.keyboard.press("Tab")
        reached.append(page.evaluate("document.activeElement.id || document.activeElement.tagName"))
    assert {"chart-steps", "chart-time", "search", "sort", "SUMMARY"} <= set(reached)


def test_without_scripts_all_is_there_but_what_needs_them(opened):
    page = opened(whole(), java_script_enabled=False)
    assert page.locator(".site h3").count() == 4
    assert not page.locator("#controls").is_visible()
    assert not page.locator("#chart-time").is_visible()
    assert page.locator("details.as-table").is_visible()


def test_a_report_without_steps_or_without_single_waits_has_no_charts(opened):
    page = opened(report_of(sync(), sync(READ)))
    assert page.locator("#chart-steps").count() == 0
    assert page.locator("#chart-time canvas").count() == 1
    page = opened(replace(whole(), events=()))
    assert page.locator("canvas").count() == 0
    assert len(places(page)) == 4
    page = opened(report_of())
    assert page.locator("h1").inner_text().startswith("No host sync was seen")


def test_two_thousand_lines_are_filtered_and_grouped(opened):
    lines = [
        CallSite(f"{CWD}/file{number % 40}.py", number + 1, "step", f"x{number}.item()") for number in range(2_000)
    ]
    events = [sync(lines[number % 2_000], at_ms=10.0 * number, step=number // 10) for number in range(10_000)]
    page = opened(report_of(*events, steps=1_000))
    page.fill("#search", "file7.py")
    counted(page, "50 of 2000 lines")
    page.fill("#search", "")
    page.select_option("#group", "file")
    api.expect(page.locator(".group")).to_have_count(40)
    page.focus("#chart-time")
    page.keyboard.press("0")
    assert shown(page, "chart-time").startswith("0 s to 100 s")
    assert LOSS not in page.content()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_comparison_fits_each_width_and_is_read_by_a_screen_reader(opened, scheme):
    axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="axe is not installed")
    old = report_of(*whole_events(), steps=3)
    hostile = CallSite(f"{CWD}/{EVIL}.py", 3, EVIL, EVIL)
    new = report_of(sync(READ), sync(hostile, ms=2), sync(hostile, ms=2, op=EVIL), steps=3, script=EVIL, device=EVIL)
    new = replace(new, sites=tuple(replace(site, advice=EVIL) for site in new.sites))
    page = opened(compared.render(compare(old, new), old, new), color_scheme=scheme)
    assert page.locator("img, script").count() == 0
    assert page.locator(".change.new h3").first.inner_text().startswith(EVIL)
    assert axe.Axe().run(page).response["violations"] == []
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
