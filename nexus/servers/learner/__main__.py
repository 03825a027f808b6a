"""`python -m nexus.servers.learner`: confine the process, make Nexus's models known, then serve as the runtime's learner."""

from syscalls.harden import harden

harden()

from nexus.servers import models  # noqa: E402 - nothing of the server's own is imported before it is confined
from servers.learner.server import main  # noqa: E402

models.register()
raise SystemExit(main())
