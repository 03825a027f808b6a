"""Verified programs in a real learner that distils digits: attached while it runs, read live, gone again, and no bit changed."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from test_lifecycle import short_manifest, until

import console.main as console
import recuros
from kfs.records import RecordKind
from kfs.store import Store
from probes import isa, lang
from probes.cells import read
from syscalls.client import Client
from syscalls.errors import RecurosError

ONE_LINERS = (
    "on_forward:student/blocks.* every 1 { @rms[layer] = hist(rms(x)) }",
    "on_kd_step every 2 { @temperature = avg(temperature) }",
    "on_attention:student/** every 2 { @calls = count() }",
)
WRITTEN = """hook("on_grad:student/blocks.**", every=1)
norms = map.array(2, per_site=True, fields=("sum", "count"))
large = map.ring(64)


def probe(grad):
    length = sqrt(sumsq(grad))
    norms[0] += length
    norms[1] += 1.0
    if site == 0:
        large.emit(step, length)
"""
COSTLY = """hook("on_forward:student/blocks.*", every=1)
total = map.array(1)


def probe(x):
    for i in range(900):
        total[0] += sumsq(x)
"""


class Running:
    """The runtime, and every answer that the tests collect from it."""

    def __init__(self, run: Path, client: Client) -> None:
        self.run, self.client = run, client

    def status(self) -> dict[str, Any]:
        found: dict[str, Any] = self.client.status()["status"]
        return found

    def row(self, number: int) -> dict[str, Any]:
        rows = self.client.probe_list()["probes"]
        return next((row for row in rows if row["id"] == number), {})

    def load(self, text: str, name: str) -> str:
        digest: str = self.client.rl_load_probe(program=isa.encode(lang.compile_source(text, name)))["digest"]
        return digest

    def attach(self, text: str, name: str, **args: Any) -> int:
        number: int = self.client.rl_attach_probe(hook="", prog=self.load(text, name), **args)["id"]
        return number

    def page(self, number: int) -> Callable[[], dict[str, Any]]:
        page = self.client.map(self.client.probe_page(id=number)["page"])
        return lambda: dict(read(page.view)["maps"])


def booted(base: Path) -> tuple[recuros.Runtime, Path]:
    manifest = short_manifest(base / "short.toml", **{"windows = 20": "windows = 60"})
    return recuros.boot(config=manifest, run=base / "run", detach=True), base / "run"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Running]:
    runtime, run = booted(tmp_path_factory.mktemp("probes"))
    try:
        with recuros.connect(run) as client:
            found = Running(run, client)  # type: ignore[arg-type]  # connect is typed as Peer
            until(lambda: found.status()["phase"].get("train") == "student", "distillation")
            until(lambda: found.status()["windows"]["committed"] >= 4, "the first distilled window")
            yield found
    finally:
        runtime.kill()


def test_one_liners_and_a_program_fill_their_maps_while_it_runs_and_go_again(running: Running) -> None:
    before = running.status()
    numbers = [running.attach(text, "one.obpf") for text in ONE_LINERS]
    numbers.append(running.attach(WRITTEN, "norms.py"))
    pages = [running.page(number) for number in numbers]
    rms, temperature, calls, norms = pages
    until(lambda: any(row["values"][1] >= 8 for row in norms()["norms"]["rows"]), "gradients are counted")
    until(lambda: running.row(numbers[2])["fired"] > 2, "attention is seen")
    assert len(rms()["rms"]["rows"]) == 2
    assert sum(sum(row["counts"]) for row in rms()["rms"]["rows"]) > 8
    assert len(norms()["norms"]["rows"]) >= 8
    assert all(row["values"][0] > 0 for row in norms()["norms"]["rows"] if row["values"][1])
    assert not any(held["torn"] for page in pages for held in page().values())
    del temperature, calls
    entries = running.client.probe_read(id=numbers[3])["maps"]["maps"]["large"]["entries"]
    assert entries
    assert [entry[0] for entry in entries] == sorted(entry[0] for entry in entries)
    for number in numbers:
        assert running.row(number)["evicted"] == ""
        running.client.rl_detach_probe(id=number)
    after = running.status()
    assert {p["id"] for p in after["probes"]} == {p["id"] for p in before["probes"]}
    assert after["windows"]["missed"] == after["windows"]["rolled_back"] == 0


def test_compiled_code_takes_over_between_two_steps_and_is_found_again(running: Running) -> None:
    number = running.attach(WRITTEN, "norms.py")
    row = until(lambda: (r := running.row(number)).get("backend") == "jit" and r, "the compiled program")
    assert row["reason"] == ""
    running.client.rl_detach_probe(id=number)
    stored = lambda: [r for r in cache_objects(running.run)]  # noqa: E731
    assert until(stored, "the object code is in the store")
    again = running.attach(WRITTEN, "norms.py")
    assert running.row(again)["backend"] == "jit", "from the cache it is there at once"
    running.client.rl_detach_probe(id=again)


def cache_objects(run: Path) -> list[str]:
    with Store.open_reader(run / "store") as store:
        return [name for name, _ in store.objects("cache")]


def test_probe_time_is_charged_and_bounded_by_what_was_proved(running: Running) -> None:
    number = running.attach(WRITTEN, "norms.py")
    until(lambda: running.row(number).get("charged_ns", 0) > 0, "a window with the probe is staged")
    row = running.row(number)
    assert running.status()["charged"][row["owner"]] >= row["charged_ns"]
    assert row["window_cost_ns"] > 0
    running.client.rl_detach_probe(id=number)


@pytest.mark.parametrize(
    ("hook", "says"),
    [
        ("on_forward:student/block.*", "blocks.0"),
        ("on_forward:teacher/nowhere", "nearest"),
        ("on_forward:student/", "empty glob"),
    ],
)
def test_a_hook_that_does_not_exist_says_which_do(running: Running, hook: str, says: str) -> None:
    digest = running.load(ONE_LINERS[0], "one.obpf")
    with pytest.raises(RecurosError, match=says) as refused:
        running.client.rl_attach_probe(hook=hook, prog=digest)
    assert refused.value.code == "E4-HOOK"


def test_attention_is_refused_where_there_is_none(running: Running) -> None:
    digest = running.load(ONE_LINERS[2], "one.obpf")
    with pytest.raises(RecurosError, match="attn") as refused:
        running.client.rl_attach_probe(hook="on_attention:student/head", prog=digest)
    assert refused.value.code == "E4-HOOK"


@pytest.mark.parametrize("at", [0, 4, 9, 30, 150, -40, -1])
def test_damaged_bytecode_is_refused(running: Running, at: int) -> None:
    data = bytearray(isa.encode(lang.compile_source(WRITTEN, "norms.py")))
    data[at] ^= 0x10
    for bad in (bytes(data), bytes(data[:at])):
        with pytest.raises(RecurosError) as refused:
            running.client.rl_load_probe(program=bad)
        assert refused.value.exit_status in (8, 9)


def test_a_program_that_costs_too_much_is_refused_with_its_figures(running: Running) -> None:
    digest = running.load(COSTLY, "costly.py")
    with pytest.raises(RecurosError, match="share") as refused:
        running.client.rl_attach_probe(hook="on_forward:student/**", prog=digest)
    assert refused.value.code == "E6-ADMIT"
    assert refused.value.details["probe_ns"] > refused.value.details["share_max_ns"]


def test_a_program_may_be_attached_and_detached_many_times(running: Running) -> None:
    digest = running.load(ONE_LINERS[0], "one.obpf")
    for _ in range(20):
        running.client.rl_detach_probe(id=running.client.rl_attach_probe(hook="", prog=digest)["id"])
    assert running.status()["windows"]["rolled_back"] == 0


def test_the_console_attaches_a_file_and_shows_what_runs_it(
    running: Running, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    source = tmp_path / "norms.py"
    source.write_text(WRITTEN)

    def probe(*words: str) -> Any:
        assert console.run(["probe", *words, "--run", str(running.run), "--json"]) == 0
        return json.loads(capsys.readouterr().out.splitlines()[-1])

    number = probe("attach", str(source), "on_grad:student/head.weight", "--every", "2")["id"]
    row = next(row for row in probe("ls")["probes"] if row["id"] == number)
    assert (row["every"], row["sites"]) == (2, ["on_grad:student/head.weight"])
    assert row["backend"] in ("jit", "vm")
    entry = probe("trace", str(number), "--count", "1", "--period", "0.05")
    assert entry["map"] == "large"
    assert entry["value"] > 0
    assert probe("show", str(number))["program"]["source"].rstrip() == WRITTEN.rstrip()
    probe("detach", str(number))


def test_parameters_have_the_same_bits_as_without_any_program(running: Running, tmp_path: Path) -> None:
    """The same plan again, without a program: every window that both committed ends in the same snapshot."""
    running.client.shutdown(reason="compared now")
    until(lambda: not alive(running.run), "the first run has ended")
    probed = snapshots(running.run)
    assert sorted(probed) == list(range(1, len(probed) + 1)), "no window is missing"
    runtime, run = booted(tmp_path)
    try:
        with recuros.connect(run) as client:
            goal = min(len(probed), 12)
            until(lambda: client.syscall("status")["status"]["done_windows"] >= goal, "as many windows")
            client.syscall("shutdown")
        until(lambda: not alive(run), "the second run has ended")
        plain = snapshots(run)
    finally:
        runtime.kill()
    common = sorted(set(plain) & set(probed))
    assert len(common) >= goal
    assert [plain[w] for w in common] == [probed[w] for w in common]


def alive(run: Path) -> bool:
    return recuros.holder(run) is not None


def snapshots(run: Path) -> dict[int, str | None]:
    with Store.open_reader(run / "store") as store:
        return {r.args["window"]: r.result_snap for r in store.records() if r.kind is RecordKind.WINDOW_COMMIT}
