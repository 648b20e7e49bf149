"""Makes entities_goldens.json: seqeval's strict entities and scores of made-up tags, valid and invalid.

pip install seqeval==1.2.2
python tests/evaluation/make_entities_goldens.py
"""

import json
import random
import warnings
from pathlib import Path

from seqeval.metrics.v1 import precision_recall_fscore_support
from seqeval.scheme import IOB2, IOBES, Tokens

PATH = Path(__file__).with_name("entities_goldens.json")
CASES = 60  # of each scheme


def case(scheme, prefixes, draw):
    """Returns tags, those that are predicted, and what seqeval says about them."""
    types = ["person", "creative-work", "x"][: draw.randint(1, 3)]
    tags = ["O"] * draw.randint(1, 3) + [
        f"{prefix}-{kind}" for prefix in prefixes for kind in types
    ]
    true = [
        [draw.choice(tags) for _ in range(draw.randint(1, 9))] for _ in range(draw.randint(1, 5))
    ]
    predicted = [[tag if draw.random() < 0.7 else draw.choice(tags) for tag in s] for s in true]
    found = {
        "scheme": scheme.__name__,
        "true": true,
        "predicted": predicted,
        "entities": [
            [(entity.tag, entity.start, entity.end) for entity in Tokens(s, scheme).entities]
            for s in true
        ],
    }
    if not any(Tokens(s, scheme).entities for s in true + predicted):
        return found  # seqeval's means are not defined then
    for average in ("micro", "macro", "weighted", None):
        scores = precision_recall_fscore_support(
            true, predicted, average=average, scheme=scheme, zero_division=0
        )
        each = [part.tolist() if hasattr(part, "tolist") else part for part in scores]
        found[average or "each"] = each if average is None else each[:3]
    return found


def main():
    """Writes the file."""
    warnings.simplefilter("ignore")
    draw = random.Random(0)
    cases = [
        case(scheme, prefixes, draw)
        for scheme, prefixes in ((IOB2, "BI"), (IOBES, "BIES"))
        for _ in range(CASES)
    ]
    lines = ",\n".join(json.dumps(found, separators=(",", ":")) for found in cases)
    PATH.write_text(f"[\n{lines}\n]\n")


if __name__ == "__main__":
    main()
