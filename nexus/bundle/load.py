"""Loads a bundle and answers with it. Needs torch, transformers and safetensors, and nothing that runs.

Responsible for: `NexusModel`. Refuses: other versions, altered files, adapters of another backbone, weights that are not finite; gated
capabilities without the opt-in of the very call: until then their file is not opened, and after the call the adapter is gone again.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Generator, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final, Literal, TypedDict, Unpack, overload

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor

from nexus.bundle import decode, verify
from nexus.bundle import format as form
from nexus.model import pixels, quantized
from nexus.model.adapter import Adapter
from nexus.model.finite import first_not_finite
from nexus.model.router import Route, Router
from nexus.model.student import NexusConfig, NexusStudent
from syscalls.errors import RecurosError

DEFAULT_TOKENS: Final = 128


class Options(TypedDict, total=False):
    """Options of `generate`: `temperature` 0 is greedy; `stop`: texts that end the answer; `outcome`: filled with tokens and reason."""

    max_new_tokens: int
    temperature: float
    top_p: float
    seed: int
    stop: str | Sequence[str] | None
    outcome: decode.Outcome | None


class NexusModel:
    """A loaded bundle. Threads may share it: generations take turns token by token."""

    def __init__(
        self,
        bundle: Path,
        manifest: form.Manifest,
        verdict: verify.Verdict,
        student: NexusStudent,
        router: Router | None,
        runs: str,
    ) -> None:
        self.bundle = bundle
        self.manifest = manifest
        self.verdict = verdict
        self.student = student
        self.router = router
        self.runs = runs
        self.towers = read_towers(bundle, manifest)
        self._tokenizer: Any = None
        self._turn = threading.Lock()

    @classmethod
    def load(
        cls, path: Path | str, device: str | torch.device = "cpu", *, expect: str = "", full: bool = False
    ) -> NexusModel:
        """Verify a bundle and load it.

        `expect`: the bundle's id (SHA-256 of manifest.json) where you know it from elsewhere; `full`: hash every file even if the stamp of
        an earlier verification holds. Raises RecurosError: E4-NOENT, E9-VERSION, E9-INTEGRITY, E2-MODEL.
        """
        bundle = Path(path)
        manifest = form.read_manifest(bundle)
        if expect and expect != manifest.bundle_id:
            raise RecurosError(
                "E9-INTEGRITY", f"{bundle} is bundle {manifest.bundle_id}, not {expect}", hint="fetch the one you mean"
            )
        verdict = verify.checked(bundle, manifest, full=full)
        student, runs = load_student(bundle, manifest, device, check=verdict.how == "full")
        for capability in manifest.capabilities.values():
            if capability.tier == 1 and capability.adapter:
                student.attach(capability.name, read_adapter(student, bundle, manifest, capability))
        router = Router.load(bundle / form.ROUTER) if form.ROUTER in manifest.files else None
        if router is not None:
            _check_router(router, manifest)
        with _named(bundle, "moving to the device"):
            student.to(device)
        return cls(bundle, manifest, verdict, student, router, runs)

    @property
    def capabilities(self) -> tuple[str, ...]:
        """All of the bundle, gated ones too."""
        return tuple(self.manifest.capabilities)

    @property
    def gated(self) -> frozenset[str]:
        """Those that need the opt-in."""
        return frozenset(c.name for c in self.manifest.capabilities.values() if c.gated)

    @property
    def tokenizer(self) -> Any:
        """The bundle's tokenizer, loaded when it is first needed."""
        if self._tokenizer is None:
            from transformers import AutoTokenizer

            with _named(self.bundle, "tokenizer"):
                folder = self.bundle / form.TOKENIZER
                self._tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
        return self._tokenizer

    @property
    def name(self) -> str:
        """The bundle's name."""
        return str(self.manifest.data["name"])

    def encode_input(self, capability: str, values: Any) -> str:
        """The prompt of something that is no text, such as an image [8, 8] in [0, 1], by a capability's encoder.

        Raises RecurosError: E2-USAGE (the capability has none), E2-DATA (not what it encodes).
        """
        return self._tower(capability)[0].encode(values)

    def decode_answer(self, capability: str, answer: str) -> int:
        """What an answer means, by a capability's decoder: the number of a class (E2-DATA where it names none)."""
        return self._tower(capability)[1].decode(answer)

    def _tower(self, capability: str) -> pixels.Towers:
        if capability not in self.towers:
            there = ", ".join(self.towers) or "none"
            raise RecurosError(
                "E2-USAGE", f"capability {capability!r:.60} has no encoder", hint=f"those with one: {there}"
            )
        return self.towers[capability]

    def render_chat(self, messages: Sequence[Mapping[str, str]]) -> str:
        """A chat as a prompt: by the tokenizer's template where it has one, else the contents with a line feed between."""
        if getattr(self.tokenizer, "chat_template", None) is None:
            return "\n".join(message["content"] for message in messages)
        with _named(self.bundle, "chat template"):
            found: str = self.tokenizer.apply_chat_template(
                [dict(message) for message in messages], tokenize=False, add_generation_prompt=True
            )
            return found

    def route(self, prompt: str) -> Route:
        """What the router says of a prompt; never a gated capability."""
        return Route(None, {}) if self.router is None else self.router.route(prompt)

    @overload
    def generate(
        self,
        prompt: str,
        capability: str | None = None,
        enable_uncensored: bool = False,
        *,
        stream: Literal[True],
        **options: Unpack[Options],
    ) -> Generator[str, None, None]: ...

    @overload
    def generate(
        self,
        prompt: str,
        capability: str | None = None,
        enable_uncensored: bool = False,
        *,
        stream: Literal[False] = False,
        **options: Unpack[Options],
    ) -> str: ...

    def generate(
        self,
        prompt: str,
        capability: str | None = None,
        enable_uncensored: bool = False,
        *,
        stream: bool = False,
        **options: Unpack[Options],
    ) -> str | Generator[str, None, None]:
        """The text that follows a prompt; with `stream`, its pieces as they come.

        `capability`: None lets the router choose. `enable_uncensored`: the opt-in for a gated capability, for this call. More: `Options`.
        The answer ends at the context's end too. Everything is checked at the call, not at the first piece; streams may run at once.
        Raises RecurosError: E5-DENIED (gated, no opt-in), E4-NOENT (no such capability), E2-LIMIT (prompt longer than the context).
        """
        chosen = self.choose(prompt, capability, enable_uncensored=enable_uncensored)
        pieces = self._prepare(prompt, chosen, **options)
        return pieces if stream else "".join(pieces)

    def _prepare(
        self,
        prompt: str,
        chosen: form.Capability | None,
        *,
        max_new_tokens: int = DEFAULT_TOKENS,
        temperature: float = 0.0,
        top_p: float = 1.0,
        seed: int = 42,
        stop: str | Sequence[str] | None = None,
        outcome: decode.Outcome | None = None,
    ) -> Generator[str, None, None]:
        """Check a call's options and encode its prompt."""
        choice, stops = decode.Choice(temperature, top_p, seed), decode.checked_stops(stop)
        if isinstance(max_new_tokens, bool) or not isinstance(max_new_tokens, int) or max_new_tokens < 1:
            raise RecurosError(
                "E2-LIMIT",
                f"max_new_tokens is {max_new_tokens!r}; it is at least 1",
                hint=f"leave it out for {DEFAULT_TOKENS}",
            )
        context = self.student.config.context
        ids = decode.encode(self.tokenizer, prompt, context).to(self.student.device)
        room = max_new_tokens if context is None else min(max_new_tokens, context - ids.shape[1])
        outcome = outcome or decode.Outcome()
        outcome.prompt_tokens = ids.shape[1]
        return decode.until(self._run(ids, chosen, choice, room, outcome), stops, outcome)

    def choose(self, prompt: str, capability: str | None, *, enable_uncensored: bool = False) -> form.Capability | None:
        """The capability that a call gets (E4-NOENT, E5-DENIED)."""
        if enable_uncensored is not True and enable_uncensored is not False:
            raise RecurosError(
                "E2-USAGE", f"enable_uncensored is {enable_uncensored!r}; only True opens a gate", hint="True"
            )
        name = self.route(prompt).capability if capability is None else capability
        if name is None:
            return None
        found = self.manifest.capabilities.get(name) if isinstance(name, str) else None
        if found is None:
            there = ", ".join(self.capabilities) or "none"
            raise RecurosError("E4-NOENT", f"this bundle has no capability {name!r:.60}", hint=f"there are: {there}")
        if found.gated and not enable_uncensored:
            raise RecurosError(
                "E5-DENIED",
                f"capability {name!r} is gated and this call did not ask for it",
                hint="generate(..., enable_uncensored=True), if you mean it",
            )
        return found

    def _run(
        self, ids: Tensor, chosen: form.Capability | None, choice: decode.Choice, room: int, outcome: decode.Outcome
    ) -> Generator[str, None, None]:
        adapter = self._adapter(chosen)

        def step(**inputs: Any) -> Any:
            with self._turn, self.student.acting(adapter), torch.inference_mode():
                return self.student(**inputs)

        text = decode.Text(self.tokenizer)
        for token in decode.tokens(step, ids, choice, room, self._ends(), outcome):
            if piece := text.push(token):
                yield piece
        if piece := text.finish():
            yield piece

    def _adapter(self, chosen: form.Capability | None) -> Adapter | None:
        """A capability's adapter. A gated one is verified and read now, belongs to this call only and is no part of the student."""
        if chosen is None or not chosen.adapter:
            return None
        with self._turn:
            if chosen.name in self.student.adapter_names:
                return self.student.adapter(chosen.name)
            if problem := verify.check_file(self.bundle, self.manifest, chosen.adapter):
                raise RecurosError("E9-INTEGRITY", f"{self.bundle}: {problem}", hint="fetch the bundle again")
            adapter = read_adapter(self.student, self.bundle, self.manifest, chosen)
            if not chosen.gated:
                self.student.attach(chosen.name, adapter)
            return adapter

    def _ends(self) -> frozenset[int]:
        found = self.student.config.text_config.eos_token_id
        given = found if isinstance(found, list | tuple) else [found, getattr(self.tokenizer, "eos_token_id", None)]
        return frozenset(int(token) for token in given if token is not None)


