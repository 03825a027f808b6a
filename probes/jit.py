"""The compiler as the learner sees it: a worker process, a cache of finished images, and machine code ready to be called.

Responsible for: asking the worker (`probes.jit_worker`) without waiting for it, keeping what it made under a key of program,
processor and compiler, and mapping an image so that it can run: written once to an anonymous file, mapped readable and executable,
never writable. Whatever goes wrong (no llvmlite, another machine, a worker that died or hangs, a damaged image) is a reason in
words, and the program stays with the interpreter. LLVM is never loaded into this process.
Refuses: images whose checksum or host key does not match, and more than STARTS_MAX workers that died.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import select
import struct
import subprocess
import sys
import time
from pathlib import Path
from typing import Any, Final, Protocol

import msgpack
import numpy as np

from probes import isa, jit_host, jit_link

STARTS_MAX: Final = 3
TIMEOUT_S: Final = 30.0
ANSWER_BYTES_MAX: Final = jit_link.IMAGE_BYTES_MAX + 4_096
MEMORY_CACHE_MAX: Final = 256
_LENGTH: Final = struct.Struct("<I")
_ROOT: Final = Path(__file__).resolve().parent.parent
# Calls without releasing the interpreter lock: releasing and taking it costs more than a small firing, and a firing's cost is bounded.
_FIRE: Final = ctypes.PYFUNCTYPE(ctypes.c_int64, ctypes.c_void_p)


class JitUnavailableError(RuntimeError):
    """There is no machine code for this program; the message says why."""


class ObjectCache(Protocol):
    """Where finished images are kept, by key (64 hexadecimal digits). It may lose anything at any time."""

    def get(self, key: str) -> bytes | None:
        """The image made for this key, or None."""

    def put(self, key: str, data: bytes) -> None:
        """Keep an image."""


class MemoryCache:
    """An ObjectCache in this process; the oldest image goes when it is full."""

    def __init__(self) -> None:
        self._held: dict[str, bytes] = {}

    def get(self, key: str) -> bytes | None:
        """The image made for this key, or None."""
        return self._held.get(key)

    def put(self, key: str, data: bytes) -> None:
        """Keep an image."""
        self._held[key] = data
        if len(self._held) > MEMORY_CACHE_MAX:
            del self._held[next(iter(self._held))]


class Image:
    """A program's machine code, mapped. `fire(address of a firing)` returns 0 or a fault; see `probes.jit_code`."""

    def __init__(self, data: bytes) -> None:
        """Raises JitUnavailableError when the bytes are not a whole image or may not be made executable here."""
        try:
            code, entry = jit_link.unpack_image(data)
            file = os.memfd_create("obpf-image", os.MFD_CLOEXEC)
            try:
                os.write(file, code)
                self._map = mmap.mmap(file, len(code), mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_EXEC)
            finally:
                os.close(file)
        except (jit_link.LinkError, OSError) as e:
            raise JitUnavailableError(f"the image cannot be mapped: {e}") from e
        self.bytes = len(code)
        address = int(np.frombuffer(self._map, np.uint8).ctypes.data)
        self.fire = _FIRE(address + entry)


