"""`python -m servers.observer`: confine the process, then serve."""

from syscalls.harden import harden

harden()

from servers.observer.server import main  # noqa: E402 - nothing of the server's own is imported before it is confined

raise SystemExit(main())
