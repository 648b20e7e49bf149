import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from tests.models.reference import images, random_arrays, timm_model
from tlx import create_model
from tlx.errors import InputError
from tlx.models import abstract_model, default_meta
from tlx.models.leaves import leaves, values, with_values
from tlx.models.vit import PRESETS, Block, ViTPreset
from tlx.pretrained import save_weights, shaped
from tlx.weights.files import read_weights, write_safetensors
from tlx.weights.load import open_weights

TINY, DEIT = "vit_tiny_patch16_224", "deit_tiny_patch16_224"
DINOV2, REGISTERS = "vit_small_patch14_dinov2", "vit_small_patch14_reg4_dinov2"
BACKBONES = (DINOV2, REGISTERS)
SMALL = 70  # pixels: five patches of 14


def drawn(module, seed=0):
    """The module with random values."""
    rng = np.random.default_rng(seed)
    arrays = {p: rng.standard_normal(v.shape).astype(np.float32) for p, v in values(module).items()}
    return with_values(module, arrays), arrays


def random_state(module):
    """Random arrays under the names of a torch module's state."""
    return random_arrays({key: tuple(v.shape) for key, v in module.state_dict().items()})


def with_state(module, arrays):
    import torch

    module.load_state_dict({k: torch.from_numpy(np.array(v)) for k, v in arrays.items()})
    return module.eval()


def picture(size):
    """[1, size, size, 3], and the same for torch."""
    import torch

    x = images(1, size, size)
    return x, torch.from_numpy(np.ascontiguousarray(x.transpose(0, 3, 1, 2)))


def assert_close(ours, expected):
    assert expected.std() > 0.01 * np.abs(expected).max()
    assert np.abs(ours - expected).max() <= 1e-5 * np.abs(expected).max()


def assert_equal_files(path, other):
    ours, theirs = read_weights(path), read_weights(other)
    assert ours.keys() == theirs.keys()
    for key, array in theirs.items():
        assert ours[key].dtype == array.dtype, key
        assert ours[key].tobytes() == array.tobytes(), key


# ----- the network -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [TINY, REGISTERS])
def test_tokens_are_class_then_registers_then_patches_row_by_row(name):
    preset = PRESETS[name]
    size = 2 * preset.patch
    meta = shaped(default_meta(name), image_size=size)
    stem = abstract_model(name, num_classes=0, meta=meta).stem
    stem, arrays = drawn(stem)
    x = images(1, size, size)
    positions = arrays["position_embedding"][0]
    kernel = arrays["conv.kernel"].reshape(-1, preset.width)
    rows = [
        x[0, top : top + preset.patch, left : left + preset.patch].ravel() @ kernel
        + arrays["conv.bias"]
        for top in (0, preset.patch)
        for left in (0, preset.patch)
    ]
    token = arrays["class_token"][0, 0]
    if preset.registers:
        expected = [token, *arrays["registers"][0], *(rows + positions)]
        assert len(positions) == 4
    else:
        expected = [token + positions[0], *(rows + positions[1:])]
    found = stem(x)[0]
    assert found.shape == (1 + preset.registers + 4, preset.width)
    np.testing.assert_allclose(found, np.stack(expected), rtol=1e-4, atol=1e-4)


@pytest.mark.skipif(jax.default_backend() != "cpu", reason="accelerators keep to XLA's fusions")
@pytest.mark.skipif(jax.device_count() > 1, reason="a batch that is shared out is not cut up")
def test_the_gradient_through_a_further_block_costs_as_much_as_through_the_one_before(monkeypatch):
    """The sum of a residual connection's gradients is not taken from the end anew for each block."""

    def operations(depth):
        monkeypatch.setitem(PRESETS, TINY, ViTPreset(64, depth, 32))
        model = abstract_model(TINY, num_classes=2)
        shapes = {p: jax.ShapeDtypeStruct(x.shape, jnp.float32) for p, x in leaves(model).items()}
        pictures = jax.ShapeDtypeStruct((4, 224, 224, 3), jnp.float32)
        differentiate = jax.jit(jax.grad(lambda v, x: jnp.sum(with_values(model, v)(x))))
        return differentiate.lower(shapes, pictures).compile().cost_analysis()["flops"]

    two, three, four = map(operations, (2, 3, 4))
    assert four - three == pytest.approx(three - two, rel=1e-5)


