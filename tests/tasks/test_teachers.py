"""Teachers give logits and the q, k, v that their attention really used."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import timm
import torch
from timm.models.eva import Eva
from timm.models.metaformer import MetaFormer
from timm.models.vision_transformer import VisionTransformer
from torch import nn

from qsdformer.data import DataInfo
from qsdformer.errors import UserError
from qsdformer.models.checkpoint import save_checkpoint
from qsdformer.models.metaspikeformer import MetaSpikeFormer
from qsdformer.nn.taps import tap
from qsdformer.tasks.teachers import FeatureReader, Teacher, checkpoint_teacher, timm_teacher

Make = Callable[..., MetaSpikeFormer]
FEATURES = ("q", "k", "v")


def make_info(channels: int = 3, size: int = 32) -> DataInfo:
    names = tuple(f"class {i}" for i in range(5))
    half = (0.5,) * channels
    return DataInfo(image_size=size, channels=channels, class_names=names, mean=half, std=half)


def small_vit(**options: object) -> VisionTransformer:
    torch.manual_seed(0)
    return VisionTransformer(
        img_size=32, patch_size=8, embed_dim=24, depth=2, num_heads=3, num_classes=5, **options
    )


@pytest.mark.parametrize("fields", [{"neuron": "relu"}, {}, {"time_steps": 2}])
def test_our_models_teach_with_what_passes_their_qkv_neurons(
    make_model: Make, fields: dict[str, object]
) -> None:
    model = make_model(**fields).eval()
    images = torch.randn(3, 3, 32, 32)
    logits, blocks = Teacher(model)(images)
    with tap(model, "*.attention.q_neuron") as acts:
        torch.testing.assert_close(logits, model(images))
    for block, output in zip(blocks, acts.values(), strict=True):
        mean = output.unflatten(0, (-1, 3)).mean(0)
        assert set(block) == set(FEATURES)
        assert block["q"].shape == (3, 2, 4, 4)
        torch.testing.assert_close(block["q"][:, 1, 3], mean[:, 4:, 1, 1])


def test_a_teacher_is_frozen_and_makes_no_graph(make_model: Make) -> None:
    model = make_model(neuron="relu")
    logits, blocks = Teacher(model)(torch.randn(2, 3, 32, 32))
    assert not model.training
    assert not any(p.requires_grad for p in model.parameters())
    assert not logits.requires_grad
    assert not any(v.requires_grad for block in blocks for v in block.values())


@pytest.mark.parametrize("norm", [False, True])
def test_vision_transformers_teach_with_q_k_v_of_their_patch_tokens(norm: bool) -> None:
    model = small_vit(qk_norm=norm).eval()
    used: list[torch.Tensor] = []

    def spy(*args: torch.Tensor, **kwargs: object) -> torch.Tensor:
        used.extend(args[:3])
        return original(*args, **kwargs)

    original = nn.functional.scaled_dot_product_attention
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(nn.functional, "scaled_dot_product_attention", spy)
        _, blocks = Teacher(model)(torch.randn(2, 3, 32, 32))
    taught = [block[name] for block in blocks for name in FEATURES]
    assert len(used) == len(taught) == 6
    for expected, features in zip(used, taught, strict=True):
        assert features.shape == (2, 3, 16, 8)
        assert torch.equal(features, expected[:, :, 1:])  # without the class token


def test_caformers_teach_with_their_attention_stages(
    make_caformer: Callable[..., MetaFormer],
) -> None:
    model = make_caformer(num_classes=5, depths=(1, 1, 1, 2))
    logits, blocks = Teacher(model, ("q", "v"))(torch.randn(1, 3, 64, 64))
    assert logits.shape == (1, 5)
    assert [block["q"].shape for block in blocks] == [(1, 2, 16, 32)] + [(1, 3, 4, 32)] * 2
    assert set(blocks[0]) == {"q", "v"}


def small_eva(**options: object) -> Eva:
    sizes = {"img_size": 32, "patch_size": 8, "embed_dim": 24, "depth": 1, "num_heads": 3}
    return Eva(**sizes, **options).eval()


@pytest.mark.parametrize(
    "make",
    [
        lambda: timm.create_model("resnet10t"),
        lambda: small_eva(qkv_fused=False),  # three layers instead of qkv
        lambda: small_eva(),  # the weight of qkv is used without calling it
    ],
)
def test_a_network_without_a_qkv_layer_that_is_called_is_no_teacher(
    make: Callable[[], nn.Module],
) -> None:
    with pytest.raises(UserError, match="no attention with one qkv layer"):
        Teacher(make(), name="timm:other")(torch.randn(1, 3, 32, 32))


def test_a_teacher_sees_images_normalised_its_own_way() -> None:
    model = small_vit().eval()
    images = torch.rand(2, 3, 32, 32)  # pixels in [0, 1]
    teacher = Teacher(model, info=make_info(), mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.4, 0.5, 0.6])
    expected = model((images - mean.view(-1, 1, 1)) / std.view(-1, 1, 1))
    torch.testing.assert_close(teacher((images - 0.5) / 0.5)[0], expected, atol=1e-5, rtol=1e-5)


def test_a_timm_teacher_reads_a_file_of_weights_with_its_classes(tmp_path: Path) -> None:
    options = {"img_size": 32, "in_chans": 1, "num_classes": 5}
    model = timm.create_model("test_vit", **options).eval()
    torch.save(model.state_dict(), tmp_path / "vit.pth")
    teacher = timm_teacher("test_vit", make_info(1), FEATURES, str(tmp_path / "vit.pth"))
    assert teacher.num_classes == 5
    images = torch.randn(2, 1, 32, 32)
    torch.testing.assert_close(teacher(images)[0], model(images))


def test_a_vision_transformer_teaches_images_whose_sizes_vary(tmp_path: Path) -> None:
    torch.save(timm.create_model("test_vit", num_classes=3).state_dict(), tmp_path / "vit.pth")
    weights = str(tmp_path / "vit.pth")
    for vary in (True, False):
        teacher = timm_teacher("test_vit", make_info(), FEATURES, weights, sizes_vary=vary)
        assert teacher(torch.zeros(1, 3, 32, 32))[1][0]["q"].shape[-2] == 4
        if vary:
            assert teacher(torch.zeros(1, 3, 64, 32))[1][0]["q"].shape[-2] == 8


def test_weights_of_another_image_size_and_of_colour_are_adapted(tmp_path: Path) -> None:
    model = timm.create_model("test_vit", img_size=64, num_classes=5).eval()
    torch.save(model.state_dict(), tmp_path / "vit.pth")
    teacher = timm_teacher("test_vit", make_info(1), FEATURES, str(tmp_path / "vit.pth"))
    logits, blocks = teacher(torch.randn(2, 1, 32, 32))
    assert logits.shape == (2, 5)
    assert blocks[0]["q"].shape[2] == 4  # tokens of 32 px, where the file has 16
    own = teacher.model.state_dict()
    torch.testing.assert_close(own["blocks.1.attn.qkv.weight"], model.blocks[1].attn.qkv.weight)
    torch.testing.assert_close(own["head.weight"], model.head.weight)
    colour = model.patch_embed.proj.weight
    torch.testing.assert_close(own["patch_embed.proj.weight"], colour.sum(1, keepdim=True))


def test_timm_teachers_that_cannot_be_made_give_one_line(tmp_path: Path) -> None:
    torch.save({"x": torch.zeros(1)}, tmp_path / "other.pth")
    torch.save(timm.create_model("test_vit").state_dict(), tmp_path / "vit.pth")
    for name, weights, message in (
        ("vit_nothing", "pretrained", "timm has no model 'vit_nothing'"),
        ("test_vit", str(tmp_path / "missing.pth"), "no checkpoint"),
        ("test_vit", str(tmp_path / "other.pth"), "other.pth does not fit the timm teacher"),
        ("caformer_s18", str(tmp_path / "vit.pth"), "vit.pth does not fit the timm teacher"),
    ):
        with pytest.raises(UserError, match=message) as error:
            timm_teacher(name, make_info(), FEATURES, weights)
        assert "\n" not in str(error.value)


def test_a_checkpoint_teaches_only_images_of_its_channels(make_model: Make, tmp_path: Path) -> None:
    save_checkpoint(tmp_path / "ann.ckpt", make_model(neuron="relu"), make_info())
    teacher = checkpoint_teacher(tmp_path / "ann.ckpt", make_info(), FEATURES)
    assert teacher.num_classes == 5
    with pytest.raises(UserError, match="3 channels, the data has 1"):
        checkpoint_teacher(tmp_path / "ann.ckpt", make_info(1), FEATURES)


def test_student_features_are_counts_or_membrane_with_gradients(make_model: Make) -> None:
    model = make_model().train()
    images = torch.randn(2, 3, 32, 32)
    for source, grid in (("counts", True), ("membrane", False)):
        reader = FeatureReader(model, ("q", "k"), source)
        model(images)
        blocks = reader.blocks()
        reader.close()
        assert len(blocks) == 2
        assert set(blocks[0]) == {"q", "k"}
        scaled = blocks[0]["q"] * model.config.levels
        assert torch.equal(scaled, scaled.round()) == grid
        assert blocks[0]["q"].requires_grad
    assert not model.stages[3].blocks[0].attention.q_neuron._forward_hooks
