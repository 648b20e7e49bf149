"""What a set of weights is and how its inputs must be prepared.

Preprocessing is a pure function of `WeightsMeta` (tlx/data/preprocess.py); the meta travels with every
checkpoint and export, so that a new picture is prepared exactly as the training pictures were.
"""

from __future__ import annotations

import dataclasses
import json
from typing import Any

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclasses.dataclass(frozen=True)
class ImagePreprocess:
    """How a picture becomes a network input.

    The short side is resized to `resize` pixels (the long side in proportion, rounded down, as torchvision
    does), the centre `size` x `size` is cut out, pixels are divided by 255 and normalised per channel.
    """

    size: int  # pixels, side of the square input
    resize: int  # pixels, the short side before the crop
    interpolation: str = "bilinear"  # nearest, bilinear, bicubic or lanczos, always antialiased
    mean: tuple[float, ...] = IMAGENET_MEAN  # per channel, of pixels scaled to [0, 1]
    std: tuple[float, ...] = IMAGENET_STD
    channel_order: str = "RGB"


@dataclasses.dataclass(frozen=True)
class WeightsMeta:
    """The facts that travel with a set of weights."""

    architecture: str  # a name of tlx.models, as resnet18
    tag: str = ""  # what tells several sets of one architecture apart, as tv_in1k
    preprocess: ImagePreprocess = ImagePreprocess(size=224, resize=256)
    num_classes: int = 0
    class_names: tuple[str, ...] = ()  # () where they are not known
    classifier: str = ""  # the classifier layer's name in the source's own file, as fc
    license: str = ""
    source: str = ""  # where the file comes from: a URL, or builtin
    filename: str = ""
    sha256: str = (
        ""  # of the file: 64 hexadecimal digits, or their beginning where only that is published
    )
    notes: str = ""

    def to_json(self) -> dict[str, Any]:
        """Returns plain dicts, lists, strings and numbers; `from_json` reads them back."""
        return json.loads(json.dumps(dataclasses.asdict(self)))

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> WeightsMeta:
        """Reads what `to_json` wrote."""
        facts = {name: _tuple(value) for name, value in values.items() if name != "preprocess"}
        preprocess: dict[str, Any] = {k: _tuple(v) for k, v in values["preprocess"].items()}
        return cls(preprocess=ImagePreprocess(**preprocess), **facts)


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