def test_other_sizes_at_call_time_are_named_with_the_networks_own():
    model = abstract_model(TINY, num_classes=0)
    for shape in ((1, 97, 131, 3), (1, 256, 256, 3), (1, 224, 208, 3)):
        with pytest.raises(InputError, match=f"{shape[1]}x{shape[2]} pixels.*for 224x224"):
            jax.eval_shape(model, jax.ShapeDtypeStruct(shape, jnp.float32))


@pytest.mark.parametrize("size", [8, 230])
def test_input_sizes_that_are_no_whole_patches_are_refused(size):
    with pytest.raises(InputError, match=f"multiple of 16, not {size}"):
        create_model(TINY, image_size=size)


def test_features_are_the_class_token_after_the_final_norm():
    model = create_model(DINOV2, seed=1, image_size=28)
    x = images(2, 28, 28)
    assert model.head is None
    assert model.stages == ("stem", *(f"block{i}" for i in range(12)), "norm")
    carry = model.run(x)
    assert carry.shape == (2, 5, 384)
    np.testing.assert_array_equal(model(x), carry[:, 0])
    np.testing.assert_array_equal(model.features(x), model(x))


def test_position_embeddings_are_made_for_another_size_of_input(tmp_path):
    model = create_model(REGISTERS, seed=1, image_size=56)
    save_weights(model, tmp_path / "w.safetensors")
    for size, tokens in ((56, 16), (84, 36), (28, 4)):
        other = create_model(REGISTERS, weights=tmp_path / "w.safetensors", image_size=size)
        assert other.stem.position_embedding[...].shape == (1, tokens, 384)
        assert np.isfinite(other(images(1, size, size))).all()


# ----- training --------------------------------------------------------------------------------------------


def test_rates_of_stochastic_depth_grow_from_zero_to_that_of_the_last_block():
    def rates(model):
        return [getattr(model, f"block{i}").drop_path for i in range(12)]

    assert rates(abstract_model(TINY, num_classes=0)) == [0.0] * 12
    own = [0.1 * i / 11 for i in range(12)]
    np.testing.assert_allclose(rates(abstract_model(DEIT, num_classes=0)), own)
    given = rates(abstract_model(TINY, num_classes=0, drop_path=0.3))
    np.testing.assert_allclose(given, [3 * rate for rate in own])
    model = abstract_model(DEIT, num_classes=3, dropout=0.25, drop_path=0.0)
    assert rates(model) == [0.0] * 12
    assert model.dropout == 0.25


def test_each_branch_of_each_example_is_dropped_by_its_own_draw():
    preset = dataclasses.replace(PRESETS[REGISTERS], width=64)
    block, _ = drawn(Block(preset, 0.25, 1e-6))
    x = np.random.default_rng(2).standard_normal((200, 3, 64)).astype(np.float32)
    keep = 1 / 0.75

    def branches(first, second):
        y = x + first * block.scale1[...] * block.attention(block.norm1(x))
        inner = jax.nn.gelu(block.fc1(block.norm2(y)), approximate=False)
        return y + second * block.scale2[...] * block.fc2(inner)

    dropped = block(x, jax.random.key(0))
    cases = [branches(first, second) for first in (0, keep) for second in (0, keep)]
    scale = np.abs(dropped).max()
    match = np.stack([np.abs(dropped - case).max((1, 2)) < 1e-5 * scale for case in cases])
    assert (match.sum(0) == 1).all()
    # 200 draws each: expected 50 dropped, with a deviation of 6.1.
    without_first, without_second = match[0] | match[1], match[0] | match[2]
    assert 30 < without_first.sum() < 70
    assert 30 < without_second.sum() < 70
    assert not np.array_equal(without_first, without_second)
    np.testing.assert_allclose(block(x), branches(1, 1), rtol=1e-5, atol=1e-5 * scale)


def test_what_is_dropped_follows_the_key():
    model = create_model(DEIT, seed=1, image_size=32, drop_path=0.5)
    x = images(4, 32, 32)
    one, other = jax.random.key(0), jax.random.key(1)
    np.testing.assert_array_equal(model(x, one), model(x, one))
    assert not np.array_equal(model(x, one), model(x, other))
    assert not np.array_equal(model(x, one), model(x))
    plain = create_model(TINY, seed=1, image_size=32)
    np.testing.assert_array_equal(plain(x, one), plain(x))


