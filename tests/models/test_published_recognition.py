"""Which network a published file holds, what is asked for, and what is refused."""

from __future__ import annotations

import argparse

import published_states as published
import pytest
import torch
from safetensors.torch import save_file

from qsdformer.cli import run
from qsdformer.errors import UserError
from qsdformer.models.checkpoint import load
from qsdformer.models.published import import_reference


@pytest.fixture
def save(tmp_path):
    """Writes a state dict in the layout of a training script; gives the file's path."""
    torch.manual_seed(0)

    def write(state, args=None, key="state_dict"):
        path = tmp_path / "published.pth"
        content = {key: state, "epoch": 3, "optimizer": {"state": {}, "param_groups": []}}
        torch.save(content if args is None else {**content, "args": args}, path)
        return path

    return write


@pytest.mark.parametrize(
    ("width", "depth", "heads", "pooling"), [(32, 1, 4, "0011"), (48, 3, 8, "1111")]
)
def test_other_sizes_of_sdt_are_read_from_the_tensors(save, width, depth, heads, pooling):
    path = save(published.sdt(width, depth, heads, channels=3))
    model = import_reference(path, time_steps=2, pooling=pooling)
    config = model.config
    assert (config.family, config.width, config.depth) == ("sdt", width, depth)
    assert (config.heads, config.pooling, config.time_steps) == (heads, pooling, 2)
    assert (config.num_classes, config.dvs_mode, config.mlp_ratio) == (6, False, 4)
    assert (config.neuron, config.levels, config.weight_bits) == ("lif", 1, None)
    with torch.no_grad():
        assert model(torch.randn(2, 3, 32, 32)).shape == (2, 6)


def test_sdt_asks_for_pooling_time_steps_and_on_events_for_dvs_mode(save):
    path = save(published.sdt(16, 1, 2))
    with pytest.raises(UserError, match='does not tell pooling: give it, such as "1111"'):
        import_reference(path, time_steps=4)
    with pytest.raises(UserError, match=r"time_steps: give it, such as 4 \(--time-steps\)"):
        import_reference(path, pooling="1111")
    path = save(published.sdt(16, 1, 2, channels=2))
    with pytest.raises(UserError, match="does not tell dvs_mode"):
        import_reference(path, time_steps=4, pooling="0011")
    model = import_reference(path, time_steps=4, pooling="0011", dvs_mode=True)
    assert model.config.dvs_mode
    assert (model.config.in_channels, model.config.heads) == (2, 2)


def test_what_the_training_arguments_tell_is_not_asked_for(save):
    args = published.arguments(
        pooling_stat="0011", time_steps=3, num_heads=8, dataset="cifar10-dvs", dvs_mode=None
    )
    path = save(published.sdt(16, 1, 2, channels=2), args)
    config = import_reference(path).config
    assert (config.pooling, config.time_steps, config.dvs_mode) == ("0011", 3, True)
    assert config.heads == 2  # of the unused weight, which cannot be wrong
    args.dataset = "gesture"
    assert not import_reference(save(published.sdt(16, 1, 2, channels=2), args)).config.dvs_mode
    assert import_reference(path, time_steps=5).config.time_steps == 5  # what is given goes first


@pytest.mark.parametrize(
    ("layout", "pooling", "scale", "bias"),
    [
        ("imagenet", "1111", 0.125, False),
        ("cifar", "0011", 0.125, True),
        ("dvs", "1111", 0.25, False),
    ],
)
def test_spikformers_three_layouts_tell_pooling_scale_and_biases(
    save, layout, pooling, scale, bias
):
    path = save(published.spikformer(24, 2, layout))
    with pytest.raises(UserError, match="does not tell heads: give it"):
        import_reference(path, time_steps=4)
    if layout != "imagenet":
        with pytest.raises(UserError, match="does not tell time_steps"):
            import_reference(path, heads=3)
    steps = 4 if layout == "imagenet" else 2
    given = {} if layout == "imagenet" else {"time_steps": 2}
    model = import_reference(path, heads=3, **given)
    config = model.config
    assert (config.family, config.width, config.depth) == ("spikformer", 24, 2)
    assert (config.pooling, config.attention_scale, config.qkv_bias) == (pooling, scale, bias)
    assert (config.heads, config.time_steps) == (3, steps)
    with torch.no_grad():
        assert model(torch.randn(2, 3, 32, 32)).shape == (2, 6)


