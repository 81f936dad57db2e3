"""The tab in a browser: colours of a planted imbalance, grouping and sorting, keyboard, no error on the console."""

import shutil
from contextlib import contextmanager

import pytest
from plugin_runs import EventWriter, planted_scalars, planted_table, tensorboard, wait_for_runs, write_run

from titan_wlb.records import Layout
from titan_wlb.records.per_rank import PerRankSchema

playwright = pytest.importorskip("playwright.sync_api", reason="no playwright: pip install playwright")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium on PATH")
SIZES = {
    "8": (Layout(pp=2, dp=2, cp=2), 5, 40),
    "512": (Layout(pp=4, dp=32, cp=4), 301, 20),
    "4096": (Layout(pp=8, dp=64, cp=8), 2049, 12),
}
HOSTILE = "<img src=x onerror=alert(1)>"


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        yield driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])


@contextmanager
def opened(browser, root, **options):
    """The tab's frame, drawn; fails if the console or the page told of an error."""
    page = browser.new_page(viewport={"width": 1280, "height": 800}, **options)
    errors = []
    page.on("console", lambda message: errors.append(message.text) if message.type == "error" else None)
    page.on("pageerror", lambda error: errors.append(str(error)))
    page.on(
        "request",
        lambda request: None if request.url.startswith((root, "data:", "blob:")) else errors.append(request.url),
    )
    page.goto(f"{root}#titan_wlb")
    frame = page.frame_locator("iframe")
    drawn(frame)
    yield page, frame
    page.close()
    assert not errors


def drawn(frame, *, after=-1):
    """Waits for a drawing later than ``after``; its number."""
    main = frame.locator("main[data-drawn]")
    main.wait_for(timeout=60_000)
    number = int(main.get_attribute("data-drawn"))
    while number <= after:
        frame.locator(f'main[data-drawn]:not([data-drawn="{number}"])').wait_for(timeout=60_000)
        number = int(main.get_attribute("data-drawn"))
    return number


def chosen(frame, name, value):
    before = drawn(frame)
    frame.locator(f"select[name={name}]").select_option(value)
    drawn(frame, after=before)


def colours(frame):
    """Of the first heatmap: [rows][columns] of (r, g, b) at the middle of each of 300 rows and 40 columns."""
    return frame.locator(".heatmap canvas").first.evaluate(
        """canvas => {
            const scale = canvas.width / parseFloat(canvas.style.width);
            const [left, bottom] = [64 * scale, 18 * scale];
            const [width, height] = [canvas.width - left, canvas.height - bottom];
            const data = canvas.getContext("2d").getImageData(0, 0, canvas.width, canvas.height).data;
            return Array.from({length: 300}, (_, y) => Array.from({length: 40}, (_, x) => {
                const row = Math.floor((y + 0.5) * height / 300);
                const at = 4 * (row * canvas.width + Math.floor(left + (x + 0.5) * width / 40));
                return [data[at], data[at + 1], data[at + 2]];
            }));
        }"""
    )


def orange(rgb):
    """Far above the mean, in the light theme: dark orange."""
    return rgb[0] - rgb[2] > 165


@pytest.mark.parametrize("size", SIZES)
def test_one_straggler_is_seen_at_its_row_and_named(browser, tmp_path, size):
    layout, slow_rank, steps = SIZES[size]
    write_run(tmp_path / "runs" / "wlb", layout, range(1, steps + 1), slow_rank=slow_rank)
    with tensorboard(tmp_path / "runs", tmp_path, load_fast=True) as root:
        wait_for_runs(root, {"wlb": steps})
        with opened(browser, root) as (_, frame):
            rows = [y for y, row in enumerate(colours(frame)) if sum(map(orange, row)) >= 38]
            expected = 300 * (slow_rank + 0.5) / layout.size
            assert rows and min(rows) - 1 <= expected <= max(rows) + 1
            assert len(rows) <= 300 / min(layout.size, 300) + 1
            assert f"rank {slow_rank}" in frame.locator(".verdict").inner_text()
            assert frame.locator(".kind-same .tag").inner_text() == "hardware"

            chosen(frame, "sort", "value")
            rows = [y for y, row in enumerate(colours(frame)) if sum(map(orange, row)) >= 38]
            assert rows and min(rows) == 0

            chosen(frame, "sort", "rank")
            chosen(frame, "group", "cp")
            cp_rank = layout.coordinates(slow_rank)[2]
            rows = [y for y, row in enumerate(colours(frame)) if sum(map(orange, row)) >= 38]
            assert rows and all(int(y * layout.cp / 300) == cp_rank for y in rows)


