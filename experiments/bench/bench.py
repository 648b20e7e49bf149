"""Steps of tlx and of PyTorch on the same work, in turns, and what came of it.

  python experiments/bench/bench.py [--rows=resnet18] [--rounds=7]

Each row is a job that two processes have ready: tlx's and PyTorch's. In every round each runs so many steps as take PyTorch about
two seconds, one after the other, the first of them in turns; the other waits meanwhile. A round's ratio is that of images a second,
tlx / PyTorch: above 1 tlx is faster. Writes steps_DEVICE.json and steps_DEVICE.md beside this file; rows that are not run again stay.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import platform
import statistics
import subprocess
import sys
from importlib import metadata
from pathlib import Path
from typing import Any

from worker import Job

from tlx.files import write_json_atomic, write_text_atomic

HERE = Path(__file__).parent
SECONDS = 2.0  # of a round
VERSIONS = ("jax", "jaxlib", "flax", "torch", "torchvision", "timm")

CPU_JOBS = (
    Job("resnet18", 32, 100),
    Job("resnet18", 224, 16),
    Job("resnet50", 224, 16),
    Job("squeezenet1_0", 224, 16),
    Job("vgg16", 224, 8),
    Job("inception_v3", 299, 8),
    Job("vit_base_patch16_224", 224, 8),
    Job("mobilenet_v3_large", 224, 16),
    Job("convnext_tiny", 224, 8),
    Job("resnext50_32x4d", 224, 8),
    Job("resnet18", 224, 16, "last"),
    Job("resnet18", 224, 16, "head"),
    Job("resnet18", 32, 128, ""),
    Job("resnet18", 224, 16, ""),
    Job("resnet50", 32, 128, ""),
    Job("resnet50", 224, 16, ""),
)
# Operations a second in bfloat16, without sparsity, by the vendor's data sheet.
PEAKS = {"NVIDIA H100 80GB HBM3": 989e12, "NVIDIA H200": 989e12}
GPU_JOBS = (
    Job("resnet50", 224, 256, dtype="bfloat16"),
    Job("vit_base_patch16_224", 224, 128, dtype="bfloat16"),
    Job("resnet50", 224, 256, "head", dtype="bfloat16"),
    Job("resnet50", 224, 256, "", dtype="bfloat16"),
)


class Worker:
    """A process that runs steps when asked."""

    def __init__(self, command: list[str]):
        self.process = subprocess.Popen(
            [sys.executable, *command],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.start = self._answer()

    def seconds(self, steps: int) -> float:
        """Returns how long so many steps take."""
        assert self.process.stdin is not None
        print(steps, file=self.process.stdin, flush=True)
        return float(self._answer()["seconds"])

    def close(self) -> dict[str, float]:
        """Returns what the process says of itself in the end."""
        assert self.process.stdin is not None
        self.process.stdin.close()
        last = self._answer()
        self.process.wait()
        return last

    def _answer(self) -> dict[str, float]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise SystemExit(f"{self.process.args} ended: {self.process.wait()}")
        answer: dict[str, float] = json.loads(line)
        return answer


def measure(job: Job, rounds: int, device: str) -> dict[str, Any]:
    """Returns the job's row."""
    asked = json.dumps(dataclasses.asdict(job))
    scripts = {"tlx": "ours.py", "pytorch": "theirs.py"}
    commands = {name: [str(HERE / script), asked] for name, script in scripts.items()}
    row = {"job": dataclasses.asdict(job), **in_turns(commands, rounds)}
    row["versions"] = {name: metadata.version(name) for name in VERSIONS}
    row["machine"] = machine() if device == "cpu" else _gpu()
    return row


def in_turns(commands: dict[str, list[str]], rounds: int) -> dict[str, Any]:
    """Returns the seconds of each worker's steps, round by round, and what they say of themselves.

    Args:
      commands: the workers' Python commands; `pytorch` is the one whose steps say how many a round has.
      rounds: how many.
    """
    workers = {name: Worker(command) for name, command in commands.items()}
    steps = max(1, round(SECONDS / min(workers["pytorch"].seconds(1) for _ in range(2))))
    order = list(workers)
    times: dict[str, list[float]] = {name: [] for name in workers}
    for _ in range(rounds):
        for name in order:
            times[name].append(workers[name].seconds(steps) / steps)
        order.reverse()
    said = {name: {**worker.start, **worker.close()} for name, worker in workers.items()}
    return {"steps": steps, "seconds": times, **said, "python": platform.python_version()}


def machine() -> str:
    """Returns the processor and how many of it there are."""
    facts = Path("/proc/cpuinfo")
    lines = facts.read_text().splitlines() if facts.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return f"{os.cpu_count()} x {names[0] if names else platform.processor()}"


def _gpu() -> str:
    """Returns the GPU's name, by its driver."""
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout.split("\n")[0]


def utilisation(row: dict[str, Any]) -> str:
    """Returns what share of the GPU's matrix units tlx's step uses, for the operations that XLA counts; "" where not known."""
    peak = PEAKS.get(row["machine"], 0.0)
    seconds = statistics.median(row["seconds"]["tlx"])
    return f"{row['tlx']['flops'] / seconds / peak:.2f}" if peak and "flops" in row["tlx"] else ""


def table(rows: list[dict[str, Any]]) -> str:
    """Returns a line for each row."""
    lines = [
        "| network | pixels | batch | dtype | trained | tlx, images/s | PyTorch, images/s | ratio (spread) "
        "| memory, ratio | first step, s | MFU |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        job, times = Job(**row["job"]), row["seconds"]
        ratios = sorted(b / a for a, b in zip(times["tlx"], times["pytorch"], strict=True))
        ours, theirs = (job.batch / statistics.median(times[k]) for k in ("tlx", "pytorch"))
        lines.append(
            f"| {job.model} | {job.size} | {job.batch} | {job.dtype} | {job.trained or 'inference'} "
            f"| {ours:.1f} | {theirs:.1f} | {statistics.median(ratios):.2f} "
            f"({ratios[0]:.2f} to {ratios[-1]:.2f}) "
            f"| {row['tlx']['peak'] / row['pytorch']['peak']:.2f} | {row['tlx']['first']:.1f} "
            f"| {utilisation(row)} |"
        )
    machines = sorted({row["machine"] for row in rows})
    versions = [f"{name} {number}" for name, number in rows[-1]["versions"].items()]
    lines += [
        "",
        f"{'; '.join(machines)}. {', '.join(versions)}. Memory is a GPU's own, or that of the process on the host.",
    ]
    return "\n".join(lines) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", default="", help="networks, with commas; all of them if empty")
    parser.add_argument("--trained", default="", help="full, last or head: only these jobs")
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    arguments = parser.parse_args()
    names = [name for name in arguments.rows.split(",") if name]
    jobs = CPU_JOBS if arguments.device == "cpu" else GPU_JOBS
    file = HERE / f"steps_{arguments.device}.json"
    rows = json.loads(file.read_text()) if file.exists() else []
    for job in jobs:
        if (names and job.model not in names) or arguments.trained not in ("", job.trained):
            continue
        row = measure(job, arguments.rounds, arguments.device)
        rows = [other for other in rows if other["job"] != row["job"]] + [row]
        write_json_atomic(file, rows)
        order = [dataclasses.asdict(job) for job in jobs]
        rows.sort(key=lambda row: order.index(row["job"]) if row["job"] in order else len(order))
        write_text_atomic(HERE / f"steps_{arguments.device}.md", table(rows))
        print(table([row]).splitlines()[2], flush=True)


if __name__ == "__main__":
    main()
