"""Linear layers with quantized weights: how they are made, stored and run.

| scheme | stored | runs on a CPU as |
|---|---|---|
| `qint8` | int8, one scale a row | dynamic int8 (weights and activations), 7 bits of activation so that no instruction set overflows |
| `int8pack` | int8, one scale a row | int8 weights times bfloat16 activations |
| `int8` | int8, one scale a row (bitsandbytes' vector-wise form) | storage only: dequantized when loaded |
| `nf4` | 4 bits, one scale for 64 numbers (QLoRA, arXiv:2305.14314), by bitsandbytes | storage only: dequantized when loaded |

On another device than the CPU every scheme is dequantized. `install` says which way it took.
Responsible for: the numbers. Refuses: models whose layers are not `nn.Linear`, schemes that it does not know.
"""

from __future__ import annotations

import contextlib
import logging
import warnings
from collections.abc import Iterator
from typing import Any, Final

import torch
from torch import Tensor, nn
from torch.nn import functional

from syscalls.errors import RecurosError

SCHEMES: Final = ("qint8", "int8pack", "int8", "nf4")
DYNAMIC: Final = frozenset(("qint8", "int8pack"))
SCALE: Final = ".scale"
CODE: Final = "nf4.code"
NF4_BLOCK: Final = 64
INT8_TOP: Final = 127
PACK: Final = 64


def checked_scheme(scheme: object) -> str:
    """A scheme's name (E2-USAGE)."""
    if isinstance(scheme, str) and scheme in SCHEMES:
        return scheme
    raise RecurosError("E2-USAGE", f"{scheme!r:.40} is not a scheme", hint=f"there are: {', '.join(SCHEMES)}")


def linears(backbone: Any, scheme: str) -> dict[str, nn.Linear]:
    """The layers that a scheme quantizes, by name: all linear ones; for storage schemes not the output head, which costs most there."""
    strange = {type(m).__name__ for m in backbone.modules() if type(m).__name__ == "Conv1D"}
    found = {name: m for name, m in backbone.named_modules() if isinstance(m, nn.Linear)}
    if scheme not in DYNAMIC:
        head = backbone.get_output_embeddings()
        found = {name: m for name, m in found.items() if m is not head}
    if strange or not found:
        raise RecurosError(
            "E2-MODEL",
            f"{type(backbone).__name__} keeps its weights in {', '.join(strange) or 'no linear layer'}, which cannot be quantized here",
            hint="quantize a model whose layers are nn.Linear (Llama, GPT-NeoX, Qwen, ...)",
        )
    return found


# Making


def quantize_state(backbone: Any, state: dict[str, Tensor], scheme: str) -> dict[str, Tensor]:
    """A backbone's stored state with its linear weights quantized; everything else as it was. `state`: without tied names."""
    found = dict(state)
    for name, module in linears(backbone, scheme).items():
        weight = module.weight.detach().float()
        if scheme == "nf4":
            packed, absmax, found[CODE] = to_nf4(weight)
        else:
            packed, absmax = to_int8(weight)
        found[f"{name}.weight"], found[f"{name}{SCALE}"] = packed, absmax
    return found


def to_int8(weight: Tensor) -> tuple[Tensor, Tensor]:
    """int8 [N, K] and scales [N] of a weight [N, K]: the largest number of a row becomes 127."""
    scale = weight.abs().amax(1).clamp_min(torch.finfo(torch.float32).tiny) / INT8_TOP
    return (weight / scale[:, None]).round().clamp(-INT8_TOP, INT8_TOP).to(torch.int8), scale


