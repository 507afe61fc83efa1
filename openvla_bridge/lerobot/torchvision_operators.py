"""torchvision where its compiled part does not fit torch: policies need its networks, which are plain torch."""

import torch


def import_torchvision() -> None:
    """Imports torchvision; names the operators that it misses where its binary cannot be loaded.

    torchvision refuses to be imported without its operators (of object detection). PyPI's binary fits PyPI's torch
    alone, and not, say, a torch without CUDA.
    """
    try:
        import torchvision
    except RuntimeError as error:
        if "torchvision::" not in str(error):
            raise
        for name in ("nms", "qnms"):
            torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
        import torchvision  # noqa: F401
