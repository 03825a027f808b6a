"""Quantized bundles: the numbers against independent oracles, what is kept and what is not, and the check of the quantized thing itself."""

from __future__ import annotations

import random
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from transformers import AutoModelForCausalLM, GPT2Config, GPT2LMHeadModel

from nexus import NexusModel
from nexus.bundle import format as form
from nexus.bundle.quantize import quantize_bundle
from nexus.bundle.write import seal, write_bundle
from nexus.model import quantized
from nexus.model.student import NexusStudent
from nexus.model.tokenizer import byte_tokenizer
from syscalls.errors import RecurosError
from tests.unit import nexus_support as make
from tests.unit.nexus_support import one_thread  # noqa: F401

IDS = torch.arange(40).view(2, 20)
GATED = form.adapter_path("canary")
NEAR = {"qint8": 0.15, "int8pack": 0.05, "int8": 0.05, "nf4": 0.5}


@pytest.fixture(scope="module")
def plain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("plain") / "b"
    make.bundle(path, verify_report={"verdict": "pass"})
    return path


@pytest.fixture(scope="module")
def all_schemes(plain: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("quantized")
    for scheme in quantized.SCHEMES:
        quantize_bundle(plain, folder / scheme, scheme)
    return {scheme: folder / scheme for scheme in quantized.SCHEMES}


def relative(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("scheme", quantized.SCHEMES)
def test_it_computes_about_what_the_plain_one_computes(plain: Path, all_schemes: dict[str, Path], scheme: str) -> None:
    model, wanted = NexusModel.load(all_schemes[scheme]), NexusModel.load(plain)
    assert model.runs == (f"{scheme} on the CPU" if scheme in quantized.DYNAMIC else f"dequantized from {scheme}")
    for name in (None, "code"):
        for one in (model, wanted):
            one.student.set_adapter(name)
        error = relative(model.student(IDS).logits, wanted.student(IDS).logits)
        assert 1e-4 < error < NEAR[scheme]
    assert "".join(model.generate("def f", stream=True, max_new_tokens=9)) == model.generate("def f", max_new_tokens=9)


@pytest.mark.parametrize("scheme", quantized.SCHEMES)
def test_it_is_smaller_and_its_adapters_are_the_same_bytes(
    plain: Path, all_schemes: dict[str, Path], scheme: str
) -> None:
    before, after = form.read_manifest(plain), form.read_manifest(all_schemes[scheme])
    assert after.files[form.BACKBONE][1] < before.files[form.BACKBONE][1]
    for path in (form.adapter_path("code"), form.adapter_path("sort"), form.ROUTER, "tokenizer/tokenizer.json"):
        assert after.files[path] == before.files[path]
    assert after.backbone_id == before.backbone_id
    assert after.data["quantization"] == {"scheme": scheme, "from": before.bundle_id, "left_out": ["canary"]}


def test_a_gated_adapter_is_left_out_without_the_opt_in(
    plain: Path, all_schemes: dict[str, Path], tmp_path: Path
) -> None:
    model = NexusModel.load(all_schemes["int8"])
    assert model.capabilities == ("code", "sort")
    assert not (all_schemes["int8"] / GATED).exists()
    assert "canary" not in (all_schemes["int8"] / form.CONFIG).read_text()
    quantize_bundle(plain, tmp_path / "open", "int8", enable_uncensored=True)
    model = NexusModel.load(tmp_path / "open")
    assert model.generate("x", "canary", enable_uncensored=True, max_new_tokens=2) is not None


def test_the_verdict_is_not_carried_over(all_schemes: dict[str, Path]) -> None:
    for path in all_schemes.values():
        assert form.read_json(path / form.REPORT)["verdict"] == "not verified"


def test_the_check_is_made_of_the_quantized_bundle_and_its_report_kept(plain: Path, tmp_path: Path) -> None:
    def recheck(bundle: Path) -> dict[str, Any]:
        model = NexusModel.load(bundle)
        return {"verdict": "pass", "scheme": model.manifest.scheme, "said": model.generate("1 2", max_new_tokens=3)}

    quantize_bundle(plain, tmp_path / "q", "int8pack", recheck=recheck)
    report = form.read_json(tmp_path / "q" / form.REPORT)
    assert report["scheme"] == "int8pack"
    assert NexusModel.load(tmp_path / "q").generate("1 2", max_new_tokens=3) == report["said"]


@pytest.mark.parametrize("verdict", ["fail", "insufficient evidence", None, "PASS"])
def test_a_quantized_bundle_that_does_not_pass_is_not_there(plain: Path, tmp_path: Path, verdict: Any) -> None:
    with pytest.raises(RecurosError, match="does not meet its contracts") as caught:
        quantize_bundle(plain, tmp_path / "q", "nf4", recheck=lambda _path: {"verdict": verdict})
    assert caught.value.code == "E1-NO"
    assert caught.value.details["report"] == {"verdict": verdict}
    assert list(tmp_path.iterdir()) == []


def test_plain_transformers_refuses_a_quantized_backbone(all_schemes: dict[str, Path]) -> None:
    for path in all_schemes.values():
        with pytest.raises(OSError, match="no file named"):
            AutoModelForCausalLM.from_pretrained(path / "backbone")


def test_quantizing_twice_and_unknown_schemes_are_refused(
    all_schemes: dict[str, Path], plain: Path, tmp_path: Path
) -> None:
    for source, scheme in ((all_schemes["int8"], "nf4"), (plain, "int3")):
        with pytest.raises(RecurosError) as caught:
            quantize_bundle(source, tmp_path / "q", scheme)
        assert caught.value.code == "E2-USAGE"


def test_layers_that_are_not_linear_are_refused(tmp_path: Path) -> None:
    shape = {"vocab_size": 259, "bos_token_id": 257, "eos_token_id": 258}
    student = NexusStudent.around(GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=1, n_head=2, n_positions=64, **shape)))
    write_bundle(tmp_path / "b", student, [], None, byte_tokenizer())
    assert NexusModel.load(tmp_path / "b").generate("ab", max_new_tokens=2) is not None
    with pytest.raises(RecurosError, match="Conv1D"):
        quantize_bundle(tmp_path / "b", tmp_path / "q", "int8")


