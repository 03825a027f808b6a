"""The one error type that crosses every boundary of RecurOS.

Responsible for: codes, their exit statuses, and the sentence a person reads. Refuses: codes that are not in the
table, so a typo in a code fails where it is made and not in a script that matches on it.
"""

from __future__ import annotations

from typing import Any

# The exit status of the command line is the number in the code: "E5-DENIED" exits 5.
CODES: dict[str, str] = {
    "E1-NO": "the answer is no",
    "E2-USAGE": "the request is malformed",
    "E2-MANIFEST": "the app manifest is invalid",
    "E2-LIMIT": "a value is outside its documented limit",
    "E3-DOWN": "no runtime is running in this run directory",
    "E3-BOOT": "a server failed while booting; the runtime was taken down",
    "E3-BUSY": "another runtime holds this run directory",
    "E3-GONE": "the peer that should answer has gone",
    "E4-NOENT": "no such object",
    "E4-HOOK": "no such hook site",
    "E5-DENIED": "the caller does not hold the right",
    "E6-ADMIT": "admission refused",
    "E7-MISSED": "the deadline was missed and the window rolled back",
    "E7-LOSS": "the loss is not finite; the window rolled back",
    "E7-MEMORY": "the device's memory was used up; the window rolled back",
    "E7-BUDGET": "the budget of a reservation is used up",
    "E8-VERIFY": "the verifier rejected the program",
    "E8-STALE": "the certificate is for another program, contract or version",
    "E8-ENCODING": "bytes that are not a program",
    "E8-SYNTAX": "a probe source that is not in the language",
    "E9-INTEGRITY": "stored bytes do not match their digest",
    "E9-POISONED": "a write barrier failed; the store refuses further writes",
    "E9-VERSION": "the format or ABI version does not match",
    "E9-NOSPACE": "the disk is full; nothing that was acknowledged is lost",
    "E75-AGAIN": "try again later",
    "E75-FULL": "a bounded mailbox is full",
    "E124-TIMEOUT": "no answer in time",
    "E2-MODEL": "a model directory cannot be used",
    "E2-DATA": "a dataset cannot be used",
    "E2-WIRE": "a frame is malformed",
    "E1-NOSYS": "this syscall exists but nothing serves it here",
}


class RecurosError(Exception):
    """A typed error: `code` (a key of CODES), `message` (thing, value, limit) and `hint` (the way out)."""

    def __init__(self, code: str, message: str, *, hint: str = "", details: dict[str, Any] | None = None) -> None:
        if code not in CODES:
            raise ValueError(f"unknown error code {code!r}; add it to syscalls/errors.py")
        super().__init__(message)
        self.code = code
        self.message = message
        self.hint = hint
        self.details = details or {}

    @property
    def exit_status(self) -> int:
        """The process exit status that belongs to the code."""
        return int(self.code[1 : self.code.index("-")])

    def __str__(self) -> str:
        text = f"error[{self.code}]: {self.message}"
        return f"{text}\n  try: {self.hint}" if self.hint else text

    def to_wire(self) -> list[Any]:
        """Positional form for a reply frame."""
        return [self.code, self.message, self.hint, self.details]

    @classmethod
    def from_wire(cls, value: Any) -> RecurosError:
        """Inverse of `to_wire`; a malformed value becomes an E2-WIRE error instead of raising something else."""
        match value:
            case [str(code), message, hint, dict(details)] if code in CODES:
                return cls(code, str(message), hint=str(hint), details=details)
        return cls("E2-WIRE", f"peer sent an unreadable error: {value!r:.200}")
