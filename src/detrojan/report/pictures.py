"""Pictures that stand in the page itself, as `data:` addresses."""

from __future__ import annotations

import base64
import io
import re
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

if TYPE_CHECKING:
    from torch import Tensor

TILE = 96
"""About how many pixels a tile is wide or high in the grid."""
GAP = 4
AMPLIFIED = 5.0
INLINE = re.compile(r"data:image/png;base64,[A-Za-z0-9+/]+={0,2}")


def trigger_grid(images: Tensor, triggered: Tensor) -> str:
    """Draw images with and without the trigger as a PNG in a `data:` address; the same images give the same bytes.

    One column per image; rows: original, triggered, and 0.5 grey + 5 x difference. Both batches are (n, channels,
    height, width), uint8 or floats in 0..1; of other than 1 or 3 channels the first is drawn. Gaps are transparent.
    """
    import torch
    from PIL import Image

    before, after = _unit(images), _unit(triggered)
    rows = [before, after, (0.5 + AMPLIFIED * (after - before)).clamp(0, 1)]
    height, width = before.shape[2:]
    factor = _factor(max(height, width))
    size = round(width * factor), round(height * factor)
    across, down = size[0] + GAP, size[1] + GAP
    grid = Image.new("RGBA", (across * len(before) - GAP, down * len(rows) - GAP))
    for y, row in enumerate(rows):
        pixels = (row * 255).round().to(torch.uint8).permute(0, 2, 3, 1).expand(-1, -1, -1, 3).contiguous()
        for x, tile in enumerate(pixels.numpy()):
            # NEAREST shows the pixels as the model sees them.
            grid.paste(Image.fromarray(tile).resize(size, Image.Resampling.NEAREST), (x * across, y * down))
    stream = io.BytesIO()
    grid.save(stream, "PNG")
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode("ascii")


def inline(picture: Any) -> Markup | None:
    """Return an inline PNG as it may stand in a `src`; None for anything else, since the manifest is hostile."""
    return Markup(picture) if isinstance(picture, str) and INLINE.fullmatch(picture) else None


def _unit(images: Tensor) -> Tensor:
    """Bring images to floats in 0..1 on the CPU with 1 or 3 channels."""
    import torch

    shown = images if images.shape[1] in (1, 3) else images[:, :1]
    scaled = shown.detach().cpu().float() / (255 if images.dtype == torch.uint8 else 1)
    return scaled.nan_to_num(0.0).clamp(0, 1)


def _factor(side: int) -> float:
    """Return by what a side is enlarged, or made smaller, to be about a tile: a whole number or one over it."""
    return max(1, round(TILE / side)) if side <= TILE else 1 / max(1, round(side / TILE))