def test_spikformer_for_imagenet_has_four_time_steps_whatever_is_said(save):
    path = save(published.spikformer(24, 2, "imagenet"), published.arguments(time_step=10))
    assert import_reference(path, heads=3).config.time_steps == 4
    with pytest.warns(UserWarning, match="time_steps is ignored: Spikformer for ImageNet has no"):
        assert import_reference(path, heads=3, time_steps=2).config.time_steps == 4


def test_a_position_embedding_is_left_out_only_where_it_is_never_used(save):
    state = published.spikformer(24, 2, "imagenet")
    with pytest.raises(UserError, match="1 unmatched keys: pos_embed"):
        import_reference(save({**state, "pos_embed": torch.zeros(1)}), heads=3)


def test_two_tensors_of_one_name_and_numbers_that_are_none_are_refused(save):
    state = published.spikformer(24, 2, "imagenet")
    twice = {**state, "module.head.bias": state["head.bias"] + 5}
    with pytest.raises(UserError, match=r"'module\.head\.bias' is there without 'module.' too"):
        import_reference(save(twice), heads=3)
    lost = {**state, "head.bias": state["head.bias"] * float("nan")}
    with pytest.raises(UserError, match=r"key 'head\.bias' has values that are not finite"):
        import_reference(save(lost), heads=3)


@pytest.mark.parametrize("dims", [(8, 16, 24, 32), (16, 8, 16, 40)])
def test_other_sizes_of_e_spikeformer_are_read_from_the_tensors(save, dims):
    path = save(published.e_spikeformer(dims), key="model")
    with pytest.raises(UserError, match="does not tell heads: give it, 8 for the published sizes"):
        import_reference(path)
    model = import_reference(path, heads=4)
    assert (model.config.dims, model.config.depth, model.config.heads) == (dims, 8, 4)
    with torch.no_grad():
        assert model(torch.randn(2, 3, 32, 32)).shape == (2, 6)
    with pytest.raises(UserError, match="time_steps=4: E-SpikeFormer has 1"):
        import_reference(path, heads=4, time_steps=4)
    with pytest.raises(UserError, match="heads=5 does not divide"):
        import_reference(path, heads=5)


def test_heads_matter_where_they_are_asked_for(fixtures):
    images = torch.randn(1, 3, 64, 64)
    with torch.no_grad():
        for name in ("spikformer_imagenet", "e_spikeformer_base"):
            path = fixtures / f"{name}.pth"
            eight, four = (import_reference(path, heads=heads)(images) for heads in (8, 4))
            assert not torch.allclose(eight, four, atol=1e-3)


@pytest.mark.parametrize("wrap", [False, True])
def test_a_bare_state_dict_and_names_of_a_parallel_model_are_understood(save, tmp_path, wrap):
    state = published.sdt(16, 1, 2)
    if wrap:
        state = {f"module.{key}": value for key, value in state.items()}
    torch.save(state, tmp_path / "bare.pth")
    save_file(state, tmp_path / "bare.safetensors")
    given = {"time_steps": 2, "pooling": "0011"}
    expected = import_reference(save(published.sdt(16, 1, 2)), **given).state_dict()
    for name in ("bare.pth", "bare.safetensors"):
        found = import_reference(tmp_path / name, **given).state_dict()
        assert found.keys() == expected.keys()
        assert torch.equal(found["head.weight"], state["module." * wrap + "head.weight"])


@pytest.mark.parametrize(
    "make",
    [
        lambda: (published.sdt(16, 2, 2), {"time_steps": 2, "pooling": "0011"}),
        lambda: (published.spikformer(16, 2, "imagenet"), {"heads": 2}),
        lambda: (published.spikformer(16, 2, "cifar"), {"heads": 2, "time_steps": 2}),
        lambda: (published.e_spikeformer((8, 8, 8, 8)), {"heads": 2}),
    ],
    ids=["sdt", "imagenet", "cifar", "e_spikeformer"],
)
def test_missing_unmatched_and_misshaped_keys_are_named(save, make):
    state, given = make()
    last = next(key for key in reversed(state) if key.endswith("running_mean"))
    for key in (last, "head.bias"):
        path = save({k: v for k, v in state.items() if k != key})
        with pytest.raises(UserError, match=f"missing key '{key}'"):
            import_reference(path, **given)
    with pytest.raises(UserError, match=r"1 unmatched keys: surprise"):
        import_reference(save({**state, "surprise": torch.zeros(1)}), **given)
    with pytest.raises(UserError) as caught:
        import_reference(save({**state, last: torch.ones(3, 1)}), **given)
    assert f"key '{last}' has shape (3, 1), expected (" in str(caught.value)


