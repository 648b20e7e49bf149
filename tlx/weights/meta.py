"""What a set of weights is and how its inputs must be prepared.

Preprocessing is a pure function of `WeightsMeta` (tlx/data/preprocess.py); the meta travels with every
checkpoint and export, so that a new picture or text is prepared exactly as those of training were.
"""

from __future__ import annotations

import dataclasses
import json
import math
from typing import Any

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


# What the fields of ImagePreprocess may be that have names for values.
PREPROCESS_CHOICES = {
    "interpolation": ("nearest", "bilinear", "bicubic", "lanczos"),
    "resize_mode": ("short_side", "squash"),
    "channel_order": ("RGB", "BGR", "L"),
}


@dataclasses.dataclass(frozen=True)
class ImagePreprocess:
    """How a picture becomes a network input.

    The short side is resized to `resize` pixels (the long side in proportion, rounded down, as torchvision
    does), the centre `size` x `size` is cut out, pixels are divided by 255 and normalised per channel. With
    `resize_mode` "squash" both sides become `resize` pixels, whatever the picture's proportions.
    """

    size: int  # pixels, side of the square input
    resize: int  # pixels, the short side before the crop
    interpolation: str = "bilinear"  # nearest, bilinear, bicubic or lanczos, always antialiased
    mean: tuple[float, ...] = IMAGENET_MEAN  # per channel, of pixels scaled to [0, 1]
    std: tuple[float, ...] = IMAGENET_STD
    channel_order: str = "RGB"  # RGB, BGR, or L: one channel of brightness
    resize_mode: str = "short_side"  # short_side or squash

    @property
    def crop_fraction(self) -> float:
        """The part of the resized picture's side that the crop keeps."""
        return self.size / self.resize

    @property
    def channels(self) -> int:
        """The number of channels of the network's input."""
        return len(self.mean)

    def at_size(self, size: int) -> ImagePreprocess:
        """Returns the same for another input size in pixels; `resize` goes in proportion."""
        resize = math.floor(self.resize * size / self.size + 0.5)
        return dataclasses.replace(self, size=size, resize=resize)

    def with_channels(self, channels: int) -> ImagePreprocess:
        """Returns the same for another number of channels.

        One: brightness, normalised by the average mean and deviation. Others: those of the own channels,
        repeated in order.
        """
        if channels == self.channels:
            return self
        if channels == 1:
            mean, std = ((round(sum(v) / len(v), 6),) for v in (self.mean, self.std))
            return dataclasses.replace(self, mean=mean, std=std, channel_order="L")
        repeated = [tuple(v[i % len(v)] for i in range(channels)) for v in (self.mean, self.std)]
        order = "RGB" if self.channel_order == "L" else self.channel_order
        return dataclasses.replace(self, mean=repeated[0], std=repeated[1], channel_order=order)


# As most networks are evaluated on ImageNet (torchvision's and many others).
IMAGENET_EVAL = ImagePreprocess(size=224, resize=256)


@dataclasses.dataclass(frozen=True)
class TextPreprocess:
    """How a text becomes a network input: cut into tokens by the network's own tokenizer.

    The tokenizer is known by its checksum; its content, which can be megabytes, is kept beside a meta and not in it
    (`with_tokenizer` brings them together).
    """

    max_length: int  # tokens, special ones included; what is longer is cut off
    tokenizer: str = ""  # sha256 of its tokenizer.json, 64 hexadecimal digits; "": there is none
    pad_id: int = 0  # the token that shorter texts are filled up with
    segments: bool = False  # whether the network is told which of two texts a token is of
    content: str = dataclasses.field(default="", compare=False, repr=False)  # of tokenizer.json
    # Of an input that the network was trained on: 1, or 2 of a pair; 0: not known.
    texts: int = dataclasses.field(default=0, compare=False)


Preprocess = ImagePreprocess | TextPreprocess