def install(
    path: Path | str, *, expect: str = "", enable_uncensored: bool = False, remember: bool = True
) -> tuple[verify.Verdict, form.Manifest]:
    """Check everything there is to check of a bundle: hashes, finiteness, that adapters fit. `remember`: leave a stamp.

    `enable_uncensored`: look at gated files too.
    """
    bundle = Path(path)
    manifest = form.read_manifest(bundle)

    def check() -> verify.Verdict:
        if enable_uncensored:
            verify.verify(bundle, manifest, gate_open=True).raise_if_bad(bundle)
        model = NexusModel.load(bundle, expect=expect or manifest.bundle_id, full=True)
        for capability in manifest.capabilities.values():
            wanted = capability.adapter and (enable_uncensored or not capability.gated)
            if wanted and capability.name not in model.student.adapter_names:
                read_adapter(model.student, bundle, manifest, capability)
        if enable_uncensored:
            model.verdict.skipped = []
        return model.verdict

    return (verify.stamp(bundle, manifest, check) if remember else check()), manifest


def load_student(
    bundle: Path, manifest: form.Manifest, device: torch.device | str = "cpu", *, check: bool
) -> tuple[NexusStudent, str]:
    """The backbone without adapters, its weights mapped from the file, and how it runs. `check`: look for numbers that are not finite."""
    from transformers.initialization import no_init_weights

    config = form.read_json(bundle / form.CONFIG)
    if not isinstance(config, dict) or not isinstance(config.get("text_config"), dict):
        raise RecurosError("E9-INTEGRITY", f"{bundle / form.CONFIG} has no text_config", hint="fetch the bundle again")
    with _named(bundle, form.CONFIG), no_init_weights():
        student = NexusStudent(NexusConfig.from_dict({**config, "adapters": {}}))
    state, about = read_tensors(bundle / form.BACKBONE)
    if check:
        _finite(state, form.BACKBONE)
    bound = about.get("quantized_from", manifest.files[form.BACKBONE][0])
    if bound != manifest.backbone_id:
        raise RecurosError(
            "E9-INTEGRITY", f"{form.BACKBONE} is not the backbone {manifest.backbone_id[:16]} of the manifest"
        )
    runs = "as stored"
    if manifest.scheme != "none":
        state, runs = quantized.install(
            student.backbone, state, quantized.checked_scheme(manifest.scheme), torch.device(device)
        )
    fill(student.backbone, state, form.BACKBONE)
    student.eval()
    student.requires_grad_(False)
    return student, runs


