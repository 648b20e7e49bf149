"""Runs one config with several seeds and collects the results.

  python experiments/seeds.py --name=finetune --seeds=0,1,2 --out=experiments/cifar_resnet20/tlx.json \\
      --config=configs/cifar_resnet20.py [--config.FIELD=VALUE ...] [--mode=evaluate]

Each run is `python -m tlx.main` in runs/seeds/NAME-SEED; a finished one is not run again. The file holds one object
per run: name, seed, fields overridden, test metrics, seconds, examples per second, versions.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

from tlx.files import write_json_atomic


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--name", required=True)
    parser.add_argument("--seeds", default="0,1,2")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--config", required=True)
    arguments, overrides = parser.parse_known_args()
    done = json.loads(arguments.out.read_text()) if arguments.out.exists() else []
    for seed in map(int, arguments.seeds.split(",")):
        if any(row["name"] == arguments.name and row["seed"] == seed for row in done):
            continue
        workdir = Path("runs") / "seeds" / f"{arguments.out.parent.name}-{arguments.name}-{seed}"
        command = [
            sys.executable,
            "-m",
            "tlx.main",
            f"--config={arguments.config}",
            f"--workdir={workdir}",
        ]
        subprocess.run([*command, f"--config.seed={seed}", *overrides], check=True)
        summary = json.loads((workdir / "summary.json").read_text())
        shown = [o for o in overrides if ".root=" not in o and ".weights=" not in o]
        kept = {k: v for k, v in summary.items() if k.startswith(("test/", "params/"))}
        wanted = ("steps", "seconds", "examples_per_second", "device", "versions")
        facts = {k: summary[k] for k in wanted if k in summary}
        row = {
            "name": arguments.name,
            "seed": seed,
            "overrides": shown,
            **kept,
            **facts,
            "cores": os.cpu_count(),
        }
        done.append(row)
        write_json_atomic(arguments.out, done)
        shutil.rmtree(workdir)


if __name__ == "__main__":
    main()
