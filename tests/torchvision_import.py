"""Importing torchvision's pure-Python parts beside a torch its compiled operators do not fit."""

import types


def import_torchvision() -> types.ModuleType:
    """Returns the module torchvision.

    Without its compiled library the import stops at two operators that it registers fake kernels
    for; they are defined here first, with no implementation (nothing in the tests calls them).
    """
    import torch

    library = torch.library.Library("torchvision", "FRAGMENT")
    for schema in (
        "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
        "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    ):
        if not hasattr(torch.ops.torchvision, schema.split("(")[0]):
            library.define(schema)
    import torchvision
    import torchvision.transforms

    _keep_alive.append(library)
    return torchvision


_keep_alive: list[object] = []  # a collected Library takes its operators along
