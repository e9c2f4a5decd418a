"""Where a model lies, and where it is to be."""

from __future__ import annotations

import torch
from torch import nn

from ckd.errors import ConfigError, first_line


def device_of(model: object) -> torch.device:
    """The device of a module's weights, or of its vectors where it has none; of anything else, the CPU."""
    if isinstance(model, nn.Module):
        for tensor in (*model.parameters(), *model.buffers()):
            return tensor.device
    return torch.device("cpu")


def pick_device(name: str, key: str = "train.device") -> torch.device:
    """The device of that name, ready for use; `auto` is a GPU where there is one.

    A GPU becomes this thread's own, and multiplies float32 as such.

    Args:
        key: what the user has set, for the message.

    Raises:
        ConfigError: torch knows no such device, this machine has none, or nothing can be computed there.
    """
    # fp32 is fp32 everywhere: by default cuDNN rounds what its recurrences and convolutions multiply.
    torch.backends.cudnn.allow_tf32 = False
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:
        raise ConfigError(f"{key}={name!r}: {first_line(error)}. Use auto, cpu or a GPU of this machine.") from None
    if device.type == "meta":
        raise ConfigError(f"{key}={name!r}: holds no numbers. Use auto, cpu or a GPU of this machine.")
    choose_gpu(device)
    return device


def choose_gpu(device: torch.device) -> None:
    """Of several GPUs, what this thread makes for one from now on, pinned memory too, belongs to that one."""
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
