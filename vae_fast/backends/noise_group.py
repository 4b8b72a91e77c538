"""The processes whose batches are parts of one: each draws the noise of its own rows of it."""

from __future__ import annotations

import warnings
import weakref
from typing import Any

import torch
from torch.compiler import is_compiling

_group: Any = torch.distributed.group if torch.distributed.is_available() else None
_chosen: tuple[int, int] | None = None  # (rank, size)
_name = ""
_compared: Any = (
    None  # a weak reference to the world whose first batches were compared: it is to end when it ends
)


def set_noise_group(group: Any = None) -> None:
    """Which processes draw a batch's noise together, where neither rng_state, noise nor generator is given.

    Rank r of n with a batch of b samples draws rows r b to (r + 1) b - 1 of a batch of n b, with numbers from its own
    generator. So ranks that are seeded alike (torch.manual_seed(s), accelerate's set_seed(s)) draw together what one
    process with that seed draws for the n batches one after the other, and no two share any; ranks with seeds of their
    own draw noise of their own. Batches are taken to be equal on all ranks; the first ones are compared, and a warning
    says where they are not. Nothing is exchanged to draw.

    Ranks that compute parts of the same samples (tensor, pipeline or context parallelism) must draw the same noise:
    give them their data-parallel group, as set_noise_group(mesh["dp"].get_group()) does.

    Args:
        group: a torch.distributed process group with this process in it; None for all processes, the default.

    Raises:
        ValueError: this process is not in the group, or torch.distributed is not initialised.
    """
    global _chosen, _name, _compared
    if group is None:
        _chosen, _name, _compared = None, "", None
        return
    if _group is None or _group.WORLD is None:
        raise ValueError("expected torch.distributed to be initialised before a noise group is set")
    rank = torch.distributed.get_rank(group)
    if rank < 0:
        raise ValueError("expected this process to be in the noise group, but it is not")
    _chosen, _name, _compared = (rank, torch.distributed.get_world_size(group)), group.group_name, None


def rank_and_size() -> tuple[int, int] | None:
    """This process's rank in the noise group and the number of ranks; None where it draws alone."""
    if _group is None:
        return None
    # Dynamo of torch 2.11 does not see what WORLD is; outside of it is_initialized() takes twice as long.
    if not torch.distributed.is_initialized() if is_compiling() else _group.WORLD is None:
        return None
    if _chosen is None:
        size = torch.distributed.get_world_size()
        return (torch.distributed.get_rank(), size) if size > 1 else None
    return _chosen if _chosen[1] > 1 else None


def compare_first_batches(batch: int, size: int) -> None:
    """Warns, on the last rank of a group to draw, if the ranks' first batches differ. Waits for no rank: a forward pass
    of one rank alone must not hang."""
    global _compared
    if is_compiling() or (_compared is not None and _compared() is _group.WORLD):
        return
    _compared = weakref.ref(_group.WORLD)
    key = f"vae_fast/first batch/{_name}"
    try:
        store: Any = torch.distributed.distributed_c10d._get_default_store()
        store.add(f"{key}/{batch}", 1)
        is_last = store.add(key, 1) == size
        differ = is_last and store.add(f"{key}/{batch}", 0) != size
    except (RuntimeError, AttributeError):  # a backend whose store cannot count, or that has none: fake, MPI
        return
    if differ:
        warnings.warn(
            f"expected the ranks of the noise group to have equal batches, but not all have {batch} samples like "
            f"this one: ranks may share noise. Give rng_state, or each rank a generator of its own",
            stacklevel=2,
        )
