"""Steps of the weights replayed as one CUDA graph: a single launch in place of some hundred small ones.

A replay reads and writes where the capture did. What changes from step to step – the batch, the learning rates, the
objective's numbers – is copied into tensors that stay. Loss and outputs are read from tensors that stay.
Batches are drawn and augmented outside: the host, which never waits, is far ahead of the device by then.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

WARM_UP = 3
"""Steps before the capture: in the first ones libraries choose their kernels and optimisers make their state."""

Outcome = tuple[Tensor, Tensor]
Step = Callable[[Tensor, Tensor, Sequence[float | Tensor]], Outcome]
Body = Callable[[], None]


class ReplayedStep:
    """`step`, captured after a few steps and replayed from then on; batches of another size than `batch_size` are not.

    Args:
        batch_size: of all batches but the last of an epoch, which a continued run may begin with.
        step: of a batch of inputs and targets and the objective's `step_numbers`; returns loss and outputs.
        optimiser: which `step` moves; its learning rates may change from step to step.

    Attributes:
        replay: once there is one.
    """

    def __init__(self, batch_size: int, step: Step, optimiser: torch.optim.Optimizer) -> None:
        self.batch_size, self.step, self.optimiser = batch_size, step, optimiser
        self.replay: Body | None = None
        self._steps = 0
        self._stream: torch.cuda.Stream | None = None

    def __call__(self, inputs: Tensor, targets: Tensor, numbers: Sequence[float]) -> Outcome:
        """The loss and the outputs of one step; the next call overwrites them."""
        if len(inputs) != self.batch_size:
            return self.step(inputs, targets, numbers)
        if self._steps < WARM_UP:
            self._steps += 1
            with self._aside(inputs.device):
                return self.step(inputs, targets, numbers)
        self.replay = self.replay or self._captured(inputs, targets, len(numbers))
        self.inputs.copy_(inputs)
        self.targets.copy_(targets)
        rates = [group["lr"] for group in self.optimiser.param_groups]
        current = torch.tensor([*rates, *numbers], dtype=torch.float32)
        self.numbers.copy_(current.pin_memory() if inputs.is_cuda else current, non_blocking=True)
        self.replay()
        return self.loss, self.outputs

    def _captured(self, inputs: Tensor, targets: Tensor, numbers: int) -> Body:
        groups = self.optimiser.param_groups
        self.inputs, self.targets = torch.empty_like(inputs), torch.empty_like(targets)
        # In float32 whatever the weights are: it is as what the fused optimisers' CUDA kernels read a rate.
        self.numbers = torch.zeros(len(groups) + numbers, dtype=torch.float32, device=inputs.device)
        rates, standing = self.numbers[: len(groups)].unbind(), self.numbers[len(groups) :].unbind()

        def body() -> None:
            self.loss, self.outputs = self.step(self.inputs, self.targets, standing)

        with _read_from_device(groups, rates):
            return graph_of(body, inputs.device)

    @contextmanager
    def _aside(self, device: torch.device) -> Iterator[None]:
        """On a stream of its own, as what is done before a capture has to be."""
        if device.type != "cuda":
            yield
            return
        main = torch.cuda.current_stream(device)
        self._stream = self._stream or torch.cuda.Stream(device)
        self._stream.wait_stream(main)
        with torch.cuda.stream(self._stream):
            yield
        main.wait_stream(self._stream)


def graph_of(body: Body, device: torch.device) -> Body:
    """Capture `body` on a CUDA device, which need not be the current one, without carrying it out; returns what does.

    The stream is given: unasked, all captures of a process share one, on the device that was current at the first.
    """
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.device(device), torch.cuda.graph(graph, stream=torch.cuda.Stream(device)):
        body()
    return graph.replay


@contextmanager
def _read_from_device(groups: list[dict], rates: Sequence[Tensor]) -> Iterator[None]:
    """The learning rates of `groups` are `rates`, and nothing that optimisers count is kept on the host."""
    kept = [dict(group) for group in groups]
    for group, rate in zip(groups, rates, strict=True):
        group["lr"] = rate
        if "capturable" in group:
            group["capturable"] = True
    try:
        yield
    finally:
        for group, before in zip(groups, kept, strict=True):
            group.update(before)
