"""The verifier: the corpus, its transfer functions over all small intervals, runs inside abstract states, and mutants of itself."""

from __future__ import annotations

import itertools
import random
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes import isa
from probes.abstract import Int, Size
from probes.certificate import CERTIFICATE_BYTES_MAX, VERIFIER_VERSION, Certificate
from probes.lang import assemble, compile_source
from probes.rules import COST_MAX, RULES, Rules
from probes.states import Names, State, join
from probes.verifier import Rejected, Verification, verify
from syscalls.errors import RecurosError
from tests.campaign import _obpf_cases as cases
from tests.campaign import _obpf_exhaustive as exhaustive
from tests.campaign import _obpf_gen as gen
from tests.campaign import _obpf_mutants as mutation
from tests.campaign import _obpf_sound as sound
from tests.campaign import probes as campaign

REJECT, ACCEPT = cases.load("reject"), cases.load("accept")
CATEGORIES = (
    "uninitialised", "type-mix", "bounds", "negative-index", "wrong-dim", "shape-guard", "unbounded-trip", "budget", "nesting",
    "saturation", "division-by-zero", "nan-branch", "map-bounds", "hash-full", "ring-size", "ring-overload", "missing-right",
    "helper-hook", "helper-shape", "malformed", "unbalanced", "write-to-view", "stale", "wrong-tier",
)  # fmt: skip


def program(body: str, hook: str = "on_forward", maps: str = "") -> isa.Bytecode:
    return assemble(f".name t\n.hook {hook}\n{maps}\n{body.replace('|', chr(10))}\n")


def accept(body: str, hook: str = "on_forward", maps: str = "", **dims: int) -> Certificate:
    return verify(program(body, hook, maps), isa.Contract(hook, dims), ["read-trace"])


def reject(body: str, hook: str = "on_forward", maps: str = "", **dims: int) -> Rejected:
    with pytest.raises(Rejected) as caught:
        accept(body, hook, maps, **dims)
    return caught.value


# --- the corpus --------------------------------------------------------------------------------------------------------
def test_the_corpus_is_as_large_as_it_is_said_to_be() -> None:
    counts = Counter(case.category for case in REJECT)
    assert len(REJECT) >= 250
    assert len(ACCEPT) >= 150
    assert {category: counts[category] for category in CATEGORIES if counts[category] < 8} == {}
    assert len({case.text for case in (*REJECT, *ACCEPT)}) == len(REJECT) + len(ACCEPT)


def test_every_rule_has_a_case() -> None:
    named = {case.head.get("expect", "").partition(" ")[0] for case in REJECT}
    assert {f"E8-VERIFY:{rule}" for rule in RULES} <= named


@pytest.mark.parametrize("case", [c for c in REJECT if "expect" in c.head], ids=lambda c: c.name)
def test_a_bad_program_is_refused_where_it_is_bad(case: cases.Case) -> None:
    error = cases.judge(case)
    assert cases.agrees(case, error), f"{cases.found(error)}: {error}"
    assert error is not None
    assert error.message
    assert error.hint


@pytest.mark.parametrize("case", [c for c in REJECT if "observe" in c.head], ids=lambda c: c.name)
def test_what_no_verifier_can_know_is_noticed_at_run_time(case: cases.Case) -> None:
    assert sound.observed(case) == ""


def test_good_programs_are_accepted_and_keep_their_promises() -> None:
    tally, wrong = sound.Tally(), {}
    for case in ACCEPT:
        fault = (str(error) if (error := cases.judge(case)) else "") or sound.accepted(case, tally)
        if fault:
            wrong[case.name] = fault
    assert not wrong
    assert tally.states > 10_000


# --- transfer functions ------------------------------------------------------------------------------------------------
def test_every_integer_opcode_over_every_interval_of_four_bits() -> None:
    *_, (count, violation) = exhaustive.integers()
    assert (count, violation) == (16 * 136 * 136, "")


def test_every_comparison_over_every_interval_of_four_bits() -> None:
    *_, (count, violation) = exhaustive.narrowing()
    assert (count, violation) == (4 * 136 * 136, "")


def test_facts_about_sizes_over_small_intervals() -> None:
    assert [violation for _, violation in exhaustive.facts() if violation] == []


def test_floats_with_their_odd_values() -> None:
    assert [violation for _, violation in exhaustive.floats(1_000) if violation] == []


