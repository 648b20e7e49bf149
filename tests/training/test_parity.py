"""Training against PyTorch, step by step, on real pictures and weights."""

import numpy as np
import pytest

from tlx import config as config_lib
from tlx import setup as setup_lib
from tlx.data import pipeline
from tlx.data.preprocess import normalize
from tlx.models import family
from tlx.training.mesh import place_batch, replicated
from tlx.training.state import all_values, create_state
from tlx.training.step import make_step_function, make_train_step
from tlx.tuning.plan import digests

FROZEN = ("conv1", "bn1", "layer1", "layer2", "layer3")


@pytest.mark.shared
@pytest.mark.parity
@pytest.mark.slow
def test_a_partly_frozen_resnet18_follows_pytorch(shared):
    import torch

    from tests.models.reference import torchvision_model

    fields = {
        "data.root": str(shared / "data" / "hymenoptera"),
        "model.weights": str(shared / "weights" / "resnet18_imagenet_layers1to3.pth"),
        "data.augment": "",
        "optimizer.lr": 1e-3,
        "optimizer.schedule": "constant",
    }
    config = config_lib.build(config_lib.load("configs/hymenoptera.py"), fields)
    setup, _ = setup_lib.prepare(config)
    tuning = setup_lib.prepare_tuning(setup)
    (phase,) = tuning.phases
    sharding = replicated(setup.mesh)
    values = setup.weights.place(0, sharding)
    state, frozen = create_state(values, phase.plan, phase.optimizer, sharding)
    before = digests(values, phase.plan.frozen)
    function = make_step_function(
        setup.model,
        setup.task,
        phase.plan,
        phase.optimizer,
        setup.augmentation,
        dtype="float32",
        loss_options=tuning.loss_options,
        seed=0,
    )
    step = make_train_step(function, setup.mesh)

    (table,) = family("resnet18").key_tables("resnet18")
    original = torchvision_model("resnet18")
    original.fc = torch.nn.Linear(512, 2)
    arrays = table.to_source({path: np.asarray(value) for path, value in values.items()})
    original.load_state_dict(
        {k: torch.tensor(np.ascontiguousarray(v)) for k, v in arrays.items()}, strict=False
    )
    original.train()
    for name in FROZEN:
        getattr(original, name).requires_grad_(False).eval()
    trained = [p for p in original.parameters() if p.requires_grad]
    optimizer = torch.optim.SGD(trained, lr=1e-3, momentum=0.9)

    ours, theirs = [], []
    batches = pipeline.training_batches(
        setup.open("train")["train"], seed=0, batch_size=16, start=0
    )
    for index, batch in zip(range(6), batches, strict=False):
        state, metrics = step(state, frozen, place_batch(batch, setup.mesh), np.int32(index))
        ours.append(float(metrics["loss"]))
        x = normalize(batch["inputs"], setup.model.meta.preprocess).transpose(0, 3, 1, 2)
        loss = torch.nn.functional.cross_entropy(
            original(torch.from_numpy(x.copy())), torch.from_numpy(batch["targets"]).long()
        )
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        theirs.append(loss.item())
    np.testing.assert_allclose(ours, theirs, rtol=1e-5)
    after = all_values(state, frozen)
    assert digests(after, phase.plan.frozen) == before
    state_dict = original.state_dict()
    trained = table.to_source(
        {p: np.asarray(after[p]) for p in (*phase.plan.trainable, *phase.plan.statistics)},
        carried={},
    )
    for name, value in trained.items():
        expected, start = state_dict[name].numpy(), arrays[name]
        movement = np.linalg.norm(expected - start)
        assert movement > 0, name
        # Rounding of the gradients through six steps, relative to how far the leaf has come, and of
        # the value itself.
        rounding = np.finfo(np.float32).eps * np.linalg.norm(expected)
        assert np.linalg.norm(value - expected) <= 2e-3 * movement + rounding, name
