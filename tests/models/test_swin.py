import dataclasses

import jax
import numpy as np
import pytest
from flax import nnx

from tests.models.originals import swin as originals
from tests.models.originals.swin import PARAMETERS
from tests.models.reference import images, torchvision_model
from tests.models.zoo import TOLERANCE, built, outputs_of_tlx, random_values, table_of
from tlx import create_model
from tlx.models import abstract_model, default_meta, family
from tlx.models.base import Rates
from tlx.models.leaves import leaves, values, with_values
from tlx.models.swin import PRESETS, Block, Swin, SwinPreset
from tlx.models.swin_keys import tables
from tlx.models.swin_windows import attention_mask, regions, relative_position_index
from tlx.weights.files import write_safetensors

pytestmark = pytest.mark.wide

NAME = "swin_tiny_patch4_window7_224"
TINY = SwinPreset((2, 2, 2, 2), 32, 0.3, 232)


def tiny(arrays=None, seed=0):
    """A Swin of few blocks and channels, with torchvision's arrays or random values."""
    meta = default_meta(NAME)
    model = Swin(TINY, num_classes=5, meta=meta, rates=Rates())
    if arrays is not None:
        return with_values(model, tables(TINY.depths)[0].to_target(arrays).arrays)
    rng = np.random.default_rng(seed)
    return with_values(
        model,
        {
            path: rng.standard_normal(leaf.shape).astype(np.float32) * leaf.shape[0] ** -0.5
            for path, leaf in leaves(model).items()
        },
    )


def filled(block):
    """The block with random values: logits and position biases of a few units."""
    rng = np.random.default_rng(0)
    state = nnx.state(block)
    for path, variable in nnx.to_flat_state(state):
        scale = 1.0 if "position_bias" in path else 0.3
        draw = rng.standard_normal(variable.get_value().shape).astype(np.float32)
        variable.set_value(scale * draw)
    nnx.update(block, state)
    return block


