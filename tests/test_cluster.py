"""A table on a real one-node SLURM: `make test-cluster`; minutes, as root, with Debian's packages of SLURM."""

import pytest
from cluster import check


@pytest.mark.cluster
def test_what_happens_to_jobs_on_a_cluster_changes_no_bit_of_their_results(tmp_path):
    if (reason := check.missing()) is not None:
        pytest.skip(reason)
    pytest.importorskip("submitit")
    assert check.check(tmp_path / "check") == []


def test_a_result_that_differs_is_named(tmp_path):
    steps = check.Check(tmp_path, say=lambda text: None)
    for runs, nll in (steps.local, 0.1), (steps.cluster, 0.1 + 2**-55):
        (runs / "a").mkdir(parents=True)
        (runs / "a" / "result.json").write_text(f'{{"test_nll": {nll!r}, "wall_seconds": {nll!r}}}')
    (steps.local / "b").mkdir()
    (steps.local / "b" / "result.json").write_text("{}")
    assert steps.compare() == ["b is in one of them only", "a: test_nll differ"]