@pytest.mark.parity
def test_rates_of_stochastic_depth_are_timms():
    theirs = timm_model(DEIT, drop_path_rate=0.1)
    model = abstract_model(DEIT, num_classes=0)
    for index, block in enumerate(theirs.blocks):
        ours = getattr(model, f"block{index}").drop_path
        assert ours == pytest.approx(getattr(block.drop_path1, "drop_prob", 0.0), rel=1e-6)
        assert ours == pytest.approx(getattr(block.drop_path2, "drop_prob", 0.0), rel=1e-6)


# ----- files -----------------------------------------------------------------------------------------------


@pytest.mark.parity
def test_default_preprocessing_is_that_of_timms_default_weights():
    from tests.torchvision_import import import_torchvision

    import_torchvision()
    from timm.models import get_pretrained_cfg

    for name in PRESETS:
        theirs, ours = get_pretrained_cfg(name), default_meta(name)
        prepare = ours.preprocess
        assert theirs.num_classes == ours.num_classes
        assert theirs.input_size == (3, prepare.size, prepare.size)
        assert int(prepare.size / theirs.crop_pct) == prepare.resize
        assert (theirs.mean, theirs.std) == (prepare.mean, prepare.std)
        assert theirs.interpolation == prepare.interpolation
        if ours.num_classes:
            assert theirs.classifier == ours.classifier


@pytest.mark.parity
@pytest.mark.parametrize(("name", "size"), [(TINY, 96), (DINOV2, SMALL), (REGISTERS, SMALL)])
def test_a_file_opens_at_another_size_as_in_timm(name, size, tmp_path):
    state = random_state(timm_model(name))
    # As large as the patches' values, so that how they are resized counts.
    state["pos_embed"] *= 100
    write_safetensors(state, tmp_path / "w.safetensors", {"format": "pt"})
    theirs = as_timm_reads_it(name, state, size)
    model = create_model(name, weights=tmp_path / "w.safetensors", image_size=size)
    x, nchw = picture(size)
    assert_close(model(x), theirs(nchw).detach().numpy())


def as_timm_reads_it(name, state, size):
    """timm's network for pictures of a size, with what its own reading makes of a file."""
    import torch

    module = timm_model(name, img_size=size)
    from timm.models.vision_transformer import checkpoint_filter_fn

    tensors = {key: torch.from_numpy(array.copy()) for key, array in state.items()}
    module.load_state_dict(checkpoint_filter_fn(tensors, module), strict=True)
    return module.eval()


def transformers_vit(kind, size, **options):
    from tests.torchvision_import import import_torchvision

    import_torchvision()
    import transformers

    config = transformers.ViTConfig(
        hidden_size=192,
        num_hidden_layers=12,
        num_attention_heads=3,
        intermediate_size=768,
        image_size=size,
        num_labels=1000,
        **options,
    )
    return getattr(transformers, kind)(config)


def transformers_dinov2(name, size):
    from tests.torchvision_import import import_torchvision

    import_torchvision()
    import transformers

    kind = "Dinov2WithRegisters" if name == REGISTERS else "Dinov2"
    config = getattr(transformers, f"{kind}Config")(
        hidden_size=384,
        num_hidden_layers=12,
        num_attention_heads=6,
        image_size=size,
        patch_size=14,
    )
    return getattr(transformers, f"{kind}Model")(config)


CASES = {
    "ViTForImageClassification": (TINY, 64, "transformers"),
    "ViTModel": (TINY, 64, "transformers_backbone"),
    DINOV2: (DINOV2, SMALL, "transformers"),
    REGISTERS: (REGISTERS, SMALL, "transformers"),
}


def built(case):
    """A network of transformers with random values, and what it makes of pictures."""
    name, size, _ = CASES[case]
    if name != TINY:
        module = transformers_dinov2(name, size)
    else:
        module = transformers_vit(case, size)
    module = with_state(module, random_state(module))
    if case == "ViTForImageClassification":
        return module, lambda x: module(x).logits.detach().numpy()
    return module, lambda x: module(x).last_hidden_state[:, 0].detach().numpy()


