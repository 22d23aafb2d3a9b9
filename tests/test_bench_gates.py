"""The gates of the benchmark catch what they must. Oracle: cases made by hand, and brute force in float64."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import torch

from bench.case import OpCase, Verdict
from bench.device import Cpu
from bench.gate import WeightedL2, judge
from bench.multilevel_nearest_code.cases import CASES as MULTILEVEL
from bench.multilevel_nearest_code.cases import verify as verify_multilevel
from bench.multilevel_nearest_code.problem import MultilevelProblem
from bench.run import fastest_setting
from bench.top_codes.cases import CASES as TOP
from bench.top_codes.cases import verify as verify_top
from bench.top_codes.problem import TopProblem

OURS = frozenset({"ours"})


def _top_problem(m: int = 5) -> tuple[TopProblem, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    problem = TopProblem(*(torch.randn(n, 4, generator=generator) for n in (300, 40)), m)
    return problem, torch.cdist(problem.x.double(), problem.codebook.double()).argsort(1)[:, :m]


def _verdict(problem: TopProblem, answers: Mapping[str, torch.Tensor]) -> Verdict:
    return verify_top(problem, answers, OURS)["ours"]


def test_the_sorted_codes_are_exact() -> None:
    problem, truth = _top_problem()
    verdict = _verdict(problem, {"ours": truth, "peer": truth.flip(1)})
    assert verdict == Verdict(answers=1500, checked=1500, different=0, wrong=0, beaten=0, passed=True)


@pytest.mark.parametrize("damage", ["swapped", "one too far", "given twice", "out of range"])
def test_ours_and_peers_must_give_the_nearest_codes_in_order(damage: str) -> None:
    problem, truth = _top_problem()
    answer = truth.clone()
    rows = slice(0, 100)
    if damage == "swapped":
        answer[rows, :2] = truth[rows, :2].flip(1)
    elif damage == "one too far":
        answer[rows, 4] = torch.cdist(problem.x, problem.codebook).argmax(1)[rows]
    elif damage == "given twice":
        answer[rows, 4] = answer[rows, 3]
    else:
        answer[rows, 4] = 40
    verdicts = verify_top(problem, {"ours": answer, "peer": truth}, OURS)
    assert not verdicts["ours"].passed
    assert verdicts["peer"].passed
    as_peer = verify_top(problem, {"ours": truth, "peer": answer}, OURS)["peer"]
    assert not as_peer.passed
    assert as_peer.wrong >= 100
    assert "WRONG" in str(as_peer)


def test_a_row_outside_the_sample_is_held_against_the_others() -> None:
    # 8 rows of 2^20 / 8 codes are sampled, at least; a wrong answer elsewhere shows by a peer's nearer code
    x, codebook = torch.randn(600, 2), torch.randn(9, 2)
    truth = torch.cdist(x.double(), codebook.double()).argsort(1)[:, :3]
    damaged = truth.clone()
    damaged[:, 2] = truth[:, 2].roll(1)
    problem = TopProblem(x, codebook, 3)
    verdict = verify_top(problem, {"ours": damaged, "peer": truth}, OURS)["ours"]
    repeated = (damaged[:, 2:] == damaged[:, :2]).any(1)
    distance = torch.cdist(x.double(), codebook.double()).gather(1, damaged)
    best = torch.cdist(x.double(), codebook.double()).gather(1, truth)
    assert verdict.beaten == int(((distance[:, 2] > best[:, 2]) | repeated).sum())
    assert verdict.answers == 1800


def test_a_peer_may_order_by_rounding() -> None:
    # squared distances 1 and 1 + 2^-22, which float32 evaluations need not tell apart
    problem = TopProblem(torch.zeros(3, 1), torch.tensor([[1.0], [-(1.0 + 2.0**-23)], [5.0]]), 2)
    truth, other = torch.tensor([[0, 1]] * 3), torch.tensor([[1, 0]] * 3)
    peer = verify_top(problem, {"ours": truth, "peer": other}, OURS)["peer"]
    assert (peer.different, peer.wrong, peer.passed) == (6, 0, True)
    assert not _verdict(problem, {"ours": other, "peer": truth}).passed


def _levels(n: int = 200, k: int = 50) -> tuple[MultilevelProblem, torch.Tensor]:
    generator = torch.Generator().manual_seed(0)
    xs, codebooks = (tuple(torch.randn(rows, d, generator=generator) for d in (2, 5)) for rows in (n, k))
    problem = MultilevelProblem(xs, codebooks, (0.25, 2.0))
    return problem, _weighted(problem).argmin(1)


def _weighted(problem: MultilevelProblem) -> torch.Tensor:
    levels = zip(*problem, strict=True)
    return sum(w * torch.cdist(x.double(), c.double()) for x, c, w in levels)  # type: ignore[return-value]


def test_the_levels_are_weighted_and_not_squared() -> None:
    problem, truth = _levels()
    assert verify_multilevel(problem, {"ours": truth}, OURS)["ours"].passed
    # the nearest code of the concatenation, and with the weights exchanged, are other codes
    concatenated = torch.cdist(torch.cat(problem.xs, 1), torch.cat(problem.codebooks, 1)).argmin(1)
    exchanged = _weighted(problem._replace(weights=(2.0, 0.25))).argmin(1)
    for other in (concatenated, exchanged):
        verdicts = verify_multilevel(problem, {"ours": truth, "peer": other}, OURS)
        different = int((other != truth).sum())
        assert different > 10
        assert verdicts["peer"] == Verdict(200, 200, different, different, different, passed=False)


def test_the_root_of_a_rounding_error_is_allowed_for() -> None:
    # at distance 1e-5 of data of size 1 the expanded form knows no more than sqrt(1e-7)
    x = torch.ones(4, 1)
    codebook = torch.tensor([[1.0], [1.0 + 1e-5], [2.0]])
    for chosen, passed in ((1, True), (2, False)):
        answers = {"ours": torch.zeros(4, dtype=torch.int64), "peer": torch.full((4,), chosen)}
        verdict = judge(WeightedL2((x,), (codebook,), (1.0,)), answers, OURS)["peer"]
        assert (verdict.different, verdict.passed) == (4, passed)


@pytest.mark.parametrize("case", [*TOP, *MULTILEVEL], ids=lambda case: f"{case.op} {case.name}")
def test_the_peers_pass_their_gates(case: OpCase) -> None:
    problem = case.smoke().inputs(case.smoke().sizes, 0)
    peers = [i for i in case.on("cpu").implementations if not i.ours and not i.flag]
    answers = {i.name: i.prepare(problem, **fastest_setting(i, problem, Cpu(threads=1)))() for i in peers}
    verdicts = case.verify(problem, answers, frozenset())
    assert len(verdicts) >= 2
    assert all(verdict.passed for verdict in verdicts.values())
