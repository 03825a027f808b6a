"""transformers without its own bars and advice, which would break into ours.

Responsible for: silence while a model is loaded or saved, and the setting as it was before afterwards. Refuses: to silence errors.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def quiet() -> Iterator[None]:
    """No progress bars and no warnings of transformers inside."""
    from transformers import utils

    logging: Any = utils.logging
    bar, level = logging.is_progress_bar_enabled(), logging.get_verbosity()
    logging.disable_progress_bar()
    logging.set_verbosity_error()
    try:
        yield
    finally:
        logging.set_verbosity(level)
        if bar:
            logging.enable_progress_bar()
