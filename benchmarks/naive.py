"""What one writes first: read a frame, run the plain network on it in fp32, write the frame.

    python benchmarks/naive.py IN OUT [--model rlfn-s] [--scale 4] [--frames N]

The module is the network as trained (no folding), eager, RGB in and out, libx264 at crf 18 and preset
medium like the command's default. One JSON object on standard output: frames, and seconds of the loop.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from itertools import islice
from pathlib import Path

import av
import torch

from rlfn_pipe.models.rlfn import RLFN
from rlfn_pipe.models.weights import load


@torch.inference_mode()
def upscale(source: Path, target: Path, module: RLFN, frames: int | None = None) -> int:
    """Upscale the video stream of `source`, one frame after the other; returns how many frames."""
    white = module.spec.input_range
    count = 0
    with av.open(str(source)) as reader, av.open(str(target), "w") as writer:
        stream = reader.streams.best("video")
        stream.thread_type = "AUTO"
        output = writer.add_stream(
            "libx264", rate=stream.average_rate, options={"crf": "18", "preset": "medium"}
        )
        output.pix_fmt = "yuv420p"
        scale = module.spec.scale
        output.width, output.height = stream.width * scale, stream.height * scale
        for frame in islice(reader.decode(stream), frames):
            rgb = torch.from_numpy(frame.to_ndarray(format="rgb24"))
            x = rgb.permute(2, 0, 1)[None].float() * (white / 255)
            y = module(x)[0] * (255 / white)
            large = y.round().clamp(0, 255).byte().permute(1, 2, 0).contiguous().numpy()
            writer.mux(output.encode(av.VideoFrame.from_ndarray(large, format="rgb24")))
            count += 1
        writer.mux(output.encode(None))
    return count


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("source", type=Path)
    parser.add_argument("target", type=Path)
    parser.add_argument("--model", default="rlfn-s")
    parser.add_argument("--scale", type=float, default=4)
    parser.add_argument("--frames", type=int)
    options = parser.parse_args()
    module = load(options.model, options.scale)[1].eval()
    begin = time.perf_counter()
    frames = upscale(options.source, options.target, module, options.frames)
    print(json.dumps({"frames": frames, "seconds": time.perf_counter() - begin}))
    return 0


if __name__ == "__main__":
    sys.exit(main())
