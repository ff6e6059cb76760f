"""Marks the tables of pairs, so that the style sheet can show both columns on a phone."""

from __future__ import annotations

import re
from typing import Any

PAIRS = re.compile(
    r"<table>\s*<thead>\s*<tr>\s*<th>[^<]*</th>\s*<th>jaxunpool</th>\s*</tr>.*?</table>", re.DOTALL
)


def on_page_content(html: str, **_: Any) -> str:
    """Put each into a box with a name."""
    return PAIRS.sub(r'<div class="pairs">\g<0></div>', html)
