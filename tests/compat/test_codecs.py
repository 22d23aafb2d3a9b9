"""Quantizers of descript-audio-codec, SNAC, moshi and SpeechTokenizer inside their stacks. Oracle: the originals."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable
from typing import Any, NamedTuple

import pytest
import torch
from needs import beside_empty, import_library
from pairs import Largest
from torch import nn
from vqp_oracle import assert_trains_alike

import vqkernels.compat.encodec.quantization.core_vq as encodec
from vqkernels import replace_quantizers
from vqkernels.testing import assert_bitwise_equal, assert_exact_lookup

dac = beside_empty("dac.nn.quantize", "dac", "dac.nn")
moshi = beside_empty("moshi.quantization", "moshi")
snac = import_library("snac")
speech = beside_empty("speechtokenizer.quantization", "speechtokenizer")
import vqkernels.compat.dac  # noqa: E402
import vqkernels.compat.moshi  # noqa: E402
import vqkernels.compat.snac  # noqa: E402


class Case(NamedTuple):
    """A stack of three quantizers of 32 codes for vectors of 8 numbers."""

    build: Callable[[], nn.Module]
    inside: tuple[str, ...]  # what is replaced
    original: str
    adapter: type[nn.Module]
    codes: Callable[[Any, Any], Any]  # of the stack, for an input
    back: Callable[[Any, Any], torch.Tensor]
    flat: Callable[[Any], tuple[torch.Tensor, ...]]  # value, indices and loss of a result


def _paths(path: str) -> tuple[str, ...]:
    return tuple(path.format(number) for number in range(3))


CASES = {
    "dac": Case(
        lambda: dac.ResidualVectorQuantize(8, 3, 32, 4, quantizer_dropout=0.5),
        _paths("quantizers.{}"),
        "dac.nn.quantize.VectorQuantize",
        vqkernels.compat.dac.VectorQuantize,
        lambda stack, x: stack(x)[1],
        lambda stack, codes: stack.from_codes(codes)[0],
        lambda out: (out[0], out[1], out[3] + out[4], out[2]),
    ),
    "snac": Case(
        lambda: snac.vq.ResidualVectorQuantize(8, 32, 4, vq_strides=[4, 2, 1]),
        _paths("quantizers.{}"),
        "snac.vq.VectorQuantize",
        vqkernels.compat.snac.VectorQuantize,
        lambda stack, x: stack(x)[1],
        lambda stack, codes: stack.from_codes(codes),
        lambda out: (out[0], torch.cat(out[1], dim=1), out[0].new_zeros(())),
    ),
    "moshi": Case(
        lambda: moshi.SplitResidualVectorQuantizer(
            n_q=3, dimension=4, input_dimension=8, output_dimension=8, bins=32, q_dropout=False
        ),
        ("rvq_first.vq.layers.0._codebook", *(f"rvq_rest.vq.layers.{i}._codebook" for i in range(2))),
        "moshi.quantization.core_vq.EuclideanCodebook",
        vqkernels.compat.moshi.EuclideanCodebook,
        lambda stack, x: stack.encode(x),
        lambda stack, codes: stack.decode(codes),
        lambda out: (out.x, out.codes, out.penalty),
    ),
    "speechtokenizer": Case(
        lambda: speech.ResidualVectorQuantizer(8, 3, 32, kmeans_init=False, threshold_ema_dead_code=0),
        _paths("vq.layers.{}._codebook"),
        "speechtokenizer.quantization.core_vq.EuclideanCodebook",
        encodec.EuclideanCodebook,
        lambda stack, x: stack.encode(x),
        lambda stack, codes: stack.decode(codes),
        lambda out: out[:3],
    ),
}
each_name = pytest.mark.parametrize("name", CASES)


@torch.no_grad()
def settle(module: nn.Module) -> nn.Module:
    """Codes as after some training, of the size of the vectors."""
    for part in module.modules():
        if hasattr(part, "embedding_sum"):
            part.cluster_usage.uniform_(3, 9)
            part.embedding_sum.normal_().mul_(part.cluster_usage[:, None])
            part._initialized.fill_(1)
            part._embedding = None
        elif hasattr(part, "embed_avg"):
            part.cluster_size.uniform_(3, 9)
            part.embed.normal_()
            part.embed_avg.copy_(part.embed * part.cluster_size[:, None])
    return module


def make(name: str) -> Any:
    torch.manual_seed(1)
    return settle(CASES[name].build())


class Flat(nn.Module):
    """A stack whose result is value, indices and loss."""

    def __init__(self, name: str, stack: nn.Module) -> None:
        super().__init__()
        self.stack, self.name = stack, name

    def forward(self, x: torch.Tensor) -> tuple[torch.Tensor, ...]:
        out = self.stack(x, 10) if self.name == "moshi" else self.stack(x)
        return CASES[self.name].flat(out)


@each_name
def test_trains_like_the_original(name: str) -> None:
    """Outputs, gradients and state of three steps and an evaluation; checkpoints both ways, strict."""
    stack = make(name)
    for part in stack.modules():
        if hasattr(part, "weight_g"):
            # a weight that is computed is not copied
            nn.utils.remove_weight_norm(part)
    theirs = Flat(name, stack)
    ours = copy.deepcopy(theirs)
    assert replace_quantizers(ours).left == {}
    assert_trains_alike(theirs, ours, (2, 8, 40))


@each_name
def test_a_stack_goes_on_as_it_was(name: str) -> None:
    case = CASES[name]
    original, stack = make(name).eval(), make(name).eval()
    tensors, parts = stack.state_dict(keep_vars=True), dict(stack.named_modules())
    assert replace_quantizers(stack) == (dict.fromkeys(case.inside, case.original), {})
    assert dict(stack.named_modules()) == parts
    after = stack.state_dict(keep_vars=True)
    assert list(after) == list(tensors)
    assert all(after[key] is tensors[key] for key in tensors)
    assert {type(stack.get_submodule(path)) for path in case.inside} == {case.adapter}
    assert replace_quantizers(stack) == ({}, {})
    original.load_state_dict(after)
    if name not in ("dac", "snac"):  # normalised weights do not travel so
        again = pickle.loads(pickle.dumps(stack.get_submodule(case.inside[0])))
        assert type(again) is case.adapter

    x = torch.randn(2, 8, 40)
    with torch.no_grad():
        codes, want = case.codes(stack, x), case.codes(original, x)
        for got, expected in zip(codes, want, strict=True):
            assert_bitwise_equal(got, expected)
        assert_bitwise_equal(case.back(stack, codes), case.back(original, want))


def test_a_whole_codec_goes_on_as_it_was() -> None:
    torch.manual_seed(0)
    options: dict[str, Any] = {"encoder_dim": 4, "encoder_rates": [2, 2], "decoder_dim": 8, "decoder_rates": [2, 2]}
    model = snac.SNAC(
        **options, attn_window_size=None, codebook_size=32, codebook_dim=4, vq_strides=[2, 1], noise=False
    ).eval()
    audio = torch.randn(1, 1, 160)
    with torch.no_grad():
        want, codes = model(audio)
        assert replace_quantizers(model).replaced.keys() == {"quantizer.quantizers.0", "quantizer.quantizers.1"}
        got, indices = model(audio)
    for one, other in zip([got, *indices], [want, *codes], strict=True):
        assert_bitwise_equal(one, other)


def test_what_is_loaded_after_replacing_counts() -> None:
    """Moshi keeps what it makes of its sums; nobody is to ask for it before."""
    source = make("moshi").eval()
    stack = CASES["moshi"].build().eval()
    replace_quantizers(stack)
    stack.load_state_dict(source.state_dict())
    x = torch.randn(2, 8, 40)
    assert_bitwise_equal(stack.encode(x), source.encode(x))


def test_a_codebook_of_moshi_starts_from_k_means() -> None:
    """All of it is the original's, but for the lookup."""
    x = torch.randint(-9, 9, (200, 4)).float()
    states = []
    for replaced in (False, True):
        codebook = moshi.core_vq.EuclideanCodebook(4, 16).train()
        if replaced:
            replace_quantizers(codebook)
        torch.manual_seed(3)
        out = codebook(x)
        states.append([out.quantized, out.codes, *codebook.state_dict().values()])
    for got, want in zip(*reversed(states), strict=True):
        assert_bitwise_equal(got, want)


