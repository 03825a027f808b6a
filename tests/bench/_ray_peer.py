"""Ray's side of the kernel's benchmark, run by the interpreter of build/peers/ray: commands on stdin, seconds on stdout.

call N           N actor calls, one after another
window N K       N actor calls with K under way at a time
"""

from __future__ import annotations

import logging
import sys
import time
from typing import Any


def main() -> None:
    """Start Ray with one actor and serve commands until stdin ends."""
    import ray  # the peer's own environment has it, the project's has not

    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, logging_level=logging.ERROR)

    @ray.remote
    class Echo:
        def echo(self) -> list[Any]:
            return []

    actor = Echo.remote()  # type: ignore[attr-defined]
    ray.get(actor.echo.remote())
    sys.stdout.write("ready\n")
    sys.stdout.flush()
    for line in sys.stdin:
        what, *numbers = line.split()
        n = int(numbers[0])
        began = time.perf_counter()
        if what == "call":
            for _ in range(n):
                ray.get(actor.echo.remote())
        else:
            waiting: list[Any] = []
            for _ in range(n):
                waiting.append(actor.echo.remote())
                if len(waiting) >= int(numbers[1]):
                    ray.get(waiting.pop(0))
            ray.get(waiting)
        sys.stdout.write(f"{time.perf_counter() - began}\n")
        sys.stdout.flush()


if __name__ == "__main__":
    main()
