"""Evolution in the bits of a lookup-free quantizer, decoded by its autoencoder."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn

from vqkernels._core.arguments import Size, Times, checked
from vqkernels._core.checks import (
    check_data,
    check_floating,
    check_numbers,
    check_same_device,
    check_shape,
    check_size,
    check_tensor,
)
from vqkernels._core.shown import kind_of, shape_of
from vqkernels.compat.vector_quantize_pytorch._tensors import Constants
from vqkernels.compat.vector_quantize_pytorch.lookup_free_quantization import LFQ, SignCodes

Fitness = Callable[[torch.Tensor, torch.Tensor], Any]


class Return(NamedTuple):
    """Result of :meth:`EvoLFQ.forward`."""

    reconstructed: torch.Tensor
    indices: torch.Tensor
    entropy_aux_loss: torch.Tensor


class Result(NamedTuple):
    """State of :meth:`EvoLFQ.evolve` after a generation."""

    pop_bits: torch.Tensor  # [P, ..., bits]
    best_gene: torch.Tensor | None  # [..., bits]
    best_fitness: float
    best_decoded: torch.Tensor | None


class EvoLFQ(Constants):
    """An autoencoder with an :class:`LFQ` in the middle, and a genetic algorithm on its bits.

    Bits come along the last dimension, the codebooks one after the other; as 0 and 1, or as -1 and 1 where an
    argument says sign.

    Args:
        encoder: makes vectors ``[B, dim]`` or ``[B, N, dim]``.
        decoder: takes quantized vectors.
        lfq: the quantizer; None makes one of the arguments that follow.
        dim: of :class:`LFQ`.
        codebook_size: of :class:`LFQ`.
        num_codebooks: of :class:`LFQ`.
        pop_size: P, genes in a population.
        mutation_rate: probability that a bit flips.
        tournament_size: genes that compete to be a parent.
        elitism_count: fittest genes that stay as they are, fewer than ``pop_size``.
        generations: steps of :meth:`evolve`.
        **lfq_kwargs: of :class:`LFQ`.

    Raises:
        ValueError: on options that do not fit.

    Example:
        >>> import torch
        >>> from vqkernels.compat.vector_quantize_pytorch import EvoLFQ
        >>> evolution = EvoLFQ(torch.nn.Linear(8, 6), torch.nn.Linear(6, 8), dim=6, pop_size=16)
        >>> population = evolution.init_population_from_data(torch.randn(4, 8))
        >>> fitter, fitness = evolution.step(population, lambda decoded, bits: decoded.sum(-1))
        >>> fitter.shape, fitness.shape
        (torch.Size([16, 6]), torch.Size([16]))
    """

    zero: torch.Tensor

    @checked
    def __init__(
        self,
        encoder: nn.Module,
        decoder: nn.Module,
        lfq: LFQ | None = None,
        *,
        dim: Size | None = None,
        codebook_size: SignCodes | None = None,
        num_codebooks: Size = 1,
        pop_size: Size = 64,
        mutation_rate: float = 0.02,
        tournament_size: Size = 2,
        elitism_count: Times = 1,
        generations: Times = 50,
        **lfq_kwargs: Any,
    ) -> None:
        super().__init__()
        if elitism_count >= pop_size:
            raise ValueError(f"elitism_count: expected less than pop_size={pop_size}, got {elitism_count}")
        self.encoder = encoder
        self.decoder = decoder
        if lfq is None:
            lfq = LFQ(dim=dim, codebook_size=codebook_size, num_codebooks=num_codebooks, **lfq_kwargs)
        self.lfq = lfq
        self.pop_size = pop_size
        self.mutation_rate = mutation_rate
        self.tournament_size = tournament_size
        self.elitism_count = elitism_count
        self.generations = generations
        self._set_constant("zero", 0.0)

    @property
    def device(self) -> torch.device:
        return self.zero.device

    def forward(self, x: torch.Tensor, **kwargs: Any) -> Return:
        """Encode, quantize with ``kwargs`` for the quantizer, decode."""
        quantized, indices, loss = self._quantize(x, **kwargs)
        return Return(self.decoder(quantized), indices, loss)

    @torch.no_grad()
    @checked
    def encode(self, x: torch.Tensor, return_signs: bool = False) -> torch.Tensor:  # [B, ..., bits]
        """Bits of data."""
        with _evaluating(self):
            indices = self._quantize(x)[1]
        if not self.lfq.keep_num_codebooks_dim:
            indices = indices[..., None]
        bits = ((indices[..., None] & self.lfq.mask) != 0).flatten(-2).float()
        return bits * 2 - 1 if return_signs else bits

    @torch.no_grad()
    def decode_bits(self, bits: torch.Tensor) -> torch.Tensor:  # [B, ..., bits]
        """What bits, or signs, decode to."""
        self._check_bits("bits", bits)
        words = (bits > 0).unflatten(-1, (self.lfq.num_codebooks, self.lfq.codebook_dim))
        indices = (words * self.lfq.mask).sum(dim=-1)
        if not self.lfq.keep_num_codebooks_dim:
            indices = indices.squeeze(-1)
        with _evaluating(self):
            return self.decoder(self.lfq.indices_to_codes(indices))  # type: ignore[no-any-return]

    def _check_bits(self, name: str, bits: torch.Tensor) -> None:
        check_tensor(name, bits)
        if bits.dtype != torch.bool:
            check_numbers(name, bits)
        count = self.lfq.num_codebooks * self.lfq.codebook_dim
        if bits.dim() < 2 or bits.shape[-1] != count:
            raise ValueError(
                f"{name}: expected [..., {count}] of at least two dimensions, got shape {shape_of(bits)}"
            )
        check_same_device(**{name: bits}, module=self.zero)

    def _check_population(self, genes: torch.Tensor) -> None:
        self._check_bits("pop_bits", genes)
        check_numbers("pop_bits", genes)
        if not len(genes):
            raise ValueError(f"pop_bits: expected at least one gene, got shape {shape_of(genes)}")

    @checked
    def init_random_population(
        self,
        pop_size: Size | None = None,
        shape: Sequence[Size] = (),
        device: torch.device | None = None,
        is_sign: bool = False,
    ) -> torch.Tensor:  # [P, *shape]
        """Fair bits."""
        size = (self.pop_size if pop_size is None else pop_size, *shape)
        check_size("shape", pop_size=size[0], gene=math.prod(shape))
        bits = torch.randint(0, 2, size, device=self.device if device is None else device).float()
        return bits * 2 - 1 if is_sign else bits

    @checked
    def init_population_from_data(
        self,
        x: torch.Tensor,
        pop_size: Size | None = None,
        mutation_rate: float | None = None,
        is_sign: bool = False,
    ) -> torch.Tensor:  # [P, ..., bits]
        """Bits of data, over and over until there are enough, mutated."""
        bits = self.encode(x, return_signs=is_sign)
        if not len(bits):
            raise ValueError("x: expected at least one vector, got none")
        size = self.pop_size if pop_size is None else pop_size
        return self.mutate(bits[torch.arange(size, device=bits.device) % len(bits)], mutation_rate, is_sign)

    def uniform_crossover(self, parent1: torch.Tensor, parent2: torch.Tensor) -> torch.Tensor:
        """Each bit from either parent."""
        for name, parent in (("parent1", parent1), ("parent2", parent2)):
            check_tensor(name, parent)
            if parent.dtype != torch.bool:
                check_numbers(name, parent)
        check_shape("parent2", parent2, tuple(parent1.shape), "parent1.shape")
        check_same_device(parent1=parent1, parent2=parent2)
        return torch.where(torch.rand_like(parent1.float()) < 0.5, parent1, parent2)

    @checked
    def mutate(
        self, population: torch.Tensor, mutation_rate: float | None = None, is_sign: bool = False
    ) -> torch.Tensor:
        """Flip some bits."""
        check_numbers("population", population)
        rate = self.mutation_rate if mutation_rate is None else mutation_rate
        if rate <= 0:
            return population
        flips = torch.rand_like(population.float()) < rate
        return torch.where(flips, -population if is_sign else 1 - population, population)

    @checked
    def tournament_selection(
        self,
        population: torch.Tensor,  # [P, ...]
        fitnesses: torch.Tensor,  # [P]
        tournament_size: Size | None = None,
    ) -> torch.Tensor:  # [P, ...]
        """As many winners of random tournaments as there are genes."""
        check_numbers("fitnesses", fitnesses)
        if not population.dim() or not len(population):
            raise ValueError(f"population: expected at least one gene, got shape {shape_of(population)}")
        check_shape("fitnesses", fitnesses, (len(population),), "[P]")
        check_same_device(population=population, fitnesses=fitnesses, module=self.zero)
        return population[self._winners(fitnesses, (len(population),), tournament_size)]

    @torch.no_grad()
    @checked
    def step(
        self,
        pop_bits: torch.Tensor,  # [P, ..., bits]
        fitness_fn: Fitness,
        tournament_size: Size | None = None,
        mutation_rate: float | None = None,
        elitism_count: Times | None = None,
        is_sign: bool = False,
        batch_size: Size | None = None,
        **kwargs: Any,
    ) -> tuple[torch.Tensor, torch.Tensor]:  # [P, ..., bits], [P]
        """One generation: the fittest stay, the others are mutated children of tournament winners.

        Args:
            pop_bits: the population.
            fitness_fn: takes what the genes decode to, and the genes; returns P numbers, the higher the fitter.
            tournament_size, mutation_rate, elitism_count: in place of those of the module.
            is_sign: whether bits are -1 and 1.
            batch_size: genes that are decoded at a time; None means all.
            **kwargs: without effect.

        Returns:
            The next population, and the fitness of this one.
        """
        elite = self.elitism_count if elitism_count is None else elitism_count
        self._check_population(pop_bits)
        if elite > len(pop_bits):
            raise ValueError(f"elitism_count: expected at most the {len(pop_bits)} genes of pop_bits, got {elite}")
        chunks = pop_bits.split(len(pop_bits) if batch_size is None else batch_size)
        parts = [self.decode_bits(chunk) for chunk in chunks]
        for part in parts:
            check_tensor("decoder", part)
        fitnesses = _fitness_of(fitness_fn(torch.cat(parts), pop_bits)).to(self.device)
        check_floating("fitness_fn", fitnesses)
        check_shape("fitness_fn", fitnesses, (len(pop_bits),), "[P]")
        elites = pop_bits[fitnesses.argsort(descending=True)[:elite]]
        parents = pop_bits[self._winners(fitnesses, (len(pop_bits) - elite, 2), tournament_size)]
        children = self.mutate(self.uniform_crossover(parents[:, 0], parents[:, 1]), mutation_rate, is_sign)
        return torch.cat([elites, children]), fitnesses

    @torch.no_grad()
    @checked
    def evolve(
        self,
        fitness_fn: Fitness,
        pop_bits: torch.Tensor | None = None,
        pop_size: Size | None = None,
        shape: Sequence[Size] | None = None,
        generations: Times | None = None,
        is_sign: bool = False,
        return_best_decoded: bool = False,
        **step_kwargs: Any,
    ) -> Iterator[Result]:
        """Run generations, one for each result asked of the iterator.

        Args:
            fitness_fn: as in :meth:`step`.
            pop_bits: the first population; None draws one of ``pop_size`` genes of ``shape``.
            pop_size: in place of that of the module.
            shape: of a gene.
            generations: in place of that of the module.
            is_sign: whether bits are -1 and 1.
            return_best_decoded: decode the best gene of each generation's result.
            **step_kwargs: of :meth:`step`.

        Raises:
            ValueError: with neither ``pop_bits`` nor ``shape``.
        """
        if pop_bits is None:
            if shape is None:
                raise ValueError("shape: expected the shape of a gene where pop_bits is None, got None")
            pop_bits = self.init_random_population(pop_size, shape, is_sign=is_sign)
        self._check_population(pop_bits)
        best, best_fitness = pop_bits[0], float("-inf")
        for _ in range(self.generations if generations is None else generations):
            before = pop_bits
            pop_bits, fitnesses = self.step(before, fitness_fn, is_sign=is_sign, **step_kwargs)
            leader = int(fitnesses.argmax())
            if fitnesses[leader].item() > best_fitness:
                # the fitness is that of the genes before the step
                best, best_fitness = before[leader].clone(), fitnesses[leader].item()
            decoded = self.decode_bits(best[None])[0] if return_best_decoded else None
            yield Result(pop_bits, best, best_fitness, decoded)

    def _quantize(self, x: torch.Tensor, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        check_tensor("x", x)
        latents = self.encoder(x)
        check_floating("encoder", latents)
        if latents.dim() < 2:
            raise ValueError(f"encoder: expected vectors [B, ..., dim], got shape {shape_of(latents)}")
        if latents.ndim > 2:
            quantized, indices, loss = self.lfq(latents, **kwargs)
            return quantized, indices, loss
        quantized, indices, loss = self.lfq(latents[:, None], **kwargs)
        return quantized.squeeze(1), indices.squeeze(1), loss

    def _winners(
        self,
        fitnesses: torch.Tensor,  # [P]
        shape: tuple[int, ...],
        tournament_size: int | None,
    ) -> torch.Tensor:  # shape
        """Indices of the winners of as many tournaments."""
        size = self.tournament_size if tournament_size is None else tournament_size
        contenders = torch.randint(0, len(fitnesses), (*shape, size), device=self.device)
        return contenders.gather(-1, fitnesses[contenders].argmax(dim=-1, keepdim=True)).squeeze(-1)


@contextmanager
def _evaluating(module: nn.Module) -> Iterator[None]:
    """Evaluation mode; afterwards every submodule is back in its own."""
    modes = {part: part.training for part in module.modules()}
    module.eval()
    try:
        yield
    finally:
        for part, training in modes.items():
            part.training = training


def _fitness_of(returned: Any) -> torch.Tensor:
    """Numbers as a floating point tensor, whatever holds them."""
    if isinstance(returned, torch.Tensor):
        check_tensor("fitness_fn", returned)
        check_data("fitness_fn", returned)
        fitnesses = returned
    else:
        try:
            fitnesses = torch.as_tensor(returned)
        except (TypeError, ValueError, RuntimeError):
            raise TypeError(f"fitness_fn: expected one that returns numbers, got {kind_of(returned)}") from None
    return fitnesses if fitnesses.is_floating_point() else fitnesses.float()