def test_a_file_of_two_networks_and_one_of_none_are_refused(save):
    both = {**published.sdt(16, 1, 2), **published.spikformer(16, 1, "cifar")}
    with pytest.raises(UserError, match="could be of SDT v1 or Spikformer: keep the keys of one"):
        import_reference(save(both), heads=2, time_steps=2, pooling="0011")
    with pytest.raises(UserError, match="none of the known networks: Meta-SpikeFormer, SDT v1"):
        import_reference(save({"conv1.weight": torch.zeros(4, 3, 7, 7)}))
    path = save(published.sdt(16, 1, 2))
    content = torch.load(path, weights_only=True)
    torch.save({**content, "model": content["state_dict"]}, path)
    with pytest.raises(UserError, match='two state dicts, "model" and "state_dict"'):
        import_reference(path)


def test_arguments_of_another_network_are_ignored_with_a_warning(save, recwarn):
    path = save(published.spikformer(16, 1, "imagenet"))
    with pytest.warns(UserWarning, match="dvs_mode is ignored: Spikformer has no such choice"):
        import_reference(path, heads=2, dvs_mode=True)
    path = save(published.e_spikeformer((8, 8, 8, 8)))
    with pytest.warns(UserWarning, match="pooling is ignored: E-SpikeFormer has no such choice"):
        model = import_reference(path, heads=2, time_steps=1, pooling="1111")
    assert (model.config.heads, model.config.time_steps) == (2, 1)
    recwarn.clear()
    import_reference(path, heads=2, dvs_mode=False)
    assert not recwarn.list


def test_the_command_notes_what_it_ignores_in_one_line(save, tmp_path, capsys):
    path = save(published.e_spikeformer((8, 8, 8, 8)))
    command = ["import-reference", str(path), str(tmp_path / "out.ckpt"), "--heads", "2"]
    assert run([*command, "--pooling", "1111"]) == 0
    assert capsys.readouterr().err == (
        f"note: {path}: pooling is ignored: E-SpikeFormer has no such choice\n"
    )


def test_a_pooling_that_is_none_is_refused(save):
    path = save(published.sdt(16, 1, 2))
    with pytest.raises(UserError, match="pooling='11': must be 4 digits of 0 and 1"):
        import_reference(path, time_steps=2, pooling="11")


class Harmful:
    def __reduce__(self):
        return (print, ("unpickled",))


def test_of_python_objects_only_training_arguments_are_let_in(save, capsys):
    harmful = argparse.Namespace(num_heads=Harmful())
    with pytest.raises(UserError, match="refused, it holds Python objects"):
        import_reference(save(published.sdt(16, 1, 2), harmful))
    assert "unpickled" not in capsys.readouterr().out


def test_a_tensor_with_more_values_than_the_file_holds_is_refused(save):
    state = published.sdt(32, 1, 4, channels=3)
    state["head.weight"] = torch.zeros(1).expand(2**24, 32)
    with pytest.raises(UserError, match=r"head\.weight has more values than the file holds"):
        import_reference(save(state), time_steps=2, pooling="0011")


def test_a_damaged_and_a_missing_safetensors_file_are_named(fixtures, tmp_path):
    short = tmp_path / "short.safetensors"
    short.write_bytes((fixtures / "sdt_v1_cifar.safetensors").read_bytes()[:50_000])
    with pytest.raises(UserError, match=r"short\.safetensors: not a safetensors file, or cut"):
        import_reference(short)
    with pytest.raises(UserError, match=r"no checkpoint .*absent\.safetensors"):
        import_reference(tmp_path / "absent.safetensors")


def test_the_command_writes_a_checkpoint_and_says_what_it_holds(save, tmp_path, capsys):
    path, out = save(published.sdt(16, 2, 2)), tmp_path / "out.ckpt"
    assert run(["import-reference", str(path), str(out), "--time-steps", "2"]) == 2
    assert "does not tell pooling" in capsys.readouterr().err
    assert not out.exists()
    command = ["import-reference", str(path), str(out), "--time-steps", "2", "--pooling", "0011"]
    assert run(command) == 0
    said = capsys.readouterr().out
    assert "sdt; width 16, depth 2, heads 2, pooling 0011, time_steps 2, 6 classes" in said
    assert load(out).config.pooling == "0011"
