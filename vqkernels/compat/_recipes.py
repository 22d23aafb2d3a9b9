"""How each quantizer of another library becomes its adapter: read off the module, without importing the library."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from operator import attrgetter
from typing import Any, NamedTuple

from torch import nn

from vqkernels.compat import dac, moshi, snac, transformers
from vqkernels.compat._running_means import recall_started
from vqkernels.distributed import world

Read = Callable[[Any], Any]


class Recipe(NamedTuple):
    """What it takes to build an adapter that can take over the tensors and submodules of an original.

    An argument of the adapter's constructor is the attribute of that name of the original, unless ``read`` has a
    function for it. Whatever only shapes or fills tensors and submodules may be anything, since those are replaced.
    """

    adapter: str  # "submodule:class" of vqkernels.compat
    read: Mapping[str, Read] = {}
    carry: tuple[str, ...] = ()  # attributes that replace what the constructor made of its arguments
    settle: Callable[[Any], None] = lambda adapter: None  # when all of the model has been replaced
    internal: bool = False  # a part of a quantizer, which is not reported by itself
    derived: tuple[str, ...] = ()  # of an adapter derived from the original: the attributes that it counts on


def _given(**values: Any) -> dict[str, Read]:
    """Arguments that are not read off the original."""

    def always(value: Any) -> Read:
        return lambda module: value

    return {name: always(value) for name, value in values.items()}


def _at(path: str, names: Iterable[str]) -> dict[str, Read]:
    return {name: attrgetter(f"{path}.{name}") for name in names}


def _outer_dim(module: Any) -> int:
    """Size of the vectors before ``project_in``."""
    return int(getattr(module.project_in, "in_features", module.codebook_dim))


def _synchronised(codebook: Any) -> bool | None:
    # decided when the original was built; built by a single process, it says nothing about several
    return None if codebook.use_ddp or world()[1] == 1 else False


def _synchronised_kmeans(codebook: Any) -> bool:
    return not codebook.use_ddp or codebook.sample_fn.__name__ != "batched_sample_vectors"


def _leave_layouts_to(stack: nn.Module) -> None:
    # the stack sees to them, and its layers to vectors
    for layer in stack.layers:  # type: ignore[union-attr]
        layer.accept_image_fmap = layer.accept_3d_fmap = False
        layer.channel_last = True


def _channels_last(stack: Any) -> None:
    for layer in stack.layers:
        layer.channel_first = False


def _channels_first(side_by_side: Any) -> None:
    if side_by_side.accept_image_fmap:
        for stack in side_by_side.rvqs:
            stack.is_channel_first = stack._channel_first = True


_VQ = "vector_quantize_pytorch"
_CODEBOOK: dict[str, Read] = {
    **_given(kmeans_init=False),
    "dim": lambda codebook: codebook.embed.shape[-1],
    "use_ddp": _synchronised,
    "sync_kmeans": _synchronised_kmeans,
}
_QUANTIZER: dict[str, Read] = {
    **_at("_codebook", ("decay", "kmeans_iters", "threshold_ema_dead_code", "sample_codebook_temp")),
    **_at("_codebook", ("manual_ema_update", "vq_bridge", "affine_param")),
    **_given(layernorm_after_project_in=False, kmeans_init=False, in_place_codebook_optimizer=None),
    **_given(sync_affine_param=False, affine_param_batch_decay=0.99, affine_param_codebook_decay=0.9),
    "codebook_dim": lambda module: module._codebook.embed.shape[-1],
    "sync_kmeans": lambda module: _synchronised_kmeans(module._codebook),
    "sync_codebook": lambda module: _synchronised(module._codebook),
    "stochastic_sample_codes": lambda module: module._codebook.gumbel_sample.keywords["stochastic"],
    "straight_through": lambda module: module._codebook.gumbel_sample.keywords["straight_through"],
}
_STACK: dict[str, Read] = {
    **_given(heads=1, mlp_kwargs=None),
    "dim": _outer_dim,
    "codebook_size": attrgetter("codebook_sizes"),
    "beam_score_quantizer_weights": lambda module: module.beam_score_weights.tolist(),
    "channel_last": lambda module: module.layers[0].channel_last,
    "accept_3d_fmap": lambda module: module.layers[0].accept_3d_fmap,
}
_SCALES: dict[str, Read] = {
    # options of the quantizers inside, which come with them
    **_given(decay=1.0, commitment_weight=1.0, rotation_trick=False, sync_codebook=None, quant_resi=1.0),
    **_given(kmeans_init=False, kmeans_iters=0, threshold_ema_dead_code=0),
    **_given(stochastic_sample_codes=False, sample_codebook_temp=1.0),
    **_given(orthogonal_reg_weight=0, orthogonal_reg_max_codes=None, orthogonal_reg_active_codes_only=False),
    "codebook_size": attrgetter("codebook_sizes"),
    "scales": attrgetter("level_shapes"),
    "shared_codebook": lambda module: module.vq is not None,
    "share_quant_resi": lambda module: 1 if module.phi_levels is None else len(module.phi_levels),
    "accept_image_fmap": lambda module: module.spatial_dims == 2,
    "accept_3d_fmap": lambda module: module.spatial_dims == 3,
}
_FSQ: dict[str, Read] = {
    **_given(projection_has_bias=True),
    "levels": lambda module: module._levels.tolist(),
}
_FSQ_STACK: dict[str, Read] = {
    "dim": lambda module: getattr(module.project_in, "in_features", len(module.levels)),
    "bound_hard_clamp": lambda module: module.layers[0].bound_hard_clamp,
    "soft_clamp_input_value": lambda module: (
        None if module.layers[0].bound_hard_clamp else module.soft_clamp_input_value
    ),
}
_LFQ: dict[str, Read] = {
    **_given(projection_has_bias=True, cosine_sim_project_in=False, cosine_sim_project_in_scale=None),
    "straight_through_activation": attrgetter("activation"),
}
_COSINES: dict[str, Read] = {
    "dim_in": lambda module: module.weight.shape[0],
    "dim_out": lambda module: module.weight.shape[1],
}
_LFQ_STACK: dict[str, Read] = {
    "dim": lambda module: getattr(module.project_in, "in_features", module.layers[0].codebook_dim),
    **_given(soft_clamp_input_value=None),
    "codebook_size": lambda module: module.layers[0].codebook_size,
    "channel_first": lambda module: module.layers[0].channel_first,
}
_MLP: dict[str, Read] = {
    **_given(dim_hidden=None),
    "dim": attrgetter("proj_in.out_features"),
    "depth": lambda module: len(module.layers),
}
_PHI: dict[str, Read] = {
    "dim": attrgetter("conv.in_channels"),
    "spatial_dims": lambda module: len(module.conv.kernel_size),
}
_EUCLIDEAN: dict[str, Read] = {**_given(kmeans_init=False), "dim": lambda codebook: codebook.embed.shape[1]}
_CODEC_LAYER: dict[str, Read] = {
    **_at("_codebook", ("decay", "kmeans_iters", "threshold_ema_dead_code")),
    "dim": lambda module: getattr(module.project_in, "in_features", module._codebook.embed.shape[1]),
    **_given(kmeans_init=False),
    "codebook_dim": lambda module: module._codebook.embed.shape[1],
}
_REMAPPED = ("remap", "re_embed", "unknown_index")
# the file with the indices in use was read by the original
_FILE = _given(remap=None, unknown_index="random")
_TAMING = "taming.modules.vqvae.quantize"
_EMBEDDING_EMA: dict[str, Read] = {
    "num_tokens": lambda embedding: embedding.weight.shape[0],
    "codebook_dim": lambda embedding: embedding.weight.shape[1],
}
_EMA: dict[str, Read] = {
    **_FILE,
    **_at("embedding", ("decay", "eps")),
    "n_embed": lambda module: module.embedding.weight.shape[0],
    "embedding_dim": lambda module: module.embedding.weight.shape[1],
}
_GUMBEL: dict[str, Read] = {
    **_FILE,
    "num_hiddens": attrgetter("proj.in_channels"),
    "temp_init": attrgetter("temperature"),
}

_MAGVIT: dict[str, Read] = {"factorized_bits": lambda module: getattr(module, "factorized_bits", (9, 9))}

# class of an original, by module and name -> its recipe
RECIPES = {
    "diffusers.models.autoencoders.vae.VectorQuantizer": Recipe("diffusers:VectorQuantizer", _FILE, _REMAPPED),
    f"{_TAMING}.VectorQuantizer": Recipe(f"{_TAMING}:VectorQuantizer"),
    f"{_TAMING}.VectorQuantizer2": Recipe(f"{_TAMING}:VectorQuantizer2", _FILE, _REMAPPED),
    f"{_TAMING}.GumbelQuantize": Recipe(f"{_TAMING}:GumbelQuantize", _GUMBEL, _REMAPPED),
    f"{_TAMING}.EMAVectorQuantizer": Recipe(f"{_TAMING}:EMAVectorQuantizer", _EMA, _REMAPPED),
    f"{_TAMING}.EmbeddingEMA": Recipe(f"{_TAMING}:EmbeddingEMA", _EMBEDDING_EMA, ("update",), internal=True),
    "tokenizer.tokenizer_image.vq_model.VectorQuantizer": Recipe("llamagen:VectorQuantizer"),
    "encodec.quantization.core_vq.EuclideanCodebook": Recipe(
        "encodec.quantization.core_vq:EuclideanCodebook", _EUCLIDEAN, settle=recall_started
    ),
    "encodec.quantization.core_vq.VectorQuantization": Recipe(
        "encodec.quantization.core_vq:VectorQuantization", _CODEC_LAYER
    ),
    "encodec.quantization.core_vq.ResidualVectorQuantization": Recipe(
        "encodec.quantization.core_vq:ResidualVectorQuantization",
        _given(num_quantizers=0),
    ),
    "encodec.quantization.vq.ResidualVectorQuantizer": Recipe("encodec.quantization.vq:ResidualVectorQuantizer"),
    f"{_VQ}.{_VQ}.VectorQuantize": Recipe(
        f"{_VQ}.{_VQ}:VectorQuantize", _QUANTIZER, ("in_place_codebook_optimizer",)
    ),
    f"{_VQ}.{_VQ}.Codebook": Recipe(f"{_VQ}._codebook:Codebook", _CODEBOOK, settle=recall_started, internal=True),
    f"{_VQ}.residual_vq.ResidualVQ": Recipe(
        f"{_VQ}.residual_vq:ResidualVQ", _STACK, ("vq_is_ema_updating",), _leave_layouts_to
    ),
    f"{_VQ}.residual_vq.MLP": Recipe(f"{_VQ}.residual_vq:MLP", _MLP, internal=True),
    f"{_VQ}.residual_vq.GroupedResidualVQ": Recipe(
        f"{_VQ}.residual_vq:GroupedResidualVQ",
        _given(num_quantizers=1, codebook_size=1),
    ),
    f"{_VQ}.finite_scalar_quantization.FSQ": Recipe(f"{_VQ}.finite_scalar_quantization:FSQ", _FSQ),
    f"{_VQ}.residual_fsq.ResidualFSQ": Recipe(f"{_VQ}.residual_fsq:ResidualFSQ", _FSQ_STACK),
    f"{_VQ}.residual_fsq.GroupedResidualFSQ": Recipe(
        f"{_VQ}.residual_fsq:GroupedResidualFSQ",
        _given(levels=[3], num_quantizers=1),
        settle=_channels_first,
    ),
    f"{_VQ}.lookup_free_quantization.LFQ": Recipe(f"{_VQ}.lookup_free_quantization:LFQ", _LFQ),
    f"{_VQ}.lookup_free_quantization.CosineSimLinear": Recipe(
        f"{_VQ}.lookup_free_quantization:CosineSimLinear", _COSINES, internal=True
    ),
    f"{_VQ}.residual_lfq.ResidualLFQ": Recipe(f"{_VQ}.residual_lfq:ResidualLFQ", _LFQ_STACK, settle=_channels_last),
    f"{_VQ}.residual_lfq.GroupedResidualLFQ": Recipe(
        f"{_VQ}.residual_lfq:GroupedResidualLFQ",
        _given(codebook_size=2, num_quantizers=1),
        settle=_channels_first,
    ),
    f"{_VQ}.binary_mapper.BinaryMapper": Recipe(f"{_VQ}.binary_mapper:BinaryMapper"),
    f"{_VQ}.sim_vq.SimVQ": Recipe(
        f"{_VQ}.sim_vq:SimVQ",
        {
            **_given(frozen_codebook_dim=None, init_fn=lambda codes: codes),
            "dim": lambda module: module.frozen_codebook.shape[1],
            "codebook_transform": attrgetter("code_transform"),
        },
    ),
    f"{_VQ}.residual_sim_vq.ResidualSimVQ": Recipe(
        f"{_VQ}.residual_sim_vq:ResidualSimVQ",
        {**_given(heads=1, rotation_trick=True), "dim": lambda module: module.layers[0].codebook.shape[1]},
    ),
    f"{_VQ}.random_projection_quantizer.RandomProjectionQuantizer": Recipe(
        f"{_VQ}.random_projection_quantizer:RandomProjectionQuantizer",
        {
            "dim": lambda module: module.rand_projs.shape[1],
            "codebook_dim": lambda module: module.rand_projs.shape[2],
            **_given(norm=False),
            "codebook_size": attrgetter("vq.codebook_size"),
        },
    ),
    f"{_VQ}.hierarchical_vq.HierarchicalVQ": Recipe(f"{_VQ}.hierarchical_vq:HierarchicalVQ", _SCALES),
    f"{_VQ}.hierarchical_vq._Phi": Recipe(f"{_VQ}.hierarchical_vq:_Phi", _PHI, internal=True),
}
# its place before diffusers 0.21
RECIPES["diffusers.models.vae.VectorQuantizer"] = RECIPES["diffusers.models.autoencoders.vae.VectorQuantizer"]
# its layers are its own, their codebook is encodec's
_SPEECH = "speechtokenizer.quantization"
RECIPES[f"{_SPEECH}.core_vq.EuclideanCodebook"] = RECIPES["encodec.quantization.core_vq.EuclideanCodebook"]
# in the repository, in its later layout and, for LFQ, in its first one and in the package made of that
for _root in ("src", "OpenImageTokenizer"):
    RECIPES[f"{_root}.IBQ.modules.vqvae.quantize.IndexPropagationQuantize"] = Recipe(
        "seed_voken:IndexPropagationQuantize", _FILE, _REMAPPED
    )
for _root in ("src.Open_MAGVIT2", "OpenImageTokenizer.Open_MAGVIT2", "taming", "open_magvit2.taming"):
    RECIPES[f"{_root}.modules.vqvae.lookup_free_quantize.LFQ"] = Recipe("seed_voken:LFQ", _MAGVIT)
_DERIVED = {"dac": dac.CLASSES, "moshi": moshi.CLASSES, "snac": snac.CLASSES, "transformers": transformers.CLASSES}
RECIPES |= {
    f"{original.module}.{name}": Recipe(f"{library}:{name}", derived=original.expected)
    for library, classes in _DERIVED.items()
    for name, original in classes.items()
}
# what looks like a quantizer and leaves everything to those inside
AROUND = {name for classes in _DERIVED.values() for original in classes.values() for name in original.all_around}
AROUND |= {
    f"{_SPEECH}.{name}"
    for name in ("core_vq.VectorQuantization", "core_vq.ResidualVectorQuantization", "vq.ResidualVectorQuantizer")
}


def recipe_for(module: nn.Module) -> Recipe | None:
    """The recipe for a module, None if its very class is not known."""
    recipe = RECIPES.get(class_name(type(module)))
    if recipe is not None and recipe.read is _CODEBOOK and getattr(module, "affine_param", False):
        return recipe._replace(adapter=f"{_VQ}._affine:AffineCodebook")
    return recipe


def class_name(kind: type) -> str:
    return f"{kind.__module__}.{kind.__qualname__}"
