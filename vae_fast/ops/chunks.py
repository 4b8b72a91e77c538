"""What `linear_likelihood` does in one pass: chunk by chunk the layer, its links, the kernel, and all the way back."""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..backends.contract import FakeBackend
from ..likelihoods import LIKELIHOODS
from ..likelihoods.csr import Csr
from ..likelihoods.spec import Parameter, Spec, largest_log
from . import _common
from .softmax_share import categorical_share, reduce_over, softmax

CHUNK_BYTES = 32 << 20  # of layer outputs on a CPU: small enough for cache, large enough for the products
# So many rows in up to twice as much: with fewer the products read the weight too often. The zero-inflated head of 1024
# rows, 20,000 features and 128 inputs, 1 thread, processor time (2026-11-30): 561 ms of 5 chunks of 205 rows, 503 ms of
# 3 of 342, and 503 ms of one. The negative binomial's, of half the outputs: 302, 283 and 282 ms of chunks of 205, 342
# and 512 rows.
CHUNK_ROWS = 384

# On a GPU, the bytes that a chunk of r rows moves to and from memory, for H inputs and V outputs of s bytes:
#   V H (2 s + 8)   the weight, read twice; its gradient, read and written in float32 (2 s + 16 with a temporary)
#   6 r V s         outputs and their gradients, two writes and four reads; none where they stay in the L2 cache
# So a chunk is what half of that cache holds, the other half being for what streams by. But it has MIN_ROWS at least:
# in bfloat16 with H = 1024 an H100 moves 855 rows' bytes while it multiplies them; 204 rows, what half its cache holds
# of 32,000 outputs, would take it 2.3 times as long.
MIN_ROWS = 1024
MOST_BYTES = 256 << 20  # that MIN_ROWS may take
L2_BYTES = 40 << 20  # an A100's, where torch does not tell

Gradients = list[Tensor | None]


class Inputs(NamedTuple):
    """The op's arguments, in the order of its schema.

    hidden (batch, ..., H), perhaps after draws, and weight (heads * features, H); `dtype` is that of the matrix
    products; `forward_grads` says of `grad_inputs` which gradients forward takes; `group` names the processes that have
    the other outputs of a softmax, `outputs` being the most that one of them has; `fixed_params` holds the second
    parameter where the layer does not make it.
    """

    likelihood: str
    hidden: Tensor
    weight: Tensor
    bias: Tensor | None
    target: Tensor | Csr
    library: Tensor | None
    mask: Tensor | None
    sample_weight: Tensor | None
    dtype: torch.dtype
    forward_grads: Sequence[bool]
    group: str | None
    outputs: int
    fixed_params: Sequence[Tensor]

    @classmethod
    def of(cls, args: Sequence[Any]) -> Inputs:
        """From the op's flat arguments."""
        *single, _ = cls._fields
        return cls._make([*args[: len(single)], args[len(single) :]])

    @property
    def spec(self) -> Spec:
        return LIKELIHOODS[self.likelihood]

    @property
    def heads(self) -> tuple[Parameter, ...]:
        """The parameters that the layer makes, in the order of its outputs."""
        return self.spec.heads(len(self.fixed_params))

    @property
    def grad_inputs(self) -> tuple[Tensor | None, ...]:
        """What gradients are for; everything that follows is in this order."""
        return self.hidden, self.weight, self.bias, self.library, *self.fixed_params

    @property
    def draws(self) -> int | None:
        """How many hidden has of each sample of target, if it has that dim."""
        spec, hidden = self.spec, self.hidden
        of_positions = self.target.ndim - spec.is_counts if spec.op == "categorical" else 1
        return hidden.shape[0] if hidden.ndim - 1 > of_positions else None

    @property
    def num_lead(self) -> int:
        """The number of dims of a loss per sample: batch, or draws and batch."""
        return 1 if self.draws is None else 2

    @property
    def is_per_sample(self) -> tuple[bool, ...]:
        """Whose gradient has rows of its own for every sample, rather than being a sum over samples or draws."""
        if self.draws is not None:
            return True, *(False for _ in self.grad_inputs[1:])
        return True, False, False, True, *(has_rows(p, self.target) for p in self.fixed_params)


