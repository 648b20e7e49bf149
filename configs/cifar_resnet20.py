"""The CIFAR ResNet-20 and CIFAR-10: evaluate it as it is, or fine-tune it with its own head.

  python -m tlx.main --config=configs/cifar_resnet20.py --mode=evaluate
  python -m tlx.main --config=configs/cifar_resnet20.py

The weights (1 MB, github.com/akamaster/pytorch_resnet_cifar10) are downloaded on first use, or --config.model.weights=FILE.
As it is, it gets 8,103 of 10,000 right on JPEG copies of CIFAR-10 (PyTorch: the same); fine-tuned, 0.8815 ± 0.0012 over 3 seeds
(PyTorch 0.8792 ± 0.0011; experiments/cifar_resnet20). Two epochs took 6 minutes on 2 CPU cores.
"""

from tlx.config import defaults


def get_config():
    config = defaults()
    config.model.name = "resnet20_cifar"
    config.model.weights = "akamaster_cifar10"
    config.data.source = "tfds:cifar10"
    config.data.augment = ("flip",)
    config.tune.method = "full"
    config.optimizer.name = "sgd"
    config.optimizer.options = "momentum=0.9"
    config.optimizer.lr = 0.02
    config.optimizer.weight_decay = 1e-4
    config.optimizer.decay_on = "all"
    config.optimizer.schedule = "cosine"
    config.train.epochs = 2.0
    config.train.batch_size = 128
    config.eval.batch_size = 500
    return config
