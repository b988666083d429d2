"""Short content hashes that name scenarios, classes and devices."""

from __future__ import annotations

import hashlib
import json
from typing import Any


def content_id(value: Any, *, length: int = 16) -> str:
    """Return the first `length` hex digits of the SHA-256 of `value` as canonical JSON.

    >>> content_id({"b": 1, "a": [1, 2]}) == content_id({"a": [1, 2], "b": 1})
    True
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)
    return hashlib.sha256(text.encode()).hexdigest()[:length]
