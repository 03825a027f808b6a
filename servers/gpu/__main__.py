"""`python -m servers.gpu`: confine the process, then serve."""

from syscalls.harden import harden

harden()

from servers.gpu.server import main  # noqa: E402 - nothing of the server's own is imported before it is confined

raise SystemExit(main())
