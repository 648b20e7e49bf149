"""IMDB: is a film review positive? DistilBERT on the first 512 tokens of each review.

  python -m tlx.main --config=configs/imdb.py

The data is prepared by tensorflow-datasets (the extra `prepare`), or a folder with train.csv and test.csv of text and label:
--config.data.source=table --config.data.root=DIR. Many reviews are longer than 512 tokens: --config.data.long_texts=split reads all of
them in windows. The recipe was not run here, where neither data nor weights are at hand; Sanh et al. 2019 (arXiv:1910.01108) report an
accuracy of 92.8.
"""

from tlx.config import defaults


def get_config():
    config = defaults()
    config.model.name = "distilbert"
    config.model.weights = "distilbert/distilbert-base-uncased"
    config.data.source = "tfds:imdb_reviews"
    config.data.val_fraction = 0.1
    config.tune.method = "full"
    config.optimizer.name = "adamw"
    config.optimizer.lr = 2e-5
    config.optimizer.weight_decay = 0.01
    config.optimizer.schedule = "linear"
    config.optimizer.warmup = "10%"
    config.optimizer.clip_norm = 1.0
    config.train.epochs = 2.0
    config.train.batch_size = 16
    config.eval.batch_size = 32
    return config
