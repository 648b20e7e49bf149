"""Ants and bees: ResNet-18, stem to layer3 pretrained and frozen, layer4 and the head trained from scratch.

  python -m tlx.main --config=configs/hymenoptera.py --config.data.root=DIR --config.model.weights=FILE

DIR is the hymenoptera data of PyTorch's transfer-learning tutorial (train/ and val/ with ants/ and bees/). FILE holds the stem to
layer3 of an ImageNet ResNet-18; with complete weights, drop model.missing_ok. Accuracy on val: 0.901 ± 0.018 over 8 seeds
(PyTorch with the same recipe 0.914 ± 0.011 over 8; experiments/hymenoptera); 40 s on 2 CPU cores.
"""

from tlx.config import defaults


def get_config():
    config = defaults()
    config.model.name = "resnet18"
    config.model.weights = "tv_in1k"
    config.model.missing_ok = ("layer4",)
    config.data.source = "folder"
    config.data.augment = ("flip",)
    config.tune.method = "partial"
    config.tune.freeze_stages = 4
    config.optimizer.name = "sgd"
    config.optimizer.options = "momentum=0.9"
    config.optimizer.lr = 0.01
    config.optimizer.schedule = "cosine"
    config.train.epochs = 6.0
    config.train.batch_size = 16
    config.train.log_every = 10
    config.eval.batch_size = 32
    return config
