import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from probes import catalogue, sites
from syscalls.errors import RecurosError

NAMES = ["embed", "embed.proj", "blocks.0", "blocks.0.attn", "blocks.1", "blocks.1.attn", "blocks.10", "head"]


def test_the_kernels_half_imports_neither_torch_nor_numpy():
    code = (
        "import sys, probes, probes.catalogue, probes.sites, probes.maps;"
        "print([m for m in ('torch', 'numpy', 'transformers', 'sklearn') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize(
    ("text", "role", "glob", "canonical"),
    [
        ("on_forward:blocks.*", "student", "blocks.*", "on_forward:student/blocks.*"),
        ("on_attention:student/blocks.*.attn", "student", "blocks.*.attn", "on_attention:student/blocks.*.attn"),
        ("on_forward:teacher/h.0", "teacher", "h.0", "on_forward:teacher/h.0"),
        ("on_grad", "student", "**", "on_grad:student/**"),
        ("on_kd_step", "", "", "on_kd_step"),
    ],
)
def test_hook_strings_parse_to_role_and_glob(text, role, glob, canonical):
    hook = sites.parse(text)
    assert (hook.role, hook.glob, str(hook)) == (role, glob, canonical)
    assert sites.parse(str(hook)) == hook


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("on_foward:blocks.*", "on_forward"),
        ("on_kd_step:x", "takes no glob"),
        ("on_forward:master/x", "student, teacher"),
        ("on_forward:", "empty glob"),
        ("on_forward:teacher/", "empty glob"),
        ("", "on_kd_step"),
        ("on_forward:" + "x" * 300, "limit of 256"),
    ],
)
def test_bad_hook_strings_name_what_exists(text, says):
    with pytest.raises(RecurosError) as caught:
        sites.parse(text)
    assert caught.value.code == "E4-HOOK"
    assert says in caught.value.message


@pytest.mark.parametrize(
    ("glob", "selected"),
    [
        ("blocks.*", ["blocks.0", "blocks.1", "blocks.10"]),
        ("blocks.?", ["blocks.0", "blocks.1"]),
        ("blocks.*.attn", ["blocks.0.attn", "blocks.1.attn"]),
        ("blocks.[1-9]", ["blocks.1"]),
        ("blocks.[!1].attn", ["blocks.0.attn"]),
        ("blocks.**", NAMES[2:7]),
        ("**", NAMES),
        ("*", ["embed", "head"]),
    ],
)
def test_star_stays_inside_a_component_and_double_star_crosses(glob, selected):
    assert sites.select(sites.Hook("on_forward", "student", glob), NAMES) == selected


def test_a_glob_that_matches_nothing_names_the_nearest_sites_and_how_many_there_are():
    names = [f"blocks.{i}" for i in range(100)] + ["head"]
    with pytest.raises(RecurosError) as caught:
        sites.select(sites.parse("on_forward:block.7"), names)
    assert caught.value.code == "E4-HOOK"
    assert caught.value.details["nearest"][0] == "blocks.7"
    assert len(caught.value.details["nearest"]) == sites.NEAREST_MAX
    assert "101 layer sites" in caught.value.message


@given(st.text(alphabet="ab.*?[]!-^\\(", max_size=12), st.text(alphabet="ab.", max_size=12))
def test_any_glob_is_a_pattern_and_a_name_matches_itself(glob, name):
    sites.matches(glob, name)
    assert sites.matches(name, name)


RIGHTS = ("attach-probe", "read-trace")


def test_catalogue_admits_a_builtin_and_writes_out_every_parameter():
    admitted = catalogue.check("on_kd_step", "builtin:ece,every=10", RIGHTS)
    assert admitted.prog == "builtin:ece,bins=15,every=10,rows=1024"
    assert catalogue.check("on_kd_step", admitted.prog, RIGHTS) == admitted
    assert catalogue.check("on_kd_step", "builtin:ece,every=1000000", RIGHTS).prog.endswith("every=1000000,rows=1024")
    assert catalogue.check("on_forward", "builtin:dead-units,threshold=0.1", RIGHTS).params["threshold"] == 0.1


@pytest.mark.parametrize(
    ("hook", "prog", "rights", "code", "says"),
    [
        ("on_forward:x", "builtin:cka", RIGHTS, "E8-VERIFY", "on_kd_step"),
        ("on_kd_step", "builtin:ckaa", RIGHTS, "E4-NOENT", "cka"),
        ("on_kd_step", "cka", RIGHTS, "E2-USAGE", "built-in"),
        ("on_kd_step", "builtin:cka", ("read-trace",), "E5-DENIED", "attach-probe"),
        ("on_kd_step", "builtin:cka", (), "E5-DENIED", "attach-probe"),
        ("on_kd_step", "builtin:ece,bins=1000", RIGHTS, "E2-LIMIT", "2..100"),
        ("on_kd_step", "builtin:ece,bins=x", RIGHTS, "E2-USAGE", "integer"),
        ("on_forward", "builtin:dead-units,threshold=nan", RIGHTS, "E2-LIMIT", "-1e+30..1e+30"),
        ("on_kd_step", "builtin:cka,decay=1", RIGHTS, "E2-USAGE", "every"),
        ("on_kd_step", "builtin:ece,bin=3", RIGHTS, "E2-USAGE", "bins"),
        ("on_kd_step", "builtin:ece,every=0", RIGHTS, "E2-LIMIT", "every"),
        ("nope", "builtin:ece", RIGHTS, "E4-HOOK", "on_kd_step"),
    ],
)
def test_catalogue_refuses_with_the_code_and_the_way_out(hook, prog, rights, code, says):
    with pytest.raises(RecurosError) as caught:
        catalogue.check(hook, prog, rights)
    assert caught.value.code == code
    assert says in caught.value.message


def test_catalogue_and_library_hold_the_same_names():
    from probes import library

    assert set(library.SOURCES) == set(catalogue.BUILTINS)
    for name, builtin in catalogue.BUILTINS.items():
        program = library.build(f"builtin:{name}", every=7)
        assert program.name == f"builtin:{name}"
        assert program.every == 7
        assert program.maps
        assert set(builtin.hooks) <= set(sites.KINDS)
