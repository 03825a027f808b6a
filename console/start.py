"""The console script: as little as possible before Ctrl-C is answered as it should be.

Responsible for: exit status 130 without a traceback, also while modules are still being imported.
"""

import sys


def main() -> None:
    """Run the command line."""
    try:
        from console.main import main as run

        run()
    except KeyboardInterrupt:
        sys.stderr.write("interrupted\n")
        sys.exit(130)


if __name__ == "__main__":
    main()
