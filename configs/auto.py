"""Your own pictures, and nothing else to decide: DIR/{train,val}/CLASS/*.jpg, or DIR/CLASS/* with a fifth held out as test.

  python -m tlx.main --config=configs/auto.py --config.data.root=DIR

What is trained, with which optimizer, rate, steps, batch, input and augmentation follows from the number of pictures and classes, the
weights and the network (tlx/tuning/auto.py); each choice is printed with its reason, and can be set instead, as
--config.train.steps=300. A ResNet-18 with ImageNet weights (45 MB, downloaded on first use), or another --config.model.name. A tenth
of the training pictures chooses the best checkpoint.
"""

from tlx.config import defaults


def get_config():
    config = defaults()
    config.model.name = "resnet18"
    config.model.weights = "tv_in1k"
    config.data.source = "folder"
    config.data.val_fraction = 0.1
    config.tune.method = "auto"
    config.train.log_every = 10
    return config
