"""Your own pictures, listed by a table: path and label, and perhaps split (train, val or test).

  python -m tlx.main --config=configs/table.py --config.data.root=TABLE.csv
  python -m tlx.main --config=configs/table.py --config.data.root=TABLE.csv --config.task=multilabel

A CSV, TSV or JSONL, or a folder with train.csv and test.csv; paths are relative to its folder. Without a split, a fifth is held out
as test. With task=multilabel a picture has any number of labels, written `cat|dog`; accuracy becomes mAP. A ResNet-18 with ImageNet weights
(45 MB, downloaded on first use), trained as in configs/folder.py: a table of the same pictures in the same order gives the same numbers.
"""

from pathlib import Path

from tlx.config import based_on


def get_config():
    config = based_on(Path(__file__).with_name("folder.py"))
    config.data.source = "table"
    return config
