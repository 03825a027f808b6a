"""Serving a bundle until a signal ends it: what `recuros nexus serve` and a bundle's own loader share.

Responsible for: settings from options, the line that says where it listens, SIGINT and SIGTERM. Refuses: starting before the bundle is
verified.
"""

from __future__ import annotations

import json
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nexus.bundle.load import NexusModel
from nexus.serve.server import Limits, Server, Settings

KEY_VARIABLE = "NEXUS_API_KEY"


def serve(
    bundle: Path | str,
    *,
    device: str = "cpu",
    expect: str = "",
    full: bool = False,
    host: str = "127.0.0.1",
    port: int = 8080,
    enable_gated: bool = False,
    allow_host: Sequence[str] = (),
    max_tokens: int | None = None,
    waiting: int = Limits.waiting,
    body_bytes: int = Limits.body_bytes,
) -> None:
    """Load and serve. A line of JSON on stdout says where, once it listens. NEXUS_API_KEY, if set, is what clients must send."""
    limits = Limits(tokens=max_tokens, waiting=waiting, body_bytes=body_bytes)
    names = tuple(name.lower() for name in allow_host)
    settings = Settings(host, port, enable_gated, os.environ.get(KEY_VARIABLE, ""), names, limits)
    model = NexusModel.load(bundle, device, expect=expect, full=full)
    assert model.tokenizer is not None  # loaded now, so that a bad one shows now
    server = Server(model, settings)
    line = {"url": f"http://{host}:{server.port}/v1", "name": server.name, "bundle": model.manifest.bundle_id}
    sys.stdout.write(json.dumps({**line, "gate": "open" if enable_gated else "closed"}) + "\n")
    sys.stdout.flush()

    def end(_number: int, _frame: Any) -> None:
        threading.Thread(target=server.stop, daemon=True).start()

    before = {number: signal.signal(number, end) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        server.serve_forever(poll_interval=0.1)
    finally:
        server.server_close()
        for number, handler in before.items():
            signal.signal(number, handler)
