"""Look at a report in a real browser: screenshots at the widths of a desktop and a phone, light and dark, and no error in its console.

    pip install 'gantrain[browser]'      # Playwright; the browser is the machine's own Chromium
    python tools/report_screenshots.py runs/digits/report.html --out docs/report_digits

writes docs/report_digits-desktop.png and so on, moves the slider, hovers over the chart, switches the theme, and exits with 1 where
the page says an error, asks the network for anything, or is wider than the screen.
"""

from __future__ import annotations

import argparse
import shutil
import sys
from pathlib import Path

from command import run

from gantrain.errors import UserError

SIZES = {"desktop": (1280, 900), "phone": (390, 844)}
ARGUMENTS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--no-first-run",
]
TOP = 1150  # pixels of the page's beginning, in a picture of its own
SETTLE = 600  # milliseconds for Plotly to draw


def browse(page: Path, out: Path | None, executable: str) -> list[str]:
    """Open the page in every way; what is wrong with it, nothing at best.

    Args:
        page: the report.
        out: screenshots are named `out`-desktop.png and so on; None takes none.
        executable: of Chromium.
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
                tab.on(
                    "console",
                    lambda message, where=where: (
                        wrong.append(f"{where}: console: {message.text}") if message.type in ("error", "warning") else None
                    ),
                )
                tab.on("pageerror", lambda error, where=where: wrong.append(f"{where}: {error}"))
                tab.on(
                    "request",
                    lambda request, where=where: (
                        wrong.append(f"{where}: asks for {request.url[:80]}")
                        if not request.url.startswith(("file:", "data:", "blob:"))
                        else None
                    ),
                )
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


def used(tab) -> list[str]:
    """What goes wrong when a person uses the page."""
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
    for side in ("left", "right"):
        if tab.locator(f"#{side}-picture").count() and not tab.evaluate(f"document.getElementById('{side}-picture').naturalWidth"):
            wrong.append(f"the {side} picture is not shown")
    if tab.locator("#chart").count():
        if not tab.locator("#chart .scatterlayer .trace").count():
            wrong.append("the chart has no line")
        last = tab.locator("#chart .scatterlayer .point").last
        if last.count():
            last.scroll_into_view_if_needed()
            point = last.bounding_box()
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
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0], formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("page", type=Path, metavar="REPORT.html")
    parser.add_argument(
        "--out",
        type=Path,
        help="screenshots are OUT-desktop.png, OUT-phone.png, OUT-desktop-dark.png, OUT-phone-dark.png, and OUT-top.png (default: none are taken)",
    )
    parser.add_argument("--chromium", help="the browser's program (default: chromium on the PATH)")
    arguments = parser.parse_args()
    executable = arguments.chromium or next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if executable is None:
        raise UserError("no Chromium found on the PATH; install it, or give --chromium PROGRAM")
    if not arguments.page.is_file():
        raise UserError(f"{arguments.page}: there is no such page; `gantrain report RUN` makes one")
    wrong = browse(arguments.page, arguments.out, executable)
    for line in dict.fromkeys(wrong):
        print(line)
    print(f"{arguments.page}: {f'{len(wrong)} things are wrong' if wrong else 'nothing is wrong'} at {', '.join(SIZES)}, light and dark")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    run(main)
