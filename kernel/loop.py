"""The kernel's one IO loop: the only file of the kernel with sockets and a clock.

Responsible for: turning what arrives into events with an attested sender, and effects into what is sent. Identity
comes from libzmq's ZAP handshake (SO_PEERCRED of the connecting process) and is checked on every message by its
User-Id; routing ids are addresses, never identity. Refuses: peers that the supervisor did not spawn on the servers'
socket; other users, and servers' children, on the operators' socket; keys that the manifest does not list, over TCP.
"""

from __future__ import annotations

import os
import signal
import socket
import time
from collections import deque
from pathlib import Path
from typing import Any, NamedTuple

import msgpack
import zmq

from kernel import channels, config, core, packets
from kernel.events import (
    Again,
    Boot,
    ChannelSet,
    ClosePage,
    Continue,
    DrainWanted,
    Effect,
    Event,
    Exit,
    Exited,
    Kill,
    LeaseOver,
    PageAnswer,
    PageKept,
    PageLeased,
    PageOffered,
    PageWanted,
    Received,
    Refused,
    Renice,
    Report,
    Sampled,
    Send,
    Spawn,
    Spawned,
    Tick,
)
from kernel.procs import ancestors, cpu_ns, has_file, rss_bytes
from kernel.state import State
from syscalls import direct, limits, pages, remote, wire
from syscalls.errors import RecurosError

SAMPLE_NS = 1_000_000_000
UNREAD_NS = 5_000_000
"""How soon a peer that had no room is tried again."""
PER_TURN_MAX = 64
TOO_MANY = "too many handshakes a second"
EARLY = "the supervisor has not said yet which server this process is"
AGAIN_LATER = frozenset({TOO_MANY, EARLY})
"""Refusals for now: the peer is told nothing, is cut after HANDSHAKE_MS, and comes again by itself. Any other is for good."""
HANDSHAKE_MS = 2_000
LOCAL, REMOTE = b"l", b"r"
"""First byte of an operator's route."""


class Who(NamedTuple):
    """The sender of a message, by its User-Id."""

    principal: str
    operator: bool
    socket: bytes
    incarnation: int


