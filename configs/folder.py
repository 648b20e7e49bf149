"""Your own pictures: DIR/{train,val}/CLASS/*.jpg, or DIR/CLASS/* with a fifth held out as test.

  python -m tlx.main --config=configs/folder.py --config.data.root=DIR

A ResNet-18 with ImageNet weights (45 MB, downloaded on first use): the first three stages keep what they know, the last stage
and a new head are trained. A tenth of the training pictures chooses the best checkpoint. With --config.tune.method=head only the
classifier is trained. Measured on ants and bees in experiments/hymenoptera.
"""

from tlx.config import defaults


def get_config():
    config = defaults()
    config.model.name = "resnet18"
    config.model.weights = "tv_in1k"
    config.data.source = "folder"
    config.data.augment = ("random_resized_crop:0.35", "flip")
    config.data.val_fraction = 0.1
    config.tune.method = "partial"
    config.tune.freeze_stages = 4  # stem, layer1, layer2, layer3
    config.optimizer.name = "sgd"
    config.optimizer.lr = 0.01
    config.optimizer.weight_decay = 1e-4
    config.optimizer.warmup = "5%"
    config.train.epochs = 10.0
    config.train.batch_size = 16
    config.train.log_every = 10
    return config
