"""How large the output becomes: one place for the rule of every size option."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

from rlfn_pipe.errors import UsageError
from rlfn_pipe.options import MAXIMUM_SCALE

if TYPE_CHECKING:
    from rlfn_pipe.options import UpscaleOptions

#: libavutil refuses larger frames, and no encoder here takes them.
MAXIMUM_PIXELS = 1 << 28
#: Of an image, which no encoder has to take: memory ends before, at some 35 bytes a pixel.
MAXIMUM_IMAGE_PIXELS = 1 << 30


@dataclass(frozen=True, slots=True)
class Geometry:
    """Size of the upscaled picture in stored pixels, and the factor that the network must reach."""

    width: int
    height: int
    factor: float


def output_geometry(
    options: UpscaleOptions,
    width: int,
    height: int,
    *,
    swapped: bool = False,
    video: bool = False,
    name: str = "",
) -> Geometry:
    """Apply `--scale`, `--height`, `--width` or `--size` to a stored picture of `width` x `height`.

    `swapped`: the picture is shown turned by 90 degrees, so that asked sizes (which are
    after rotation) change places. `video`: a side that follows from the aspect becomes the nearest
    even number.

    Raises:
        UsageError: the size is smaller than the source's, more than 8 times larger, or beyond
            what can be encoded.
    """
    if options.factor is not None:
        out = Geometry(
            max(1, round(width * options.factor)), max(1, round(height * options.factor)), options.factor
        )
    else:
        out = _asked(options, width, height, swapped, video)
    if out.factor < 1 or out.factor > MAXIMUM_SCALE:
        raise UsageError(
            f"{name}: {width}x{height} to {out.width}x{out.height} is a factor of {out.factor:.3g}; "
            f"use a size from 1 to {MAXIMUM_SCALE:g} times the source's"
        )
    most = MAXIMUM_PIXELS if video else MAXIMUM_IMAGE_PIXELS
    if out.width * out.height > most:
        raise UsageError(
            f"{name}: {out.width}x{out.height} is more than "
            f"the {most / 1e6:.0f} megapixels that can be written; use a smaller --scale"
        )
    return out


def _asked(options: UpscaleOptions, width: int, height: int, swapped: bool, even: bool) -> Geometry:
    shown_width, shown_height = (height, width) if swapped else (width, height)

    def follow(side: float) -> int:
        return max(2, 2 * round(side / 2)) if even else max(1, round(side))

    if options.size is not None:
        to_width, to_height = options.size
    elif options.height is not None and options.width is not None:
        to_width, to_height = options.width, options.height
    elif options.height is not None:
        to_width, to_height = follow(shown_width * options.height / shown_height), options.height
    else:
        assert options.width is not None
        to_width, to_height = options.width, follow(shown_height * options.width / shown_width)
    factor = max(to_width / shown_width, to_height / shown_height)
    if swapped:
        to_width, to_height = to_height, to_width
    return Geometry(to_width, to_height, factor)


def shape_notes(options: UpscaleOptions, geometry: Geometry, width: int, height: int) -> tuple[str, ...]:
    """What to say where both sides were asked for and a stored picture of `width` x `height` is stretched."""
    both = options.size is not None or (options.width is not None and options.height is not None)
    stretch = geometry.width * height / (geometry.height * width)
    if not both or abs(stretch - 1.0) < 0.01:
        return ()
    how = "wider" if stretch > 1.0 else "narrower"
    return (
        f"the picture becomes {max(stretch, 1 / stretch):.3g} times {how} than it was, since both sides were given",
    )
