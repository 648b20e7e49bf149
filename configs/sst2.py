"""SST-2: is a phrase of a film review positive? MiniLM-L6, a small BERT, all of it trained for one pass.

  python -m tlx.main --config=configs/sst2.py --config.data.root=DIR

DIR has train.tsv, and dev.tsv or test.tsv, with a header sentence<TAB>label; --config.data.source=tfds:glue/sst2
--config.data.test_split=validation reads GLUE's own. The weights come from the hub; a folder with config.json, model.safetensors and
tokenizer.json does as well (--config.model.weights=DIR). The recipe is that of experiments/text:
0.878 ± 0.008 of the 872 test sentences after training on 20,000 rows (three seeds; this config trains on all there are).
"""

from tlx.config import defaults


def get_config():
    config = defaults()
    config.model.name = "bert"
    config.model.weights = "sentence-transformers/all-MiniLM-L6-v2"
    config.data.source = "table"
    config.data.max_length = 64
    config.tune.method = "full"
    config.optimizer.name = "adamw"
    config.optimizer.lr = 1e-4
    config.optimizer.weight_decay = 0.01
    config.optimizer.schedule = "linear"
    config.optimizer.warmup = "10%"
    config.optimizer.clip_norm = 1.0
    config.train.epochs = 1.0
    config.train.batch_size = 32
    config.eval.batch_size = 64
    config.eval.every = "25%"
    return config
