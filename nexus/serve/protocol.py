"""OpenAI's dialect: requests read strictly, answers written as its clients expect them.

Responsible for: the meaning of every field. Refuses: fields that would change the answer and are not done here (a server that ignored them
would pretend), with their name; values outside the limits.
"""

from __future__ import annotations

import json
import time
import uuid
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from nexus.bundle.decode import Outcome, checked_stops
from syscalls.errors import RecurosError

PROMPTS_MAX: Final = 8
MESSAGES_MAX: Final = 256
TOKENS_DEFAULT: Final = 128
# Fields that change nothing here by what they mean, whatever they hold.
WITHOUT_EFFECT: Final = frozenset(
    ("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "parallel_tool_calls")
)
# Fields that are taken at the one value that is what happens anyway.
ONLY: Final[dict[str, tuple[Any, ...]]] = {
    "n": (1, None),
    "best_of": (1, None),
    "echo": (False, None),
    "logprobs": (None, False, 0),
    "presence_penalty": (0, 0.0, None),
    "frequency_penalty": (0, 0.0, None),
    "logit_bias": (None, {}),
    "suffix": (None, ""),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "response_format": (None, {"type": "text"}),
    "modalities": (None, ["text"]),
}
STATUS: Final[dict[str, int]] = {
    "E2-USAGE": 400,
    "E2-LIMIT": 400,
    "E2-WIRE": 400,
    "E4-NOENT": 404,
    "E5-DENIED": 403,
    "E75-AGAIN": 503,
    "E75-FULL": 429,
}


@dataclass(frozen=True)
class Request:
    """A request that was read. `options` go to NexusModel.generate as they are."""

    chat: bool
    model: str
    prompts: tuple[str, ...]
    capability: str | None
    stream: bool
    usage: bool
    opted_in: bool
    options: dict[str, Any] = field(default_factory=dict)


def status_of(error: RecurosError) -> int:
    """The HTTP status of a coded error."""
    return STATUS.get(error.code, 500)


def error_body(error: RecurosError, param: str | None = None) -> dict[str, Any]:
    """An error as OpenAI's clients read it."""
    status = status_of(error)
    kind = {403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}.get(
        status, "invalid_request_error" if status < 500 else "server_error"
    )
    message = f"{error.message}. {error.hint}" if error.hint else error.message
    return {"error": {"message": message, "type": kind, "code": error.code, "param": param}}


# Requests


def read(
    body: Any, *, chat: bool, name: str, capabilities: Sequence[str], tokens_max: int | None, template: Any
) -> Request:
    """A JSON body as a Request. `name`: the bundle's; models are NAME (the router chooses) and NAME/CAPABILITY.

    `template(messages)` renders a chat as a prompt.
    """
    if not isinstance(body, dict):
        raise _bad("the body is not a JSON object")
    known = {
        "model", "stream", "stream_options", "max_tokens", "temperature", "top_p", "seed", "stop", "enable_uncensored",
        *(("messages", "max_completion_tokens") if chat else ("prompt",)),
    }  # fmt: skip
    for key, value in body.items():
        if key in known or key in WITHOUT_EFFECT:
            continue
        if key not in ONLY:
            raise _bad(f"{key!r:.60} is not a field of this server", "leave it out")
        if not any(value == allowed and type(value) is type(allowed) for allowed in ONLY[key]):
            raise _bad(f"{key} is {value!r:.60}, which is not done here", "leave it out")
    model, capability = _model(body.get("model", name), name, capabilities)
    opted_in = body.get("enable_uncensored", False)
    stream = _flag(body, "stream")
    extra = body.get("stream_options") or {}
    if not isinstance(extra, dict) or extra.keys() - {"include_usage", "include_obfuscation"}:
        raise _bad("stream_options has more than include_usage")
    if not isinstance(opted_in, bool):
        raise _bad(f"enable_uncensored is {opted_in!r:.40}; only true opens a gate")
    prompts = (template(_messages(body.get("messages"))),) if chat else _prompts(body.get("prompt"))
    return Request(
        chat, model, prompts, capability, stream, bool(extra.get("include_usage")), opted_in, _options(body, tokens_max)
    )


def _bad(message: str, hint: str = "") -> RecurosError:
    return RecurosError("E2-USAGE", message, hint=hint)


def _flag(body: Mapping[str, Any], key: str) -> bool:
    value = body.get(key)
    if value is not None and not isinstance(value, bool):
        raise _bad(f"{key} is {value!r:.40}; it is true or false")
    return bool(value)


def _model(value: Any, name: str, capabilities: Sequence[str]) -> tuple[str, str | None]:
    if isinstance(value, str):
        if value == name:
            return value, None
        base, slash, capability = value.partition("/")
        if slash and base == name and capability in capabilities:
            return value, capability
    there = ", ".join([name, *(f"{name}/{c}" for c in capabilities)])
    raise RecurosError("E4-NOENT", f"there is no model {value!r:.80}", hint=f"there are: {there}")


def _prompts(value: Any) -> tuple[str, ...]:
    given = [value] if isinstance(value, str) else value
    if not isinstance(given, list) or not 0 < len(given) <= PROMPTS_MAX or not all(isinstance(p, str) for p in given):
        raise _bad(f"prompt is a text, or 1 to {PROMPTS_MAX} of them; token numbers are not taken", "send text")
    return tuple(given)


def _messages(value: Any) -> list[dict[str, str]]:
    if not isinstance(value, list) or not 0 < len(value) <= MESSAGES_MAX:
        raise _bad(f"messages is a list of 1 to {MESSAGES_MAX}", 'send [{"role": "user", "content": "..."}]')
    return [_message(number, item) for number, item in enumerate(value)]


def _message(number: int, item: Any) -> dict[str, str]:
    if not isinstance(item, dict) or item.get("role") not in ("system", "developer", "user", "assistant"):
        raise _bad(f"messages[{number}] has no role of system, developer, user, assistant")
    if extra := sorted(key for key in item if key not in ("role", "content", "name") and item[key] is not None):
        raise _bad(f"messages[{number}].{extra[0]} is not done here", "leave it out")
    content = item.get("content")
    if isinstance(content, list):
        parts = [p.get("text") if isinstance(p, dict) and p.get("type") == "text" else None for p in content]
        content = "".join(parts) if all(isinstance(part, str) for part in parts) else None  # type: ignore[arg-type]  # all texts
    if not isinstance(content, str):
        raise _bad(
            f"messages[{number}].content is neither a text nor a list of text parts", "this model reads text only"
        )
    return {"role": item["role"], "content": content}


def _options(body: Mapping[str, Any], tokens_max: int | None) -> dict[str, Any]:
    tokens = body.get("max_completion_tokens", body.get("max_tokens"))
    if tokens is None:
        tokens = TOKENS_DEFAULT if tokens_max is None else min(TOKENS_DEFAULT, tokens_max)
    if tokens_max is not None and isinstance(tokens, int) and tokens > tokens_max:
        raise RecurosError(
            "E2-LIMIT", f"max_tokens is {tokens}; this server gives at most {tokens_max}", hint="ask for fewer"
        )
    checked_stops(body.get("stop"))
    options = {"max_new_tokens": tokens, "stop": body.get("stop")}
    options |= {key: body[key] for key in ("temperature", "top_p", "seed") if body.get(key) is not None}
    return options


# Answers


class Answer:
    """One answer in the dialect: whole, or as the events of a stream."""

    def __init__(self, request: Request, capability: Sequence[str | None], bundle_id: str) -> None:
        self.request = request
        self.outcomes = [Outcome() for _ in request.prompts]
        kind = "chat.completion" if request.chat else "text_completion"
        self._kind = kind
        self._head = {
            "id": ("chatcmpl-" if request.chat else "cmpl-") + uuid.uuid4().hex,
            "created": int(time.time()),
            "model": request.model,
            "nexus": {"bundle": bundle_id, "capabilities": list(capability)},
        }

    def whole(self, texts: Sequence[str]) -> dict[str, Any]:
        """The body of an answer that is not streamed."""
        choices = []
        for index, (text, outcome) in enumerate(zip(texts, self.outcomes, strict=True)):
            said = {"message": {"role": "assistant", "content": text}} if self.request.chat else {"text": text}
            choices.append({"index": index, **said, "finish_reason": outcome.finish, "logprobs": None})
        return {**self._head, "object": self._kind, "choices": choices, "usage": self.usage()}

    def piece(self, index: int, text: str, finish: str | None = None, *, first: bool = False) -> bytes:
        """An event with the next piece of a prompt's answer."""
        if self.request.chat:
            delta: dict[str, Any] = {"role": "assistant"} if first else {}
            said: dict[str, Any] = {"delta": {**delta, **({"content": text} if text or first else {})}}
        else:
            said = {"text": text}
        choice = {"index": index, **said, "finish_reason": finish, "logprobs": None}
        return self._event({"choices": [choice]})

    def last(self) -> bytes:
        """The events that close a stream."""
        usage = self._event({"choices": [], "usage": self.usage()}) if self.request.usage else b""
        return usage + b"data: [DONE]\n\n"

    def usage(self) -> dict[str, int]:
        """Counted tokens."""
        prompt = sum(outcome.prompt_tokens for outcome in self.outcomes)
        made = sum(len(outcome.tokens) for outcome in self.outcomes)
        return {"prompt_tokens": prompt, "completion_tokens": made, "total_tokens": prompt + made}

    def _event(self, rest: Mapping[str, Any]) -> bytes:
        kind = f"{self._kind}.chunk" if self.request.chat else self._kind
        return event({**self._head, "object": kind, **rest})


def event(data: Any) -> bytes:
    """One server-sent event."""
    return b"data: " + json.dumps(data).encode() + b"\n\n"


def models(name: str, capabilities: Sequence[str], created: int) -> list[dict[str, Any]]:
    """The entries of /v1/models."""
    ids = [name, *(f"{name}/{capability}" for capability in capabilities)]
    return [{"id": found, "object": "model", "created": created, "owned_by": "nexus"} for found in ids]
