"""Headless Chromium, driven by its DevTools protocol over two pipes: no further package needed."""

import base64
import json
import os
import subprocess
import time
from pathlib import Path
from types import TracebackType
from typing import Any

VARIABLE = "HOTCOLD_TEST_BROWSER"  # the browser's command


class Browser:
    """One page of a browser. A context manager."""

    def __init__(self, profile: Path) -> None:
        self._number = 0
        self.events: list[dict[str, Any]] = []
        inward, self._to = os.pipe()
        self._from, outward = os.pipe()

        def pipes() -> None:  # the browser reads 3 and writes 4
            spare = [os.dup(one) for one in (inward, outward)]
            for number, one in zip((3, 4), spare, strict=True):
                os.dup2(one, number)

        self._process = subprocess.Popen(
            [
                *(os.environ[VARIABLE], "--headless", "--no-sandbox", "--disable-gpu"),
                *("--remote-debugging-pipe", f"--user-data-dir={profile}", "about:blank"),
            ],
            preexec_fn=pipes,  # noqa: PLW1509 - it takes no lock
            close_fds=False,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(inward)
        os.close(outward)
        self._rest, self._session = b"", ""
        pages = self.call("Target.getTargets")["targetInfos"]
        page = next(one["targetId"] for one in pages if one["type"] == "page")
        attached = self.call("Target.attachToTarget", targetId=page, flatten=True)
        self._session = attached["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """One command and its result."""
        self._number += 1
        message = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._to, json.dumps(message).encode() + b"\0")
        while True:
            read = self._read()
            if read.get("id") == self._number:
                assert "error" not in read, read
                result: dict[str, Any] = read["result"]
                return result
            self.events.append(read)

    def _read(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            more = os.read(self._from, 1 << 20)
            assert more, "the browser is gone"
            self._rest += more
        message, _, self._rest = self._rest.partition(b"\0")
        read: dict[str, Any] = json.loads(message)
        return read

    def js(self, code: str) -> Any:
        """The value of an expression."""
        found = self.call(
            "Runtime.evaluate", expression=code, awaitPromise=True, returnByValue=True
        )
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def wait(self, code: str, timeout_s: float = 20.0) -> None:
        """Wait until an expression is true."""
        deadline = time.monotonic() + timeout_s
        while not self.js(f"!!({code})"):
            assert time.monotonic() < deadline, f"never true: {code}"
            time.sleep(0.05)

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def key(self, key: str, text: str = "", shift: bool = False) -> None:
        """Press a key."""
        also = {"key": key, "code": key, "modifiers": 8 * shift}
        codes = {"Tab": 9, "Enter": 13, "Escape": 27, "ArrowRight": 39}
        also["windowsVirtualKeyCode"] = codes.get(key, 0)
        self.call(
            "Input.dispatchKeyEvent", type="keyDown", **({"text": text} if text else {}), **also
        )
        self.call("Input.dispatchKeyEvent", type="keyUp", **also)

    def write(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def size(self, width: int, height: int, dark: bool = False, calm: bool = False) -> None:
        self.call(
            "Emulation.setDeviceMetricsOverride",
            **{"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600},
        )
        features = {
            "prefers-color-scheme": "dark" if dark else "light",
            "prefers-reduced-motion": "reduce" if calm else "no-preference",
        }
        self.call(
            "Emulation.setEmulatedMedia",
            features=[{"name": name, "value": value} for name, value in features.items()],
        )

    def picture(self) -> bytes:
        """A PNG of what is shown."""
        return base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"])

    def faults(self) -> list[str]:
        """Exceptions, and what the console complains of, policy violations included."""
        kinds = ("Runtime.exceptionThrown", "Log.entryAdded")
        found = [one["params"] for one in self.events if one["method"] in kinds]
        return [json.dumps(one) for one in found]

    def addresses(self) -> set[str]:
        """Everything that was asked for."""
        kind = "Network.requestWillBeSent"
        return {one["params"]["request"]["url"] for one in self.events if one["method"] == kind}

    def __enter__(self) -> "Browser":
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._process.kill()
        self._process.wait()
        os.close(self._to)
        os.close(self._from)
