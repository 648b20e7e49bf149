"""Makes the weights that configs/digits.py starts from, from nothing but a seed and matplotlib's fonts.

  python experiments/digits/make_weights.py [--out=tlx/weights/builtin] [--work=runs/glyphs]

Renders 72,000 characters (glyphs.py), trains a ResNet-20 on them (pretrain.py) and writes
resnet20_cifar-glyphs.safetensors and, beside it, its WeightsMeta as json. It took 20 minutes
on 2 CPU cores that did other work too. The same seed gives the same weights on the same versions and processor.
"""

from __future__ import annotations

import argparse
import dataclasses
import sys
from pathlib import Path

import glyphs  # beside this file

import tlx
from tlx import config as config_lib
from tlx.files import write_json_atomic
from tlx.weights.files import sha256_of

HERE = Path(__file__).parent
NAME = "resnet20_cifar-glyphs"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, default=Path("tlx/weights/builtin"))
    parser.add_argument("--work", type=Path, default=Path("runs/glyphs"))
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    data = arguments.work / "glyphs.npz"
    if not data.exists():
        arguments.work.mkdir(parents=True, exist_ok=True)
        glyphs.main(["--out", str(data), "--seed", str(arguments.seed)])
    config = config_lib.build(
        config_lib.load(HERE / "pretrain.py"), {"data.root": str(data), "seed": arguments.seed}
    )
    summary = tlx.finetune(config, arguments.work / "run")
    export(arguments.work / "run", arguments.out)
    print(f"accuracy on held-out fonts: {summary['test/accuracy']:.4f}")


def export(run: Path, out: Path) -> None:
    """Writes the run's model and its meta."""
    model = tlx.load(run)
    filename = f"{NAME}.safetensors"
    model.meta = dataclasses.replace(
        model.meta,
        tag="glyphs",
        license="Apache-2.0",
        source="builtin",
        filename=filename,
        notes="48 classes of characters rendered from matplotlib's fonts; experiments/digits",
    )
    out.mkdir(parents=True, exist_ok=True)
    tlx.save_weights(model, out / filename)
    meta = dataclasses.replace(model.meta, sha256=sha256_of(out / filename))
    write_json_atomic(out / f"{NAME}.json", meta.to_json())


if __name__ == "__main__":
    sys.exit(main())
