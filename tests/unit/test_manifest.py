"""What a manifest may say, and every sentence it is refused with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from kernel import config
from servers import manifest as manifests
from servers import manifest_doc
from servers.manifest_table import Table
from servers.manifest_tables import Manifest, Models
from syscalls import abi
from syscalls.errors import RecurosError

SECTIONS = {
    "app": '[app]\nname = "mine"\n',
    "window": "[window]\nbudget-ms = 800\nperiod-ms = 1000\ndeadline-ms = 1000\n",
    "phase": '[[phase]]\nname = "distil"\ntrain = "student"\nwindows = 4\nlr = 1e-3\n',
    "teacher": '[model.teacher]\nkind = "patch"\n',
    "student": '[model.student]\nkind = "patch"\nlayers = 2\nwidth = 24\n',
    "data": '[data]\nkind = "digits"\n',
}


def write(tmp_path: Path, *more: str, **changed: str) -> Path:
    """A small manifest with some sections replaced and others added."""
    path = tmp_path / "my.toml"
    path.write_text("\n".join([*(SECTIONS | changed).values(), *more]), encoding="utf-8")
    return path


def refusal(path: Path) -> RecurosError:
    with pytest.raises(RecurosError) as caught:
        manifests.load(path)
    return caught.value


CONTENTS = {"config.json": b'{"model_type": "gpt2"}', "model.safetensors": b"\x02" + b"\0" * 7 + b"{}"}


def hf_dir(tmp_path: Path, *files: str) -> Path:
    path = tmp_path / "teacher"
    path.mkdir()
    for name in files:
        (path / name).write_bytes(CONTENTS.get(name, b"{}"))
    return path


def test_every_packaged_app_loads_and_its_dump_says_the_same(tmp_path: Path) -> None:
    assert "digits" in manifests.apps()
    for app in manifests.apps():
        manifest = manifests.load(manifests.app_path(app))
        kept = tmp_path / f"{app}.toml"
        kept.write_text(manifests.dump(manifest), encoding="utf-8")
        assert manifests.load(kept) == manifest


def test_an_app_is_merged_over_the_base_table_by_table(tmp_path: Path) -> None:
    manifest = manifests.load(write(tmp_path, "[server.observer]\nweight = 7\n"))
    assert set(manifest.server) == {"archivist", "gpu", "dataset", "learner", "observer"}
    assert manifest.server["observer"].weight == 7
    assert manifest.server["observer"].entry == "servers.observer"
    assert "steer" in manifest.operator.rights


def test_the_boot_document_is_plain_data_with_servers_by_rank(tmp_path: Path) -> None:
    manifest = manifests.load(write(tmp_path, '[server.learner.config]\nkeep = "this"\n'))
    document = manifests.boot_document(manifest, tmp_path, tmp_path / "s", detached=True, cpus=[3, 1, 5])
    assert json.loads(json.dumps(document)) == document
    assert document["abi"] == [abi.ABI_MAJOR, abi.ABI_MINOR]
    assert (document["lane_cpus"], document["background_cpus"]) == ([5], [1, 3])
    ranks = [server["rank"] for server in document["servers"]]
    assert ranks == sorted(ranks)
    learner = next(server for server in document["servers"] if server["name"] == "learner")
    assert learner["class"] == "edf"
    assert learner["config"]["keep"] == "this"
    assert learner["config"]["store"] == str(tmp_path / "store")
    assert learner["config"]["model"]["student"] == {
        "kind": "patch",
        "layers": 2,
        "width": 24,
        "heads": 4,
        "mlp_ratio": 2,
        "classes": 10,
    }
    assert document["phases"][0]["steps"] == document["window"]["steps"]


def test_one_cpu_is_lane_and_background(tmp_path: Path) -> None:
    document = manifests.boot_document(manifests.load(write(tmp_path)), tmp_path, tmp_path, detached=False, cpus=[0])
    assert document["lane_cpus"] == document["background_cpus"] == [0]


def test_relative_paths_count_from_the_manifest(tmp_path: Path) -> None:
    hf_dir(tmp_path, "config.json", "model.safetensors")
    (tmp_path / "data.jsonl").write_text("", encoding="utf-8")
    path = write(
        tmp_path,
        teacher='[model.teacher]\nkind = "hf"\npath = "teacher"\n',
        student='[model.student]\nkind = "hf-config"\n[model.student.config]\nmodel_type = "gpt2"\nn-layer = 2\n',
        data='[data]\nkind = "jsonl"\npath = "data.jsonl"\ntext-column = "body"\n',
    )
    manifest = manifests.load(path)
    assert manifest.model.teacher.path == str(tmp_path / "teacher")
    assert manifest.data.path == str(tmp_path / "data.jsonl")
    document = manifests.boot_document(manifest, tmp_path, tmp_path, detached=False)
    assert document["servers"][0]["config"]["data"]["text_column"] == "body"
    # A config table is the architecture's own: its keys are not ours to rename.
    assert document["servers"][0]["config"]["model"]["student"]["config"] == {"model_type": "gpt2", "n-layer": 2}


@pytest.mark.parametrize(
    ("changed", "says", "hint"),
    [
        ({"app": '[app]\nname = "mine"\nsede = 1\n'}, "app.sede: unknown key", "did you mean seed?"),
        ({"window": "[windows]\nsteps = 2\n"}, "windows: unknown key", "did you mean window?"),
        ({"window": "[window]\nbudget-ms = 1\ndeadline-ms = 1\n"}, "window.period-ms: this key is required", ""),
        ({"phase": SECTIONS["phase"] + "learning-rate = 1\n"}, "phase[0].learning-rate: unknown key", "known keys: "),
        ({"phase": SECTIONS["phase"] + "lr_floor = 0.1\n"}, "phase[0].lr_floor: unknown key", "did you mean lr-floor?"),
        ({"phase": ""}, "phase: this key is required", ""),
        ({"app": '[app]\nname = "mine"\nseed = "7"\n'}, "app.seed = '7': input should be a valid integer", ""),
        ({"app": '[app]\nname = "mine"\nseed = true\n'}, "app.seed = True", ""),
        ({"app": '[app]\nname = "Mine!"\n'}, "app.name = 'Mine!'", ""),
        ({"window": SECTIONS["window"] + "steps = 0\n"}, "window.steps = 0: input should be greater", ""),
        ({"window": SECTIONS["window"] + "steps = 100001\n"}, "window.steps = 100001: input should be less", ""),
        ({"phase": '[[phase]]\nname = "a"\ntrain = "both"\nwindows = 1\nlr = 1.0\n'}, "phase[0].train = 'both'", ""),
        ({"phase": '[[phase]]\nname = "a"\ntrain = "student"\nwindows = 1\nlr = inf\n'}, "phase[0].lr = inf", ""),
        ({"teacher": '[model.teacher]\nkind = "cnn"\n'}, "model.teacher", ""),
        ({"teacher": '[model.teacher]\nkind = "patch"\ndepth = 2\n'}, "model.teacher.depth: unknown key", "known keys: "),
        ({"teacher": '[model.teacher]\nkind = "patch"\nwidth = 30\n'}, "width must be a multiple of heads", "heads = 4"),
        ({"teacher": '[model.teacher]\nkind = "hf-config"\n'}, "either path or a config table", "one of the two"),
        ({"data": '[data]\nkind = "digits"\npath = "x"\n'}, "data.path: unknown key", "known keys: "),
        ({"data": '[data]\nkind = "csv"\n'}, "data", ""),
        ({"policy": '[policy]\npack = "stater"\n'}, "policy.pack = 'stater'", ""),
        ({"policy": '[policy]\npack = "static"\nnote = "x"\n'}, "policy.note: unknown key", "known keys: pack"),
        ({"kd": "[kd]\ntemperature = 9.0\n"}, "kd.temperature = 9.0: input should be less", ""),
        ({"server": '[server.learner]\nclas = "edf"\n'}, "server.learner.clas: unknown key", "did you mean class?"),
    ],
)  # fmt: skip
def test_a_table_is_refused_by_file_key_and_value(
    tmp_path: Path, changed: dict[str, str], says: str, hint: str
) -> None:
    error = refusal(write(tmp_path, **changed))
    assert error.code == "E2-MANIFEST"
    assert str(tmp_path / "my.toml") in error.message
    assert says in error.message
    assert hint in error.hint
    assert error.hint
    assert error.exit_status == 2


def test_all_problems_are_in_the_details(tmp_path: Path) -> None:
    error = refusal(write(tmp_path, app='[app]\nname = "mine"\nseed = -1\neval-every = "x"\n'))
    assert "(and 1 more)" in error.message
    assert len(error.details["problems"]) == 2


@pytest.mark.parametrize(
    ("changed", "key", "says"),
    [
        ({"window": "[window]\nbudget-ms = 5\nperiod-ms = 10\ndeadline-ms = 11\n"}, "window.deadline-ms", "11 ms is above"),
        ({"window": "[window]\nbudget-ms = 11\nperiod-ms = 10\ndeadline-ms = 10\n"}, "window.budget-ms", "11 ms is above"),
        ({"phase": SECTIONS["phase"] * 2}, "phase[1].name", "'distil' is used twice"),
        (
            {"phase": SECTIONS["phase"] + "repeat = true\n" + SECTIONS["phase"].replace("distil", "more")},
            "phase[0].repeat",
            "not the last phase",
        ),
        ({"phase": SECTIONS["phase"].replace('"student"', '"teacher"') + 'end = "swap:ema"\n'}, "phase[0].end", "trains the teacher"),
        ({"server": '[server.observer]\nrights = ["read-trace", "kfs-red"]\n'}, "server.observer.rights", "unknown right 'kfs-red'"),
        ({"operator": '[operator]\nrights = ["everything"]\n'}, "operator.rights", "unknown right 'everything'"),
        ({"server": '[server.dataset]\ncalls = ["learner"]\n'}, "server.dataset.calls", "cannot call 'learner' of rank 2"),
        ({"server": '[server.gpu]\ncalls = ["archivist"]\n'}, "server.gpu.calls", "cannot call 'archivist' of rank 0"),
        ({"server": '[server.learner]\ncalls = ["nobody"]\n'}, "server.learner.calls", "'nobody' is not a server"),
        ({"server": '[server.gpu]\nentry = "servers.cpu"\n'}, "server.gpu.entry", "no module is called 'servers.cpu'"),
        ({"server": '[server.gpu]\nentry = "nowhere.at.all"\n'}, "server.gpu.entry", "no module is called"),
        ({"server": '[server.gpu]\nclass = "edf"\n'}, "server.learner.class", "gpu, learner are all 'edf'"),
        ({"probe": '[[probe]]\nhook = "on_kd_step"\nprog = "builtin:cak"\n'}, "probe[0]", "no built-in probe named 'cak'"),
        ({"probe": '[[probe]]\nhook = "on_nothing"\nprog = "builtin:cka"\n'}, "probe[0]", "no hook named 'on_nothing'"),
        ({"probe": '[[probe]]\nhook = "on_forward"\nprog = "builtin:cka"\n'}, "probe[0]", "cannot run on on_forward"),
        ({"data": '[data]\nkind = "text"\npath = "my.toml"\n'}, "data.kind", "does not feed models of kind 'patch'"),
    ],
)  # fmt: skip
def test_tables_that_disagree_are_refused(tmp_path: Path, changed: dict[str, str], key: str, says: str) -> None:
    error = refusal(write(tmp_path, **changed))
    assert error.code == "E2-MANIFEST"
    assert f"my.toml: {key}: " in error.message
    assert says in error.message
    assert error.hint


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (None, "is not a directory"),
        ((), "missing config.json"),
        (("config.json",), "missing model.safetensors"),
        (("config.json", "pytorch_model.bin"), "pytorch_model.bin, a pickle format that is never loaded"),
        (("config.json", "model.safetensors.index.json"), "model.safetensors.index.json cannot be read"),
    ],
)
def test_a_teacher_directory_that_is_not_one_is_refused(
    tmp_path: Path, files: tuple[str, ...] | None, says: str
) -> None:
    if files is not None:
        hf_dir(tmp_path, *files)
    error = refusal(
        write(
            tmp_path,
            teacher='[model.teacher]\nkind = "hf"\npath = "teacher"\n',
            student='[model.student]\nkind = "hf-config"\nconfig = {model_type = "gpt2"}\n',
            data='[data]\nkind = "text"\npath = "my.toml"\n',
        )
    )
    assert error.code == "E2-MODEL"
    assert "model.teacher.path" in error.message
    assert says in error.message


def test_models_that_read_different_inputs_are_refused(tmp_path: Path) -> None:
    student = '[model.student]\nkind = "hf-config"\nconfig = {model_type = "gpt2"}\n'
    error = refusal(write(tmp_path, student=student))
    assert error.code == "E2-MODEL"
    assert "'patch' teacher and a 'hf-config' student" in error.message


def test_data_that_is_not_there_is_refused(tmp_path: Path) -> None:
    hf = 'kind = "hf-config"\nconfig = {model_type = "gpt2"}\n'
    data = '[data]\nkind = "text"\npath = "gone.txt"\n'
    error = refusal(write(tmp_path, teacher=f"[model.teacher]\n{hf}", student=f"[model.student]\n{hf}", data=data))
    assert error.code == "E2-DATA"
    assert str(tmp_path / "gone.txt") in error.message


def test_a_file_that_cannot_be_read_or_parsed_is_refused(tmp_path: Path) -> None:
    assert "cannot be read" in refusal(tmp_path / "gone.toml").message
    broken = tmp_path / "broken.toml"
    broken.write_text("[app\n", encoding="utf-8")
    assert "not valid TOML" in refusal(broken).message
    assert "line 1" in refusal(broken).message


def test_an_unknown_app_is_refused_with_the_nearest() -> None:
    with pytest.raises(RecurosError, match="no app is called 'digit'") as caught:
        manifests.app_path("digit")
    assert "recuros boot digits" in caught.value.hint


def test_numbers_of_a_policy_pack_reach_the_observer(tmp_path: Path) -> None:
    manifest = manifests.load(write(tmp_path, '[policy]\npack = "starter"\nece-rise = 0.2\n'))
    document = manifests.boot_document(manifest, tmp_path, tmp_path, detached=False)
    assert document["policy"] == {"pack": "starter", "ece-rise": 0.2}


def test_identity_changes_with_what_a_resume_must_keep(tmp_path: Path) -> None:
    plain = manifests.identity(manifests.load(write(tmp_path)))
    assert manifests.identity(manifests.load(write(tmp_path, window=SECTIONS["window"] + "steps = 3\n"))) == plain
    assert manifests.identity(manifests.load(write(tmp_path, app='[app]\nname = "mine"\nseed = 1\n'))) != plain
    assert manifests.identity(manifests.load(write(tmp_path, data='[data]\nkind = "digits"\nbatch = 8\n'))) != plain


def test_text_with_quotes_and_control_characters_survives_a_dump(tmp_path: Path) -> None:
    path = write(tmp_path, app='[app]\nname = "mine"\ntitle = "a \\"b\\" \\\\ \\u0007 \\n é"\n')
    manifest = manifests.load(path)
    path.write_text(manifests.dump(manifest), encoding="utf-8")
    assert manifests.load(path).app.title == manifest.app.title == 'a "b" \\ \x07 \n é'


def test_the_reference_page_is_that_of_the_types() -> None:
    assert manifest_doc.PAGE.read_text(encoding="utf-8") == manifest_doc.page(), "run: python -m servers.manifest_doc"


def test_every_table_has_a_place_on_the_reference_page() -> None:
    described = {table for _, table in manifest_doc.HEADINGS}
    every, waiting = set(), [Table]
    while waiting:
        below = waiting.pop().__subclasses__()
        waiting += below
        every |= {
            t for t in below if not t.__subclasses__() and t.__module__.startswith("servers.")
        }  # not of an app's file
    assert every - described == {Manifest, Models}


@pytest.mark.parametrize(
    ("stanza", "key", "says"),
    [
        ("[server.dataset]\nbudget-ms = 10\n", "server.dataset.budget-ms", "half a reservation"),
        ("[server.dataset]\nbudget-ms = 10\nperiod-ms = 5\n", "server.dataset.budget-ms", "period-ms = 5"),
        (
            "[server.dataset]\nbudget-ms = 9\nperiod-ms = 20\ndeadline-ms = 8\n",
            "server.dataset.budget-ms",
            "deadline-ms = 8",
        ),
        ('[server.dataset]\noverrun = "kill"\n', "server.dataset.overrun", "no reservation"),
        (
            '[server.dataset]\nbudget-ms = 1\nperiod-ms = 9\noverrun = "rollback"\n',
            "server.dataset.overrun",
            "is for windows",
        ),
        (
            '[server.dataset]\nbudget-ms = 10\nperiod-ms = 20\noverrun = "degrade"\n',
            "server.dataset.overrun",
            "is for windows",
        ),
        ("[server.learner]\nbudget-ms = 10\nperiod-ms = 20\n", "server.learner.budget-ms", "[window]"),
    ],
)
def test_a_reservation_that_makes_no_sense_is_refused_by_key(tmp_path: Path, stanza: str, key: str, says: str) -> None:
    with pytest.raises(RecurosError) as caught:
        manifests.load(write(tmp_path, stanza))
    assert caught.value.code == "E2-MANIFEST"
    assert key in str(caught.value)
    assert says in str(caught.value)


def test_a_reservation_reaches_the_kernel_in_nanoseconds(tmp_path: Path) -> None:
    stanza = '[server.dataset]\nbudget-ms = 10\nperiod-ms = 100\noverrun = "postpone"\n'
    document = manifests.boot_document(manifests.load(write(tmp_path, stanza)), tmp_path, tmp_path / "s", detached=True)
    dataset = config.parse(document).servers["dataset"]
    assert dataset.reservation == (10_000_000, 100_000_000, 100_000_000)
    assert dataset.overrun == "postpone"
    assert config.parse(document).servers["observer"].reservation == ()
