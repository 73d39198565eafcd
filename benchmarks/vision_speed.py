"""How fast the image tower is: forward and input gradient, against stock open_clip and against the machine.

    python -m benchmarks.vision_speed [--model ViT-B-32] [--batch 32] [--rounds 5]

Everything is measured in one run, in rounds that take turns, so that a machine that slows down slows all of it; times
are medians. The floor is the counted operations over the machine's own bfloat16 rate: the best of a fixed grid of
products, 4096 x 4096 x 4096 and the tower's own shapes. Prints one JSON line.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict
from pathlib import Path

import open_clip

from ironclip.benchmarking.towers import measure
from ironclip.machine import describe_machine
from ironclip.models.sources import load_model


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--model", default="ViT-B-32", help="an architecture of open_clip")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    options = parser.parse_args()
    model = load_model(f"open_clip:{options.model}/random?seed=0")
    stock = open_clip.create_model(options.model)
    stock.load_state_dict(model.clip.state_dict())
    speed = measure(model, stock.visual, batch=options.batch, rounds=options.rounds)
    ratios = {"over_float32": speed.over_float32, "over_autocast": speed.over_autocast, "share": speed.share}
    machine = describe_machine(Path())
    rounded = {name: float(f"{value:.4g}") for name, value in ratios.items()}
    about = {"processor": machine.processor, "threads": machine.threads, "torch": machine.torch}
    print(json.dumps({"benchmark": "vision_speed", "model": options.model, **asdict(speed), **rounded, **about}))


if __name__ == "__main__":
    main()