def read_adapter(student: NexusStudent, bundle: Path, manifest: form.Manifest, capability: form.Capability) -> Adapter:
    """One capability's adapter, on the student's device but no part of it, if it belongs to this backbone (E9-INTEGRITY otherwise)."""
    path = bundle / capability.adapter
    state, about = read_tensors(path)
    if about.get("format") != form.ADAPTER_FORMAT:
        raise RecurosError(
            "E9-VERSION",
            f"{path}: format {about.get('format')!r}, and this reads {form.ADAPTER_FORMAT!r}",
            hint="another loader",
        )
    if about.get("capability") != capability.name:
        raise RecurosError(
            "E9-INTEGRITY", f"{path} is the adapter of {about.get('capability')!r}, not of {capability.name!r}"
        )
    if about.get("backbone") != manifest.backbone_id:
        raise RecurosError(
            "E9-INTEGRITY",
            f"{path} was trained on backbone {str(about.get('backbone'))[:16]}, and this one is {manifest.backbone_id[:16]}",
            hint="use the adapter with the bundle that it came in",
        )
    _finite(state, str(path))
    try:
        adapter = student.blank_adapter(about["rank"], list(about["layers"]))
    except (KeyError, TypeError, RecurosError) as error:
        raise RecurosError(
            "E9-INTEGRITY", f"{path}: its header is damaged: {error}", hint="fetch the bundle again"
        ) from error
    fill(adapter, {key: value.to(student.device) for key, value in state.items()}, str(path))
    adapter.eval().requires_grad_(False)
    return adapter