class Chunk(NamedTuple):
    """Rows of hidden, of the chunk's buffers and of the samples; how many draws of these the rows are."""

    rows: slice
    own: slice
    samples: slice
    draws: int | None

    def by_draw(self, tensor: Tensor) -> Tensor:
        """Rows (rows, ...), after their draws if there are any."""
        return tensor if self.draws is None else tensor.unflatten(0, (self.draws, -1))


def cut(size: int, draws: int | None, most: int) -> Iterator[Chunk]:
    """Chunks of at most `most` rows, evenly cut, so that the last is as worthwhile as the others: all draws of some
    samples would be rows apart, so it is all samples of some draws, or some samples of one."""
    step = _even(size, most)
    together = 1 if draws is None or step < size else _even(draws, max(1, most // max(1, size)))
    for draw in range(0, draws or 1, together) if draws != 0 else ():
        count = min(together, (draws or 1) - draw)
        for start in range(0, size, step):
            samples = slice(start, min(start + step, size))
            first = draw * size + start
            rows = slice(first, first + (count - 1) * size + samples.stop - start)
            yield Chunk(rows, slice(rows.stop - first), samples, None if draws is None else count)


def _even(size: int, most: int) -> int:
    return max(1, -(-size // max(1, -(-size // most))))


def run_chunks(
    backend: Any, inputs: Inputs, wanted: Sequence[bool], nll: Tensor | None, grad_nll: Tensor | None
) -> Gradients:
    """Goes through the chunks of rows once: fills nll (hidden's shape without H) and returns the gradients wanted,
    which take a grad_nll."""
    grads: Gradients = []
    for tensor, want, is_per_sample in zip(inputs.grad_inputs, wanted, inputs.is_per_sample, strict=True):
        if tensor is None or not want:
            grads.append(None)
        elif is_per_sample:
            grads.append(_common.empty(backend, tensor.shape, tensor.dtype, tensor.device))
        else:
            grads.append(_common.empty(backend, tensor.shape, torch.float32, tensor.device))
    if backend is not FakeBackend:
        run = _categorical if inputs.spec.op == "categorical" else _elementwise
        if grad_nll is not None and inputs.sample_weight is not None:
            grad_nll = grad_nll * inputs.sample_weight
        layer = _Layer(backend, inputs, grads)
        run(layer, inputs, nll, grad_nll)
        layer.finish()
    return grads


class _Layer:
    """The linear layer, chunk by chunk: `chunks()` makes the outputs, `backward()` takes their gradients.

    Outputs are a list: all heads side by side, or each by itself where the first goes through a softmax, which torch
    copies strided rows for: 4.4 ms of 205 x 20,000, 2.6 ms of contiguous ones (2026-11-30). The products take the same
    time. In less than 32 bits the heads stay together, as a sum of their products would be rounded twice.
    """

    # Tried in 2026-11: biases as a column of the weight, 4 ms for the copy where addmm takes 2 ms more than mm; the
    # softmax's derivative by aten::_softmax_backward_data, 1.6 ms where three passes take 2.4 ms of 130 ms, but it
    # multiplies slopes by the library size, which overflow where a share is subnormal; don't redo.

    def __init__(self, backend: Any, inputs: Inputs, grads: Gradients) -> None:
        dtype, device = inputs.dtype, inputs.hidden.device
        self.backend, self.grads = backend, grads
        self.hidden = inputs.hidden.flatten(0, -2)
        self.weight = inputs.weight.to(dtype)
        self.bias = None if inputs.bias is None else inputs.bias.to(dtype)
        size, outputs = self.hidden.shape[0], self.weight.shape[0]
        # Links are taken in float32.
        self.linked = any(head.is_log for head in inputs.heads)
        wide = torch.float32 if self.linked else dtype
        needs_grad = any(g is not None for g in grads)
        draws = inputs.draws
        samples = size if draws is None else math.prod(inputs.hidden.shape[1:-1])
        self.plan = list(cut(samples, draws, _most_rows(self.weight, wide, needs_grad, inputs.outputs)))
        self.most_rows = max((chunk.own.stop for chunk in self.plan), default=0)
        self.is_whole = len(self.plan) <= 1
        parts = len(inputs.heads) if inputs.library is not None and dtype is torch.float32 else 1
        self.columns = [slice(i * outputs // parts, (i + 1) * outputs // parts) for i in range(parts)]
        shape = (self.most_rows, outputs // parts)
        self.buffers = [_common.empty(backend, shape, dtype, device) for _ in range(parts)]
        self.grad_buffers = [_common.empty(backend, shape, wide, device) for _ in range(parts * needs_grad)]
        _, grad_weight, grad_bias, *grad_others = grads
        # A row a chunk, added up in the end.
        self.bias_sums = None
        if grad_bias is not None:
            self.bias_sums = (
                grad_bias[None] if self.is_whole else grad_bias.new_empty(len(self.plan), outputs)
            )
        # The weight's gradient is overwritten by the first chunk, if there is one.
        for grad, is_per_sample in zip(grad_others, inputs.is_per_sample[3:], strict=True):
            if grad is not None and not is_per_sample:
                grad.zero_()
        if size == 0:
            for grad in (grad_weight, grad_bias):
                if grad is not None:
                    grad.zero_()

    def cut(self, tensor: Tensor, rows: slice) -> Tensor:
        """The rows of a chunk. A view takes longer than a small kernel: a single chunk has none."""
        return tensor if self.is_whole else tensor[rows]

    def samples(self, target: Tensor | Csr, chunk: Chunk) -> Tensor | Csr:
        """A chunk's part of the target."""
        if isinstance(target, Csr):
            return target.rows(chunk.samples)
        return self.cut(target, chunk.samples)

    def chunks(self) -> Iterator[tuple[Chunk, list[Tensor], list[Tensor]]]:
        """(chunk, outputs, where to write their gradients, if anywhere)"""
        for i, chunk in enumerate(self.plan):
            hidden = self.cut(self.hidden, chunk.rows).to(self.weight.dtype)
            outputs = [self.cut(buffer, chunk.own) for buffer in self.buffers]
            for at, out in zip(self.columns, outputs, strict=True):
                transposed = self.part(self.weight, at).t()
                if self.bias is None:
                    torch.mm(hidden, transposed, out=out)
                else:
                    torch.addmm(self.part(self.bias, at), hidden, transposed, out=out)
            grad_outputs = [self.cut(buffer, chunk.own) for buffer in self.grad_buffers]
            yield chunk, [out.float() for out in outputs] if self.linked else outputs, grad_outputs
            for at, grad in zip(self.columns[: len(grad_outputs)], grad_outputs, strict=True):
                self.backward(i, chunk.rows, at, hidden, grad.to(self.weight.dtype))

    def backward(self, i: int, rows: slice, at: slice, hidden: Tensor, grad_outputs: Tensor) -> None:
        grad_hidden, grad_weight, *_ = self.grads
        weight = self.part(self.weight, at)
        if grad_hidden is not None:
            out = self.cut(grad_hidden.flatten(0, -2), rows)
            if at.start > 0:
                out.addmm_(grad_outputs, weight)
            elif out.dtype is grad_outputs.dtype:
                torch.mm(grad_outputs, weight, out=out)
            elif out.dtype is torch.float32 and not _common.on_cpu(out):
                torch.mm(grad_outputs, weight, out_dtype=torch.float32, out=out)
            else:
                out.copy_(torch.mm(grad_outputs, weight))
        if grad_weight is not None:
            _add_product(self.part(grad_weight, at), grad_outputs.t(), hidden, beta=min(i, 1))
        if self.bias_sums is not None:
            _sum_rows(grad_outputs, out=self.part(self.bias_sums[i], at))

    def part(self, tensor: Tensor, at: slice) -> Tensor:
        """The rows of the weight, or of what is like its rows, that make the outputs `at`."""
        return tensor if len(self.columns) == 1 else tensor[at]

    def finish(self) -> None:
        """After the last chunk."""
        grad_bias = self.grads[2]
        if grad_bias is not None and self.bias_sums is not None and len(self.bias_sums) > 1:
            torch.sum(self.bias_sums, 0, out=grad_bias)


def _elementwise(layer: _Layer, inputs: Inputs, nll: Tensor | None, grad_nll: Tensor | None) -> None:
    likelihood, target, library, backend = inputs.likelihood, inputs.target, inputs.library, layer.backend
    spec, features = inputs.spec, math.prod(target.shape[1:])
    if inputs.draws is not None:
        nll = None if nll is None else nll.view(-1)
        grad_nll = None if grad_nll is None else grad_nll.reshape(-1)
    logs = [i for i, head in enumerate(inputs.heads) if head.is_log]
    share_buffer = None  # softmax of the first head
    if library is not None:
        share_buffer = _common.empty(backend, (layer.most_rows, features), torch.float32, target.device)
    grad_library, *grad_fixed = layer.grads[3:]
    for chunk, outputs, grad_outputs in layer.chunks():
        x, share = layer.samples(target, chunk), None
        size, draws = x.shape[0], chunk.draws
        made = _by_head(outputs, chunk, len(inputs.heads))
        for i in logs:
            param = made[i]
            if i == 0 and share_buffer is not None and library is not None:
                share = chunk.by_draw(share_buffer[chunk.own])
                softmax(param, share, inputs.group)
                torch.mul(share, library[chunk.samples, None], out=param)
            else:
                bounded = inputs.heads[i].is_bounded
                (param.clamp_(max=largest_log(param.dtype)) if bounded else param).exp_()
        fixed_params = [
            layer.cut(p, chunk.samples) if has_rows(p, target) else p for p in inputs.fixed_params
        ]
        mask = inputs.mask
        if mask is not None:
            mask = _common.expand(layer.cut(mask, chunk.samples) if has_rows(mask, target) else mask, x.shape)
        params = spec.in_order(_shaped(made, x.shape), [_common.expand(p, x.shape) for p in fixed_params])
        if nll is not None:
            losses = chunk.by_draw(layer.cut(nll, chunk.rows))
            backend.likelihood_forward(likelihood, params, x, mask, None, nll=losses, draws=draws)
        if not grad_outputs or grad_nll is None:
            continue

        sums = [
            _common.empty_gradient(backend, p, x.shape, g is not None, draws)
            for p, g in zip(fixed_params, grad_fixed, strict=True)
        ]
        slopes = _by_head(grad_outputs, chunk, len(inputs.heads))
        grads = spec.in_order(_shaped(slopes, x.shape), sums)
        upstream = chunk.by_draw(layer.cut(grad_nll, chunk.rows))
        backend.likelihood_backward(likelihood, params, x, mask, None, upstream, grads=grads, draws=draws)
        for p, grad, part in zip(fixed_params, grad_fixed, sums, strict=True):
            if grad is not None and part is not None:
                part = part.reshape((1,) * (p.ndim - part.ndim) + part.shape).sum_to_size(p.shape)
                _put(grad, part, chunk if grad.shape != p.shape or has_rows(p, target) else None)
        if grad_library is not None and share is not None:
            of_library = (slopes[0] * share).sum(-1)
            _put(grad_library, of_library if draws is None else of_library.sum(0), chunk)
        for i in logs:
            slopes[i].mul_(made[i])
            if mask is not None:  # 0 times a parameter that overflowed
                slopes[i].masked_fill_(~mask.reshape(size, features), 0)
        if share is not None:  # d softmax = share (slope - sum of share slope)
            total = reduce_over(slopes[0].sum(-1, keepdim=True), "SUM", inputs.group)
            slopes[0].addcmul_(share, total, value=-1)


def _put(grad: Tensor, part: Tensor, chunk: Chunk | None) -> None:
    """A chunk's part of a gradient, which has rows of its own for the chunk's samples, or for draws of them a share."""
    if chunk is None:
        grad += part
    elif chunk.draws is None:
        grad[chunk.samples] = part
    else:
        grad[chunk.samples] += part


def _categorical(layer: _Layer, inputs: Inputs, nll: Tensor | None, grad_nll: Tensor | None) -> None:
    """Every position of every sample is a row."""
    positions = inputs.hidden.shape[inputs.num_lead - 1 : -1]
    target = inputs.target
    if isinstance(target, Tensor):
        target = target.flatten(0, len(positions) - 1).unsqueeze(1)
    if grad_nll is not None:
        lead = inputs.hidden.shape[:-1]
        grad_nll = _common.per_sample(grad_nll, len(lead)).expand(lead).reshape(-1, 1)
    masked = None if inputs.mask is None else ~inputs.mask.expand(positions).reshape(-1, 1)
    for chunk, (outputs,), grads in layer.chunks():
        part, lse, total = (torch.empty(3, outputs.shape[0], 1, device=outputs.device)).unbind()
        if nll is not None:
            part = layer.cut(nll.view(-1, 1), chunk.rows)
        x, kept_out = layer.samples(target, chunk), None if masked is None else masked[chunk.samples]
        if isinstance(x, Csr):  # its rows are positions
            shape: tuple[int, ...] = (chunk.draws or 1, x.shape[0])
            kept_out = None if kept_out is None else kept_out.view(-1)
        elif chunk.draws is None:
            shape = (outputs.shape[0], 1)
        else:  # the draws are the kernel's batch, the rows of each its positions
            shape = (chunk.draws, x.shape[0])
            x = x.squeeze(1).expand(*shape, *x.shape[2:])
            kept_out = None if kept_out is None else kept_out.view(-1)
        logits = outputs.view(*shape, -1)
        part, lse, total = part.view(shape), lse.view(shape), total.view(shape)
        if inputs.group is None:
            layer.backend.categorical_forward(logits, x, nll=part, lse=lse, total=total)
        elif isinstance(x, Tensor):
            x = categorical_share(layer.backend, logits, x, part, lse, total, inputs.group)
        if nll is not None and kept_out is not None:
            part.masked_fill_(kept_out, 0)
        if grads and grad_nll is not None:
            grad_logits = grads[0].view(*shape, -1)
            upstream = layer.cut(grad_nll, chunk.rows).view(shape)
            layer.backend.categorical_backward(logits, x, lse, total, upstream, grad_logits=grad_logits)
            if kept_out is not None:
                grad_logits.masked_fill_(kept_out[..., None], 0)


def _by_head(outputs: Sequence[Tensor], chunk: Chunk, heads: int) -> Sequence[Tensor]:
    """Each head's outputs (rows, features), perhaps after draws."""
    if len(outputs) < heads:
        outputs = outputs[0].tensor_split(heads, 1)
    return outputs if chunk.draws is None else [chunk.by_draw(t) for t in outputs]


def _shaped(outputs: Sequence[Tensor], shape: torch.Size) -> Sequence[Tensor]:
    """Heads in the target's shape, perhaps after draws."""
    return outputs if len(shape) == 2 else [t.unflatten(-1, shape[1:]) for t in outputs]


def has_rows(tensor: Tensor, target: Tensor | Csr) -> bool:
    return tensor.ndim == target.ndim and tensor.shape[0] != 1


def _add_product(total: Tensor, a: Tensor, b: Tensor, beta: int) -> None:
    """total = beta total + a b, in float32; with beta = 0 whatever total held."""
    if a.dtype is not torch.float32 and not _common.on_cpu(total):  # torch has this product for GPUs alone
        torch.addmm(total, a, b, out_dtype=torch.float32, beta=beta, out=total)
    else:
        torch.addmm(total, a.float(), b.float(), beta=beta, out=total)


def _sum_rows(grads: Tensor, out: Tensor) -> None:
    """In float32. By a product on a CPU: 1.2 ms of 205 x 40,000 on one thread, where torch.sum takes 2.5 ms."""
    if grads.dtype is torch.float32 and _common.on_cpu(grads):
        torch.mv(grads.t(), grads.new_ones(grads.shape[0]), out=out)
    else:
        torch.sum(grads, 0, dtype=torch.float32, out=out)


def _most_rows(weight: Tensor, wide: torch.dtype, needs_grad: bool, outputs: int = 0) -> int:
    """Of a chunk. The layer's outputs are in the weight's dtype, and for their links once more in `wide`. Processes
    that share them, `outputs` at most, have the same chunks."""
    outputs, dtype = max(weight.shape[0], outputs), weight.dtype
    if _common.on_cpu(weight):
        rows, most = (size // (outputs * dtype.itemsize) for size in (CHUNK_BYTES, 2 * CHUNK_BYTES))
        return max(1, rows, min(CHUNK_ROWS, most))
    row_bytes = outputs * (dtype.itemsize + (wide.itemsize if wide is not dtype else 0)) * (1 + needs_grad)
    return max(_l2_bytes(weight.device) // 2 // row_bytes, min(MIN_ROWS, MOST_BYTES // row_bytes), 1)


@functools.cache
def _l2_bytes(device: torch.device) -> int:
    return getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0) or L2_BYTES
