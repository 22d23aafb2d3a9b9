"""The compiled extension (csrc/bindings.cpp). Addresses come from ``Tensor.data_ptr()``; 0 is a null pointer."""

from typing import Any

def build_info() -> dict[str, Any]: ...
def fma_peak(threads: int, seconds: float = 0.3, isa: int = 0) -> float: ...
def exp_peak(threads: int, seconds: float = 0.3, isa: int = 0) -> float: ...
def nearest_code(
    x: int,
    x_type: int,
    codebook: int,
    codebook_type: int,
    n: int,
    g: int,
    k: int,
    d: int,
    metric: int,
    threads: int,
    isa: int,
    kept_bytes: int,
    indices: int,
    distance: int,
) -> float: ...
def forget_codes() -> None: ...
def kept_codes() -> dict[str, int]: ...
def top_codes(
    x: int,
    x_type: int,
    codebook: int,
    codebook_type: int,
    n: int,
    g: int,
    k: int,
    d: int,
    top: int,
    metric: int,
    threads: int,
    isa: int,
    indices: int,
    distance: int,
) -> None: ...
def multilevel_nearest_code(
    x: list[int],
    codebook: list[int],
    type: int,
    d: list[int],
    weight: list[float],
    n: int,
    k: int,
    squared: bool,
    threads: int,
    isa: int,
    indices: int,
    distance: int,
) -> None: ...
def draw_rows(
    codes: list[int],
    x: list[int],
    type: int,
    d: list[int],
    weight: list[float],
    usable: int,
    row_number: int,
    code_number: int,
    n: int,
    k: int,
    metric: int,
    threads: int,
    isa: int,
    rows: int,
    key: int,
) -> None: ...

class Transport:
    def __init__(
        self,
        codes: int,
        cost: int,
        n: int,
        listed: int,
        k: int,
        capacity: int,
        place: int,
        spare: int,
        prices: int,
        reached: int,
    ) -> None: ...

def transport_run(transport: Transport, rounds: int) -> int: ...
def use_team(address: int) -> None: ...
def group_size(isa: int) -> int: ...
def plain_cost(k: int, d: int, isa: int) -> float: ...
def nearest_by_bounds(
    x: int,
    x_type: int,
    codes: int,
    before: int,
    order: int,
    n: int,
    k: int,
    d: int,
    threads: int,
    isa: int,
    lower: int,
    indices: int,
    distance: int,
) -> float: ...
def gather_codes(
    codebook: int, element_size: int, indices: int, n: int, g: int, k: int, d: int, threads: int, codes: int
) -> int | None: ...
def code_range(
    x: int,
    x_type: int,
    indices: int,
    weight: int,
    n: int,
    g: int,
    k: int,
    d: int,
    skip_nonfinite: bool,
    threads: int,
    range: int,
) -> int | None: ...
def code_stats(
    x: int,
    x_type: int,
    indices: int,
    weight: int,
    n: int,
    g: int,
    k: int,
    d: int,
    skip_nonfinite: bool,
    threads: int,
    range: int,
    fixed: bool,
    as_integers: bool,
    count: int,
    total: int,
) -> int | None: ...
def ema_update(
    codebook: int,
    cluster_size: int,
    embed_sum: int,
    count: int,
    total: int,
    type: int,
    g: int,
    k: int,
    d: int,
    decay: float,
    eps: float,
    normalize: bool,
    threads: int,
) -> None: ...

class SoftProblem:
    def __init__(
        self,
        x: int,
        x_type: int,
        codebook: int,
        codebook_type: int,
        weight: int,
        n: int,
        g: int,
        k: int,
        d: int,
        metric: int,
        temperature: float,
        floor: float,
        threads: int,
        isa: int,
    ) -> None: ...

def soft_pairs_bytes(problem: SoftProblem) -> int: ...
def soft_forward(problem: SoftProblem, least: int, log_sum: int, entropy: int, assigned: int, pairs: int) -> int: ...
def soft_backward(
    problem: SoftProblem,
    least: int,
    log_sum: int,
    entropy: int,
    grad_entropy: int,
    grad_assigned: int,
    pairs: int,
    grad_x: int,
    grad_codebook: int,
    grad_log: int,
) -> None: ...

# only if built with VQKERNELS_BUILD=cuda; addresses on the device
def nearest_code_cuda_workspace(n: int, g: int, k: int, d: int, multiprocessors: int) -> int: ...
def nearest_code_cuda(
    x: int,
    x_type: int,
    codebook: int,
    codebook_type: int,
    n: int,
    g: int,
    k: int,
    d: int,
    metric: int,
    indices: int,
    distance: int,
    workspace: int,
    device: int,
    multiprocessors: int,
    stream: int,
) -> None: ...
