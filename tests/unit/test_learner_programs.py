"""Programs in the learner: what is checked once more before anything runs, and compiled code in the store."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from kfs.objects import blob
from kfs.store import Store
from probes import isa, lang
from probes.cells import read
from probes.certificate import Certificate
from probes.hooks import Dispatcher
from probes.verifier import verify
from servers.archivist.server import ArchivistService
from servers.learner.objectcode import KIND, MAGIC, ObjectCode
from servers.learner.programs import Programs, admitted_program
from syscalls.errors import RecurosError
from syscalls.pages import ReadPage, WritePage
from tests.campaign import _obpf_attach

SOURCE = """hook("on_forward:student/blocks.*", every=5)
total = map.array(1, per_site=True)


def probe(x):
    total[0] += sumsq(x)
"""
DATA = isa.encode(lang.compile_source(SOURCE, "total.py"))
HOOK = "on_forward:student/blocks.*"
PROG = f"sha256:{isa.digest(DATA)},every=5"
RIGHTS = ["attach-probe", "read-trace"]
DIMS = {"rows": 64, "width": 16}


def admitted(**changes: Any) -> dict[str, Any]:
    certificate = verify(isa.decode(DATA), isa.Contract("on_forward", DIMS), RIGHTS)
    return {"certificate": certificate.encode(), "dims": DIMS, "rights": RIGHTS, "object": "b3:" + "0" * 64, **changes}


def changed(**changes: Any) -> bytes:
    return dataclasses.replace(Certificate.decode(admitted()["certificate"]), **changes).encode()


def test_what_the_kernel_admitted_is_taken() -> None:
    found = admitted_program(DATA, HOOK, PROG, admitted())
    assert found.digest == isa.digest(DATA)
    assert found.contract.largest("rows") == 64


@pytest.mark.parametrize(
    ("data", "hook", "prog", "grant", "code"),
    [
        (DATA[:-1], HOOK, PROG, admitted(), "E8-ENCODING"),
        (DATA[:60] + b"\0" + DATA[61:], HOOK, PROG, admitted(), "E8-ENCODING"),
        (DATA, HOOK, "sha256:" + "0" * 64, admitted(), "E9-INTEGRITY"),
        (DATA, "on_kd_step", PROG, admitted(dims={}), "E8-STALE"),
        (DATA, HOOK, PROG, admitted(dims={"rows": 65, "width": 16}), "E8-STALE"),
        (DATA, HOOK, PROG, admitted(dims={}), "E8-STALE"),
        (DATA, HOOK, PROG, admitted(rights=["attach-probe"]), "E8-STALE"),
        (DATA, HOOK, PROG, admitted(rights=[]), "E8-STALE"),
        (DATA, HOOK, PROG, admitted(certificate=b""), "E8-ENCODING"),
        (DATA, HOOK, PROG, admitted(certificate=admitted()["certificate"][:-1]), "E8-ENCODING"),
        (DATA, HOOK, PROG, admitted(certificate=changed(program="0" * 64)), "E8-STALE"),
        (DATA, HOOK, PROG, admitted(certificate=changed(isa_version=9)), "E8-STALE"),
        (DATA, HOOK, PROG, admitted(certificate=changed(verifier_version=9)), "E8-STALE"),
    ],
    ids=lambda value: value if isinstance(value, str) and value.startswith("E") else "",
)
def test_anything_else_than_what_was_admitted_is_refused(
    data: bytes, hook: str, prog: str, grant: dict[str, Any], code: str
) -> None:
    with pytest.raises(RecurosError) as refused:
        admitted_program(data, hook, prog, grant)
    assert refused.value.code == code


def test_without_read_trace_a_certificate_that_needs_none_is_not_enough() -> None:
    certificate = verify(isa.decode(DATA), isa.Contract("on_forward", DIMS), ["attach-probe"])
    with pytest.raises(RecurosError, match="read-trace"):
        admitted_program(DATA, HOOK, PROG, admitted(certificate=certificate.encode(), rights=["attach-probe"]))


# --- compiled code in the store --------------------------------------------------------------------------------------------


class Session:
    """A kernel session whose only server to call is a real archivist; handles are real sealed pages."""

    def __init__(self, path: Path) -> None:
        self.config: dict[str, Any] = {"store": str(path)}
        self.pages: dict[int, tuple[int, int]] = {}
        self.fails = ""
        self.archivist = ArchivistService(self)  # type: ignore[arg-type]  # the handlers use no more than this

    def offer(self, page: WritePage) -> int:
        handle = max(self.pages, default=0) + 1
        self.pages[handle] = (os.dup(page.fd), page.size)
        return handle

    def map(self, handle: int) -> ReadPage:
        fd, size = self.pages[handle]
        return ReadPage(os.dup(fd), size, handle)

    def release(self, handle: int) -> None:
        os.close(self.pages.pop(handle)[0])

    def call(self, method: str, **columns: Any) -> dict[str, Any]:
        assert method == "archivist.put"
        if self.fails:
            raise RecurosError(self.fails, "the test says so")
        return self.archivist.put(**columns)


@pytest.fixture
def session(tmp_path: Path) -> Iterator[Session]:
    session = Session(tmp_path / "store")
    yield session
    assert not session.pages, "a page was left behind"
    session.archivist.drain()


def cache(session: Session) -> ObjectCode:
    def reader() -> Store:
        store = Store.open_reader(session.config["store"])
        store.refresh()
        return store

    return ObjectCode(session, reader)  # type: ignore[arg-type]


KEY, OTHER = "ab" * 32, "cd" * 32


def test_object_code_is_there_for_this_process_at_once_and_for_the_next_after_a_flush(session: Session) -> None:
    first = cache(session)
    assert first.get(KEY) is None
    first.put(KEY, b"machine code")
    first.put(OTHER, b"")
    assert first.get(KEY) == b"machine code"
    assert cache(session).get(KEY) is None
    first.flush()
    first.flush()
    for held in (first, cache(session)):
        assert held.get(KEY) == b"machine code"
        assert held.get(OTHER) == b""
        assert held.get("00" * 32) is None


def test_what_is_no_object_code_in_the_store_is_passed_over(session: Session) -> None:
    session.archivist.store.put([blob(b"something else", KIND), blob(MAGIC, KIND), blob(MAGIC + b"\0" * 31, KIND)])
    held = cache(session)
    held.put(KEY, b"code")
    held.flush()
    assert cache(session).get(KEY) == b"code"


@pytest.mark.parametrize("code", ["E9-NOSPACE", "E75-FULL", "E3-GONE"])
def test_a_store_that_takes_nothing_costs_a_later_compilation_and_nothing_else(session: Session, code: str) -> None:
    held = cache(session)
    held.put(KEY, b"code")
    session.fails = code
    held.flush()
    session.fails = ""
    assert cache(session).get(KEY) is None


# --- programs at the hooks of a live module --------------------------------------------------------------------------------


class Attached:
    """A module under a dispatcher, and what `Programs` needs of a learner."""

    def __init__(self, session: Session) -> None:
        self.evicted: list[tuple[int, str]] = []
        self.session = session
        self.dispatcher = Dispatcher(on_evict=lambda number, reason: self.evicted.append((number, reason)))
        self.module = nn.ModuleDict({"blocks": nn.ModuleList([nn.Linear(16, 16), nn.Linear(16, 16)])})
        self.dispatcher.install("student", self.module)
        self.programs = Programs(
            session, self.dispatcher, lambda: Store.open_reader(session.config["store"]), lambda: None
        )  # type: ignore[arg-type]
        self.step = 0

    def forward(self, rows: int = 64) -> torch.Tensor:
        self.dispatcher.step(self.step)
        self.step += 1
        x = torch.ones(rows, 16)
        for layer in self.module["blocks"]:  # type: ignore[union-attr]
            x = layer(x)
        return x

    def attach(self, number: int = 1, data: bytes = DATA, **changes: Any) -> ReadPage:
        (name,) = self.session.archivist.store.put([blob(data, "program")])
        certificate = verify(isa.decode(data), isa.Contract("on_forward", DIMS), RIGHTS).encode()
        grant = {"object": name, "certificate": certificate, "dims": DIMS, "rights": RIGHTS, **changes}
        prog = f"sha256:{isa.digest(data)},every=1"
        done = self.programs.attach(number, HOOK, prog, 1, grant, None)  # type: ignore[arg-type]  # asked for events only
        assert done["sites"] == ["on_forward:student/blocks.0", "on_forward:student/blocks.1"]
        page = self.session.map(done["page"])
        self.session.release(done["page"])
        return page

    def counted(self, page: ReadPage) -> list[float]:
        return [row["values"][0] for row in read(page.view)["maps"]["total"]["rows"]]


@pytest.fixture
def learner(session: Session) -> Iterator[Attached]:
    found = Attached(session)
    yield found
    found.programs.close()


def test_maps_in_the_page_follow_the_steps_and_carry_the_sites_names(learner: Attached) -> None:
    page = learner.attach()
    assert learner.counted(page) == []
    learner.forward()
    first = learner.counted(page)
    assert len(first) == 2
    assert all(value > 0 for value in first)
    learner.forward()
    assert learner.counted(page) == pytest.approx([2 * value for value in first])
    assert read(page.view)["sites"] == ["student/blocks.0", "student/blocks.1"]
    page.close()


def test_compiled_code_goes_in_between_two_steps_and_is_in_the_store_after_the_window(learner: Attached) -> None:
    page = learner.attach()
    (row,) = learner.programs.rows(learner.dispatcher.stats())
    assert row["backend"] == "vm"
    learner.forward()
    by_interpreter = learner.counted(page)
    while learner.programs.rows(learner.dispatcher.stats())[0]["backend"] != "jit":
        learner.programs._compiler._wait(1.0)
        learner.programs.between_steps()
    learner.forward()
    assert learner.counted(page) == [2 * value for value in by_interpreter], "the same bits again"
    learner.programs.between_windows()
    assert len(list(learner.session.archivist.store.objects(KIND))) == 1
    other = Attached(learner.session)
    other.attach(7).close()
    assert other.programs.rows(other.dispatcher.stats())[0]["backend"] == "jit", "found in the store"
    other.programs.close()
    page.close()


def test_a_larger_tensor_than_was_verified_evicts_the_probe_and_nothing_else(learner: Attached) -> None:
    page = learner.attach()
    expected = learner.forward()
    before = learner.counted(page)
    assert torch.equal(learner.forward(rows=65)[:64], expected)
    ((number, reason),) = learner.evicted
    assert number == 1
    assert "rows = 64" in reason
    assert "65" in reason
    assert learner.counted(page)[0] == before[0], "a firing that was refused wrote nothing"
    assert torch.equal(learner.forward(), expected)
    page.close()


def test_a_window_that_did_not_happen_takes_its_counts_with_it(learner: Attached) -> None:
    page = learner.attach()
    learner.forward()
    saved, before = learner.programs.saved(1), learner.counted(page)
    assert saved is not None
    learner.forward()
    learner.programs.put_back(1, saved)
    assert learner.counted(page) == before
    learner.forward()
    assert learner.counted(page) == pytest.approx([2 * value for value in before])
    assert not read(page.view)["maps"]["total"]["torn"]
    learner.programs.put_back(99, saved)
    assert learner.programs.saved(99) is None
    page.close()


def test_a_detached_program_is_closed_after_one_step_and_its_page_stays_readable(learner: Attached) -> None:
    page = learner.attach()
    learner.forward()
    learner.dispatcher.detach(1)
    learner.programs.detached(1)
    before = learner.counted(page)
    learner.forward()
    learner.forward()
    assert learner.counted(page) == before
    assert learner.dispatcher.stats() == []
    page.close()


def test_what_does_not_attach_leaves_no_page_behind(learner: Attached) -> None:
    with pytest.raises(RecurosError) as refused:
        learner.attach(certificate=changed(contract="0" * 64))
    assert refused.value.code == "E8-STALE"
    learner.attach(1).close()
    with pytest.raises(RecurosError, match="in use"):
        learner.attach(1)
    assert not learner.session.pages


def test_time_is_told_once(learner: Attached) -> None:
    learner.attach().close()
    learner.forward()
    assert learner.programs.spent_ns()["1"] > 0
    assert learner.programs.spent_ns()["1"] == 0


def test_attach_and_detach_leave_no_stale_firing_and_no_memory() -> None:
    found = _obpf_attach.cycles(500)
    assert _obpf_attach.violations(found) == 0, found
