"""`python -m servers.dataset`: confine the process, then serve."""

from syscalls.harden import harden

harden()

from servers.dataset.server import main  # noqa: E402 - nothing of the server's own is imported before it is confined

raise SystemExit(main())
