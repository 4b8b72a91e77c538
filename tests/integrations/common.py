"""What the tests of the integrations share."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable
from typing import Any

import pytest
import torch
from torch import Tensor

from vae_fast.integrations._patch import Switch


def randn(*shape: int, seed: int = 0, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(dtype)


def leaf(tensor: Tensor) -> Tensor:
    return tensor.detach().clone().requires_grad_()


def gradients(outputs: Tensor | Iterable[Tensor], inputs: Iterable[Tensor], seed: int = 7) -> list[Tensor]:
    """Of a sum of the outputs with weights of all signs."""
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    loss = sum((o.double() * randn(*o.shape, seed=seed + i)).sum() for i, o in enumerate(outputs))
    assert isinstance(loss, Tensor)
    return list(torch.autograd.grad(loss, list(inputs)))


def own_objects(switch: Switch) -> dict[str, Any]:
    """What stands at every path that the switch knows."""
    found = {}
    for path in {p for paths in switch.known.values() for p in paths}:
        owner, name = switch.find(path)
        found[path] = vars(owner).get(name)
    return found


def check_switch(switch: Switch, patch: Callable[..., Any]) -> None:
    """Restores what was there, by identity; twice, nested, in any order."""
    before = own_objects(switch)
    with patch():
        replaced = [p for p, o in own_objects(switch).items() if o is not before[p]]
        assert set(replaced) == set(switch.current or ())
        with patch():
            pass
        assert [p for p, o in own_objects(switch).items() if o is not before[p]] == replaced
    assert all(o is before[p] for p, o in own_objects(switch).items())
    first, second = patch(), patch()
    second.undo()
    first.undo()
    assert all(o is before[p] for p, o in own_objects(switch).items())


def check_moved(switch: Switch, patch: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """Each function that is known is looked at: another one at its place is refused by name, nothing is replaced."""
    before = own_objects(switch)

    def another(self: Any, *args: Any, **kwargs: Any) -> None: ...

    for path in before:
        with monkeypatch.context() as changed:
            owner, name = switch.find(path)
            changed.setattr(owner, name, another, raising=False)
            with pytest.raises(RuntimeError) as caught:
                patch()
            assert path in str(caught.value) and switch.package in str(caught.value)
            assert "expected one of versions " + ", ".join(switch.known) in str(caught.value)
            assert all(o is before[p] for p, o in own_objects(switch).items() if p != path)
    assert all(o is before[p] for p, o in own_objects(switch).items())
    assert switch.library in sys.modules
