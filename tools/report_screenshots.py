"""Test a report in a real browser and take screenshots at desktop and phone width, in the light and the dark theme.

    pip install 'gantrain[browser]'      # Playwright; it drives the Chromium that is installed on this machine
    python tools/report_screenshots.py runs/digits/report.html --out docs/report_digits

Writes docs/report_digits-desktop.png and so on. The test moves the slider, hovers over the chart and switches the theme. The exit
status is 1 if the page logs an error, requests anything from the network, or is wider than the screen.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from command import run

from gantrain.errors import UserError

if TYPE_CHECKING:
    from playwright.sync_api import ConsoleMessage, Page, Request

SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
TOP = 1150  # height in pixels of the screenshot of the top of the page
SETTLE = 600  # milliseconds that Plotly gets to draw


def browse(page: Path, out: Path | None, executable: str) -> list[str]:
    """Open the page in every size and theme. Returns one line per problem found.

    Args:
        page: the report.
        out: prefix of the screenshots, `out`-desktop.png and so on; None takes none.
        executable: path of Chromium.

    Raises:
        UserError: Playwright is not installed.
    """
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        raise UserError("playwright is not installed; pip install 'gantrain[browser]'") from None
    wrong: list[str] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=executable, args=ARGUMENTS)
        for name, (width, height) in SIZES.items():
            for theme in ("light", "dark"):
                context = browser.new_context(
                    viewport={"width": width, "height": height}, color_scheme=theme, has_touch=name == "phone", is_mobile=name == "phone"
                )
                tab = context.new_page()
                where = f"{name}, {theme}"
                listen(tab, where, wrong)
                tab.goto(page.resolve().as_uri())
                tab.wait_for_timeout(SETTLE)
                wrong += [f"{where}: {words}" for words in used(tab)]
                if out:
                    tab.evaluate("scrollTo(0, 0)")
                    tab.wait_for_timeout(SETTLE)
                    if (name, theme) == ("desktop", "light"):
                        tab.screenshot(path=f"{out}-top.png", clip={"x": 0, "y": 0, "width": width, "height": TOP}, full_page=True)
                    tab.screenshot(path=f"{out}-{name}{'' if theme == 'light' else '-dark'}.png", full_page=True)
                context.close()
        browser.close()
    return wrong


def listen(tab: Page, where: str, wrong: list[str]) -> None:
    """Append console messages, page errors and network requests of a tab to `wrong`."""

    def on_console(message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            wrong.append(f"{where}: console: {message.text}")

    def on_request(request: Request) -> None:
        if not request.url.startswith(("file:", "data:", "blob:")):
            wrong.append(f"{where}: requests {request.url[:80]}")

    tab.on("console", on_console)
    tab.on("pageerror", lambda error: wrong.append(f"{where}: {error}"))
    tab.on("request", on_request)


def used(tab: Page) -> list[str]:
    """Use the page as a reader would. Returns one line per problem found."""
    wrong = []
    if tab.evaluate("document.documentElement.scrollWidth > innerWidth"):
        wrong.append("is wider than the screen")
    before = tab.evaluate("document.documentElement.dataset.theme")
    tab.click("#theme")
    if tab.evaluate("document.documentElement.dataset.theme") == before:
        wrong.append("the theme does not switch")
    tab.click("#theme")
    if tab.locator("#time:not([disabled])").count():
        last = tab.inner_text("#when")
        tab.locator("#time").evaluate("(slider) => { slider.value = 0; slider.dispatchEvent(new Event('input')); }")
        if tab.inner_text("#when") == last:
            wrong.append("the slider does not move")
        tab.locator("#time").evaluate("(slider) => { slider.value = slider.max; slider.dispatchEvent(new Event('input')); }")
    wrong += [
        f"the {side} picture is not shown"
        for side in ("left", "right")
        if tab.locator(f"#{side}-picture").count() and not tab.evaluate(f"document.getElementById('{side}-picture').naturalWidth")
    ]
    if tab.locator("#chart").count():
        if not tab.locator("#chart .scatterlayer .trace").count():
            wrong.append("the chart has no line")
        last = tab.locator("#chart .scatterlayer .point").last
        if last.count():
            last.scroll_into_view_if_needed()
            point = last.bounding_box()
            assert point is not None  # the point is on the screen
            tab.mouse.move(point["x"] + point["width"] / 2, point["y"] + point["height"] / 2)
            tab.wait_for_timeout(SETTLE)
            if not tab.locator("#chart .hoverlayer text").count():
                wrong.append("hovering shows no value")
            tab.mouse.move(0, 0)
    if tab.locator("#average option").count() > 1:
        tab.select_option("#average", index=1)
        tab.wait_for_timeout(SETTLE)
        tab.select_option("#average", index=0)
        tab.wait_for_timeout(SETTLE)
    return wrong


def main() -> None:
    """Parse the arguments, test the page and exit with 1 if anything is wrong."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path, metavar="REPORT.html")
    parser.add_argument(
        "--out",
        type=Path,
        help="take screenshots OUT-desktop.png, OUT-phone.png, OUT-desktop-dark.png, OUT-phone-dark.png and OUT-top.png (default: none)",
    )
    parser.add_argument("--chromium", help="path of the browser (default: chromium on the PATH)")
    arguments = parser.parse_args()
    executable = arguments.chromium or next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if executable is None:
        raise UserError("Chromium is not on the PATH; install it, or pass --chromium PROGRAM")
    if not arguments.page.is_file():
        raise UserError(f"{arguments.page}: is not a file; make a report with `gantrain report RUN`")
    wrong = browse(arguments.page, arguments.out, executable)
    for line in dict.fromkeys(wrong):
        print(line)
    print(f"{arguments.page}: {len(wrong) or 'no'} problem{'' if len(wrong) == 1 else 's'} at {', '.join(SIZES)}, light and dark")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    run(main)
