"""One finished run as data: its record, its name, where it came from, and its way to disk and back."""

from ellarepro.results.identity import ADDED_LATER, NOT_IN_RUN_ID, counted, flatten, run_id
from ellarepro.results.outcomes import accuracy_error, packed, unpacked
from ellarepro.results.provenance import (
    code_at_start,
    git_commit,
    hardware,
    peak_memory,
    short_commit,
    versions,
)
from ellarepro.results.record import (
    RESULT_FILE,
    UNTRAINED,
    RunResult,
    read_result,
    read_results,
    result_file,
    write_result,
)

__all__ = [
    "ADDED_LATER",
    "NOT_IN_RUN_ID",
    "RESULT_FILE",
    "UNTRAINED",
    "RunResult",
    "accuracy_error",
    "code_at_start",
    "counted",
    "flatten",
    "git_commit",
    "hardware",
    "packed",
    "peak_memory",
    "read_result",
    "read_results",
    "result_file",
    "run_id",
    "short_commit",
    "unpacked",
    "versions",
    "write_result",
]
