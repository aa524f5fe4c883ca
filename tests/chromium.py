"""Headless Chromium for the page's tests, spoken to over a pipe (DevTools protocol), with nothing to install.

Emulates a screen of any width and either colour scheme, runs scripts in the page, and takes pictures of it.
"""

import base64
import json
import os
import shutil
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

QUIET = (
    "--headless=new", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--disable-dev-shm-usage", "--hide-scrollbars",
)  # fmt: skip
PATIENCE = 60  # seconds for one answer


def binary() -> str | None:
    """Where Chromium is, if it is."""
    return shutil.which("chromium") or shutil.which("chromium-browser")


class Browser:
    """One page of a running browser."""

    def __init__(self, to_browser: int, from_browser: int) -> None:
        self._to, self._from, self._rest, self._number = to_browser, from_browser, b"", 0
        self.requests: list[str] = []  # addresses that the page asked for
        self.errors: list[str] = []  # exceptions, and what the console calls errors
        target = self._say("Target.createTarget", {"url": "about:blank"})["targetId"]
        self._session = self._say("Target.attachToTarget", {"targetId": target, "flatten": True})["sessionId"]
        for domain in ("Page", "Network", "Runtime", "Log"):
            self._say(f"{domain}.enable")

    def open(self, path: Path, width: int, dark: bool = False, height: int = 900, scripted: bool = True) -> None:
        """Show the page, and wait until its figures are drawn or have failed, or its images are there."""
        self._say("Emulation.setDeviceMetricsOverride",
                  {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600})  # fmt: skip
        self.theme(dark)
        self._say("Page.navigate", {"url": path.resolve().as_uri()})
        drawn = "!!(document.documentElement.dataset.drawn || document.documentElement.dataset.errors)"
        here = f"location.href == {json.dumps(path.resolve().as_uri())} && document.readyState == 'complete'"
        self.wait(f"{here} && {drawn if scripted else 'true'}")

    def theme(self, dark: bool) -> None:
        """Light or dark, as the reader's system would say; changes a page that is open."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self._say("Emulation.setEmulatedMedia", {"features": [scheme]})

    def run(self, script: str) -> Any:
        """The value of an expression in the page; a promise is awaited."""
        request = {"expression": script, "returnByValue": True, "awaitPromise": True}
        answer = self._say("Runtime.evaluate", request)
        assert "exceptionDetails" not in answer, answer
        return answer["result"].get("value")

    def wait(self, condition: str) -> None:
        """Until the expression is true."""
        deadline = time.monotonic() + PATIENCE
        while not self.run(condition):
            assert time.monotonic() < deadline, f"never became true: {condition}"
            time.sleep(0.05)

    def picture(self, path: Path) -> None:
        """A PNG of the whole page."""
        answer = self._say("Page.captureScreenshot", {"format": "png", "captureBeyondViewport": True})
        path.write_bytes(base64.b64decode(answer["data"]))

    def pdf(self, path: Path) -> None:
        """The page as it would be printed."""
        path.write_bytes(base64.b64decode(self._say("Page.printToPDF", {"printBackground": True})["data"]))

    def _say(self, method: str, params: dict[str, Any] | None = None) -> Any:
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params or {}}
        if hasattr(self, "_session"):
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._hear()
            if answer.get("method") == "Network.requestWillBeSent":
                self.requests.append(answer["params"]["request"]["url"])
            self._note_error(answer.get("method"), answer.get("params", {}))
            if answer.get("id") == self._number:
                assert "error" not in answer, (method, answer)
                return answer["result"]

    def _note_error(self, method: str | None, params: Any) -> None:
        if method == "Runtime.exceptionThrown":
            self.errors.append(str(params["exceptionDetails"]))
        elif method == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.errors.append(params["entry"]["text"])
        elif method == "Runtime.consoleAPICalled" and params["type"] == "error":
            self.errors.append(str(params["args"]))

    def _hear(self) -> Any:
        while b"\0" not in self._rest:
            more = os.read(self._from, 1 << 20)
            assert more, "Chromium ended"
            self._rest += more
        message, self._rest = self._rest.split(b"\0", 1)
        return json.loads(message)


def needed() -> None:
    """Skip the test where there is no Chromium; fail it where TSL_JAX_REQUIRE_BROWSER=1, as in CI."""
    if binary() is None:
        why = "no Chromium on this machine (Debian: apt-get install chromium)"
        if os.environ.get("TSL_JAX_REQUIRE_BROWSER") == "1":
            pytest.fail(why)
        pytest.skip(why)


@contextmanager
def browser(profile: Path) -> Iterator[Browser]:
    """A browser with its own profile, ended afterwards."""
    path = binary()
    assert path is not None
    commands_read, commands_write = os.pipe()
    answers_read, answers_write = os.pipe()

    # --remote-debugging-pipe reads 3 and writes 4; the shell puts our pipes there (a preexec_fn would fork under jax).
    places = f"3</proc/self/fd/{commands_read} 4>/proc/self/fd/{answers_write}"
    command = ["sh", "-c", f'exec "$@" {places}', "sh", path, *QUIET, f"--user-data-dir={profile}"]
    process = subprocess.Popen(
        [*command, "--remote-debugging-pipe"],
        pass_fds=(commands_read, answers_write),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    os.close(commands_read)
    os.close(answers_write)
    try:
        yield Browser(commands_write, answers_read)
    finally:
        os.close(commands_write)
        process.terminate()
        process.wait(30)
        os.close(answers_read)