def test_the_backbone_of_another_bundle_is_refused(all_schemes: dict[str, Path], tmp_path: Path) -> None:
    make.bundle(tmp_path / "other", make.student(seed=2))
    quantize_bundle(tmp_path / "other", tmp_path / "other-q", "int8")
    bundle = Path(shutil.copytree(all_schemes["int8"], tmp_path / "q"))
    shutil.copy(tmp_path / "other-q" / form.BACKBONE, bundle / form.BACKBONE)
    data = form.read_json(bundle / form.MANIFEST)
    seal(bundle, {key: value for key, value in data.items() if key not in ("digest", "files")})
    with pytest.raises(RecurosError, match="is not the backbone"):
        NexusModel.load(bundle)


# Numbers


def test_int8_is_bitsandbytes_row_wise_form() -> None:
    with quantized.quiet_import():
        import bitsandbytes.functional as bnb
    weight = torch.randn(33, 48)
    packed, scale = quantized.to_int8(weight)
    theirs, absmax, _ = bnb.int8_vectorwise_quant(weight)
    assert torch.equal(packed, theirs)
    torch.testing.assert_close(scale * 127, absmax)


def test_nf4_is_dequantized_as_bitsandbytes_does() -> None:
    with quantized.quiet_import():
        import bitsandbytes.functional as bnb
    for shape in ((96, 128), (5, 30), (7, 9)):
        weight = torch.randn(shape)
        packed, scale, code = quantized.to_nf4(weight)
        theirs = bnb.dequantize_4bit(
            *bnb.quantize_4bit(weight, blocksize=64, quant_type="nf4", compress_statistics=False)
        )
        torch.testing.assert_close(quantized.dequantize(packed, scale, code, shape), theirs)


@pytest.mark.parametrize("kind", [quantized.Packed, quantized.Dynamic])
def test_a_layer_computes_its_product_for_any_shape_on_memory_that_is_not_aligned(kind: Any) -> None:
    draw = random.Random(1)
    for number in range(40):
        rows, width, height = draw.choice((1, 2, 5, 33, 100)), draw.randint(1, 150), draw.randint(1, 150)
        weight, inputs = torch.randn(height, width), torch.randn(rows, width)
        packed, scale = quantized.to_int8(weight)
        odd = torch.empty(height * width + 8, dtype=torch.int8)[3 : 3 + height * width].view(height, width)
        odd.copy_(packed)
        bias = torch.randn(height) if number % 2 else None
        wanted = functional.linear(inputs, packed.float() * scale[:, None], bias)
        for given in (inputs, inputs.bfloat16()):
            made = kind(odd, scale, bias)(given.view(rows, 1, width))
            assert made.shape == (rows, 1, height)
            assert made.dtype == given.dtype
            assert relative(made.float().view(rows, height), wanted) < 0.05


def test_a_row_of_zeros_stays_zero() -> None:
    packed, scale = quantized.to_int8(torch.zeros(2, 8))
    assert torch.equal(quantized.dequantize(packed, scale, None, (2, 8)), torch.zeros(2, 8))