@given(
    st.integers(-5, 5), st.integers(0, 5), st.integers(-5, 5), st.integers(0, 5), st.integers(-3, 3), st.integers(-3, 3)
)
def test_a_join_holds_what_either_way_holds(al: int, aw: int, bl: int, bw: int, ka: int, kb: int) -> None:
    size = Size("n", 6)
    a, b = State.empty(), State.empty()
    a.ints[0], b.ints[0] = Int("a", al, al + aw, {size: ka}), Int("b", bl, bl + bw, {size: kb})
    a.sizes[size], b.sizes[size] = (2, 6), (0, 4)
    joined = join(a, b, Names())
    assert joined is not None
    said = joined.ints[0]
    assert said is not None
    for state, value in ((a, a.ints[0]), (b, b.ints[0])):
        assert value is not None
        low, high = state.size(size)
        for n, x in itertools.product(range(low, high + 1), range(value.low, value.high + 1)):
            if x <= n - value.facts[size]:
                assert said.low <= x <= said.high
                assert all(x <= n - k for k in said.facts.values())
                assert joined.size(size)[0] <= n <= joined.size(size)[1]


# --- what is proved holds ----------------------------------------------------------------------------------------------
def test_every_live_register_is_inside_its_abstract_state() -> None:
    tally = sound.fuzz(700)
    assert tally.violations == []
    assert tally.accepted >= 0.3 * tally.programs
    assert tally.runs >= 4 * tally.accepted - 40
    assert len(tally.rejected) >= 10


def test_changed_bytes_are_refused_or_sound() -> None:
    *_, (count, violation) = campaign.bits(150, 1, details := {})
    assert (count, violation) == (150, "")
    assert details["refused"]


def test_any_part_taken_out_of_the_verifier_is_noticed() -> None:
    assert mutation.noticed(mutation.Mutant("nothing", ()), fuzz=100) == ""
    assert [mutant.name for mutant in mutation.mutants() if not mutation.noticed(mutant, fuzz=600)] == []


def test_every_check_of_the_rules_is_a_mutant() -> None:
    checks = {name for name in vars(Rules) if name.startswith("check_")}
    assert len(checks) >= 25
    assert checks <= {mutant.name for mutant in mutation.mutants()}


# --- slices, budgets, the certificate --------------------------------------------------------------------------------------
def test_a_verification_in_slices_is_the_same_as_in_one_go() -> None:
    def outcome(made: isa.Bytecode, visits: int) -> object:
        verification = Verification(made, gen.contract(made.hook_kind), gen.RIGHTS)
        try:
            while (found := verification.step(visits)) is None:
                pass
        except Rejected as e:
            return e.details
        return found

    for seed in range(60):
        made = gen.program(random.Random(seed))
        assert outcome(made, 3) == outcome(made, isa.VISITS_MAX)


def test_a_slice_looks_at_no_more_than_it_was_given() -> None:
    verification = Verification(program("|".join(["ICONST i0, 1"] * 100 + ["EXIT"])), isa.Contract("on_forward"), [])
    assert verification.step(30) is None
    assert verification.visits == 30


def test_the_budget_of_visits_holds_for_the_worst_program() -> None:
    loops = "|".join(f"FOR i{n}, i15" for n in range(4))
    body = "|".join(["IADD i10, i10, i14", "IADD i11, i11, i10", "FADD f0, f0, f0"] * 1_300)
    error = reject(
        f"ICONST i15, 3|ICONST i14, 1|ICONST i10, 0|ICONST i11, 0|FCONST f0, 0.0|{loops}|{body}|"
        + "ENDFOR|" * 4
        + "EXIT"
    )
    assert error.rule == "E8-VERIFY:visits"


def test_cost_counts_rounds_elements_and_the_dearer_way() -> None:
    """SUM costs 20 and 1 for an element; a loop of n rounds n (body + ENDFOR + FOR) + FOR."""
    assert accept("EXIT").cost == 1
    assert accept("VARG v0, x|SUM f0, v0|EXIT", rows=10, width=5).cost == 1 + 20 + 50 + 1
    loop = accept("VARG v0, x|DIM i0, v0, 0|FOR i1, i0|ROW v1, v0, i1|SUM f0, v1|ENDFOR|EXIT", rows=10, width=5)
    assert loop.cost == 1 + 1 + 1 + 10 * (3 + 25 + 1 + 1) + 1
    branch = accept("VARG v0, x|CTXI i0, step|IF i0|SUM f0, v0|ELSE|ENDIF|EXIT", rows=10, width=5)
    assert branch.cost == 1 + 1 + 1 + 70 + 1 + 1 + 1
    helper = accept(
        "VARG v0, grad|CALL_ASYNC v0, v0, fisher, @m|EXIT", "on_grad", ".map m array 3 per_site", rows=2, cols=5
    )
    assert helper.cost == 1 + 2_000 + isa.HELPER_BY_NAME["fisher"].cost + (1 + 2) * 10 + 1


def test_the_contract_of_a_live_model_decides() -> None:
    body, maps = "VARG v0, attn|DIM i0, v0, 1|FOR i1, i0|MINC i1, @m|ENDFOR|EXIT", ".map m array 12 per_site"
    accept(body, "on_attention", maps, heads=12)
    error = reject(body, "on_attention", maps, heads=16)
    assert error.rule == "E8-VERIFY:map-key"
    assert "m has keys 0 to 11" in error.message
    assert COST_MAX < 2**63


