"""Models of transformers with their quantizers replaced. Oracle: the models as they were."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from hf_models import CASES, compared, drawn, kind_and_config, model_file, original_class, ran, set_codes
from needs import import_library
from torch import nn
from vqp_oracle import assert_trains_alike

import vqkernels.compat.transformers as adapters
from vqkernels import replace_quantizers
from vqkernels.compat.transformers import CLASSES
from vqkernels.testing import assert_bitwise_equal

transformers = import_library("transformers")
each_name = pytest.mark.parametrize("name", CASES)


def test_every_name_is_tried() -> None:
    assert list(CASES) != []
    assert CASES.keys() == CLASSES.keys() == set(adapters.__all__) == set(dir(adapters))
    with pytest.raises(AttributeError, match="has no attribute 'NoSuchQuantizer'"):
        adapters.NoSuchQuantizer  # noqa: B018


@each_name
def test_no_lookup_of_these_tests_is_a_near_tie(name: str) -> None:
    _, outputs, calls = ran(name)
    assert len(outputs["codes"].unique()) > 8
    assert len(calls) >= len(CASES[name].replaced)
    for module, x in calls:
        rows, codes = compared(name, module, x)
        scores = -rows @ codes.T if "Apertus" in name else torch.cdist(rows, codes).square()
        first, second = scores.topk(2, dim=1, largest=False).values.unbind(1)
        size = rows.square().sum(1) + codes.square().sum(1).max()
        # what D products and sums in float32 may be off, in both of them
        assert ((second - first) > 4 * (codes.shape[1] + 4) * torch.finfo(torch.float32).eps * size).all()


@each_name
def test_a_model_goes_on_as_it_was(name: str, tmp_path: Path) -> None:
    original, want, _ = ran(name)
    model = copy.deepcopy(original)
    tensors = model.state_dict(keep_vars=True)
    parts = dict(model.named_modules())
    replaced, left = replace_quantizers(model)
    assert replaced == dict.fromkeys(CASES[name].replaced, f"{CLASSES[name].module}.{name}")
    assert left == {}
    assert dict(model.named_modules()) == parts
    after = model.state_dict(keep_vars=True)
    assert list(after) == list(tensors)
    assert all(after[key] is tensors[key] for key in tensors)
    assert isinstance(model.get_submodule(CASES[name].replaced[0]), original_class(name))
    assert replace_quantizers(model) == ({}, {})

    def check(other: Any) -> None:
        with torch.no_grad():
            got = CASES[name].run(other)
        assert got.keys() == want.keys()
        for key, value in want.items():
            # codes in the place of sums that give them but for rounding
            rounded = key in ("value", "loss") and name not in ("DacVectorQuantize",)
            if rounded:
                torch.testing.assert_close(got[key], value)
            else:
                assert_bitwise_equal(got[key], value)

    check(model)
    check(copy.deepcopy(model))
    quantizer = model.get_submodule(CASES[name].replaced[0])
    assert type(pickle.loads(pickle.dumps(quantizer))) is type(quantizer) is getattr(adapters, name)

    # checkpoints go both ways
    for source, folder in ((model, tmp_path / "ours"), (original, tmp_path / "theirs")):
        loaded = _reloaded(name, source, folder).eval()
        assert type(loaded.get_submodule(CASES[name].replaced[0])) is original_class(name)
        replace_quantizers(loaded)
        check(loaded)


def _reloaded(name: str, source: Any, folder: Path) -> Any:
    kind, config = kind_and_config(name)
    if hasattr(source, "save_pretrained"):
        source.save_pretrained(folder)
        return kind.from_pretrained(folder)
    loaded = kind(config)
    loaded.load_state_dict(source.state_dict())
    return loaded


class Flat(nn.Module):
    """A quantizer whose result is ``(quantized, indices, loss)``."""

    def __init__(self, quantizer: nn.Module) -> None:
        super().__init__()
        self.quantizer = quantizer

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        out = self.quantizer(x)
        if len(out) == 3:
            return out[0], out[2], out[1]
        quantized, commitment, codebook, indices, _ = out
        return quantized, indices, commitment + codebook


TRAINED = {
    "ChameleonVQVAEVectorQuantizer": (2, 8, 4, 5),
    "JanusVQVAEVectorQuantizer": (2, 4, 4, 5),
    "GlmImageVQVAEVectorQuantizer": (2, 4, 4, 5),
    "DacVectorQuantize": (2, 16, 20),
}


@pytest.mark.parametrize("name", TRAINED)
def test_trains_like_the_original(name: str) -> None:
    theirs = Flat(copy.deepcopy(ran(name).model.get_submodule(CASES[name].replaced[0])))
    ours = copy.deepcopy(theirs)
    assert replace_quantizers(ours).replaced
    assert_trains_alike(theirs, ours, TRAINED[name])


@pytest.mark.parametrize("name", [name for name in CASES if name not in TRAINED])
def test_gradients_past_a_lookup_are_those_of_the_original(name: str) -> None:
    """Of a whole model in training: these quantizers have no loss, and codes that no gradient reaches."""
    found = []
    for replaced in (False, True):
        model = copy.deepcopy(ran(name).model).train()
        assert not replaced or replace_quantizers(model).replaced
        # masks of some models are numpy's
        transformers.set_seed(0)
        outputs = [value for value in CASES[name].run(model).values() if value.requires_grad]
        if outputs:
            torch.stack([value.square().mean() for value in outputs]).sum().backward()
        found.append({path: parameter.grad for path, parameter in model.named_parameters()})
    theirs, ours = found
    for path, gradient in theirs.items():
        assert (gradient is None) == (ours[path] is None), path
        if gradient is not None:
            assert_bitwise_equal(ours[path], gradient)


def test_what_is_loaded_after_replacing_counts() -> None:
    """Mimi keeps what it makes of its sums; nobody is to ask for it before."""
    source = ran("MimiEuclideanCodebook").model
    kind, config = kind_and_config("MimiEuclideanCodebook")
    model = kind(config).eval()
    replace_quantizers(model)
    model.load_state_dict(source.state_dict())
    with torch.no_grad():
        codes = CASES["MimiEuclideanCodebook"].run(model)["codes"]
    assert_bitwise_equal(codes, ran("MimiEuclideanCodebook").outputs["codes"])


def test_what_is_not_as_the_library_builds_it_raises() -> None:
    original = ran("ChameleonVQVAEVectorQuantizer").model
    for change, message in (
        (lambda module: setattr(module, "forward", lambda x: x), "another forward"),
        (lambda module: delattr(module, "beta"), "without beta"),
    ):
        model = copy.deepcopy(original)
        change(model.quantize)
        with pytest.raises(
            NotImplementedError, match=f"quantize: expected transformers.+, got one (with )?{message}"
        ):
            replace_quantizers(model)
        assert type(model.quantize) is original_class("ChameleonVQVAEVectorQuantizer")
    model = copy.deepcopy(ran("EncodecEuclideanCodebook").model)
    codebook = model.quantizer.layers[1].codebook
    codebook.quantize = codebook.quantize
    with pytest.raises(NotImplementedError, match="got one with another quantize"):
        replace_quantizers(model)


def test_a_model_that_generates_goes_on_as_it_did() -> None:
    """Chameleon reads an image through its quantizer and writes on."""
    chameleon = model_file("ChameleonVQVAEVectorQuantizer")
    torch.manual_seed(0)
    tokens = {f"IMGIMG{''.join(chr(ord('A') + int(digit)) for digit in str(i))}Z": 10 + i for i in range(32)}
    config = chameleon.ChameleonConfig(
        vocab_size=64,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        vq_config=CASES["ChameleonVQVAEVectorQuantizer"].options,
        vocabulary_map={"<image>": 4, **tokens},
        eos_token_id=None,
    )
    model = chameleon.ChameleonForConditionalGeneration(config).eval()
    quantizer = model.model.vqmodel.quantize
    set_codes(quantizer, torch.randn(32, 8))
    given = {
        "input_ids": torch.tensor([[1, *[4] * 64, 50]]),
        "pixel_values": drawn(1, 3, 16, 16),
        "max_new_tokens": 4,
        "do_sample": False,
    }
    want = model.generate(**given)
    assert replace_quantizers(model).replaced.keys() == {"model.vqmodel.quantize"}
    assert_bitwise_equal(model.generate(**given), want)
