"""The training step as a CUDA graph: what a step launches is recorded once and then replayed by one call of the host.

For small models, whose kernels may take less time than the host takes to launch them. `torch.cuda.graph` holds the
whole step, optimizer included: `torch.cuda.make_graphed_callables` leaves the optimizer out, and
`torch.compile(mode="reduce-overhead")` compiles, too.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from .config import Recipe
from .errors import TrainingError

WARM_UP = 3  # steps before the one that is recorded: they make the optimizer's state, and libraries their workspaces

Samples = dict[str, Tensor]
Step = Callable[[Samples, Tensor], Tensor]


def check(recipe: Recipe, device: torch.device, processes: int, is_sparse: bool) -> None:
    """Raises TrainingError where a step cannot be a graph, or would not be right as one."""
    reasons = {
        "a CUDA device": device.type != "cuda",
        "one process": processes > 1,
        "mixed precision no or bf16: fp16's scaler waits for the device": recipe.mixed_precision == "fp16",
        "accumulate 1": recipe.accumulate > 1,
        "dense samples: sparse batches have no size of their own": is_sparse,
    }
    if missing := [reason for reason, is_so in reasons.items() if is_so]:
        raise TrainingError(f"--cuda-graph takes {', and '.join(missing)}")


class StepGraph:
    """Calls `step(samples, rng_state)`, which trains on a batch and returns what is to be counted of it, by a graph.

    The first steps run as they are. Then a step is recorded on tensors of its own, into which each later batch and its
    rng_state are copied: batches have one size, and `step` keeps all of its state on the device, in place.
    """

    def __init__(self, step: Step, device: torch.device) -> None:
        self._step = step
        self._stream: Any = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._warm_ups = 0
        self._replay: Callable[[], None] | None = None

    def __call__(self, samples: Samples, rng_state: Tensor) -> Tensor:
        """The tensor that is returned holds the next call's result after that."""
        if self._warm_ups < WARM_UP:
            self._warm_ups += 1
            return warm_up(lambda: self._step(samples, rng_state), self._stream)
        if self._replay is None:
            self._samples = {name: value.clone() for name, value in samples.items()}
            self._rng_state = rng_state.clone()
            self._replay, self._output = record(
                lambda: self._step(self._samples, self._rng_state), self._stream
            )
        for name, value in samples.items():
            self._samples[name].copy_(value)
        self._rng_state.copy_(rng_state)
        self._replay()
        return self._output


def warm_up(work: Callable[[], Tensor], stream: Any) -> Tensor:
    """Work on the stream on which it is recorded later."""
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        output = work()
    torch.cuda.current_stream().wait_stream(stream)
    return output


def record(work: Callable[[], Tensor], stream: Any) -> tuple[Callable[[], None], Tensor]:
    """What replays the work, and its output. The work is not done now. Raises TrainingError."""
    graph = torch.cuda.CUDAGraph()
    try:
        with torch.cuda.graph(graph, stream=stream):
            output = work()
    except RuntimeError as error:
        reason = str(error).partition("\n")[0]
        raise TrainingError(f"the step cannot be a CUDA graph, leave --cuda-graph out ({reason})") from None
    return graph.replay, output