@pytest.mark.parity
@pytest.mark.parametrize("case", CASES)
def test_files_of_transformers_give_its_outputs_and_are_written_again(case, tmp_path):
    name, size, table = CASES[case]
    module, call = built(case)
    module.save_pretrained(tmp_path)
    path = tmp_path / "model.safetensors"
    assert open_weights(name, str(path)).table.name == table
    classes = None if case.endswith("Classification") else 0
    model = create_model(name, weights=path, image_size=size, num_classes=classes)
    x, nchw = picture(size)
    expected = call(nchw)
    assert_close(model(x), expected)
    save_weights(model, tmp_path / "back.safetensors")
    assert_equal_files(tmp_path / "back.safetensors", path)
    (tmp_path / "back.safetensors").replace(path)
    again, info = type(module).from_pretrained(tmp_path, output_loading_info=True)
    assert not any(info.values()), info
    for key, value in again.state_dict().items():
        assert value.equal(module.state_dict()[key]), key


@pytest.mark.parity
@pytest.mark.parametrize("case", CASES)
def test_modules_of_transformers_5_give_their_outputs_and_are_written_again(case, tmp_path):
    name, size, table = CASES[case]
    module, call = built(case)
    path = tmp_path / "state.safetensors"
    write_safetensors(
        {k: v.numpy() for k, v in module.state_dict().items()}, path, {"format": "pt"}
    )
    assert open_weights(name, str(path)).table.name == table.replace(
        "transformers", "transformers5"
    )
    classes = None if case.endswith("Classification") else 0
    model = create_model(name, weights=path, image_size=size, num_classes=classes)
    x, nchw = picture(size)
    assert_close(model(x), call(nchw))
    save_weights(model, tmp_path / "back.safetensors")
    assert_equal_files(tmp_path / "back.safetensors", path)
    with_state(module, read_weights(tmp_path / "back.safetensors"))


@pytest.mark.parity
def test_own_values_open_strictly_in_transformers():
    x, nchw = picture(64)
    model = create_model(TINY, seed=3, image_size=64)
    module = transformers_vit("ViTForImageClassification", 64, layer_norm_eps=1e-6)
    with_state(module, exported(model, "transformers5"))
    assert_close(model(x), module(nchw).logits.detach().numpy())
    backbone = transformers_vit("ViTModel", 64, layer_norm_eps=1e-6)
    backbone.pooler = None  # nothing here takes its place, so that nothing is written
    model = create_model(TINY, seed=3, image_size=64, num_classes=0)
    with_state(backbone, exported(model, "transformers5_backbone"))
    x, nchw = picture(SMALL)
    for name in BACKBONES:
        module = transformers_dinov2(name, SMALL)
        model = create_model(name, seed=3, image_size=SMALL)
        with_state(module, exported(model, "transformers5"))
        assert_close(model(x), module(nchw).last_hidden_state[:, 0].detach().numpy())


def exported(model, names):
    """The model's values under a project's names."""
    import tempfile
    from pathlib import Path

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "w.safetensors"
        save_weights(model, path, names=names)
        return read_weights(path)


def test_a_files_epsilon_is_that_of_its_project_until_the_file_says_otherwise(tmp_path):
    model = create_model(TINY, seed=3, image_size=32, num_classes=5)
    own = exported(model, "transformers")
    write_safetensors(own, tmp_path / "theirs.safetensors", {"format": "pt"})
    theirs = create_model(TINY, weights=tmp_path / "theirs.safetensors", image_size=32)
    norms = [getattr(theirs, f"block{i}").norm1.epsilon for i in range(12)]
    assert {*norms, theirs.norm.epsilon} == {1e-12}
    save_weights(theirs, tmp_path / "again.safetensors", names="timm")
    again = create_model(TINY, weights=tmp_path / "again.safetensors")
    assert again.norm.epsilon == 1e-12
    save_weights(model, tmp_path / "ours.safetensors", names="transformers")
    ours = create_model(TINY, weights=tmp_path / "ours.safetensors")
    assert ours.norm.epsilon == 1e-6
    x = images(1, 32, 32)
    np.testing.assert_array_equal(ours(x), model(x))


