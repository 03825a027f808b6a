"""The text form of object ids, and the kinds an object can have.

Responsible for: what an id looks like, with the standard library only, so that code which merely carries ids (records, the
kernel) loads no hash library. Refuses: computing ids; that is `kfs.objects`.
"""

from __future__ import annotations

import re
from typing import Any

ALGORITHM = "b3"
ID_LENGTH = len(ALGORITHM) + 1 + 64
_OBJECT_ID = re.compile(ALGORITHM + r":[0-9a-f]{64}\Z")

KINDS: frozenset[str] = frozenset(
    {
        "embed",
        "attn",
        "rkd",
        "cka",
        "cal",
        "ood",
        "mask",
        "fisher",
        "snapshot",
        "program",
        "policy",
        "batch",
        "cache",
        "report",
    }
)


def is_object_id(value: Any) -> bool:
    """Whether `value` is the text form of an object id: `b3:` and 64 lower-case hexadecimal digits."""
    return isinstance(value, str) and _OBJECT_ID.match(value) is not None
