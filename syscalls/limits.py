"""Every bound of the runtime in one place, with its unit last in the name.

Responsible for: the numbers. Refuses: nothing by itself; the code that meets a bound names it in its error.
"""

from __future__ import annotations

from typing import Final

FRAME_BYTES_MAX: Final = 1 << 20
"""One ZeroMQ frame; larger payloads travel in pages."""
KERNEL_FRAME_BYTES_MAX: Final = FRAME_BYTES_MAX + (64 << 10)
"""What the kernel passes on holds what a peer sent and a few columns of its own."""
DEPTH_MAX: Final = 12
"""Nesting of containers inside one frame."""
STR_BYTES_MAX: Final = 64 << 10
ITEMS_MAX: Final = 65_536
"""Entries of one list or map inside a frame."""
PAGE_BYTES_MAX: Final = 4 << 30
PAGES_PER_PRINCIPAL_MAX: Final = 256
PAGE_LEASE_NS: Final = 2_000_000_000
"""How long a server may keep a page that was revoked; then it is killed."""
CAPS_PER_PRINCIPAL_MAX: Final = 4_096
MAILBOX_MESSAGES_DEFAULT: Final = 64
MAILBOX_BYTES_DEFAULT: Final = 4 << 20
REPLAY_IDS_KEPT: Final = 1_024
"""Numbers of calls that a session is remembered to have used; older ones than these are refused, too."""
MAILBOX_POLICIES: Final = ("reject", "block", "drop-oldest")
"""What a full mailbox does: refuse the new call, let its caller wait, or refuse the oldest call that waits."""
MAILBOX_CREDIT: Final = 8
"""Deliveries a server may have taken and not answered yet; the rest wait in the kernel, where they are counted."""
CALLS_PENDING_MAX: Final = 256
"""Calls of one principal that wait for an answer."""
UNREAD_BYTES_MAX: Final = 16 << 20
"""Answers that wait in the kernel for one peer that does not read; more are dropped and counted."""
HANDSHAKES_PER_SECOND_MAX: Final = 200
OPERATORS_MAX: Final = 64
EVENTS_KEPT: Final = 4_096
"""Recent events the kernel keeps for operators; older ones are in the ledger."""
PROBES_MAX: Final = 64
PROGRAMS_MAX: Final = 64
"""Loaded probe programs; the oldest that no probe uses makes room for a new one."""
PROGRAM_CHECKS_MAX: Final = 8
"""Programs that are being verified at one time."""
PROBE_SHARE_MAX: Final = 0.25
"""Share of a window's budget that all loaded probe programs together may take, by their proven cost."""
SERVERS_MAX: Final = 32
PHASES_MAX: Final = 64
RECORD_BYTES_MAX: Final = (64 << 10) - 1
BATCH_RECORDS_MAX: Final = 256
"""Records in one append to the archivist."""
DISPATCHES_PER_RECORD_MAX: Final = 512
"""Decisions of the fair class that wait in the kernel's memory for the next commit; a crash may lose so many."""
RUN_PATH_BYTES_MAX: Final = 107
"""sun_path of a Unix socket less its terminator."""

HELLO_TIMEOUT_NS: Final = 120_000_000_000
"""From spawn to `ready`; importing torch on a busy machine takes most of it."""
HEARTBEAT_PERIOD_NS: Final = 2_000_000_000
HEARTBEAT_TIMEOUT_NS: Final = 30_000_000_000
"""A server that answers nothing for this long is killed and restarted by its policy."""
HEARTBEATS_NICED: Final = 10
"""So many times as long for one that is slowed down: it computes, and gets what nobody else wants."""
ABORT_GRACE_NS: Final = 2_000_000_000
"""A learner told to abort a window must prove its rollback within this; then it is killed and restarted."""
DRAIN_TIMEOUT_NS: Final = 30_000_000_000
SLICE_NS_DEFAULT: Final = 20_000_000
"""CPU time of one slice of the fair class."""
POLICY_LAG_WINDOWS: Final = 2
"""Evidence of window k applies at window k + 2."""
POLICY_TIMEOUT_NS: Final = 20_000_000_000
"""A grant waits this long for the policy that its lag names; then the absence itself is recorded."""
FAILURES_IN_A_ROW_MAX: Final = 5
"""Windows that roll back one after another before the plan stops with the reason."""
RESTARTS_MAX: Final = 5
RESTART_WINDOW_NS: Final = 60_000_000_000

TEMPERATURE_MIN: Final = 1.0
TEMPERATURE_MAX: Final = 4.0
ALPHA_MAX: Final = 1_000.0
TERM_WEIGHT_MAX: Final = 1_000.0
"""Weight of any other term of the objective."""
TERM_EVERY_MAX: Final = 10_000
"""Steps between two evaluations of a term."""
TERMS: Final = (
    "task", "cka", "at", "rkd", "rkd_angle", "ewc", "jacobian", "calibration", "cosine", "embedding", "attention_mse",
    "minilm_at", "minilm_vr", "semantic",
)  # fmt: skip
"""Terms with a weight of their own, which a manifest, an operator or a policy gives; all but the task are off until then."""
PRUNE_MAX: Final = 0.95
"""Largest share of weights that a policy may prune; an operator may go further."""
CADENCE_MAX: Final = 64
"""How many times as seldom a policy may have probes fire."""
INTERRUPT_BYTES_MAX: Final = 900 << 10
"""New data of one interrupt that travels in a frame; more goes through a page."""
INTERRUPT_PAGE_BYTES_MAX: Final = 256 << 20
"""New data of one interrupt in a page, and any other page of an operator."""
OPERATOR_PAGES_MAX: Final = 2
"""Pages that one operator's session may have offered at a time."""
INTERRUPT_TIMEOUT_MS_MAX: Final = 600_000
CONSTRAINT_CLASSES_MAX: Final = 4_096
"""Classes in one list of a constraint, and its implications."""
SWAP_MODES: Final = ("ema", "checkpoint", "snapshot")
STEPS_PER_WINDOW_MAX: Final = 100_000
WINDOW_MS_MAX: Final = 86_400_000
"""Budget, deadline and period of a window: a day."""
PAGE_CONNECTIONS_MAX: Final = 4
"""Connections of one server to the page socket; a server needs one."""
BADGE_CHARS_MAX: Final = 100
