"""A real browser for tests: Debian's chromium, headless, told what to do through two pipes."""

import base64
import contextlib
import itertools
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest


class Page:
  """A page that is open.

  Attributes:
    asked: addresses of all that it has fetched.
    complaints: what its console has said.
  """

  def __init__(self, browser: subprocess.Popen, told: int, tells: int):
    self.browser, self.told = browser, told
    self.tells = os.fdopen(tells, "rb")
    self.numbers, self.session = itertools.count(1), None
    self.asked: list[str] = []
    self.complaints: list[str] = []
    target = self.call("Target.createTarget", url="about:blank")["targetId"]
    attached = self.call("Target.attachToTarget", targetId=target, flatten=True)
    self.session = attached["sessionId"]
    for domain in ("Page", "Network", "Runtime", "Log", "Accessibility"):
      self.call(f"{domain}.enable")

  def call(self, method: str, **arguments: Any) -> dict[str, Any]:
    """One command of the DevTools protocol."""
    number = next(self.numbers)
    message = {"id": number, "method": method, "params": arguments}
    if self.session:
      message["sessionId"] = self.session
    os.write(self.told, json.dumps(message).encode() + b"\0")
    while True:
      answer = self.read()
      if answer.get("id") == number:
        assert "error" not in answer, answer
        return answer["result"]

  def read(self) -> dict[str, Any]:
    """The next message; events are noted."""
    text = bytearray()
    while (byte := self.tells.read(1)) != b"\0":
      assert byte, "the browser has ended"
      text += byte
    message = json.loads(text)
    event = message.get("params", {})
    if message.get("method") == "Network.requestWillBeSent":
      self.asked.append(event["request"]["url"])
    elif message.get("method") == "Log.entryAdded":
      self.complaints.append(event["entry"]["text"])
    elif message.get("method") == "Runtime.exceptionThrown":
      self.complaints.append(str(event["exceptionDetails"]))
    return message

  def open(self, url: str) -> None:
    """Goes to an address."""
    self.call("Page.navigate", url=url)
    self.until("document.readyState === 'complete'")

  def see(self, expression: str) -> Any:
    """The value of a JavaScript expression."""
    found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
    assert "exceptionDetails" not in found, found
    return found["result"].get("value")

  def until(self, expression: str, seconds: float = 20) -> Any:
    """Waits until an expression is true; its value."""
    end = time.monotonic() + seconds
    while not (value := self.see(expression)):
      assert time.monotonic() < end, f"{expression} is not so after {seconds} s"
      time.sleep(0.02)
    return value

  def type(self, text: str) -> None:
    """Writes where the focus is."""
    self.call("Input.insertText", text=text)

  def press(self, key: str, code: int, modifiers: int = 0) -> None:
    """Presses a key; modifiers: 2 is Ctrl, 8 Shift."""
    for kind in ("rawKeyDown", "keyUp"):
      self.call(
        "Input.dispatchKeyEvent",
        type=kind,
        key=key,
        code=key,
        windowsVirtualKeyCode=code,
        modifiers=modifiers,
      )

  def size(self, width: int, height: int, dark: bool = False) -> None:
    """What it is shown on."""
    self.call(
      "Emulation.setDeviceMetricsOverride",
      width=width,
      height=height,
      deviceScaleFactor=1,
      mobile=False,
    )
    scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
    self.call("Emulation.setEmulatedMedia", features=[scheme])

  def picture(self, file: Path) -> None:
    """Writes what it looks like as a PNG."""
    file.write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


@contextlib.contextmanager
def browser() -> Iterator[Page]:
  """A page of a browser of its own; where there is none, the test is skipped."""
  program = shutil.which("chromium") or shutil.which("chromium-browser")
  if program is None:
    pytest.skip("no chromium here: apt-get install chromium")
  with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
    told_read, told = os.pipe()
    tells, tells_write = os.pipe()

    # Chromium reads commands from 3 and writes to 4.
    pipes = f'exec "$0" "$@" 3<&{told_read} 4>&{tells_write}'
    process = subprocess.Popen(
      [
        *("bash", "-c", pipes, program, "--headless", "--no-sandbox", "--disable-gpu"),
        *("--disable-dev-shm-usage", "--remote-debugging-pipe", f"--user-data-dir={profile}"),
      ],
      pass_fds=(told_read, tells_write),
      stdout=subprocess.DEVNULL,
      stderr=subprocess.DEVNULL,
    )
    os.close(told_read)
    os.close(tells_write)
    page = None
    try:
      page = Page(process, told, tells)
      yield page
    finally:
      process.kill()
      process.wait()
      os.close(told)
      if page is not None:
        page.tells.close()