def test_a_message_names_line_register_interval_and_way_out() -> None:
    text = ".hook on_forward\nVARG v0, x\nICONST i3, 5\nROW v1, v0, i3\nEXIT\n"
    with pytest.raises(Rejected) as caught:
        verify(assemble(text), isa.Contract("on_forward"), [])
    error = caught.value
    assert error.details == {"rule": "E8-VERIFY:bounds", "pc": 2, "line": 4}
    assert (
        "line 4, `ROW v1, v0, i3` (ROW): the index (register i3) is not proved to be below x.shape[0]: it is in [5]"
        in error.message
    )
    assert "if i < x.shape[0]:" in error.hint
    assert error.exit_status == 8


def test_a_program_without_lines_is_placed_by_instruction() -> None:
    bare = isa.Bytecode(
        "t", "on_forward", 1, (), (isa.Instruction(isa.BY_NAME["SUM"]), isa.Instruction(isa.BY_NAME["EXIT"]))
    )
    with pytest.raises(Rejected, match=r"instruction 0 \(SUM\)") as caught:
        verify(bare, isa.Contract("on_forward"), [])
    assert caught.value.details["line"] == 0


def test_a_register_outside_its_file_is_refused_before_anything_is_read() -> None:
    wild = isa.Bytecode(
        "t", "on_forward", 1, (), (isa.Instruction(isa.BY_NAME["IMOV"], 99, 98), isa.Instruction(isa.BY_NAME["EXIT"]))
    )
    with pytest.raises(RecurosError, match="no int register"):
        verify(wild, isa.Contract("on_forward"), [])


def test_a_certificate_round_trips_and_holds_for_what_it_was_made_for() -> None:
    made = program("VARG v0, x|SUM f0, v0|EXIT")
    contract, data = isa.Contract("on_forward"), isa.encode(made)
    certificate = verify(made, contract, ["read-trace", "attach-probe"])
    assert certificate.rights == ("attach-probe", "read-trace")
    assert (certificate.program, certificate.verifier_version) == (isa.digest(data), VERIFIER_VERSION)
    again = Certificate.decode(certificate.encode())
    assert again == certificate
    again.check(data, contract, ["read-trace", "attach-probe", "kfs-read"])
    with pytest.raises(RecurosError, match="read-trace") as caught:
        again.check(data, contract, ["attach-probe"])
    assert caught.value.code == "E8-STALE"


@given(st.data())
def test_bytes_that_are_no_certificate_are_refused(data: st.DataObject) -> None:
    good = bytearray(verify(program("EXIT"), isa.Contract("on_forward"), []).encode())
    for _ in range(data.draw(st.integers(1, 3))):
        good[data.draw(st.integers(0, len(good) - 1))] ^= 1 << data.draw(st.integers(0, 7))
    changed = bytes(good[: data.draw(st.integers(0, len(good)))])
    code = ""
    try:
        code = Certificate.decode(changed).encode().hex()
    except RecurosError as e:
        code = e.code
    assert code in ("E8-ENCODING", changed.hex())


def test_a_huge_certificate_is_refused_unread() -> None:
    with pytest.raises(RecurosError, match="the limit is"):
        Certificate.decode(bytes(CERTIFICATE_BYTES_MAX + 1))


def test_a_firing_that_breaks_the_contract_is_named() -> None:
    contract = isa.Contract("on_grad", {"rows": 8, "cols": 4})
    assert contract.breach([(8, 4), (8, 4)]) is None
    assert contract.breach([(8, 4), None]) is None
    assert contract.breach([(8, 5), (8, 5)]) == ("cols", 5, 4)
    assert contract.breach([(8, 4), (7, 4)]) == ("rows", 7, 8)
    assert contract.breach([(8,), (8, 4)]) == ("rank", 1, 2)


def test_the_reference_page_has_every_rule_and_its_program_passes() -> None:
    page = (Path(__file__).resolve().parents[2] / "docs" / "reference" / "obpf-verifier.md").read_text(encoding="utf-8")
    rows = dict(re.findall(r"^\| `E8-VERIFY:([a-z-]+)` \| (.*?) \|", page, re.MULTILINE))
    assert rows == RULES
    source = page.partition("```python\n")[2].partition("```")[0]
    verify(compile_source(source, "page.py"), isa.Contract("on_forward"), [])
    message = page.partition("error[E8-VERIFY]: ")[2].partition("\n")[0]
    bad = source.replace("    if 0 < x.shape[0]:\n        m", "    m").replace("\n\n\n", "\n")
    with pytest.raises(Rejected) as caught:
        verify(compile_source(bad, "page.py"), isa.Contract("on_forward"), [])
    assert caught.value.message == message


def test_the_verifier_is_pure() -> None:
    code = "import sys, probes.verifier; print(*sorted({m.partition('.')[0] for m in sys.modules}))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not set(done.stdout.split()) & {"torch", "numpy", "transformers", "kfs", "kernel", "llvmlite"}