class Compiler:
    """Compiles programs in a worker process. All calls come from one thread; only `compile` waits.

    `cache`: where images are looked for first and kept; `command`: how the worker is started.
    """

    def __init__(
        self, cache: ObjectCache | None = None, *, timeout_s: float = TIMEOUT_S, command: list[str] | None = None
    ) -> None:
        self.cache: ObjectCache = MemoryCache() if cache is None else cache
        self.timeout_s = timeout_s
        self.ready = False
        self.starts = 0
        self.hits = 0
        self.compiled = 0
        self._command = command or [sys.executable, "-m", "probes.jit_worker"]
        self._worker: subprocess.Popen[bytes] | None = None
        self._serial = 0
        self._waiting: dict[int, tuple[str, float]] = {}
        self._done: dict[str, Image | str] = {}
        self._out, self._in = bytearray(), bytearray()
        self._broken = jit_host.unsupported()

    @property
    def unavailable(self) -> str:
        """Why nothing can be compiled, or ""."""
        return self._broken

    def start(self) -> None:
        """Start the worker ahead of need; it is ready about a second later."""
        if self._broken or self._worker is not None:
            return
        if self.starts >= STARTS_MAX:
            self._broken = f"the compile worker died {self.starts} times"
            return
        self.starts += 1
        path = os.pathsep.join(filter(None, (str(_ROOT), os.environ.get("PYTHONPATH", ""))))
        environment = {**os.environ, "PYTHONPATH": path}
        self._worker = subprocess.Popen(
            self._command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, bufsize=0
        )
        for stream in (self._worker.stdin, self._worker.stdout):
            assert stream is not None
            os.set_blocking(stream.fileno(), False)

    def close(self) -> None:
        """End the worker; images that were handed out stay."""
        self._stop("the compiler was closed")

    def find(self, digest: str) -> Image | None:
        """The image of a program (SHA-256, hex) when it was made before; never starts or waits for anything."""
        held = self._done.get(digest)
        if isinstance(held, Image):
            return held
        if self._broken:
            return None
        data = self.cache.get(jit_host.cache_key(digest))
        if data is None:
            return None
        try:
            image = Image(data)
        except JitUnavailableError:
            return None  # a damaged copy in a cache is a miss; it is compiled again
        self.hits += 1
        self._done[digest] = image
        return image

    def request(self, data: bytes) -> None:
        """Have the program of these bytes compiled; `result` tells when. Asking twice asks once."""
        digest = isa.digest(data)
        if digest in self._done or any(digest == waiting for waiting, _ in self._waiting.values()):
            return
        self.start()
        if self._broken:
            self._done[digest] = self._broken
            return
        self._serial += 1
        packed = msgpack.packb([self._serial, data])
        self._out += _LENGTH.pack(len(packed)) + packed
        self._waiting[self._serial] = digest, time.monotonic() + self.timeout_s
        self.poll()

    def result(self, digest: str) -> Image | str | None:
        """The image, or the reason in words why there is none, or None while it is being made."""
        self.poll()
        return self._done.get(digest)

    def forget(self, digest: str) -> None:
        """Drop what is known of a program, so that it can be asked for again."""
        self._done.pop(digest, None)

    def compile(self, data: bytes) -> Image:
        """The image of a program, waiting for it. Raises JitUnavailableError with the reason."""
        digest = isa.digest(data)
        if (found := self.find(digest)) is not None:
            return found
        self.request(data)
        while (held := self.result(digest)) is None:
            self._wait(0.05)
        if isinstance(held, str):
            raise JitUnavailableError(held)
        return held

    def wait_ready(self, timeout_s: float = TIMEOUT_S) -> bool:
        """Start the worker and wait until it answers; False when it does not."""
        self.start()
        deadline = time.monotonic() + timeout_s
        while not self.ready and not self._broken and self._worker is not None and time.monotonic() < deadline:
            self._wait(0.05)
            self.poll()
        return self.ready

    def poll(self) -> None:
        """Send and receive what can be without waiting."""
        worker = self._worker
        if worker is None:
            return
        assert worker.stdin is not None
        assert worker.stdout is not None
        try:
            while self._out:
                sent = os.write(worker.stdin.fileno(), self._out[: 1 << 16])
                del self._out[:sent]
        except BlockingIOError:
            pass
        except OSError as e:
            self._stop(f"the compile worker went away: {e.strerror}")
            return
        self._read(worker)
        late = [digest for digest, deadline in self._waiting.values() if time.monotonic() > deadline]
        if late:
            self._stop(f"the compile worker did not answer in {self.timeout_s:g} s")

    def _read(self, worker: subprocess.Popen[bytes]) -> None:
        assert worker.stdout is not None
        while self._worker is worker:
            try:
                part = os.read(worker.stdout.fileno(), 1 << 16)
            except BlockingIOError:
                return
            if not part:
                code = worker.wait()
                self._stop(
                    f"the compile worker ended with status {code}" if code >= 0 else f"signal {-code} ended the worker"
                )
                return
            self._in += part
            while self._worker is worker and len(self._in) >= _LENGTH.size:
                (length,) = _LENGTH.unpack_from(self._in)
                if length > ANSWER_BYTES_MAX:
                    self._stop(f"the compile worker sent a frame of {length} bytes")
                    return
                if len(self._in) < _LENGTH.size + length:
                    break
                frame = bytes(self._in[_LENGTH.size : _LENGTH.size + length])
                del self._in[: _LENGTH.size + length]
                try:
                    message = msgpack.unpackb(frame)
                except (ValueError, msgpack.UnpackException) as e:
                    self._stop(f"the compile worker sent what is not msgpack: {e}")
                    return
                self._answer(message)

    def _answer(self, message: Any) -> None:
        match message:
            case [0, "ready", str(key)]:
                self.ready = key == jit_host.host_key()
                if not self.ready:
                    self._stop("the compile worker sees another processor or compiler")
                    self._broken = "the compile worker sees another processor or compiler"
            case [int(serial), "ok", bytes(data), float()] if serial in self._waiting:
                digest, _ = self._waiting.pop(serial)
                self._finish(digest, data)
            case [int(serial), "error", str(reason)] if serial in self._waiting:
                digest, _ = self._waiting.pop(serial)
                self._done[digest] = reason
            case _:
                self._stop(f"the compile worker sent {message!r:.80}")

    def _finish(self, digest: str, data: bytes) -> None:
        try:
            self._done[digest] = Image(data)
        except JitUnavailableError as e:
            self._done[digest] = str(e)
            return
        self.compiled += 1
        self.cache.put(jit_host.cache_key(digest), data)

    def _wait(self, seconds: float) -> None:
        """Until there is something to read, or to write, or this long."""
        if self._worker is None:
            return
        assert self._worker.stdin is not None
        assert self._worker.stdout is not None
        select.select([self._worker.stdout], [self._worker.stdin] if self._out else [], [], seconds)

    def _stop(self, reason: str) -> None:
        """End this worker; whatever it had to do has failed for this reason."""
        worker, self._worker, self.ready = self._worker, None, False
        for digest, _ in self._waiting.values():
            self._done[digest] = reason
        self._waiting.clear()
        self._out.clear()
        self._in.clear()
        if worker is not None:
            worker.kill()
            worker.wait()
            for stream in (worker.stdin, worker.stdout):
                if stream is not None:
                    stream.close()
