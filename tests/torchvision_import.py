"""Importing torchvision's pure-Python parts beside a torch its compiled operators do not fit."""

import importlib
import sys
import types


def import_torchvision() -> types.ModuleType:
    """Returns the module torchvision.

    Without its compiled library the import stops at two operators that it registers fake kernels
    for; they are defined then, with no implementation (nothing in the tests calls them).
    """
    import torch

    try:
        return importlib.import_module("torchvision")
    except RuntimeError:  # the operators are not there
        for name in [name for name in sys.modules if name.split(".")[0] == "torchvision"]:
            del sys.modules[name]
    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in (
        "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    ):
        if not hasattr(torch.ops.torchvision, schema.split("(")[0]):
            library.define(schema)
    _keep_alive.append(library)
    import torchvision
    import torchvision.transforms

    return torchvision


_keep_alive: list[object] = []  # a collected Library takes its operators along
