"""`python -m nexus.servers.dataset`: confine the process, make Nexus's data known, then serve as the runtime's dataset server."""

from syscalls.harden import harden

harden()

from nexus.servers import targets  # noqa: E402 - nothing of the server's own is imported before it is confined
from servers.dataset.server import main  # noqa: E402

targets.register()
raise SystemExit(main())
