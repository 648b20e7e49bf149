"""WNUT-17: persons, places, products and other rare names in noisy text. MiniLM-L6, all of it trained.

  python -m tlx.main --config=configs/wnut17.py --config.data.root=DIR

DIR has train.conll, dev.conll and test.conll: a token and its tag on each line, an empty line behind each sentence. The weights come
from the hub; a folder does as well (--config.model.weights=DIR). The recipe is that of experiments/text:
F1 0.442 ± 0.005 of the entities of test (three seeds).
"""

from tlx.config import defaults


def get_config():
    config = defaults()
    config.task = "tagging"
    config.model.name = "bert"
    config.model.weights = "sentence-transformers/all-MiniLM-L6-v2"
    config.data.source = "conll"
    config.data.max_length = 192
    config.tune.method = "full"
    config.optimizer.name = "adamw"
    config.optimizer.lr = 1e-4
    config.optimizer.weight_decay = 0.01
    config.optimizer.schedule = "linear"
    config.optimizer.warmup = "10%"
    config.optimizer.clip_norm = 1.0
    config.train.epochs = 5.0
    config.train.batch_size = 16
    config.eval.batch_size = 64
    return config
