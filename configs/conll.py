"""CoNLL-2003: persons, places, organisations and others in news, or any other tagged sentences. BERT-base, cased.

  python -m tlx.main --config=configs/conll.py --config.data.root=DIR

DIR has train, dev (or valid) and test files (.conll or .txt): a token on each line, its tag in the last column, an empty line behind
each sentence; tags are IOB2 or BIOES. The recipe is BERT's (Devlin et al. 2018, section 5.3), which reports an F1 of 92.4 on
CoNLL-2003's test with document context; it was not run here, where that data is not at hand.
"""

from pathlib import Path

from tlx.config import based_on


def get_config():
    config = based_on(Path(__file__).with_name("wnut17.py"))
    config.model.weights = "google-bert/bert-base-cased"
    config.data.max_length = 256
    config.optimizer.lr = 5e-5
    config.train.epochs = 3.0
    config.train.batch_size = 32
    return config
