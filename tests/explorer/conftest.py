"""A real browser for the pages; the tests that need it are skipped where Chromium or Playwright is not installed.

`GIRIH_CHROMIUM` is the path of one, or `playwright` for what `playwright install chromium` left: then none is skipped.
"""

import os
import shutil
import warnings
from contextlib import contextmanager

import numpy as np
import pytest

import girih
from effort import FEWEST, try_few_settings

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="session")
def browser():
    playwright = pytest.importorskip("playwright.sync_api")
    given = os.environ.get("GIRIH_CHROMIUM")
    path = given or next((path for name in NAMES if (path := shutil.which(name))), None)
    if path is None:
        pytest.skip("no Chromium is installed")
    path = None if path == "playwright" else path
    with warnings.catch_warnings(), playwright.sync_playwright() as driver:
        warnings.simplefilter("ignore")
        running = driver.chromium.launch(executable_path=path, args=["--no-sandbox", "--disable-gpu"])
        yield running
        running.close()


class Opened:
    """A page in the browser, with what it has to say on its console."""

    def __init__(self, page, messages):
        self.page, self.messages = page, messages

    def ask(self, script, argument=None):
        """The value of a function of the page's explorer."""
        return self.page.evaluate(
            f"(argument) => {{ const explorer = document.getElementById('explorer').explorer; {script} }}", argument
        )

    def settle(self):
        """Wait until what was asked for is drawn."""
        self.page.evaluate("() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)))")

    def place(self, x, y):
        """Where a place of the plane is on the screen."""
        return self.ask(
            """const box = explorer.chart.top.getBoundingClientRect();
            return [box.left + 52 + explorer.chart.px(argument[0]), box.top + 10 + explorer.chart.py(argument[1])];""",
            [x, y],
        )


@pytest.fixture
def opened(browser, tmp_path):
    """Opens an `Explorer` as a file; nothing may be said on the console, and nothing be asked of a network."""

    @contextmanager
    def open_page(explorer, width=1280, height=800, dark=False):
        path = tmp_path / "page.html"
        explorer.save(path)
        context = browser.new_context(
            viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light"
        )
        page, said = context.new_page(), []
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: request.url.startswith("file:") or said.append(f"asked for {request.url}"))
        page.goto(path.as_uri())
        page.wait_for_function("document.getElementById('explorer').explorer !== undefined")
        one = Opened(page, said)
        one.settle()
        yield one
        assert said == []
        context.close()

    return open_page


@pytest.fixture(scope="session")
def small_table():
    """A small table with holes, a category and an outlier, its model, and the page of both."""
    pandas = pytest.importorskip("pandas")
    rng = np.random.default_rng(5)
    a = rng.normal(size=60)
    group = np.where(rng.random(60) < 0.5, "left", "right")
    b = np.where(group == "left", a, -a) + 0.3 * rng.normal(size=60)
    c = rng.normal(size=60) + 0.5 * b
    frame = pandas.DataFrame({"a": a, "b": b, "group": group, "<i>c</i>": c})
    frame.loc[4, "b"] = 6.0
    frame.loc[[10, 11], "a"] = np.nan
    frame.loc[12, "group"] = None
    with pytest.MonkeyPatch.context() as patch:
        try_few_settings(patch, **FEWEST)
        model = girih.TableModel(random_state=0, n_folds=2).fit(frame)
    return model, frame, girih.explore(model, frame, path=None)