@dataclasses.dataclass(frozen=True)
class WeightsMeta:
    """The facts that travel with a set of weights."""

    architecture: str  # a name of tlx.models, as resnet18
    tag: str = ""  # what tells several sets of one architecture apart, as tv_in1k
    preprocess: Preprocess = IMAGENET_EVAL
    num_classes: int = 0
    class_names: tuple[str, ...] = ()  # () where they are not known
    stem: str = (
        ""  # small: the first layers are made for small pictures; "": the architecture's own
    )
    norm_epsilon: float = 0.0  # of normalisations, if not the network's own; 0: its own
    classifier: str = ""  # the classifier layer's name in the source's own file, as fc
    license: str = ""
    source: str = ""  # where the file comes from: a URL, hub:OWNER/NAME (Hugging Face), or builtin
    revision: str = ""  # of a hub repository: a commit, branch or tag
    filename: str = ""  # a path inside the repository for the hub's
    sha256: str = (
        ""  # of the file: 64 hexadecimal digits, or their beginning where only that is published
    )
    parameters: int = 0  # published number of parameters; 0: not published
    top1: float = 0.0  # published ImageNet-1k top-1 accuracy in percent; 0: not published
    top1_size: int = 0  # pixels, the input size that `top1` was measured at
    notes: str = ""
    base: str = ""  # the weights that these were made from, as resnet18.tv_in1k
    config: str = ""  # the sizes of a network whose name does not say them: its config.json
    per_token: bool = False  # logits are those of each token, not of the whole text
    task: str = ""  # that the head was trained for, a name of tlx.tasks; "": not known

    @property
    def head_task(self) -> str:
        """The task that the head was trained for, as far as it is known; "": it is not."""
        return self.task or ("tagging" if self.per_token else "")

    @property
    def image(self) -> ImagePreprocess:
        """How a picture becomes the input of a network that takes pictures."""
        assert isinstance(self.preprocess, ImagePreprocess), self.architecture
        return self.preprocess

    @property
    def text(self) -> TextPreprocess:
        """How a text becomes the input of a network that takes texts."""
        assert isinstance(self.preprocess, TextPreprocess), self.architecture
        return self.preprocess

    def with_tokenizer(self, content: str) -> WeightsMeta:
        """Returns the meta with the content of its tokenizer."""
        return dataclasses.replace(self, preprocess=dataclasses.replace(self.text, content=content))

    def derived(self) -> WeightsMeta:
        """Returns the meta of weights that are made from these.

        What identifies the published ones, and what was measured of them, is not theirs; `base` names them.
        """
        names = "tag source revision filename sha256 parameters top1 top1_size".split()
        blank: Any = {f.name: f.default for f in dataclasses.fields(self) if f.name in names}
        base = f"{self.architecture}.{self.tag}" if self.tag else self.base
        if not self.tag and self.source.startswith("hub:"):  # of no catalog, as a text model's
            base = self.source.removeprefix("hub:")
        return dataclasses.replace(self, base=base, **blank)

    def to_json(self) -> dict[str, Any]:
        """Returns plain dicts, lists, strings and numbers; `from_json` reads them back, but for a tokenizer's content."""
        values = json.loads(json.dumps(dataclasses.asdict(self)))
        values["preprocess"].pop("content", None)
        return values

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> WeightsMeta:
        """Reads what `to_json` wrote."""
        facts = {name: _tuple(value) for name, value in values.items() if name != "preprocess"}
        preprocess: dict[str, Any] = {k: _tuple(v) for k, v in values["preprocess"].items()}
        kind = preprocess_kind(preprocess)
        return cls(preprocess=kind(**preprocess), **facts)


def preprocess_kind(values: dict[str, Any]) -> type[ImagePreprocess] | type[TextPreprocess]:
    """Returns the class whose fields these are."""
    return TextPreprocess if "max_length" in values else ImagePreprocess


def _tuple(value: Any) -> Any:
    return tuple(value) if isinstance(value, list) else value
