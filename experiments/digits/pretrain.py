"""Source task of the digits study: 48 classes of rendered characters, a ResNet-20, 16x16 pixels.

Run by make_weights.py, which renders the characters first; `data.root` is the file that it writes.
Accuracy on characters of fonts that it has not seen: 0.9048 (one seed, 4,500 steps).
"""

from tlx.config import defaults


def get_config():
    config = defaults()
    config.model.name = "resnet20_cifar"
    config.data.source = "npz"
    config.data.image_size = 16
    config.data.resize = 16
    # Of the rendered pixels, rounded; the digits' own are 0.305 and 0.376.
    config.data.mean = (0.3, 0.3, 0.3)
    config.data.std = (0.375, 0.375, 0.375)
    config.optimizer.name = "sgd"
    config.optimizer.options = "momentum=0.9"
    config.optimizer.lr = 0.1
    config.optimizer.weight_decay = 5e-4
    config.optimizer.schedule = "cosine"
    config.optimizer.warmup = "10%"
    config.train.epochs = 8.0
    config.train.batch_size = 128
    config.train.log_every = 100
    config.eval.batch_size = 400
    return config
