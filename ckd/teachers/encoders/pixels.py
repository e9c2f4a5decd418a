"""`pixels`: an image encoder without weights, for where no trained one is to be had.

It measures what a picture looks like and knows nothing of what it shows: the outline of what stands out from the
background, its colours, and its texture. Each is a block of the vector, of length one.

- Outline: how far the pixels of each of 8 x 8 cells are from the background, the median colour of the picture's edge.
- Colours: a histogram of 4 x 4 x 4 colours (Swain and Ballard, IJCV 1991), every pixel weighing by that distance.
  Square roots, so that a product of two is their Hellinger affinity.
- Texture: magnitudes of the spatial frequencies in overlapping windows, summed over the windows, each times its
  frequency, as pictures have the less of one the higher it is (Field, JOSA A 1987). Shifting a pattern leaves them as
  they are.

The mean is taken off outline and texture: what all pictures have in common tells none of them apart, and a teacher
that compares by cosines learns slowly to look past it.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

#: Changes when the same picture would get another vector; part of the encoder's identity.
VERSION = 1

#: Pictures are squeezed to this side, in pixels.
SIDE = 32
CELLS = 8
LEVELS = 4
WINDOW, STRIDE = 16, 8

#: Distances from the background below this are noise; colours lie in [0, 1].
NOISE = 0.1

#: Length of a vector.
DIM = CELLS**2 + LEVELS**3 + WINDOW * (WINDOW // 2 + 1)


class Pixels(nn.Module):
    """Outline, colours and texture of pictures."""

    window: torch.Tensor
    frequency: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        bell = torch.hann_window(WINDOW + 2, periodic=False)[1:-1]
        self.register_buffer("window", torch.outer(bell, bell))
        down, right = torch.fft.fftfreq(WINDOW)[:, None], torch.fft.rfftfreq(WINDOW)
        self.register_buffer("frequency", torch.hypot(down, right))

    def encode_image(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, DIM) float32 vectors of (B, 3, SIDE, SIDE) colours in [0, 1]."""
        away = _away(pixels)
        parts = _centred(_outline(away)), _colours(pixels, away), _centred(self._texture(pixels))
        return torch.cat([F.normalize(part, dim=1) for part in parts], dim=1)

    def _texture(self, pixels: torch.Tensor) -> torch.Tensor:
        windows = pixels.mean(dim=1).unfold(1, WINDOW, STRIDE).unfold(2, WINDOW, STRIDE)
        windows = windows - windows.mean(dim=(-2, -1), keepdim=True)
        return (torch.fft.rfft2(windows * self.window).abs().sum(dim=(1, 2)) * self.frequency).flatten(1)


def _centred(block: torch.Tensor) -> torch.Tensor:
    return block - block.mean(dim=1, keepdim=True)


def _away(pixels: torch.Tensor) -> torch.Tensor:
    """(B, SIDE, SIDE) each pixel's distance from the background, less what is noise."""
    edges = (pixels[:, :, 0], pixels[:, :, -1], pixels[:, :, :, 0], pixels[:, :, :, -1])
    background = torch.cat(edges, dim=2).median(dim=2).values
    return ((pixels - background[:, :, None, None]).norm(dim=1) - NOISE).clamp_min(0)


def _outline(away: torch.Tensor) -> torch.Tensor:
    """(B, CELLS * CELLS) mean distance in each cell."""
    return F.avg_pool2d(away[:, None], SIDE // CELLS).flatten(1)


def _colours(pixels: torch.Tensor, away: torch.Tensor) -> torch.Tensor:
    """(B, LEVELS ** 3) square roots of the colours' shares of all distance."""
    red, green, blue = (pixels * LEVELS).long().clamp_max(LEVELS - 1).unbind(dim=1)
    number = (red * LEVELS + green) * LEVELS + blue
    counts = away.new_zeros(len(away), LEVELS**3).scatter_add_(1, number.flatten(1), away.flatten(1))
    return counts.sqrt()


def prepare(picture: Image.Image) -> torch.Tensor:
    """(3, SIDE, SIDE) float32 colours in [0, 1] of an RGB picture."""
    small = picture.resize((SIDE, SIDE), Image.Resampling.BOX)
    return torch.from_numpy(np.asarray(small, dtype=np.float32) / 255).permute(2, 0, 1).contiguous()
