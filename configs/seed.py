"""The article's recipe: a pretrained ResNet-18 to CIFAR-10 at its own 32x32, every parameter trained.

  python -m tlx.main --config=configs/seed.py

Mean and standard deviation 0.5, batch 100, SGD with momentum 0.9, learning rate 1e-3, 10 epochs, new 10-way head. Needs the
ImageNet weights (45 MB) and CIFAR-10, as configs/cifar.py. Accuracy: not measured here (the full weights could not be had).
"""

from tlx.config import defaults


def get_config():
    config = defaults()
    config.model.name = "resnet18"
    config.model.weights = "tv_in1k"
    config.model.head = "new"
    config.data.source = "tfds:cifar10"
    config.data.image_size = 32
    config.data.resize = 32
    config.data.mean = (0.5, 0.5, 0.5)
    config.data.std = (0.5, 0.5, 0.5)
    config.tune.method = "full"
    config.optimizer.name = "sgd"
    config.optimizer.options = "momentum=0.9"
    config.optimizer.lr = 1e-3
    config.optimizer.schedule = "constant"
    config.train.epochs = 10.0
    config.train.batch_size = 100
    return config
