"""The study of two starts: what its page counts, and that its network is one small enough for the exact matrix."""

from dataclasses import replace

import pytest

from scripts import starts_study
from scripts.starts_study import STRUCTURES, Solution, lines_of, solution

EVIDENCE = dict.fromkeys(STRUCTURES, 1.0)
BETTER = Solution(0.1, 1, 0.9, 0.2, {"f_fc": 0.1, "conv": 2.0}, EVIDENCE | {"full": 0.5, "diag": 2.0})
WORSE = Solution(1.0, 1, 0.8, 0.4, {"f_fc": 1.0, "conv": 0.5}, EVIDENCE | {"kron": 1.5})


def test_each_structure_is_counted_by_whether_it_prefers_the_run_that_the_test_does():
    other = [replace(one, seed=2, evidence=EVIDENCE | {"full": one.nll}) for one in (WORSE, BETTER)]
    text = "\n".join(lines_of([WORSE, BETTER, *other]))
    counts = next(line for line in text.splitlines() if "ranked as" in line)
    assert [cell.strip() for cell in counts.split("|")[2:6]] == ["2 of 2", "1 of 2", "0 of 2", "0 of 2"]
    gaps = next(line for line in text.splitlines() if "less start" in line)
    assert [cell.strip() for cell in gaps.split("|")[2:6]] == ["+0.350", "+0.250", "+0.000", "-0.500"]


def test_the_starts_differ_in_the_scale_of_f_fc_and_every_structure_is_measured(monkeypatch):
    monkeypatch.setattr(starts_study, "HYPER_STEPS", 1)
    first = solution(1.0, 711, train_size=40, epochs=1)
    assert set(first.evidence) == set(STRUCTURES) and set(first.without) == {"f_fc", "conv"}
    assert len(set(first.evidence.values())) == len(STRUCTURES), "the control: they are not one number"
    weights = [dict(starts_study._network(start).named_parameters()) for start in (1.0, 0.1)]
    f_fc, conv = (
        [w[f"blocks.1.paths.{name}.weight"].std().item() for w in weights] for name in ("f_fc.theta1", "conv")
    )
    assert f_fc[1] / f_fc[0] < 0.25 < 1 < conv[1] / conv[0]


@pytest.mark.parametrize("start", starts_study.STARTS)
def test_the_network_is_small_enough(start):
    assert sum(p.numel() for p in starts_study._network(start).parameters()) < 6000