def facebook_state(name, dtype=np.float32):
    """Random arrays under the names of the authors' DINOv2 release."""
    model = abstract_model(name, num_classes=0)
    from tlx.models.vit import key_tables

    (table,) = [t for t in key_tables(name) if t.name == "facebook"]
    zeros = {p: np.broadcast_to(np.float32(0), v.shape) for p, v in values(model).items()}
    shapes = {key: array.shape for key, array in table.to_source(zeros).items()}
    return {key: array.astype(dtype) for key, array in random_arrays(shapes).items()}


@pytest.mark.parametrize("dtype", [np.float32, np.float16])
@pytest.mark.parametrize("name", BACKBONES)
def test_files_of_the_authors_of_dinov2_survive_the_round_trip(name, dtype, tmp_path):
    state = facebook_state(name, dtype)
    assert state["pos_embed"].shape == (1, 1 + 37 * 37, 384)
    assert state["mask_token"].shape == (1, 384)
    path = tmp_path / "w.safetensors"
    write_safetensors(state, path, {"format": "pt"})
    assert open_weights(name, str(path)).table.name == "facebook"
    model = create_model(name, weights=path)
    save_weights(model, tmp_path / "back.safetensors")
    assert_equal_files(tmp_path / "back.safetensors", path)


def test_a_trained_class_token_is_written_beside_the_files_own_position(tmp_path):
    state = facebook_state(REGISTERS)
    path = tmp_path / "w.safetensors"
    write_safetensors(state, path, {"format": "pt"})
    model = create_model(REGISTERS, weights=path)
    merged = state["cls_token"] + state["pos_embed"][:, :1]
    np.testing.assert_array_equal(model.stem.class_token[...], merged)
    np.testing.assert_array_equal(model.stem.position_embedding[...], state["pos_embed"][:, 1:])
    model.stem.class_token[...] = model.stem.class_token[...] + 1
    back = exported(model, "facebook")
    np.testing.assert_array_equal(back["pos_embed"], state["pos_embed"])
    np.testing.assert_allclose(back["cls_token"], state["cls_token"] + 1, rtol=1e-5, atol=1e-5)
    np.testing.assert_array_equal(exported(model, "timm")["cls_token"], merged + 1)


@pytest.mark.parity
@pytest.mark.parametrize("name", BACKBONES)
def test_files_of_the_authors_of_dinov2_give_the_outputs_of_timm(name, tmp_path):
    import torch

    state = facebook_state(name)
    tensors = {key: torch.from_numpy(array) for key, array in state.items()}
    torch.save(tensors, tmp_path / "dinov2.pth")
    theirs = as_timm_reads_it(name, state, SMALL)
    model = create_model(name, weights=tmp_path / "dinov2.pth", image_size=SMALL)
    x, nchw = picture(SMALL)
    assert_close(model(x), theirs(nchw).detach().numpy())


@functools.cache
def tiny_names(table):
    return frozenset(exported(create_model(TINY, image_size=32), table))


def test_no_two_tables_cover_a_file_equally_well():
    from tlx.models.vit import key_tables

    names = [table.name for table in key_tables(TINY)]
    for name in names:
        counts = sorted(table.coverage(tiny_names(name)) for table in key_tables(TINY))
        assert counts[-1] == len(tiny_names(name)) > counts[-2], name
    for backbone in BACKBONES:
        model = create_model(backbone, image_size=28)
        for table in key_tables(backbone):
            found = exported(model, table.name)
            counts = sorted(other.coverage(found) for other in key_tables(backbone))
            assert counts[-1] == len(found) > counts[-2], (backbone, table.name)


def test_a_head_on_a_backbones_file_is_not_lost(tmp_path):
    state = facebook_state(DINOV2)
    write_safetensors(state, tmp_path / "w.safetensors", {"format": "pt"})
    model = create_model(DINOV2, weights=tmp_path / "w.safetensors", num_classes=3, image_size=28)
    save_weights(model, tmp_path / "tuned.safetensors")
    again = create_model(DINOV2, weights=tmp_path / "tuned.safetensors")
    x = images(1, 28, 28)
    assert again(x).shape == (1, 3)
    np.testing.assert_array_equal(again(x), model(x))