class Loop:
    """Sockets, descriptors and the process table of one kernel."""

    def __init__(self, doc: dict[str, Any], control: socket.socket) -> None:
        self.control = control
        self.config = config.parse(doc)
        self.directory = Path(doc["sockets"])
        self.state: State | None = None
        self.exit_status: int | None = None
        self.again = False
        self.pids: dict[int, tuple[str, int]] = {}  # pid -> server name, incarnation
        self.pidfds: dict[int, int] = {}
        self.incarnations: dict[str, int] = {}
        self.supervisor = os.getppid()
        self.conns: dict[int, tuple[socket.socket, str]] = {}
        self.fds: dict[int, int] = {}  # page -> descriptor
        self.leased: dict[tuple[str, int, int], os.stat_result] = {}  # pages that a revocation took from a server
        self.found: deque[Event] = deque()  # what effects brought to light; told to the core when they are all done
        self.table = self._table()
        self.next_page = 1
        self.operators = 0
        self.handshakes: deque[int] = deque()
        self.remote_handshakes: deque[int] = deque()  # apart: a flood from outside keeps nobody of this machine out
        self.users: dict[str, Who] = {}
        self.unread: dict[tuple[bool, bytes], deque[bytes]] = {}
        self.dropped = self.dropped_told = 0
        self.context = zmq.Context()
        self.zap = self.context.socket(zmq.REP)
        self.zap.bind("inproc://zeromq.zap.01")
        self.servers = self._router("server")
        self.operators_socket = self._router("operator")
        self.listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET | socket.SOCK_CLOEXEC)
        self.listener.bind(str(self.directory / "pages.sock"))
        self.listener.listen(limits.SERVERS_MAX)
        self.listener.setblocking(False)
        self.remote_at: dict[str, str] = {}  # address and public key, where remote operators are let in
        self.allowed: frozenset[bytes] = frozenset()
        self.remote = self._remote(dict(doc.get("remote") or {}))
        self.poller = zmq.Poller()
        for sock in (self.zap, self.servers, self.operators_socket, self.remote):
            self.poller.register(sock, zmq.POLLIN)
        self.poller.register(self.listener.fileno(), zmq.POLLIN)
        self.poller.register(self.control.fileno(), zmq.POLLIN)

    def _table(self) -> direct.Generations | None:
        """The page of generations, where direct channels are declared: the only page that the kernel writes."""
        if not any(server.direct for server in self.config.servers.values()):
            return None
        page = pages.WritePage(channels.TABLE_BYTES, "channels")
        self.fds[channels.TABLE_PAGE] = page.fd
        return direct.Generations(page.view)

    def _remote(self, options: dict[str, Any]) -> zmq.Socket[bytes]:
        """The socket of remote operators. It is bound only where the manifest says so; every key that it lets in is listed there."""
        sock = self._unbound("remote")
        if not options.get("listen"):
            return sock
        public, secret = remote.server_keys(Path(self.config.run))
        self.allowed = frozenset(remote.key_bytes(key, "remote.allow") for key in options["allow"])
        sock.curve_server = True
        sock.curve_secretkey = secret.encode()
        try:
            sock.bind(f"tcp://{options['listen']}")
        except zmq.ZMQError as error:
            raise RecurosError(
                "E3-BOOT",
                f"remote operators: tcp://{options['listen']}: {error}",
                hint="[remote] listen in the manifest",
            ) from error
        self.remote_at = {"address": sock.getsockopt_string(zmq.LAST_ENDPOINT), "key": public}
        return sock

    def _router(self, name: str) -> zmq.Socket[bytes]:
        sock = self._unbound(name)
        sock.bind(f"ipc://{self.directory / (name + '.sock')}")
        return sock

    def _unbound(self, name: str) -> zmq.Socket[bytes]:
        sock = self.context.socket(zmq.ROUTER)
        sock.setsockopt(zmq.ZAP_DOMAIN, name.encode())
        sock.setsockopt(zmq.ROUTER_MANDATORY, 1)
        sock.setsockopt(zmq.MAXMSGSIZE, limits.FRAME_BYTES_MAX)
        sock.setsockopt(zmq.SNDHWM, 4096)
        sock.setsockopt(zmq.RCVHWM, 4096)
        sock.setsockopt(zmq.LINGER, 500)
        sock.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)  # who was told to try again is let go after this, and does
        return sock

    # --- running ----------------------------------------------------------------------------------------------------------

    def run(self, boot_id: str, environment: dict[str, Any]) -> int:
        """Until an Exit effect; returns its status."""
        self.step(Boot(self.config, boot_id, os.getpid(), environment))
        self.report({"event": "up", "pid": os.getpid()})
        sample_ns = 0
        while self.exit_status is None:
            assert self.state is not None
            now = time.monotonic_ns()
            if now >= sample_ns:
                self.sample()
                sample_ns = now + SAMPLE_NS
            if self.unread or self.dropped > self.dropped_told:
                self.send_unread()
            wake = min(core.next_wake_ns(self.state), sample_ns, now + UNREAD_NS if self.unread else sample_ns)
            ready = dict(self.poller.poll(0 if self.again else max(0, -(-(wake - now) // 1_000_000))))
            self.turn(ready)
            if self.again:
                self.again = False
                self.step(Continue())
            if time.monotonic_ns() >= core.next_wake_ns(self.state):
                self.step(Tick())
        for sock in (self.servers, self.operators_socket, self.remote, self.zap):
            sock.close()
        self.context.term()
        return self.exit_status

    def turn(self, ready: dict[Any, int]) -> None:
        """Take what has arrived. The supervisor first: it says who the peers are."""
        if self.control.fileno() in ready:
            self.from_supervisor()
        if self.zap in ready:
            self.handshake()
        if self.listener.fileno() in ready:
            self.accept()
        for fd in [fd for fd in ready if isinstance(fd, int) and fd in self.conns]:
            self.from_page_socket(fd)
        if self.servers in ready:
            self.receive(self.servers)
        if self.operators_socket in ready:
            self.receive(self.operators_socket)
        if self.remote in ready:
            self.receive(self.remote)

    def step(self, event: Event) -> None:
        """One step of the core and its effects."""
        self.state, effects = core.step(self.state, event, time.monotonic_ns())
        for effect in effects:
            self.perform(effect)
        while self.found:
            self.step(self.found.popleft())

    def perform(self, effect: Effect) -> None:
        """Do what the core asked for."""
        match effect:
            case Send():
                try:
                    self.send(effect.operator, effect.route, wire.encode(effect.frame))
                except RecurosError as error:
                    self._too_large(effect, error)
            case PageAnswer():
                self.page_answer(effect)
            case ChannelSet():
                assert self.table is not None, "a channel that the manifest does not declare"
                self.table[effect.index] = effect.generation
            case ClosePage():
                fd = self.fds.pop(effect.page, -1)
                if fd >= 0:
                    os.close(fd)
            case PageLeased():
                if effect.page in self.fds:
                    self.leased[effect.name, effect.incarnation, effect.slot] = os.fstat(self.fds[effect.page])
            case LeaseOver():
                self.lease_over(effect)
            case Spawn():
                self.tell(["spawn", effect.name, effect.incarnation])
            case Kill():
                self.tell(["kill", effect.name, effect.incarnation, effect.signal, effect.dump])
            case Renice():
                self.tell(["nice", effect.name, effect.incarnation, effect.nice])
            case Report():
                self.report(effect.event)
            case Exit():
                self.exit_status = effect.status
            case Again():
                self.again = True

    def lease_over(self, effect: LeaseOver) -> None:
        """Whether a server kept a page that was revoked is told to the core after this step."""
        file = self.leased.pop((effect.name, effect.incarnation, effect.slot), None)
        pid = next((p for p, who in self.pids.items() if who == (effect.name, effect.incarnation)), 0)
        if file is None or not pid or not effect.look:
            return
        has = has_file(pid, file.st_dev, file.st_ino)
        if has is None:
            why = "page lease: the host does not let the kernel see what the process maps"
            self.found.append(Refused(effect.name, why))
        elif has:
            self.found.append(PageKept(effect.name, effect.incarnation, effect.slot))

    def _too_large(self, effect: Send, error: RecurosError) -> None:
        """An answer that does not fit a frame becomes an error instead of silence."""
        if isinstance(effect.frame, wire.Reply):
            self.send(effect.operator, effect.route, wire.encode(wire.Reply(effect.frame.id, False, error.to_wire())))

    def send(self, operator: bool, route: bytes, data: bytes) -> None:
        """Send, or keep for a peer that reads more slowly than it is answered; what is beyond the bound is dropped and counted."""
        key = (operator, route)
        waiting = self.unread.get(key)
        if waiting is None:
            if self._sent(key, data):
                return
            waiting = self.unread[key] = deque()
        if sum(map(len, waiting)) + len(data) > limits.UNREAD_BYTES_MAX:
            self.dropped += 1
            return
        waiting.append(data)

    def _sent(self, key: tuple[bool, bytes], data: bytes) -> bool:
        """False when the peer's queue is full. A peer that has gone needs nothing; its exit, or its timeout, tells the core."""
        sock, route = self.servers, key[1]
        if key[0]:
            sock, route = (self.remote if route[:1] == REMOTE else self.operators_socket), route[1:]
        try:
            sock.send(route, zmq.NOBLOCK | zmq.SNDMORE)
            sock.send(data, zmq.NOBLOCK)
        except zmq.Again:
            return False
        except zmq.ZMQError:
            return True
        return True

    def send_unread(self) -> None:
        """Try again what peers had no room for, in order; tell the core what was dropped."""
        for key, waiting in list(self.unread.items()):
            while waiting and self._sent(key, waiting[0]):
                waiting.popleft()
            if not waiting:
                del self.unread[key]
        if self.dropped > self.dropped_told:
            self.dropped_told = self.dropped
            self.step(Refused("a peer that does not read", f"unread answer: {self.dropped} dropped so far"))

    def sample(self) -> None:
        """Memory and CPU of everybody, for people."""
        usage = {name: (rss_bytes(pid), cpu_ns(pid)) for pid, (name, _) in self.pids.items()}
        usage["kernel"] = (rss_bytes(os.getpid()), time.process_time_ns())
        self.step(Sampled(usage))

    # --- supervisor -------------------------------------------------------------------------------------------------------

    def tell(self, message: list[Any]) -> None:
        """To the supervisor."""
        self.control.send(msgpack.packb(message))

    def report(self, event: dict[str, Any]) -> None:
        """To the launcher, through the supervisor."""
        self.tell(["report", packets.shortened(event)])

    def from_supervisor(self) -> None:
        """Spawned and exited servers, and the wish to stop."""
        while True:
            try:
                data, fds = packets.receive(self.control, 1 << 16)
            except BlockingIOError:
                return
            if not data:
                raise RecurosError("E3-GONE", "the supervisor has gone")
            match msgpack.unpackb(data):
                case ["spawned", str(name), int(incarnation), int(pid)]:
                    self.pids[pid] = (name, incarnation)
                    self.pidfds[pid] = fds[0]
                    self.incarnations[name] = incarnation
                    self.step(Spawned(name, incarnation, pid))
                case ["exited", str(name), int(incarnation), int(pid), int(status)]:
                    self.pids.pop(pid, None)
                    pidfd = self.pidfds.pop(pid, -1)
                    if pidfd >= 0:
                        os.close(pidfd)
                    # What the server sent before it died comes first: a last `fault` says why.
                    self.receive(self.servers)
                    for fd in [fd for fd, (_, owner) in self.conns.items() if owner == name]:
                        self._hang_up(fd)  # an offer of the dead must not become a page of its successor
                    self.step(Exited(name, incarnation, pid, status))
                case ["drain", str(reason)]:
                    self.step(DrainWanted(reason))

    # --- identity ---------------------------------------------------------------------------------------------------------

    def handshake(self) -> None:
        """ZAP: admit or refuse a connection by the credentials of the process behind it."""
        request = self.zap.recv_multipart()
        version, request_id, domain, address, _, mechanism, *credentials = request
        if domain == b"remote":
            user, reason = self.identify_key(mechanism, credentials)
        else:
            user, reason = self.identify(domain.decode(), address.decode())
        if user:
            reply = [version, request_id, b"200", b"OK", user.encode(), b""]
        else:
            code = b"300" if reason in AGAIN_LATER else b"400"
            reply = [version, request_id, code, reason.encode()[:200], b"", b""]
        self.zap.send_multipart(reply)
        if not user:
            self.step(Refused(f"peer {address.decode()}", f"handshake: {reason}"))

    def identify_key(self, mechanism: bytes, credentials: list[bytes]) -> tuple[str, str]:
        """The principal that a public key is; libzmq has proved by now that the peer holds the secret one."""
        if mechanism != b"CURVE" or len(credentials) != 1:
            return "", f"remote: the mechanism is {mechanism.decode(errors='replace'):.20}"
        if _too_many(self.remote_handshakes):
            return "", TOO_MANY
        if credentials[0] not in self.allowed:
            return "", f"remote: the key {credentials[0].hex()} is not allowed"
        self.operators += 1
        return f"key/{credentials[0].hex()}/{self.operators}", ""

    def identify(self, domain: str, address: str) -> tuple[str, str]:
        """The principal behind ":uid:gid:pid" on a socket, or the empty string and the reason."""
        try:
            uid, _, pid = (int(x) for x in address.rsplit(":", 3)[1:])
        except ValueError:
            return "", f"no peer credentials in {address!r}"
        # A flood of strangers must not keep out the servers, whom the supervisor starts and nobody else.
        if _too_many(self.handshakes) and not (domain == "server" and pid in self.pids):
            return "", TOO_MANY
        if domain == "server":
            self.from_supervisor()
            name, incarnation = self.pids.get(pid, ("", 0))
            if name and self.alive(pid):
                return f"server/{name}/{incarnation}", ""
            if not name and self.supervisor in (ancestors(pid) or [])[1:2]:
                return "", EARLY
            return "", f"pid {pid} was not spawned by the supervisor"
        if uid != os.getuid():
            return "", f"uid {uid} is not the owner {os.getuid()}"
        if why := self.why_no_operator(pid):
            return "", why
        self.operators += 1
        return f"operator/{pid}/{self.operators}", ""

    def why_no_operator(self, pid: int) -> str:
        """Why a process is none: it is a server or comes from one, or it has gone and nobody can tell; empty when it may be one.

        What a server leaves behind when it dies, and what it starts and disowns, becomes the supervisor's child; so does a server that
        has not been announced yet.
        """
        line = ancestors(pid)
        if line is None:
            return f"pid {pid} has gone, and with it what it descends from"
        for at in line:
            if at in self.pids:
                return f"pid {pid} descends from server {self.pids[at][0]}"
        if self.supervisor in line[1:]:
            return f"pid {pid} descends from the supervisor: a server left it behind"
        return ""

    def alive(self, pid: int) -> bool:
        """Whether the process that the supervisor spawned still has this pid."""
        try:
            signal.pidfd_send_signal(self.pidfds[pid], 0)
        except (KeyError, ProcessLookupError):
            return False
        return True

    # --- frames -----------------------------------------------------------------------------------------------------------

    def receive(self, sock: zmq.Socket[bytes]) -> None:
        """At most PER_TURN_MAX frames, so that no peer starves the timers. CPU times are looked up once a turn."""
        cpu: dict[int, int] = {}
        for _ in range(PER_TURN_MAX):
            try:
                first = sock.recv(zmq.NOBLOCK, copy=False)
            except zmq.Again:
                return
            route, user, size = first.bytes, str(first.get("User-Id")), 1
            last = first
            while last.more:
                last, size = sock.recv(copy=False), size + 1
            who = self.users.get(user) or self._who(user)
            if who.operator:
                route = who.socket + route  # which socket an answer goes out at
            elif self.incarnations.get(who.principal) != who.incarnation:
                continue  # a dead incarnation's last words, after its successor was spawned
            if size != 2:
                self.step(Refused(who.principal, f"malformed: a message of {size} parts"))
                continue
            data = last.bytes
            try:
                frame = wire.decode(data)
            except RecurosError as error:
                self.step(Refused(who.principal, f"malformed: {error.message}"))
                continue
            assert self.state is not None
            pid = 0 if who.operator else self.state.servers[who.principal].pid
            if pid and pid not in cpu:
                cpu[pid] = cpu_ns(pid)
            self.step(Received(who.principal, route, frame, cpu.get(pid, 0), len(data)))

    def _who(self, user: str) -> Who:
        """What a User-Id says, which this process gave out itself at the handshake; kept, since every message carries it."""
        role, who, number = user.split("/")
        if role == "server":
            found = Who(who, False, b"", int(number))
        elif role == "key":
            found = Who(f"{remote.PREFIX}{who}.{number}", True, REMOTE, 0)
        else:
            found = Who(f"operator:{who}.{number}", True, LOCAL, 0)
        while len(self.users) >= limits.OPERATORS_MAX + limits.SERVERS_MAX:
            del self.users[next(iter(self.users))]
        self.users[user] = found
        return found

    # --- pages ------------------------------------------------------------------------------------------------------------

    def accept(self) -> None:
        """A connection on the page socket, admitted by the credentials of its process.

        An operator's goes under `operator:PID.`, the beginning of the names of that process's sessions.
        """
        conn, _ = self.listener.accept()
        pid, uid = packets.peer(conn)
        self.from_supervisor()
        name, _ = self.pids.get(pid, ("", 0))
        if not name and pid and uid == os.getuid() and not self.why_no_operator(pid):
            name = f"operator:{pid}."
            mapping = sum(owner.startswith("operator:") for _, owner in self.conns.values())
            if mapping >= limits.OPERATORS_MAX:
                conn.close()
                return
        elif not name or not self.alive(pid):
            conn.close()
            self.step(Refused(f"pid {pid}", "page socket: not spawned by the supervisor"))
            return
        if sum(owner == name for _, owner in self.conns.values()) >= limits.PAGE_CONNECTIONS_MAX:
            conn.close()
            self.step(Refused(name, f"page socket: more than {limits.PAGE_CONNECTIONS_MAX} connections of {name}"))
            return
        conn.setblocking(False)
        self.conns[conn.fileno()] = (conn, name)
        self.poller.register(conn.fileno(), zmq.POLLIN)

    def from_page_socket(self, fd: int) -> None:
        """An offer or a wish; a malformed one closes the connection of its sender and nothing else."""
        conn, name = self.conns[fd]
        try:
            data, fds = packets.receive(conn, 4096)
        except BlockingIOError:
            return
        except ConnectionResetError:
            data, fds = b"", []
        keep: list[int] = []
        try:
            if not data:
                self._hang_up(fd)
                return
            match wire.unpack(data), fds:
                case [pages.MAP_FOR, int(handle), str(principal)], [] if name[-1] == "." and principal.startswith(name):
                    self.step(PageWanted(principal, fd, handle))
                case [pages.OFFER_FOR, int(), str(principal)], [descriptor] if name[-1] == "." and principal.startswith(
                    name
                ):
                    self._offered(principal, fd, descriptor)
                    keep.append(descriptor)
                case _ if name[-1] == ".":
                    raise RecurosError("E2-WIRE", "an operator maps and offers pages for its own sessions only")
                case [pages.OFFER, int()], [descriptor]:
                    self._offered(name, fd, descriptor)
                    keep.append(descriptor)
                case [pages.OFFER_END, 0], [descriptor]:
                    if (made := direct.maker(descriptor)) != packets.peer(conn)[0]:
                        raise RecurosError("E5-DENIED", f"pid {made} made this end, not {name}")
                    page = self.next_page
                    self.next_page += 1
                    self.fds[page] = descriptor
                    keep.append(descriptor)
                    self.step(PageOffered(name, fd, page, 0, end=True))
                case [pages.MAP, int(handle)], []:
                    self.step(PageWanted(name, fd, handle))
                case _:
                    raise RecurosError("E2-WIRE", "neither an offer nor a wish for a page")
        except RecurosError as error:
            self.step(Refused(name, f"malformed page message: {error.message}"))
            self.page_answer(PageAnswer(fd, False, error.to_wire()))
        finally:
            for descriptor in fds:
                if descriptor not in keep:
                    os.close(descriptor)

    def _offered(self, principal: str, fd: int, descriptor: int) -> None:
        """Keep a page that was offered under a number, and say so; E2-WIRE, before anything is kept, for what is none."""
        size = pages.check_seals(descriptor)
        page = self.next_page
        self.next_page += 1
        self.fds[page] = descriptor
        self.step(PageOffered(principal, fd, page, size))

    def page_answer(self, effect: PageAnswer) -> None:
        """Answer an offer or a wish."""
        if effect.conn not in self.conns:
            return
        conn, _ = self.conns[effect.conn]
        fds = [self.fds[effect.page]] if effect.page else []
        try:
            socket.send_fds(conn, [msgpack.packb([effect.ok, effect.value])], fds)
        except OSError:
            self._hang_up(effect.conn)

    def _hang_up(self, fd: int) -> None:
        conn, _ = self.conns.pop(fd)
        self.poller.unregister(fd)
        conn.close()


def _too_many(handshakes: deque[int]) -> bool:
    """Whether a second has had its share already; counts this one where it has not."""
    now = time.monotonic_ns()
    while handshakes and handshakes[0] < now - 1_000_000_000:
        handshakes.popleft()
    if len(handshakes) >= limits.HANDSHAKES_PER_SECOND_MAX:
        return True
    handshakes.append(now)
    return False
