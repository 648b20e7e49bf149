"""From a weights file to values on the device: tlx beside PyTorch, in turns, each run a process of its own.

  python experiments/loading/measure.py [MODEL ...]      (needs the parity extra)

For each model a file of random values is written as torch.save writes it and as safetensors. Measured in each process, after
everything is imported: seconds from the file's path to values that can be computed with (PyTorch: torch.load or safetensors'
load_file, then load_state_dict into a network that exists; tlx: reading, key table, checks, placing on the device, the abstract
network included), and how far the peak of the process's memory rises above what it was before, over the file's size. PyTorch's
network is allocated before the clock starts; its size is added to the memory of both (tlx's values are the network's).
The file is in the page cache, and the mapped part of it counts as memory of the process.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

ROUNDS = 9
MODELS = ("resnet50",)

PREPARE = """
import sys
from pathlib import Path
from tests.torchvision_import import import_torchvision
import_torchvision()
import torch, timm
from safetensors.torch import save_file
name, folder = sys.argv[1:]
state = timm.create_model(name, num_classes=1000).state_dict()
torch.save(state, f"{folder}/net.pth")
save_file(state, f"{folder}/net.safetensors")
"""

MEMORY = """
def reset():
    open("/proc/self/clear_refs", "w").write("5")
    return peak()
def peak():
    (line,) = [l for l in open("/proc/self/status") if l.startswith("VmHWM")]
    return int(line.split()[1]) * 1024
"""

PYTORCH = (
    MEMORY
    + """
import json, sys, time
from tests.torchvision_import import import_torchvision
import_torchvision()
import torch, timm
from safetensors.torch import load_file
name, path = sys.argv[1:]
before = reset()
network = timm.create_model(name, num_classes=1000)
begun = time.perf_counter()
state = load_file(path) if path.endswith(".safetensors") else torch.load(path, weights_only=True)
network.load_state_dict(state, strict=True)
seconds = time.perf_counter() - begun
print(json.dumps([seconds, peak() - before]))
"""
)

TLX = (
    MEMORY
    + """
import json, sys, time
import jax
from tlx.pretrained import source
jax.block_until_ready(jax.device_put(0.0))
name, path = sys.argv[1:]
before = reset()
begun = time.perf_counter()
values = source(name, path).place(0)
jax.block_until_ready(values)
seconds = time.perf_counter() - begun
print(json.dumps([seconds, peak() - before]))
"""
)


def run(program: str, *arguments: str) -> str:
    """Returns what the program prints, run by this interpreter from the repository's root."""
    root = Path(__file__).parent.parent.parent
    command = [sys.executable, "-c", program, *arguments]
    return subprocess.run(command, cwd=root, check=True, capture_output=True, text=True).stdout


def measure(name: str) -> list[str]:
    """Returns the table's rows for one model."""
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        run(PREPARE, name, folder)
        for path in (Path(folder) / "net.pth", Path(folder) / "net.safetensors"):
            found: dict[str, list[list[float]]] = {"PyTorch": [], "tlx": []}
            for _ in range(ROUNDS):
                for project, program in (("PyTorch", PYTORCH), ("tlx", TLX)):
                    found[project].append(json.loads(run(program, name, str(path))))
            size = path.stat().st_size
            ratios = [
                ours[0] / theirs[0]
                for ours, theirs in zip(found["tlx"], found["PyTorch"], strict=True)
            ]
            cells = [f"{name} {path.suffix}", f"{size / 1e6:.0f}"]
            for project in found:
                seconds = [row[0] * 1000 for row in found[project]]
                memory = max(row[1] for row in found[project]) / size
                cells += [f"{statistics.median(seconds):.0f}", f"{memory:.2f}"]
            cells.append(
                f"{statistics.median(ratios):.2f} ({min(ratios):.2f} to {max(ratios):.2f})"
            )
            rows.append("| " + " | ".join(cells) + " |")
    return rows


if __name__ == "__main__":
    print(
        "| file | MB | PyTorch ms | PyTorch peak / file | tlx ms | tlx peak / file | tlx / PyTorch, time |"
    )
    print("|---|---|---|---|---|---|---|")
    for model in sys.argv[1:] or MODELS:
        print(*measure(model), sep="\n", flush=True)
