"""The built-in probes as the kernel sees them: names, hooks, rights and parameters.

Responsible for: the check that admits `rl_attach_probe(hook, "builtin:NAME[,key=value...]")`. Pure and torch-free.
Refuses: unknown names and parameters, values outside their limits, hooks a built-in cannot run on, missing rights.
`probes.library` holds their sources; a test keeps the two lists equal.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

from probes import sites
from syscalls.errors import RecurosError

PREFIX = "builtin:"
PROG_CHARS_MAX = 256
EVERY_DEFAULT = 25


@dataclass(frozen=True, slots=True)
class Param:
    """A numeric parameter with its default and inclusive limits; integer when the default is."""

    default: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Builtin:
    """One built-in probe. What a firing costs, the verifier proves when it is attached."""

    name: str
    hooks: tuple[str, ...]
    doc: str
    params: dict[str, Param] = field(default_factory=dict)
    rights: tuple[str, ...] = ("attach-probe", "read-trace")


@dataclass(frozen=True, slots=True)
class Admitted:
    """A hook and a program that may be attached. `prog` is canonical: all parameters present, sorted."""

    hook: sites.Hook
    builtin: Builtin
    params: dict[str, float]
    prog: str


_EVERY = {"every": Param(EVERY_DEFAULT, 1, 1_000_000)}
_EACH = {"every": Param(1, 1, 1_000_000)}
_ROWS = {"rows": Param(1024, 4, 65_536)}
_WINDOWS = {"windows": Param(8, 1, 1_000_000)}
_KD, _FORWARD, _GRAD, _SNAPSHOT = ("on_kd_step",), ("on_forward",), ("on_grad",), ("on_snapshot",)

BUILTINS: dict[str, Builtin] = {
    b.name: b
    for b in (
        Builtin("cka", _KD, "unbiased linear CKA of student and mapped teacher hidden states, streamed over batches", dict(_EVERY)),
        Builtin("svcca", _KD, "SVCCA of student and mapped teacher hidden states, over the latest rows", dict(_EVERY)),
        Builtin("pwcca", _KD, "projection-weighted CCA of student and mapped teacher hidden states", dict(_EVERY)),
        Builtin("rkd", _KD, "relational distillation losses of the mapped layers: distances and angles between rows", dict(_EVERY)),
        Builtin(
            "ece",
            _KD,
            "expected calibration error of the student, with NLL and Brier score",
            {**_EVERY, **_ROWS, "bins": Param(15, 2, 100)},
        ),
        Builtin(
            "disagreement",
            _KD,
            "how often student and teacher predict different classes, and mean KL(teacher || student)",
            {**_EVERY, **_ROWS},
        ),
        Builtin("entropy", _KD, "predictive entropy of student and teacher", {**_EVERY, **_ROWS}),
        Builtin("rms", _FORWARD, "RMS, largest magnitude and non-finite count of each layer's output", dict(_EVERY)),
        Builtin("nan-watch", _FORWARD, "where and when a layer's output first was not finite", dict(_EACH)),
        Builtin(
            "dead-units",
            _FORWARD,
            "units of each layer that never rose above a threshold",
            {**_EVERY, "threshold": Param(0.0, -1e30, 1e30), "units": Param(256, 1, 512)},
        ),
        Builtin("mahalanobis", _FORWARD, "Mahalanobis distance of each layer's outputs to its first ones", dict(_EVERY)),
        Builtin("deep-knn", _FORWARD, "distance of each layer's outputs to their nearest among its first ones", dict(_EVERY)),
        Builtin("attn-entropy", ("on_attention",), "entropy of each head's attention rows", dict(_EVERY)),
        Builtin("gradnorm", _GRAD, "norm and non-finite count of each parameter's gradient", dict(_EVERY)),
        Builtin(
            "gradnoise",
            _GRAD,
            "gradient noise scale, from the products of successive gradients",
            {**_EACH, "elements": Param(64, 1, 512)},
        ),
        Builtin("movement", _GRAD, "movement score of each parameter: whether its weights grow or shrink", dict(_EVERY)),
        Builtin("sparsity", _GRAD, "share of each parameter's weights that are zero", dict(_EVERY)),
        Builtin("pruned", ("on_prune",), "share of weights that a pruning took away, and any left that are not zero", dict(_EACH)),
        Builtin("fisher", _SNAPSHOT, "diagonal of the Fisher information, from per-sample gradients", {**_EACH, **_WINDOWS}),
        Builtin("ewc", _SNAPSHOT, "how far the student moved in its generation, weighted by Fisher information", {**_EACH, **_WINDOWS}),
        Builtin("jacobian", _SNAPSHOT, "norm of both models' Jacobians, and how far apart they are", {**_EACH, **_WINDOWS}),
        Builtin("attn-kl", _SNAPSHOT, "KL of the teacher's attention from the student's", {**_EACH, **_WINDOWS}),
    )
}  # fmt: skip


def names() -> list[str]:
    """The built-in names, sorted."""
    return sorted(BUILTINS)


def parse(prog: str) -> tuple[Builtin, dict[str, float]]:
    """Resolve `builtin:NAME[,key=value...]` to the built-in and its full parameters.

    Raises RecurosError: E4-NOENT for an unknown name, E2-USAGE for a malformed or unknown parameter, E2-LIMIT for a
    value outside its limits.
    """
    if not prog.startswith(PREFIX) or len(prog) > PROG_CHARS_MAX:
        raise RecurosError(
            "E2-USAGE", f"{prog!r:.80} does not name a built-in probe", hint=f"{PREFIX}NAME[,key=value...]"
        )
    name, *pairs = prog[len(PREFIX) :].split(",")
    builtin = BUILTINS.get(name)
    if builtin is None:
        close = sites.nearest(name, names())
        raise RecurosError(
            "E4-NOENT", f"no built-in probe named {name!r}; there are: {', '.join(close)}", hint=PREFIX + close[0]
        )
    params = {key: param.default for key, param in builtin.params.items()}
    for pair in pairs:
        key, _, text = pair.partition("=")
        params[key] = _value(builtin, key, text)
    return builtin, params


def check(hook: str, prog: str, rights: Collection[str]) -> Admitted:
    """Admit `prog` on `hook` for a caller holding `rights`.

    Raises what `sites.parse` and `parse` raise, E8-VERIFY for a hook the built-in does not run on and E5-DENIED for a
    missing right. Whether the glob matches a site is the learner's to say: the kernel knows no modules.
    """
    where = sites.parse(hook)
    builtin, params = parse(prog)
    if where.kind not in builtin.hooks:
        raise RecurosError(
            "E8-VERIFY",
            f"{PREFIX}{builtin.name} cannot run on {where.kind}; it runs on {', '.join(builtin.hooks)}",
            hint=f"attach it to {builtin.hooks[0]}",
        )
    missing = [right for right in builtin.rights if right not in rights]
    if missing:
        raise RecurosError(
            "E5-DENIED",
            f"{PREFIX}{builtin.name} needs the right {missing[0]}, which the caller does not hold",
            hint=f"grant {missing[0]} to the caller in the app manifest",
        )
    return Admitted(where, builtin, params, canonical(builtin, params))


def canonical(builtin: Builtin, params: dict[str, float]) -> str:
    """The program string with every parameter written out, so that a record of it stays complete."""
    return ",".join([PREFIX + builtin.name, *(f"{key}={_written(params[key])}" for key in sorted(params))])


def _written(value: float) -> str:
    """Exactly as `_value` reads it back; a whole number as one."""
    return str(int(value)) if value == int(value) else repr(float(value))


def _value(builtin: Builtin, key: str, text: str) -> float:
    param = builtin.params.get(key)
    if param is None:
        raise RecurosError(
            "E2-USAGE", f"{PREFIX}{builtin.name} has no parameter {key!r}; it has: {', '.join(sorted(builtin.params))}"
        )
    try:
        value: float = int(text) if isinstance(param.default, int) else float(text)
    except ValueError:
        kind = "an integer" if isinstance(param.default, int) else "a number"
        raise RecurosError("E2-USAGE", f"{key}={text!r:.40} of {PREFIX}{builtin.name} is not {kind}") from None
    if not param.low <= value <= param.high:
        raise RecurosError(
            "E2-LIMIT", f"{key}={text} of {PREFIX}{builtin.name} is outside {param.low:g}..{param.high:g}"
        )
    return value