def attention_of_neighbours(block, x):
    """The attention of a block by the paper, patch by patch, for a padded map [H, W, C]."""
    height, width = (-(-n // 7) * 7 for n in x.shape[:2])
    padded = np.zeros((height, width, x.shape[2]))
    padded[: x.shape[0], : x.shape[1]] = x
    part = {
        name: padded @ np.asarray(getattr(block.attention, name).kernel[...], np.float64)
        + np.asarray(getattr(block.attention, name).bias[...], np.float64)
        for name in ("query", "key", "value")
    }
    table = np.asarray(block.attention.position_bias[...], np.float64)
    by = [3 if block.shifted and n > 7 else 0 for n in (height, width)]
    # Windows of the shifted grid start at by, by + 7, ...; what is left at the edges are windows too.
    window = [[(i - b) // 7 for i in range(n)] for n, b in zip((height, width), by, strict=True)]
    out = np.empty_like(padded)
    for y in range(height):
        for z in range(width):
            near = [
                (i, j)
                for i in range(height)
                for j in range(width)
                if window[0][i] == window[0][y] and window[1][j] == window[1][z]
            ]
            for head in range(block.attention.heads):
                at = slice(32 * head, 32 * head + 32)
                query = part["query"][y, z, at]
                logits = np.array(
                    [
                        query @ part["key"][i, j, at] / 32**0.5
                        + table[(y - i + 6) * 13 + z - j + 6, head]
                        for i, j in near
                    ]
                )
                weights = np.exp(logits - logits.max())
                found = np.array([part["value"][i, j, at] for i, j in near])
                out[y, z, at] = weights @ found / weights.sum()
    output = block.attention.output
    return (out @ np.asarray(output.kernel[...], np.float64) + output.bias[...])[
        : x.shape[0], : x.shape[1]
    ]


@pytest.mark.parametrize("shifted", [False, True])
@pytest.mark.parametrize("size", [(14, 14), (9, 16), (5, 8), (7, 7)])
def test_patches_attend_to_the_neighbours_of_their_window(size, shifted):
    block = filled(Block(64, shifted=shifted, rate=0.0))
    x = np.random.default_rng(1).standard_normal((1, *size, 64)).astype(np.float32)
    expected = attention_of_neighbours(block, x[0])
    assert np.abs(block._attend(x)[0] - expected).max() <= 1e-5 * np.abs(expected).max()


def test_position_index_counts_offsets_row_by_row():
    index = relative_position_index()
    np.testing.assert_array_equal(index, originals.relative_position_index())
    assert index[0, 0] == 6 * 13 + 6
    assert {*index.ravel()} == {*range(169)}


def test_only_the_last_windows_are_divided():
    numbers = regions(21, 14, (3, 3))
    assert numbers.shape == (6, 49)
    assert [len({*row}) for row in numbers] == [1, 2, 1, 2, 2, 4]
    assert [len({*row}) for row in regions(7, 14, (0, 3))] == [1, 2]


def test_drop_path_rises_to_the_published_rate_at_the_last_block():
    for name, last in zip(PRESETS, (0.2, 0.3, 0.5), strict=True):
        model = built(name)
        blocks = [b for stage in model.stages[1:-1] for b in getattr(model, stage).blocks]
        np.testing.assert_allclose([b.drop_path for b in blocks], np.linspace(0, last, len(blocks)))
        assert [b.shifted for b in blocks] == [i % 2 == 1 for i in range(len(blocks))]


def test_training_drops_both_branches_of_examples_independently():
    block = filled(Block(32, shifted=True, rate=0.25))
    x = np.random.default_rng(1).standard_normal((300, 7, 7, 32)).astype(np.float32)
    found = np.asarray(jax.jit(block)(x, jax.random.key(1)))

    def layers(x):
        return block.fc2(jax.nn.gelu(block.fc1(block.norm2(x)), approximate=False))

    attended = x + block._attend(block.norm1(x)) / 0.75
    cases = [x, attended, x + layers(x) / 0.75, attended + layers(attended) / 0.75]
    scale = np.abs(found).max()
    fits = [(np.abs(found - y) <= 1e-5 * scale).all((1, 2, 3)) for y in cases]
    assert np.sum(fits, 0).tolist() == [1] * 300
    expected = [0.0625, 0.1875, 0.1875, 0.5625]
    np.testing.assert_allclose(np.mean(fits, 1), expected, atol=0.09)


def test_training_is_seeded_by_its_key():
    graphdef, state = nnx.split(tiny())
    forward = jax.jit(lambda x, key: nnx.merge(graphdef, state)(x, key))
    x = images(4, 32, 32)
    one, two, other = (forward(x, jax.random.key(seed)) for seed in (1, 1, 2))
    np.testing.assert_array_equal(one, two)
    assert not np.allclose(one, other)


def test_values_do_not_depend_on_the_input_size():
    meta = default_meta(NAME)
    larger = dataclasses.replace(meta, preprocess=meta.preprocess.at_size(384))
    shapes = {path: leaf.shape for path, leaf in leaves(built(NAME)).items()}
    model = abstract_model(NAME, num_classes=1000, meta=larger)
    assert {path: leaf.shape for path, leaf in leaves(model).items()} == shapes
    assert "stage3.blocks.5.attention.query.kernel" in shapes
    assert shapes["stage3.blocks.5.attention.position_bias"] == (169, 12)


@pytest.mark.parametrize("name", PARAMETERS)
def test_each_projects_names_are_told_apart_with_and_without_a_head(name):
    zeros = {p: np.broadcast_to(np.float32(0), x.shape) for p, x in leaves(built(name)).items()}
    body = {path: array for path, array in zeros.items() if not path.startswith("head.")}
    known = family(name).key_tables(name)
    for arrays in (zeros, body):
        for table in known:
            names = table.to_source(arrays)
            assert table.coverage(names) == len(names)
            assert all(t.coverage(names) < len(names) for t in known if t is not table)


@pytest.mark.parametrize("name", PARAMETERS)
def test_the_authors_files_have_masks_where_blocks_are_shifted(name):
    zeros = {p: np.broadcast_to(np.float32(0), x.shape) for p, x in leaves(built(name)).items()}
    state = table_of(name, "microsoft").to_source(zeros)
    masks = {key: array.shape for key, array in state.items() if key.endswith("attn_mask")}
    depths = PRESETS[name].depths
    expected = {
        f"layers.{stage}.blocks.{block}.attn_mask": (count, 49, 49)
        for stage, count in enumerate((64, 16, 4))
        for block in range(1, depths[stage], 2)
    }
    assert masks == expected
    assert {*np.unique(attention_mask(14))} == {-100.0, 0.0}


def test_buffers_of_older_timm_files_are_carried_verbatim():
    table = table_of(NAME, "timm")
    zeros = {p: np.broadcast_to(np.float32(0), x.shape) for p, x in leaves(built(NAME)).items()}
    buffers = {
        "layers.0.blocks.1.attn_mask": attention_mask(56),
        "layers.0.blocks.1.attn.relative_position_index": relative_position_index(),
    }
    plain = table.to_source(zeros)
    assert not [key for key in plain if key.endswith(("_index", "attn_mask"))]
    conversion = table.to_target(plain | buffers)
    assert conversion.unknown == ()
    back = table.to_source(conversion.arrays, conversion.carried)
    assert back.keys() == plain.keys() | buffers.keys()
    assert all(back[key] is array for key, array in buffers.items())


def torchvision_tiny():
    """torchvision's Swin of the same few blocks and channels, and random arrays for it."""
    import torch

    torchvision_model("swin_t")
    from torchvision.models.swin_transformer import SwinTransformer

    module = SwinTransformer(
        patch_size=[4, 4],
        embed_dim=32,
        depths=list(TINY.depths),
        num_heads=[1, 2, 4, 8],
        window_size=[7, 7],
        stochastic_depth_prob=0.3,
        num_classes=5,
    ).eval()
    arrays = random_values(module)
    module.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in arrays.items()})
    return module, arrays


@pytest.mark.parity
@pytest.mark.parametrize("size", [(32, 32), (57, 250), (228, 113), (300, 64)])
def test_any_picture_size_equals_torchvisions(size):
    import torch

    module, arrays = torchvision_tiny()
    x = images(2, *size)
    with torch.no_grad():
        expected = module(torch.from_numpy(x.transpose(0, 3, 1, 2).copy())).numpy()
    ours = outputs_of_tlx(tiny(arrays), x)["logits"]
    assert np.abs(ours - expected).max() <= TOLERANCE * np.abs(expected).max()


@pytest.mark.parity
def test_the_authors_buffers_are_made_as_they_are_in_their_files():
    module = originals.originals(NAME)[2].build()
    zeros = {p: np.broadcast_to(np.float32(0), x.shape) for p, x in leaves(built(NAME)).items()}
    made = table_of(NAME, "microsoft").to_source(zeros)
    theirs = {k: v.numpy() for k, v in module.state_dict().items()}
    assert made.keys() == theirs.keys()
    buffers = [key for key in theirs if key.endswith(("relative_position_index", "attn_mask"))]
    assert len(buffers) == 12 + 1 + 1 + 3
    for key in buffers:
        assert made[key].dtype == theirs[key].dtype
        np.testing.assert_array_equal(made[key], theirs[key])


@pytest.mark.parity
@pytest.mark.parametrize("table", ["transformers", "transformers5"])
def test_transformers_opens_the_exported_folder(table, tmp_path):
    torchvision_model("swin_t")
    import torch
    from transformers import SwinConfig, SwinForImageClassification

    model = tiny()
    (keys,) = [t for t in tables(TINY.depths) if t.name == table]
    arrays = {path: np.asarray(value) for path, value in values(model).items()}
    write_safetensors(keys.to_source(arrays), tmp_path / "model.safetensors", {"format": "pt"})
    config = SwinConfig(
        embed_dim=32, depths=list(TINY.depths), num_heads=[1, 2, 4, 8], num_labels=5
    )
    config.save_pretrained(tmp_path)
    module, report = SwinForImageClassification.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report.values()), report
    x = images(1, 224, 224)
    with torch.no_grad():
        nchw = torch.from_numpy(x.transpose(0, 3, 1, 2).copy())
        expected = module.eval()(nchw).logits.numpy()
    ours = outputs_of_tlx(model, x)["logits"]
    assert np.abs(ours - expected).max() <= TOLERANCE * np.abs(expected).max()


@pytest.mark.parity
def test_initial_values_are_distributed_as_torchvisions():
    expected = torchvision_model("swin_t").state_dict()
    model = create_model(NAME, seed=5)
    arrays = {path: np.asarray(value) for path, value in values(model).items()}
    ours = table_of(NAME, "torchvision").to_source(arrays)
    for key, value in expected.items():
        theirs = value.numpy()
        if theirs.std() == 0 or theirs.dtype == np.int64:
            np.testing.assert_array_equal(ours[key], theirs)
        elif theirs.size > 4000:
            assert ours[key].std() == pytest.approx(theirs.std(), rel=0.06), key
            uniform = key == "features.0.0.weight"
            assert (np.abs(ours[key]).max() > 3 * ours[key].std()) != uniform, key
