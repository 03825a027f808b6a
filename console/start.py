"""The console script: as little as possible before Ctrl-C is answered as it should be.

Responsible for: exit status 130 without a traceback, also while modules are still being imported; and no garbage collection meanwhile:
imports make no garbage, and looking for it is a tenth of what `recuros ps` costs.
"""

import gc
import sys


def main() -> None:
    """Run the command line."""
    try:
        gc.disable()
        from console.main import main as run

        gc.freeze()
        gc.enable()
        run()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
