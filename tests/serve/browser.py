"""A real browser without a window, spoken to through a pipe: no driver, no port."""

import base64
import itertools
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
_FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--remote-debugging-pipe", "--no-first-run", "--disable-dev-shm-usage", "--mute-audio")


class Browser:
    """One page of it."""

    def __init__(self, directory: Path) -> None:
        assert CHROMIUM is not None
        read, their_write = os.pipe()
        their_read, self._write = os.pipe()
        # It speaks through the descriptors 3 and 4.
        shell = f'exec "$0" "$@" 3<&{their_read} 4>&{their_write} {their_read}<&- {their_write}>&-'
        self._process = subprocess.Popen(
            ["/bin/bash", "-c", shell, CHROMIUM, *_FLAGS, f"--user-data-dir={directory}", "about:blank"],
            pass_fds=(their_read, their_write),
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        os.close(their_read)
        os.close(their_write)
        self._read, self._numbers = os.fdopen(read, "rb"), itertools.count(1)
        self._session: str | None = None
        self.said: list[str] = []  # errors and what scripts logged
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        self._session = self.call("Target.attachToTarget", targetId=target, flatten=True)["sessionId"]
        for domain in ("Page", "Runtime", "Log"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        number = next(self._numbers)
        message: dict[str, Any] = {"id": number, "method": method, "params": params}
        if self._session is not None:
            message["sessionId"] = self._session
        os.write(self._write, json.dumps(message).encode() + b"\0")
        while True:
            answer = json.loads(self._next())
            if answer.get("id") == number:
                assert "error" not in answer, answer
                return answer["result"]
            quiet = answer.get("params", {}).get("entry", {}).get("level") in ("verbose", "info")
            if answer.get("method") in ("Runtime.exceptionThrown", "Log.entryAdded", "Page.javascriptDialogOpening") and not quiet:
                self.said.append(json.dumps(answer["params"]))

    def _next(self) -> bytes:
        parts = []
        while (byte := self._read.read(1)) != b"\0":
            assert byte, "the browser has ended"
            parts.append(byte)
        return b"".join(parts)

    def open(self, url: str) -> None:
        self.call("Page.navigate", url=url)
        self.wait("document.readyState === 'complete'")

    def run(self, script: str) -> Any:
        """The value of an expression, awaited if it is a promise."""
        result = self.call("Runtime.evaluate", expression=script, awaitPromise=True, returnByValue=True)
        assert "exceptionDetails" not in result, result
        return result["result"].get("value")

    def wait(self, condition: str, seconds: float = 30.0) -> None:
        ends = time.monotonic() + seconds
        while not self.run(condition):
            assert time.monotonic() < ends, (condition, self.said, self.run("document.body.innerText"))
            time.sleep(0.02)

    def type(self, text: str) -> None:
        self.call("Input.insertText", text=text)

    def press(self, key: str, code: int, text: str = "", modifiers: int = 0) -> None:
        common = {"key": key, "code": key, "windowsVirtualKeyCode": code, "modifiers": modifiers}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **common)
        self.call("Input.dispatchKeyEvent", type="keyUp", **common)

    def enter(self, shift: bool = False) -> None:
        self.press("Enter", 13, "\r", 8 if shift else 0)

    def picture(self, file: Path) -> None:
        file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot", format="png")["data"]))

    def close(self) -> None:
        self._process.kill()
        self._process.wait()
        self._read.close()
        os.close(self._write)
