"""ResNet-18 with torchvision's ImageNet weights, fine-tuned to CIFAR-10.

  python -m tlx.main --config=configs/cifar.py

The pictures are enlarged to 160 and cut to 128, as BiT-HyperRule does for pictures below 96x96 (Kolesnikov et al. 2019,
arXiv:1912.11370), so that the ImageNet filters see objects of the size that they know. The best checkpoint is chosen on 2,000 training
pictures held out for validation, never on the test split. Weights (45 MB) and data are downloaded on first use; CIFAR-10 that is
prepared already is found through TFDS_DATA_DIR or --config.data.root=DIR. Meant for a GPU; on CPU lower train.steps.
Accuracy: not measured here (the full weights could not be had).
"""

from tlx.config import defaults


def get_config():
    config = defaults()
    config.model.name = "resnet18"
    config.model.weights = "tv_in1k"
    config.data.source = "tfds:cifar10"
    config.data.image_size = 128
    config.data.resize = 160
    config.data.augment = ("random_crop", "flip")
    config.data.val_fraction = 0.04
    config.tune.method = "full"
    config.optimizer.name = "sgd"
    config.optimizer.options = "momentum=0.9"
    config.optimizer.lr = 0.01
    config.optimizer.weight_decay = 1e-4
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup = "5%"
    config.train.epochs = 10.0
    config.train.batch_size = 128
    config.train.label_smoothing = 0.1
    return config
