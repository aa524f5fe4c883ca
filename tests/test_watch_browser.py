"""The page of `tsl watch` while a job writes its log: opened in headless Chromium, it reads itself again.

Skipped where there is no Chromium, unless TSL_JAX_REQUIRE_BROWSER=1, as in CI.
"""

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import chromium
import pytest

pytestmark = pytest.mark.browser
WIDTHS = 420, 1280
WRITER = """
import sys, time
with open(sys.argv[1], "a") as log:
    for k in range(1, 901):  # until it is ended: on a slow machine the page comes late
        loss = 3 + 8 / (1 + k / 4) ** 0.7 + (0.6 if k > 40 else 0) + 0.002 * (-1) ** k
        log.write(f"{k * 50},{k * 50 * 65536},{loss:.4f},3e-4\\n")
        log.flush()
        if k >= 20:
            time.sleep(0.4)
"""


LOSS = "document.querySelector('.tiles dd').textContent"


def soon(value: Callable[[], Any]) -> Any:
    """The value once there is one; while the page reads itself again, no script can be run in it."""
    deadline = time.monotonic() + 120
    while True:
        try:
            found = value()
        except AssertionError:
            found = None
        if found:
            return found
        assert time.monotonic() < deadline, "never came"
        time.sleep(0.1)


def started(*arguments: object) -> subprocess.Popen[bytes]:
    """A process of this Python that finds this tsl_jax; ended by the caller."""
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent), "JAX_PLATFORMS": "cpu"}
    return subprocess.Popen([sys.executable, *map(str, arguments)], env=environment, stdout=subprocess.DEVNULL)


def test_an_open_page_follows_the_job(tmp_path: Path) -> None:
    chromium.needed()
    log, page = tmp_path / "train.csv", tmp_path / "page" / "report.html"
    log.write_text("step,tokens,loss,lr\n")
    options = ("--end", 1000 * 50 * 65536, "--every", 1, "--page", page)
    processes = [
        started("-c", WRITER, log),
        started("-c", "from tsl_jax.cli import main; main()", "watch", log, *options),
    ]
    try:
        with chromium.browser(tmp_path / "profile") as browser:
            soon(lambda: page.exists() or processes[1].poll() is not None)
            assert processes[1].poll() is None
            for width in WIDTHS:
                browser.open(page, width)
                before = soon(lambda: browser.run(LOSS))
                assert soon(lambda: browser.run("document.documentElement.scrollWidth")) <= width
                assert soon(lambda: browser.run("document.querySelectorAll('.plot .js-line').length")) >= 1
                soon(lambda before=before: browser.run(LOSS) != before)  # the page reads itself again
            soon(lambda: browser.run("document.body.textContent.includes('Event: data_switch: the loss lies')"))
            assert soon(lambda: browser.run("document.documentElement.dataset.errors ?? 'none'")) == "none"
            assert browser.errors == []
    finally:
        for process in processes:
            process.terminate()
            process.wait(30)
