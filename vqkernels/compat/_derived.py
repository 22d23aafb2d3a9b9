"""Classes derived from the originals of a library, which look codes up here and keep all else."""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from vqkernels._core.shown import shape_of
from vqkernels.compat._feature_maps import match
from vqkernels.compat._inputs import given_vectors
from vqkernels.nn.codebook import unit
from vqkernels.ops.nearest_code import nearest_code


class Euclidean:
    """Codecs for audio: the nearest code, without gradient."""

    embed: torch.Tensor  # [K, D]

    def quantize(self, hidden_states: torch.Tensor) -> torch.Tensor:  # [N, D] -> [N]
        rows = given_vectors("hidden_states", hidden_states, self.embed.shape[1], -1, self.embed)
        return nearest_code(rows, self.embed).indices


class OfRunningSums:
    """Moshi: codes are running sums divided by running sizes."""

    embedding_sum: torch.Tensor  # [K, D]
    cluster_usage: torch.Tensor  # [K]

    def _quantize(self, x: torch.Tensor) -> torch.Tensor:  # [N, D] -> [N]
        # made of the sums by the original, and kept
        codes: torch.Tensor = self.embedding  # type: ignore[attr-defined]
        return nearest_code(given_vectors("x", x, codes.shape[1], -1, codes), codes).indices


class OfFrames:
    """Emu3: the nearest code of every vector of a film, without gradient."""

    embedding: nn.Embedding  # [K, D]

    def forward(self, hidden_state: torch.Tensor) -> torch.Tensor:  # [B, T, D, H, W] -> [B, T, H, W]
        codes = self.embedding.weight
        rows = given_vectors("hidden_state", hidden_state, codes.shape[1], 2, codes)
        return nearest_code(rows.movedim(2, -1), codes).indices


class OfLogits:
    """Apertus: the code with the largest product, without gradient."""

    embedding: nn.Linear  # [K, D]

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:  # [B, D, H, W] -> [B, H, W]
        codes = self.embedding.weight
        rows = given_vectors("hidden_states", hidden_states, codes.shape[1], 1, codes)
        return nearest_code(rows.movedim(1, -1), codes, metric="dot").indices


class OfMaps:
    """Chameleon, Janus: quantizers of the VQGAN family, with their loss."""

    embedding: nn.Embedding  # [K, D]
    beta: float
    _normalized = False

    def forward(
        self,
        hidden_state: torch.Tensor,  # [B, D, H, W]
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:  # [B, D, H, W], [], [B H W]
        weight = self.embedding.weight
        hidden_state = given_vectors("hidden_state", hidden_state, weight.shape[1], 1, weight)
        codebook = unit(weight) if self._normalized else weight
        found = match(hidden_state, codebook, normalize=self._normalized)
        loss = found.encoder_loss + self.beta * found.codebook_loss
        return found.quantized(), loss, found.indices


class OfUnitMaps(OfMaps):
    """GLM-Image: the same with vectors and codes of unit length."""

    _normalized = True


class Factorised:
    """DAC: the nearest of the codes at unit length, whose values are the codes as they are."""

    codebook: nn.Embedding  # [K, D]

    def decode_latents(
        self,
        hidden_states: torch.Tensor,  # [B, D, T]
    ) -> tuple[torch.Tensor, torch.Tensor]:  # [B, D, T], [B, T]
        return _of_unit_length(self.codebook, "hidden_states", hidden_states)


class OfLatents(Factorised):
    """The same under the argument's name in descript-audio-codec and SNAC."""

    def decode_latents(self, latents: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return _of_unit_length(self.codebook, "latents", latents)


def _of_unit_length(
    codebook: nn.Embedding, name: str, x: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:  # [B, D, T] -> [B, D, T], [B, T]
    with _present(codebook), torch.no_grad():
        weight = codebook.weight
        rows = given_vectors(name, x, weight.shape[1], 1, weight).movedim(1, -1)
        if rows.dim() != 3:
            raise ValueError(f"{name}: expected [B, D={weight.shape[1]}, T], got shape {shape_of(x)}")
        indices = nearest_code(_unit(rows), _unit(weight)).indices
    return codebook(indices).transpose(1, 2), indices


def _unit(x: torch.Tensor) -> torch.Tensor:  # [..., D]
    """Unit length, in at least float32."""
    return unit(x.to(torch.promote_types(x.dtype, torch.float32)))


@contextmanager
def _present(module: nn.Module) -> Iterator[None]:
    """Have the weights of a module at hand that accelerate may keep elsewhere until its forward."""
    hook: Any = getattr(module, "_hf_hook", None)
    if hook is not None:
        hook.pre_forward(module)
    yield
    if hook is not None:
        hook.post_forward(module, ())


class Original(NamedTuple):
    """Where a library has a class, and what takes the place of its methods."""

    module: str
    lookup: type
    around: tuple[str, ...] = ()  # classes, of that module or by their whole names, that quantize by this one alone

    @property
    def expected(self) -> tuple[str, ...]:
        """What the lookup asks of the class or takes the place of."""
        kinds = [kind for kind in self.lookup.__mro__ if kind is not object]
        methods = {name for kind in kinds for name in vars(kind) if callable(getattr(kind, name))}
        written = {name for name in methods if not name.startswith("__")}
        return tuple(sorted(written.union(*(kind.__annotations__ for kind in kinds))))

    @property
    def all_around(self) -> set[str]:
        return {name if "." in name else f"{self.module}.{name}" for name in self.around}


def derived(name: str, classes: Mapping[str, Original], namespace: dict[str, Any]) -> type[nn.Module]:
    """The class of this name, derived when it is first asked for of a module: its ``__getattr__``."""
    if name not in classes:
        raise AttributeError(f"module {namespace['__name__']!r} has no attribute {name!r}")
    original = classes[name]
    base = getattr(importlib.import_module(original.module), name)
    library = original.module.partition(".")[0]
    about = {
        "__module__": namespace["__name__"],
        "__doc__": f"``{name}`` of {library} with an exact lookup in O(N + K) memory.",
    }
    # found by its name from now on, which is what copies and pickles of modules go by
    kind: type[nn.Module] = type(name, (original.lookup, base), about)
    namespace[name] = kind
    return kind
