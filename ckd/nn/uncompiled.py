"""Parts of torch without the compiler that calling them loads.

torch shields some functions from torch.compile by importing the compiler when one of them is first called: some 900
modules, 140 MB and a few seconds, of which a run that compiles nothing has no use. Recformer's backbone
loads it anyhow, and so does the checkpoint by which a student that does not factor is distilled over all items.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer


class Adam(torch.optim.Adam):
    """torch's Adam, for steps that are not compiled: under the decorators lie the functions themselves."""

    add_param_group = inspect.unwrap(Optimizer.add_param_group)
    load_state_dict = inspect.unwrap(Optimizer.load_state_dict)
    state_dict = inspect.unwrap(Optimizer.state_dict)
    step = torch.no_grad()(inspect.unwrap(torch.optim.Adam.step))
    zero_grad = inspect.unwrap(Optimizer.zero_grad)


def recomputed(function: Callable[..., torch.Tensor], *inputs: torch.Tensor) -> torch.Tensor:
    """`function(*inputs)` on the CPU, whose intermediate results are not kept but computed again for the gradient.

    As `torch.utils.checkpoint` does it, with the same random numbers and the same autocast. Gradients reach leaves and
    `inputs`: nothing else that `function` refers to may have a history.
    """
    # A result has a gradient where an input asks for one, and the inputs may all be ids.
    asking = torch.empty(0, requires_grad=True)
    result: torch.Tensor = _Recomputed.apply(function, asking, *inputs)
    return result


class _Recomputed(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, function: Callable[..., torch.Tensor], asking: torch.Tensor, *inputs: torch.Tensor
    ) -> torch.Tensor:
        ctx.function = function
        ctx.autocast = (torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu"))
        ctx.generator = torch.get_rng_state()
        ctx.save_for_backward(*inputs)
        return function(*inputs)

    @staticmethod
    def backward(ctx: Any, gradient: torch.Tensor) -> tuple[torch.Tensor | None, ...]:
        inputs = [tensor.detach().requires_grad_(tensor.requires_grad) for tensor in ctx.saved_tensors]
        enabled, dtype = ctx.autocast
        with torch.random.fork_rng(devices=[]), torch.enable_grad():
            torch.set_rng_state(ctx.generator)
            with torch.autocast("cpu", dtype, enabled):
                result = ctx.function(*inputs)
            # A number: given the gradient itself, backward() would load the compiler.
            (result * gradient).sum().backward()
        return None, None, *(tensor.grad for tensor in inputs)