def read_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """A safetensors file's tensors, mapped, and what its header says of it (E9-INTEGRITY)."""
    try:
        with safe_open(str(path), framework="pt") as file:
            about = form.parse_json((file.metadata() or {}).get("nexus", "{}").encode(), str(path))
            return {key: file.get_tensor(key) for key in file.keys()}, about if isinstance(about, dict) else {}  # noqa: SIM118
    except (SafetensorError, OSError, ValueError) as error:
        raise RecurosError("E9-INTEGRITY", f"{path} cannot be read: {error}", hint="fetch the bundle again") from error


def fill(module: Any, state: dict[str, Tensor], name: str) -> None:
    """Put tensors in the place of a module's, without a copy; every name and shape must fit."""
    there = module.state_dict().keys()
    tied = set(getattr(module, "all_tied_weights_keys", None) or {}) & there  # a quantized head is its own
    try:
        missing, unexpected = module.load_state_dict(state, strict=False, assign=True)
    except RuntimeError as error:
        raise RecurosError("E9-INTEGRITY", f"{name} does not fit the model: {error}"[:400]) from error
    missing = [key for key in missing if key not in tied]
    if missing or unexpected:
        odd = f"{missing[0]} is missing" if missing else f"{unexpected[0]} is not of this model"
        raise RecurosError("E9-INTEGRITY", f"{name} does not fit the model: {odd}", hint="fetch the bundle again")
    if tied:
        module.tie_weights()


def _finite(state: dict[str, Tensor], name: str) -> None:
    if key := first_not_finite(state):
        raise RecurosError(
            "E2-MODEL", f"{name} holds a number that is not finite, in {key}", hint="do not use this bundle"
        )


def read_towers(bundle: Path, manifest: form.Manifest) -> dict[str, pixels.Towers]:
    """Encoder and decoder of each capability that has them."""
    found = {}
    for name, capability in manifest.capabilities.items():
        if "encoder" in capability.about:
            encoder, decoder = (form.tower_path(end, name) for end in form.TOWERS)
            found[name] = (
                pixels.encoder_of(form.read_json(bundle / encoder), encoder),
                pixels.decoder_of(form.read_json(bundle / decoder), decoder),
            )
    return found


def _check_router(router: Router, manifest: form.Manifest) -> None:
    for name in router.capabilities:
        if name not in manifest.capabilities or manifest.capabilities[name].gated:
            raise RecurosError("E9-INTEGRITY", f"{form.ROUTER} routes to {name!r}, which the manifest does not let it")


@contextlib.contextmanager
def _named(bundle: Path, part: str) -> Iterator[None]:
    """What a library raises over a bundle's part, as a coded error that names it."""
    try:
        yield
    except RecurosError:
        raise
    except Exception as error:
        raise RecurosError("E2-MODEL", f"{bundle}: {part}: {type(error).__name__}: {error}"[:500]) from error