def to_nf4(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Packed halves uint8, scales and the 16 levels of a weight."""
    with quiet_import():
        import bitsandbytes.functional as bnb
    packed, state = bnb.quantize_4bit(
        weight.contiguous(), blocksize=NF4_BLOCK, quant_type="nf4", compress_statistics=False
    )
    return packed.flatten(), state.absmax, state.code.clone()


@contextlib.contextmanager
def quiet_import() -> Iterator[None]:
    """bitsandbytes says at import which faster kernels it did not find; storage needs none."""
    logger = logging.getLogger("bitsandbytes")
    level = logger.level
    logger.setLevel(logging.CRITICAL)
    try:
        yield
    finally:
        logger.setLevel(level)


# Running


def install(
    backbone: Any, state: dict[str, Tensor], scheme: str, device: torch.device
) -> tuple[dict[str, Tensor], str]:
    """Put quantized layers into a backbone. Returns the state that is left for ordinary loading, and how the layers run."""
    dynamic = scheme in DYNAMIC and device.type == "cpu"
    rest = dict(state)
    code = rest.pop(CODE, None)
    for name, module in linears(backbone, scheme).items():
        try:
            packed, scale = rest.pop(f"{name}.weight"), rest.pop(f"{name}{SCALE}")
        except KeyError as missing:
            raise RecurosError("E9-INTEGRITY", f"the quantized backbone has no {missing.args[0]}") from None
        shape = (module.out_features, module.in_features)
        _check(name, packed, scale, code, shape)
        if not dynamic:
            rest[f"{name}.weight"] = dequantize(packed, scale, code, shape)
            continue
        bias = rest.pop(f"{name}.bias", None)
        made = (Dynamic if scheme == "qint8" else Packed)(packed, scale, bias)
        parent, _, last = name.rpartition(".")
        setattr(backbone.get_submodule(parent), last, made)
    return rest, f"{scheme} on the CPU" if dynamic else f"dequantized from {scheme}"


def _check(name: str, packed: Tensor, scale: Tensor, code: Tensor | None, shape: tuple[int, int]) -> None:
    count = shape[0] * shape[1]
    if packed.dtype == torch.int8:
        fits = packed.shape == shape and scale.shape == (shape[0],)
    else:
        blocks = -(-count // NF4_BLOCK)
        fits = (
            packed.dtype == torch.uint8
            and packed.shape == (-(-count // 2),)
            and scale.shape == (blocks,)
            and code is not None
            and code.shape == (16,)
        )
    if not fits or not scale.is_floating_point():
        raise RecurosError("E9-INTEGRITY", f"the quantized weight {name} does not fit its layer {list(shape)}")


def dequantize(packed: Tensor, scale: Tensor, code: Tensor | None, shape: tuple[int, int]) -> Tensor:
    """float32 [N, K] of int8 with row scales, or of NF4 (two numbers a byte, the high half first) with block scales."""
    if code is None or packed.dtype == torch.int8:
        return packed.float() * scale.float()[:, None]
    levels = code.float()[torch.stack([packed >> 4, packed & 15], 1).flatten().long()]
    count = shape[0] * shape[1]
    return (levels[:count] * scale.float().repeat_interleave(NF4_BLOCK)[:count]).view(shape)


class Packed(nn.Module):
    """int8 weights, bfloat16 activations.

    The kernel reads past rows whose length is no multiple of 16 and crashes on memory that is not aligned, such as a mapped file's:
    weights and activations are put into padded memory of our own.
    """

    packed: Tensor
    scale: Tensor

    def __init__(self, packed: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = packed.shape
        width, height = (-(-size // PACK) * PACK for size in (self.in_features, self.out_features))
        own = torch.zeros(height, width, dtype=torch.int8)
        own[: self.out_features, : self.in_features] = packed
        scales = torch.zeros(height, dtype=torch.bfloat16)
        scales[: self.out_features] = scale
        self.register_buffer("packed", own, persistent=False)
        self.register_buffer("scale", scales, persistent=False)
        self.bias = None if bias is None else nn.Parameter(bias, requires_grad=False)

    def forward(self, inputs: Tensor) -> Tensor:
        """[..., K] to [..., N]."""
        rows = inputs.reshape(-1, self.in_features)
        if self.in_features != self.packed.shape[1]:
            rows = functional.pad(rows, (0, self.packed.shape[1] - self.in_features))
        rows = rows.clone() if rows.dtype == torch.bfloat16 else rows.bfloat16()
        out: Tensor = torch._weight_int8pack_mm(rows, self.packed, self.scale)[:, : self.out_features]
        out = out if self.bias is None else out.float() + self.bias
        return out.to(inputs.dtype).reshape(*inputs.shape[:-1], self.out_features)


class Dynamic(nn.Module):
    """int8 weights, activations quantized for each call."""

    def __init__(self, packed: Tensor, scale: Tensor, bias: Tensor | None) -> None:
        super().__init__()
        self.out_features, self.in_features = packed.shape
        with warnings.catch_warnings():  # torch means to move these to another package
            warnings.simplefilter("ignore")
            zeros = torch.zeros(self.out_features, dtype=torch.long)
            weight = torch._make_per_channel_quantized_tensor(packed.contiguous(), scale.double(), zeros, 0)
            self.prepacked = torch.ops.quantized.linear_prepack(weight, bias)

    def forward(self, inputs: Tensor) -> Tensor:
        """[..., K] to [..., N]."""
        out: Tensor = torch.ops.quantized.linear_dynamic(inputs.float(), self.prepacked, True)
        return out.to(inputs.dtype)
