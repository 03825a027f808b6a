"""The compile worker: bytecode in, machine code out, in a process of its own.

Responsible for: keeping LLVM, its memory and its crashes out of the learner. Run as `python -m probes.jit_worker`: requests come
on standard input and answers go to standard output, each a length (u32, little-endian) and a msgpack list: [serial, program] in;
[serial, "ok", image, milliseconds] or [serial, "error", reason] out; first of all [0, "ready", host key]. It ends with its input.
Refuses: programs that do not decode or nest, objects that need anything outside themselves, and any one compilation that takes
longer than SECONDS_MAX, which ends the process. No fast-math, no fused multiply-add, and never a number from here.
"""

from __future__ import annotations

import ctypes
import os
import signal
import struct
import sys
import time
from typing import Any, BinaryIO, Final

import llvmlite.binding as llvm
import msgpack

from probes import isa, jit_code, jit_host, jit_link, jit_parts
from syscalls.errors import RecurosError

SECONDS_MAX: Final = 30
FRAME_BYTES_MAX: Final = isa.PROGRAM_BYTES_MAX + 64
_LENGTH: Final = struct.Struct("<I")
_PR_SET_PDEATHSIG: Final = 1


class Backend:
    """LLVM for this machine's processor."""

    def __init__(self, level: int = 2) -> None:
        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        target = llvm.Target.from_default_triple()
        self.machine = target.create_target_machine(
            cpu=llvm.get_host_cpu_name(),
            features=llvm.get_host_cpu_features().flatten(),
            opt=level,
            reloc="pic",
            codemodel="small",
        )
        self._options = llvm.create_pipeline_tuning_options(speed_level=level)
        # Vectors are written as vectors; looking for more only costs compile time.
        for option in ("loop_vectorization", "slp_vectorization", "loop_unrolling", "loop_interleaving"):
            setattr(self._options, option, False)
        self._library: dict[str, bytes] = {}

    def optimised(self, text: str) -> Any:
        """A module after LLVM's passes."""
        module = llvm.parse_assembly(text)
        module.triple, module.data_layout = self.machine.triple, str(self.machine.target_data)
        builder = llvm.create_pass_builder(self.machine, self._options)
        builder.getModulePassManager().run(module, builder)
        return module

    def part(self, name: str) -> bytes:
        """A module of the library as an object, compiled when it is first asked for."""
        if name not in self._library:
            self._library[name] = self.machine.emit_object(self.optimised(jit_parts.part(name)))
        return self._library[name]

    def compile(self, program: isa.Bytecode) -> bytes:
        """The program's image; LinkError, RecurosError or RuntimeError (from LLVM) say why there is none."""
        text = jit_code.function(program)
        code = self.machine.emit_object(self.optimised(jit_parts.complete(text)))
        return jit_link.pack_image(*jit_link.link([code, *map(self.part, jit_parts.needed(text))], jit_code.ENTRY))

    def assembly(self, program: isa.Bytecode) -> str:
        """The machine code as text, for readers and for the test that nothing was fused."""
        text = jit_code.function(program)
        modules = [jit_parts.complete(text), *map(jit_parts.part, jit_parts.needed(text))]
        return "\n".join(self.machine.emit_assembly(self.optimised(module)) for module in modules)


def main() -> int:
    """Serve until standard input ends."""
    # The learner may be killed; a compilation nobody waits for must not outlive it.
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    os.nice(10)
    requests, answers = sys.stdin.buffer, os.fdopen(os.dup(1), "wb", buffering=0)
    os.dup2(2, 1)  # whatever LLVM prints must not enter the stream
    backend = Backend()
    for name in jit_parts.names():
        backend.part(name)
    backend.compile(_WARM)
    _send(answers, [0, "ready", jit_host.host_key()])
    while (request := _receive(requests)) is not None:
        serial, data = request
        _send(answers, [serial, *_answer(backend, data)])
    return 0


def _answer(backend: Backend, data: bytes) -> list[Any]:
    started = time.monotonic()
    signal.alarm(SECONDS_MAX)
    try:
        image = backend.compile(isa.decode(data))
    except (RecurosError, jit_link.LinkError, RuntimeError) as e:
        return ["error", f"{type(e).__name__}: {e}"[:500]]
    finally:
        signal.alarm(0)
    return ["ok", image, (time.monotonic() - started) * 1e3]


def _receive(stream: BinaryIO) -> tuple[int, bytes] | None:
    head = stream.read(_LENGTH.size)
    if len(head) < _LENGTH.size:
        return None
    (length,) = _LENGTH.unpack(head)
    if length > FRAME_BYTES_MAX:
        return None
    serial, data = msgpack.unpackb(stream.read(length))
    return int(serial), bytes(data)


def _send(stream: Any, message: list[Any]) -> None:
    packed = msgpack.packb(message)
    view = memoryview(_LENGTH.pack(len(packed)) + packed)
    while view:
        view = view[stream.write(view) :]


# The first compilation in a process pays for LLVM's own initialisation; it is done before anybody waits.
_WARM: Final = isa.Bytecode(
    "warm",
    "on_forward",
    1,
    (isa.MapSpec("m", isa.MapKind.ARRAY, 1),),
    (
        isa.Instruction(isa.BY_NAME["VARG"]),
        isa.Instruction(isa.BY_NAME["SUM"]),
        isa.Instruction(isa.BY_NAME["FEXP"]),
        isa.Instruction(isa.BY_NAME["MADD"]),
        isa.Instruction(isa.BY_NAME["EXIT"]),
    ),
)

if __name__ == "__main__":
    sys.exit(main())