def test_the_cell_under_the_pointer_and_under_the_cursor_is_read_out(browser, tmp_path):
    layout, slow_rank, steps = SIZES["8"]
    write_run(tmp_path / "runs" / "wlb", layout, range(1, steps + 1), slow_rank=slow_rank)
    with tensorboard(tmp_path / "runs", tmp_path, load_fast=True) as root:
        wait_for_runs(root, {"wlb": steps})
        with opened(browser, root) as (page, frame):
            readout = frame.locator(".picture .readout")
            frame.locator(".heatmap").hover(position={"x": 70, "y": 300 * (slow_rank + 0.5) / 8})
            assert readout.inner_text().startswith("step 3 · rank 5 (pp 1, dp 0, cp 1) · 1.4")
            frame.locator(".heatmap").focus()
            page.keyboard.press("ArrowRight")
            page.keyboard.press("ArrowUp")
            assert readout.inner_text().startswith("step 4 · rank 4 (pp 1, dp 0, cp 0)")
            before = drawn(frame)
            page.keyboard.press("Enter")
            drawn(frame, after=before)
            assert frame.locator("text=Micro-batches of step 5").count() == 1  # the nearest one that was written
            assert frame.locator(".heatmap").evaluate("node => node === document.activeElement")


def test_two_runs_are_shown_beside_each_other_and_names_stay_text(browser, tmp_path):
    layout, _, steps = SIZES["8"]
    write_run(tmp_path / "runs" / "plain", layout, range(1, steps + 1), spread=0.5, packing="original")
    write_run(tmp_path / "runs" / HOSTILE, layout, range(1, steps + 1))
    with tensorboard(tmp_path / "runs", tmp_path, load_fast=False) as root:
        wait_for_runs(root, {"plain": steps, HOSTILE: steps})
        with opened(browser, root) as (_, frame):
            assert frame.locator(".heatmap").count() == 2
            assert frame.locator("h4", has_text=HOSTILE).count() > 0
            assert frame.locator("img").count() == 0
            assert frame.locator(".kind-rotating").count() == 1


def test_new_steps_appear_while_the_run_goes_on(browser, tmp_path):
    layout = SIZES["8"][0]
    schema = PerRankSchema.of_layout(layout).to_json()
    writer = EventWriter(tmp_path / "runs" / "wlb")

    def write(steps):
        for step in steps:
            table = planted_table(layout, step, slow_rank=None, spread=0.1, seed=0)
            writer.table(step, table, schema)
            writer.scalars(step, planted_scalars(table, step, 0.1))
        writer.flush()

    write(range(1, 11))
    with tensorboard(tmp_path / "runs", tmp_path, load_fast=True) as root:
        wait_for_runs(root, {"wlb": 10})
        with opened(browser, root) as (_, frame):
            assert frame.locator(".status.live").inner_text().startswith("step 10 ·")
            write(range(11, 21))
            frame.locator(".status", has_text="step 20 ·").wait_for(timeout=60_000)
            assert frame.locator(".empty").inner_text() == "This run has written no plans and actions."
    writer.close()


def test_the_dark_theme_follows_tensorboard(browser, tmp_path):
    layout, slow_rank, steps = SIZES["8"]
    write_run(tmp_path / "runs" / "wlb", layout, range(1, steps + 1), slow_rank=slow_rank)
    with tensorboard(tmp_path / "runs", tmp_path, load_fast=True) as root:
        wait_for_runs(root, {"wlb": steps})
        with opened(browser, root, color_scheme="dark") as (page, frame):
            assert frame.locator("html").get_attribute("data-theme") == "dark"
            cells = colours(frame)
            assert sum(cells[20][20]) < 3 * 90 < sum(cells[int(300 * (slow_rank + 0.5) / 8)][20])
            before = drawn(frame)
            page.evaluate("document.body.classList.remove('dark-mode')")
            drawn(frame, after=before)
            assert frame.locator("html").get_attribute("data-theme") == "light"
