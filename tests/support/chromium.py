"""A page as Chromium lays it out: how wide it gets, and how small its text."""

from __future__ import annotations

import html
import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

MEASURE = """
shown.onload = () => {
  const page = shown.contentDocument, small = [];
  page.querySelectorAll("details").forEach(element => element.open = true);
  for (const element of page.querySelectorAll("body *")) {
    if (![...element.childNodes].some(node => node.nodeType == 3 && node.textContent.trim())) continue;
    let size = parseFloat(shown.contentWindow.getComputedStyle(element).fontSize);
    const chart = element.ownerSVGElement;
    if (chart) size *= chart.getBoundingClientRect().width / chart.viewBox.baseVal.width;
    if (size < 11) small.push(element.textContent.trim().slice(0, 30) + " " + size.toFixed(1));
  }
  found.textContent = JSON.stringify({width: page.documentElement.scrollWidth, small: small});
};
"""


def measure_page(page: Path, width: int, folder: Path) -> dict[str, Any]:
    """``width`` that the page takes in a window of ``width`` px, and ``small``: texts under 11 px; all details open.

    Skips where there is no Chromium. In a frame, because a window cannot be as narrow as a phone.
    """
    browser = shutil.which("chromium") or shutil.which("chromium-browser") or shutil.which("google-chrome")
    if browser is None:
        pytest.skip("needs Chromium")
    frame = folder / "frame.html"
    frame.write_text(
        f'<iframe id="shown" src="{page.resolve().as_uri()}" style="border:0;width:{width}px;height:900px"></iframe>'
        f'<pre id="found"></pre><script>{MEASURE}</script>'
    )
    words = ["--headless=new", "--no-sandbox", "--disable-gpu", "--hide-scrollbars", "--allow-file-access-from-files"]
    words += [f"--user-data-dir={folder / 'profile'}", "--virtual-time-budget=5000", "--dump-dom"]
    done = subprocess.run([browser, *words, frame.as_uri()], capture_output=True, text=True, timeout=120)
    match = re.search(r'<pre id="found">(.+?)</pre>', done.stdout, re.DOTALL)
    assert match is not None, done.stderr[-500:]
    return json.loads(html.unescape(match[1]))
