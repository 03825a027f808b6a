"""Names of capabilities: they become file names and keys, so their form is checked in one place.

Responsible for: the form of a capability's name. Refuses: names that a path, a module or a header could misread.
"""

from __future__ import annotations

import re
from typing import Final

from syscalls.errors import RecurosError

FORM: Final = re.compile(r"[a-z][a-z0-9_-]{0,47}")


def checked(name: object) -> str:
    """The name, if it has the form of a capability's name (E2-USAGE otherwise)."""
    if isinstance(name, str) and FORM.fullmatch(name):
        return name
    raise RecurosError(
        "E2-USAGE",
        f"{name!r:.80} is not a capability's name: a small letter, then at most 47 small letters, digits, '-' or '_'",
        hint="use a name such as code or long_text",
    )
