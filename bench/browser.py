"""Chromium without a window, driven over its debugging port: what a test or a bench needs of a browser."""

import base64
import contextlib
import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import nbformat
import websocket

from mzlib.runs import REPO

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome", "chrome"))), None)
FLAGS = ("--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run")
KEYS = {"ArrowLeft": 37, "ArrowUp": 38, "ArrowRight": 39, "ArrowDown": 40, "Home": 36, "End": 35, "PageDown": 34}


class Browser:
    """One page of a headless Chromium; a context manager.

    Raises FileNotFoundError without a Chromium, RuntimeError when a script throws, TimeoutError when a wait is in vain.
    """

    def __init__(self, width: int = 1200, height: int = 1000):
        if CHROMIUM is None:
            raise FileNotFoundError("no chromium or google-chrome is installed: apt install chromium")
        self._profile = tempfile.TemporaryDirectory(prefix="mz_browser_", ignore_cleanup_errors=True)
        size = f"--window-size={width},{height}"
        command = [CHROMIUM, *FLAGS, size, f"--user-data-dir={self._profile.name}", "--remote-debugging-port=0"]
        quiet = {"stdin": subprocess.DEVNULL, "stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        self._process = subprocess.Popen([*command, "about:blank"], **quiet)
        told = Path(self._profile.name, "DevToolsActivePort")
        self._socket, self._sent = None, 0
        try:
            _until(lambda: told.exists() and "\n" in told.read_text(), 60, "Chromium to start")
            port = told.read_text().split()[0]
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json/list", timeout=30) as answer:
                page = next(target for target in json.load(answer) if target["type"] == "page")
            self._socket = websocket.create_connection(page["webSocketDebuggerUrl"], suppress_origin=True, timeout=120)
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> "Browser":
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """End the browser and remove its profile."""
        if self._socket:
            self._socket.close()
        self._process.terminate()
        self._process.wait(30)
        self._profile.cleanup()

    def call(self, method: str, **parameters) -> dict:
        """One command of the DevTools protocol and its result."""
        self._sent += 1
        self._socket.send(json.dumps({"id": self._sent, "method": method, "params": parameters}))
        while (answer := json.loads(self._socket.recv())).get("id") != self._sent:
            pass  # events
        if "error" in answer:
            raise RuntimeError(f"{method}: {answer['error']['message']}")
        return answer["result"]

    def open(self, address: str) -> None:
        """Go to an address; `wait` for what should appear."""
        self.call("Page.navigate", url=address)

    def run(self, script: str) -> object:
        """What the body of an async function returns in the page."""
        expression = f"(async()=>{{{script}}})()"
        told = self.call("Runtime.evaluate", expression=expression, awaitPromise=True, returnByValue=True)
        if "exceptionDetails" in told:
            details = told["exceptionDetails"]
            raise RuntimeError(details.get("exception", {}).get("description", details["text"]))
        return told["result"].get("value")

    def wait(self, condition: str, seconds: float = 60) -> None:
        """Until a JavaScript expression is true."""
        _until(lambda: self.run(f"return Boolean({condition})"), seconds, condition)

    def press(self, key: str) -> None:
        """A key as a reader's hand would press it, on whatever has the focus."""
        code = KEYS.get(key, ord(key[0].upper()))
        text = {} if key in KEYS else {"text": key}
        for kind in ("keyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, windowsVirtualKeyCode=code, **text)

    def screenshot(self, path: Path | str) -> None:
        """The visible part of the page as a PNG."""
        Path(path).write_bytes(base64.b64decode(self.call("Page.captureScreenshot")["data"]))


def _until(condition, seconds: float, what: str) -> None:
    end = time.monotonic() + seconds
    while not condition():
        if time.monotonic() > end:
            raise TimeoutError(f"waited {seconds:g} s in vain for {what}")
        time.sleep(0.1)


@contextlib.contextmanager
def jupyterlab(folder: Path, *sources: str | Path, **environment: str) -> Iterator[str]:
    """The address of a JupyterLab on a notebook with these cells, or on a copy of the one notebook named; its files in
    `folder`."""
    if isinstance(sources[0], Path):
        shutil.copy(sources[0], folder / "nb.ipynb")
    else:
        cells = [nbformat.v4.new_code_cell(source.strip(), id=f"cell-{i}") for i, source in enumerate(sources)]
        kernel = {"kernelspec": {"name": "python3", "display_name": "Python 3", "language": "python"}}
        nbformat.write(nbformat.v4.new_notebook(cells=cells, metadata=kernel), folder / "nb.ipynb")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    own = {name: str(folder / name) for name in ("JUPYTER_CONFIG_DIR", "JUPYTER_RUNTIME_DIR", "IPYTHONDIR")}
    settings = ["--no-browser", "--allow-root", "--IdentityProvider.token=", f"--ServerApp.port={port}"]
    settings += ["--ServerApp.ip=127.0.0.1", "--ServerApp.port_retries=0", f"--ServerApp.root_dir={folder}"]
    settings += ["--LabApp.expose_app_in_browser=True", f"--LabApp.workspaces_dir={folder / 'workspaces'}"]
    quiet = folder / "JUPYTER_CONFIG_DIR" / "labconfig" / "page_config.json"
    quiet.parent.mkdir(parents=True)
    quiet.write_text('{"disabledExtensions": {"@jupyterlab/apputils-extension:announcements": true}}')
    environment = {**os.environ, **own, "PYTHONPATH": str(REPO), **environment}
    with open(folder / "lab.log", "wb") as log:
        command = [sys.executable, "-m", "jupyterlab", *settings]
        server = subprocess.Popen(command, cwd=folder, env=environment, stdout=log, stderr=log)
        try:
            for _ in range(300):
                assert server.poll() is None, (folder / "lab.log").read_text()[-800:]
                with contextlib.suppress(urllib.error.URLError), urllib.request.urlopen(f"http://127.0.0.1:{port}/api"):
                    break
                time.sleep(0.2)
            yield f"http://127.0.0.1:{port}/lab/tree/nb.ipynb"
        finally:
            server.terminate()
            server.wait(60)


NOTEBOOK = "[...window.jupyterapp.shell.widgets('main')][0]"  # in the page


def run_all_cells(browser: Browser, address: str, seconds: float = 120) -> list[dict]:
    """Open a notebook of `jupyterlab`, run it once its kernel is there, and wait for its end; all outputs."""
    browser.open(address)
    browser.wait(f"window.jupyterapp && {NOTEBOOK}?.sessionContext?.session?.kernel?.status === 'idle'", 120)
    browser.run(f"window.jupyterapp.shell.activateById({NOTEBOOK}.id)")
    browser.run("jupyterapp.commands.execute('notebook:run-all-cells').finally(() => window.mzRan = true)")
    browser.wait("window.mzRan", seconds)
    return browser.run(f"return {NOTEBOOK}.content.model.sharedModel.cells.flatMap(cell => cell.outputs || [])")
