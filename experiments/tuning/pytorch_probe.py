"""PyTorch's side of the ants and bees: logistic regression on the features of the frozen networks.

  python experiments/tuning/pytorch_probe.py --shared=DIR

The features are SqueezeNet's last map and ResNet-18's layer3, averaged over positions, of the 244 training and 153 validation
pictures (short side 256, centre crop 224), scaled to zero mean and unit variance by the training pictures. The strength of the
penalty is chosen by five-fold cross-validation on the training pictures. Writes pytorch_probe.json.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from sklearn.linear_model import LogisticRegressionCV
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from tlx.files import write_json_atomic

try:
    import torchvision
except RuntimeError:
    # torchvision's compiled operators do not load beside some torch builds; the models need none of them.
    OPERATORS = torch.library.Library("torchvision", "DEF")
    for name in ("nms", "qnms"):
        OPERATORS.define(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    import torchvision

HERE = Path(__file__).parent
MEAN, STD = np.array([0.485, 0.456, 0.406]), np.array([0.229, 0.224, 0.225])
STRENGTHS = np.logspace(-5, 1, 13)


def pictures(folder: Path) -> tuple[torch.Tensor, np.ndarray]:
    """Returns [N, 3, 224, 224] and labels [N]."""
    images, labels = [], []
    for label, name in enumerate(("ants", "bees")):
        for path in sorted((folder / name).iterdir()):
            image = Image.open(path).convert("RGB")
            scale = 256 / min(image.size)
            size = [int(side * scale) for side in image.size]
            image = image.resize(size, Image.Resampling.BILINEAR)
            left, top = (round((side - 224) / 2) for side in size)
            array = np.asarray(image.crop((left, top, left + 224, top + 224))) / 255
            images.append(((array - MEAN) / STD).transpose(2, 0, 1).astype(np.float32))
            labels.append(label)
    return torch.from_numpy(np.stack(images)), np.array(labels)


def networks(weights: Path) -> dict[str, torch.nn.Module]:
    """Returns what makes the maps of each network."""
    squeezenet = torchvision.models.squeezenet1_0()
    squeezenet.load_state_dict(torch.load(weights / "squeezenet1_0_imagenet.pth"))
    resnet = torchvision.models.resnet18()
    state = torch.load(weights / "resnet18_imagenet_layers1to3.pth")
    resnet.load_state_dict(state, strict=False)
    stages = (resnet.conv1, resnet.bn1, resnet.relu, resnet.maxpool)
    layers = (resnet.layer1, resnet.layer2, resnet.layer3)
    return {
        "squeezenet1_0": squeezenet.features.eval(),
        "resnet18 layer3": torch.nn.Sequential(*stages, *layers).eval(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shared", type=Path, required=True)
    shared = parser.parse_args().shared
    parts = {name: pictures(shared / "data" / "hymenoptera" / name) for name in ("train", "val")}
    rows = []
    for name, network in networks(shared / "weights").items():
        with torch.no_grad():
            features = {
                part: torch.cat([network(x).mean((2, 3)) for x in images.split(32)]).numpy()
                for part, (images, _) in parts.items()
            }
        probe = make_pipeline(
            StandardScaler(), LogisticRegressionCV(Cs=STRENGTHS, cv=5, max_iter=5000)
        )
        probe.fit(features["train"], parts["train"][1])
        right = int((probe.predict(features["val"]) == parts["val"][1]).sum())
        rows.append(
            {
                "network": name,
                "right": right,
                "of": len(parts["val"][1]),
                "C": float(probe[-1].C_[0]),
                "selection": float(probe[-1].scores_[1].mean(0).max()),
                "torch": torch.__version__,
            }
        )
        print(rows[-1], flush=True)
    write_json_atomic(HERE / "pytorch_probe.json", rows)


if __name__ == "__main__":
    main()
