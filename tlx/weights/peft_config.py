"""peft's `adapter_config.json`: what of it is understood, and its ways of naming modules."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from tlx.errors import InputError, InputFileNotFoundError

WEIGHTS, CONFIG = "adapter_model.safetensors", "adapter_config.json"
PREFIX = "base_model.model."

# What a config may ask for that is not done here, and the value under which it asks for nothing.
_UNSUPPORTED = {
    "bias": "none", "fan_in_fan_out": False, "lora_bias": False, "layer_replication": None,
    "alora_invocation_tokens": None, "trainable_token_indices": None, "target_parameters": None,
    "use_bdlora": None, "arrow_config": None, "monteclora_config": None, "velora_config": None,
}  # fmt: skip

# Ways to draw the adapters' first values that leave the network's own weights alone.
_INITS = ("gaussian", "orthogonal", "eva")


def read_config(path: Path) -> dict[str, Any]:
    """Returns the config.

    Raises:
      InputFileNotFoundError: there is no such file.
      InputError: it is damaged, of another kind of adapter, or asks for what is not supported.
    """
    if not path.is_file():
        raise InputFileNotFoundError(f"no adapter config {path}")
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is damaged: {error}") from error
    if not isinstance(config, dict) or config.get("peft_type") not in ("LORA", "IA3"):
        kind = config.get("peft_type") if isinstance(config, dict) else config
        raise InputError(f"{path}: peft_type is {kind!r}, expected LORA (DoRA too) or IA3")
    for field, nothing in _UNSUPPORTED.items():
        if config.get(field, nothing) not in (nothing, None, False):
            raise InputError(f"{path}: {field}={config[field]!r} is not supported")
    init = config.get("init_lora_weights", True)
    if init not in (True, False, None, *_INITS):
        raise InputError(
            f"{path}: init_lora_weights={init!r} changes the weights beside the adapters; convert them with peft first "
            "(save_pretrained(path_initial_model_for_weight_conversion=...))"
        )
    return config


def plain_name(name: str) -> str:
    """Returns the name without what peft, of one version or another, puts around it."""
    name = name.removeprefix(PREFIX)
    return re.sub(r"\.(?:modules_to_save\.)?default(?=\.|$)", "", name)


def alternatives(names: Iterable[str]) -> str:
    """Returns a regex of exactly these: a list would match their ends in other names too."""
    return "|".join(map(re.escape, names))


def exactly(name: str) -> str:
    """Returns a pattern of `rank_pattern` and `alpha_pattern` that is this name alone."""
    return "^" + re.escape(name)


def pattern_value(patterns: Any, name: str, default: Any) -> Any:
    """Returns the value of the first of peft's patterns that the name ends with, else the default."""
    for pattern, value in (patterns or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", name):
            return value
    return default


def is_named(name: str, names: Any) -> bool:
    """Returns whether peft would take the name for one of these: a regex, or names and ends of names."""
    if isinstance(names, str):
        return re.fullmatch(names, name) is not None
    return any(name == each or name.endswith(f".{each}") for each in names)
