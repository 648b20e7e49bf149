"""Your own pictures, listed by a table: path and label, and perhaps split (train, val or test).

  python -m tlx.main --config=configs/table.py --config.data.root=TABLE.csv
  python -m tlx.main --config=configs/table.py --config.data.root=TABLE.csv --config.task=multilabel

A CSV, TSV or JSONL, or a folder with train.csv and test.csv; paths are relative to its folder. Without a split, a fifth is held out
as test. With task=multilabel a picture has any number of labels, written `cat|dog`; accuracy becomes mAP. A ResNet-18 with ImageNet weights
(45 MB, downloaded on first use), trained as in configs/folder.py: a table of the same pictures in the same order gives the same numbers.
"""

from tlx.config import defaults


def get_config():
    config = defaults()
    config.model.name = "resnet18"
    config.model.weights = "tv_in1k"
    config.data.source = "table"
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