def codebook_and_lookup(name: str) -> tuple[Any, Callable[[torch.Tensor], torch.Tensor]]:
    module = make(name).get_submodule(CASES[name].inside[0])
    replace_quantizers(module)
    if name in ("dac", "snac"):
        return module, lambda rows: module.decode_latents(latents=rows.t()[None])[1][0]
    return module, module.encode


@each_name
def test_the_lookup_is_exact(name: str) -> None:
    """Far from the origin, where vectors have one, and under autocast."""
    module, look_up = codebook_and_lookup(name)
    normalised = name in ("dac", "snac")
    table = module.codebook.weight if normalised else getattr(module, "embedding_sum", getattr(module, "embed", None))
    codes = torch.randn(table.shape) + (0 if normalised else 300)
    with torch.no_grad():
        table.copy_(codes)
        if name == "moshi":
            module.cluster_usage.fill_(1)
    rows = torch.randn(200, codes.shape[1]) + (0 if normalised else 300)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        indices = look_up(rows)
    if normalised:
        rows, codes = nn.functional.normalize(rows), nn.functional.normalize(codes)
        distance = (rows.double() - codes.double()[:, None]).square().sum(2)
        # of unit vectors as they are rounded here and there
        chosen = distance[indices, torch.arange(200)]
        assert bool((chosen <= distance.amin(0) + 32 * torch.finfo(torch.float32).eps).all())
    else:
        distance = (rows.double() - codes[indices].double()).square().sum(1)
        assert_exact_lookup(rows, codes, indices, distance.float(), metric="l2")


@each_name
def test_no_tensor_has_a_number_for_each_vector_and_code(name: str) -> None:
    """In a whole training step for SpeechTokenizer, whose original makes one-hots too."""
    module, look_up = codebook_and_lookup(name)
    dim = module.codebook.weight.shape[1] if name in ("dac", "snac") else 8 if name == "speechtokenizer" else 4
    with Largest() as largest:
        (module.train() if name == "speechtokenizer" else look_up)(torch.randn(1000, dim))
    assert largest.size < 1000 * 32
