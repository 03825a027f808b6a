"""What to do about an error code: why it happens, and the next commands.

Responsible for: the prose of `recuros explain CODE`. Refuses: codes of its own; `syscalls/errors.py` has the table.
"""

from __future__ import annotations

from typing import Final

ADVICE: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "E1-NO": ("What was asked can be answered, and the answer is no.", ()),
    "E1-NOSYS": ("The call is in the table, but nobody here serves it.", ("recuros syscall --list", "recuros ps")),
    "E2-USAGE": ("The command line or a call is malformed; nothing was done.", ("recuros VERB --help",)),
    "E2-LIMIT": ("A value is outside a limit that the message names; nothing was done.", ("recuros syscall --list",)),
    "E2-MANIFEST": (
        "The manifest does not pass its check, or a run directory holds windows made with another one; nothing was started.",
        ("recuros config check FILE", "recuros config show FILE --origin"),
    ),
    "E2-MODEL": ("A model directory lacks a file, or holds one that is not read here.", ("recuros config check FILE",)),
    "E2-DATA": (
        "A data file is missing, malformed or not the one that the committed windows learned from.",
        ("recuros config check FILE", "recuros logs dataset"),
    ),
    "E2-WIRE": ("A peer sent bytes that do not fit the ABI; it was refused and counted.", ("recuros status --json",)),
    "E3-DOWN": ("Nobody listens in the run directory.", ("recuros boot --detach", "recuros --run DIR status")),
    "E3-BOOT": ("A server failed while starting; everything was taken down again.", ("recuros logs", "recuros doctor")),
    "E3-BUSY": (
        "Another process holds the run directory or its store; there is one writer at a time.",
        ("recuros status", "recuros halt", "recuros --run OTHER boot"),
    ),
    "E3-GONE": (
        "The peer went away before it answered. What was committed stays; a boot resumes after it.",
        ("recuros logs", "recuros boot --detach"),
    ),
    "E4-NOENT": ("No object has that name; the message lists the nearest ones.", ("recuros kfs ls", "recuros probe ls")),
    "E4-HOOK": ("No site of the running models matches the hook.", ("recuros probe ls --sites",)),
    "E5-DENIED": (
        "The session's capability lacks the right. Rights come from the manifest's [operator] and from grants.",
        ("recuros cap ls", "recuros cap grant PRINCIPAL --rights R", "recuros VERB --help"),
    ),
    "E6-ADMIT": (
        "With this reservation some deadline could be missed, so it is not taken. The witness says which sum is too large.",
        ("recuros sched show", "recuros sched admit NAME --dry-run --budget-ms B --period-ms P"),
    ),
    "E7-MISSED": (
        "A window was not staged by its deadline. It rolled back bit for bit; five in a row stop the plan.",
        ("recuros kfs log --kind window.miss", "recuros sched set --budget-ms B --period-ms P", "recuros learner resume"),
    ),
    "E7-LOSS": (
        "A loss or gradient was not finite. The window rolled back; five in a row stop the plan.",
        ("recuros kfs log --kind window.miss", "recuros learner kd --temperature 2", "recuros snapshot restore SNAP"),
    ),
    "E7-BUDGET": ("A reservation's budget is used up until its next period.", ("recuros sched show",)),
    "E8-VERIFY": (
        "The verifier could not prove that the program is safe and cheap enough; its line and the rule are named.",
        ("recuros probe check FILE", "recuros probe dump FILE"),
    ),
    "E8-STALE": ("The certificate is for other bytes, other sizes or another version.", ("recuros probe attach PROGRAM",)),
    "E8-ENCODING": ("The bytes are no program.", ("recuros probe check FILE",)),
    "E8-SYNTAX": ("The source is not in the language of probes; the line is named.", ("recuros probe check FILE",)),
    "E9-INTEGRITY": (
        "Stored bytes do not match their digest. Nothing was handed out.",
        ("recuros kfs verify", "recuros kfs fsck", "restore the named file from a copy"),
    ),
    "E9-POISONED": ("A write could not be made durable; the store refuses more.", ("recuros halt", "recuros kfs verify")),
    "E9-VERSION": ("Client, runtime or store are of different versions.", ("recuros --version", "recuros kfs verify")),
    "E9-NOSPACE": ("The disk is full. What was acknowledged is safe.", ("recuros kfs gc --plan --budget 50%", "recuros boot")),
    "E75-AGAIN": ("Not now: a server is starting or the runtime is halting.", ("recuros ps", "the same again")),
    "E75-FULL": ("A bounded mailbox is full; nothing was queued.", ("recuros top", "the same again")),
    "E124-TIMEOUT": ("No answer within the limit. A change may still have happened.", ("recuros status", "--timeout S")),
}  # fmt: skip
