"""A page in a real headless browser, where one is installed."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
)
needs_browser = pytest.mark.skipif(CHROMIUM is None, reason="needs Chromium")


def shown(html: str, scratch: Path, *flags: str) -> str:
    """Return the document as it stands once its scripts have run; fails where the console had something to say."""
    assert CHROMIUM is not None
    path = scratch / "page.html"
    path.write_text(html, encoding="utf-8")
    line = [CHROMIUM, *FLAGS, *flags, f"--user-data-dir={scratch / 'profile'}", "--dump-dom", path.as_uri()]
    done = subprocess.run(line, capture_output=True, text=True, timeout=120, check=False)
    assert "CONSOLE" not in done.stderr, done.stderr
    return done.stdout
