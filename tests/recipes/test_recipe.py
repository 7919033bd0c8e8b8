import dataclasses
import itertools
import re
from pathlib import Path

import pytest

from qsdformer.data.segmentation.config import SegmentationData
from qsdformer.errors import UserError
from qsdformer.experiments.grid import Cell, cell_recipe, load_grid
from qsdformer.models.dense.config import SegmentationConfig
from qsdformer.nn.config import ModelConfig
from qsdformer.parsing import dump_yaml, load_yaml
from qsdformer.recipes import first_line, packaged_recipes
from qsdformer.recipes.learning import TrainConfig
from qsdformer.recipes.recipe import load_recipe, options, parse_recipe, resolve_key

DIGITS = {"data": {"name": "digits"}}


@pytest.mark.parametrize("name", sorted(packaged_recipes()))
def test_packaged_recipe_is_valid_and_says_what_it_is(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.output == f"runs/{name}"
    assert len(first_line(packaged_recipes()[name])) > 20


def test_imagenet_recipe_is_the_published_one() -> None:
    recipe = load_recipe("imagenet")
    train, data = recipe.train, recipe.data
    assert (train.epochs, train.optimizer, train.batch_size, train.devices) == (300, "lamb", 196, 8)
    assert train.peak_lr == pytest.approx(6e-4 * 196 * 8 / 256)
    assert (train.min_lr, train.weight_decay, train.label_smoothing) == (1e-6, 0.05, 0.1)
    assert train.warmup * train.epochs == pytest.approx(15)
    assert (train.ema, train.ema_warmup) == (0.99996, False)
    assert (data.auto_augment, data.random_erasing) == ("rand-m9-mstd0.5-inc1", 0.25)
    assert data.image_size in (None, 224)
    config = recipe.model.config(in_channels=3, num_classes=1000)
    assert (config.dims, config.depth, config.levels) == ((128, 256, 512, 640), 8, 4)


def test_saved_recipe_reads_back_the_same(tmp_path: Path) -> None:
    recipe = load_recipe("imagenet", {"dims": "[16, 32, 64, 80]", "model.heads": "4"})
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe.to_yaml(), encoding="utf-8")
    again = load_recipe(str(file))
    assert again.to_dict() == recipe.to_dict()
    assert again.train == recipe.train
    assert again.data == recipe.data


def yaml_blocks(document: str) -> list[str]:
    text = (Path(__file__).parents[2] / document).read_text(encoding="utf-8")
    return re.findall(r"^```yaml\n(.*?)^```", text, re.DOTALL | re.MULTILINE)


def test_the_documented_recipe_and_grid_can_be_trained(tmp_path: Path) -> None:
    [recipe] = yaml_blocks("README.md")
    file = tmp_path / "mine.yaml"
    file.write_text(recipe)
    assert load_recipe(str(file)).distill is not None
    [grid] = yaml_blocks("docs/distillation.md")
    file.write_text(grid)
    loaded = load_grid(str(file))
    for name in loaded.names:
        assert cell_recipe(loaded, Cell(name, 0)).data.name == "digits"


@pytest.mark.parametrize("task", ["segmentation", "detection"])
def test_the_documented_recipe_of_a_dense_task_is_one(task: str, tmp_path: Path) -> None:
    [recipe] = yaml_blocks(f"docs/{task}.md")
    (tmp_path / "mine.yaml").write_text(recipe)
    assert load_recipe(str(tmp_path / "mine.yaml")).task == task


def test_a_recipe_builds_on_another_key_by_key(tmp_path: Path) -> None:
    file = tmp_path / "short.yaml"
    file.write_text("recipe: digits\nmodel: {weight_bits: 2}\ntrain: {epochs: 3}\ndistill: {}\n")
    short, digits = load_recipe(str(file)), load_recipe("digits")
    assert short.output == "runs/short"
    assert short.model.fields == {**digits.model.fields, "weight_bits": 2}
    assert short.train == dataclasses.replace(digits.train, epochs=3)
    assert (short.data, short.seed) == (digits.data, digits.seed)
    assert short.distill is not None
    assert digits.distill is None
    file.with_name("shorter.yaml").write_text(f"recipe: {file}\nseed: 4\ndistill: none\n")
    shorter = load_recipe(str(file.with_name("shorter.yaml")))
    assert shorter == dataclasses.replace(short, seed=4, distill=None, output="runs/shorter")


def test_a_recipe_that_builds_on_itself_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text(f"recipe: {file}")
    with pytest.raises(UserError, match="builds on itself"):
        load_recipe(str(file))


def test_overrides_take_full_paths_and_unique_last_parts() -> None:
    overrides = {"train.epochs": "3", "lr": "1e-3", "weight_bits": "none", "data.name": "digits"}
    recipe = load_recipe("digits", overrides)
    assert (recipe.train.epochs, recipe.train.lr) == (3, 1e-3)
    assert recipe.model.config(in_channels=1, num_classes=10).weight_bits is None


def test_the_word_none_stays_a_word_where_it_is_a_choice() -> None:
    recipe = load_recipe("digits", {"rectify": "none", "clip_grad": "none", "ema": "null"})
    assert recipe.model.config(in_channels=1, num_classes=10).rectify == "none"
    assert (recipe.train.clip_grad, recipe.train.ema) == (None, None)


def test_ann_recipe_builds_the_counterpart() -> None:
    spiking = parse_recipe({**DIGITS, "model": {"name": "metaspikeformer_tiny", "levels": 4}})
    ann = parse_recipe({**DIGITS, "model": {"name": "metaspikeformer_tiny", "ann": True}})
    config = spiking.model.config(in_channels=1, num_classes=10)
    assert ann.model.config(in_channels=1, num_classes=10) == config.ann()


@pytest.mark.parametrize(
    ("key", "value", "expected"),
    [
        ("epoch", "3", "unknown option --epoch: did you mean --epochs?"),
        ("train.epoch", "3", "unknown option --train.epoch: did you mean --train.epochs?"),
        ("name", "digits", "option --name may mean model.name or data.name"),
        ("num_classes", "3", "--num_classes is taken from the data"),
        ("epochs", "many", "train.epochs='many': must be a whole number"),
        ("epochs", "2.5", "train.epochs=2.5: must be a whole number"),
        ("epochs", "true", "train.epochs=True: must be a whole number"),
        ("epochs", "[", "the value of --epochs"),
        ("compile", "maybe", "train.compile='maybe': must be true or false"),
        ("optimizer", "adam", "train.optimizer='adam': must be one of adamw, lamb, sgd"),
        ("betas", "[0.9]", "train.betas=[0.9]: must be a list of 2 items, each a number"),
        ("lr", ".nan", "train.lr=nan: must be"),
        ("ema", "1.5", "train.ema=1.5: must be in (0, 1), or none"),
        ("epochs", "0", "train.epochs=0: must be a whole number, at least 1"),
        ("save_every", "0", "train.save_every=0: must be a whole"),
        ("eval_batch_size", "0", "train.eval_batch_size=0: must be at least 1, or none"),
        ("lr_base_batch", "0", "train.lr_base_batch=0: must be at least 1, or none"),
        ("min_lr", "1", "must be between 0 and lr"),
        ("train.warmup", "1", "must be in [0, 1), a fraction of all steps"),
        ("warmup_start", "2", "must be in [0, 1], a share of lr"),
        ("layer_decay", "0", "must be in (0, 1]"),
        ("step_size_lr", "0", "must be above 0"),
        ("weight_decay", "-1", "must be 0 or more"),
        ("betas", "[0.9, 1.0]", "must be two numbers in [0, 1)"),
        ("label_smoothing", "1", "must be in [0, 1)"),
        ("clip_grad", "0", "must be above 0, or none"),
        ("levels", "0", "model.levels=0: must be 1 to 127"),
        ("weight_bits", "9", "model.weight_bits=9: must be 2 to 8 bits, ternary, or none"),
        ("heads", "5", "model.heads=5 does not divide the block width 64"),
        ("model.name", "metaspikeformer_tin", "did you mean metaspikeformer_tiny?"),
        ("data.name", "mnist", "data.name='mnist': must be one of digits, fashion_mnist"),
        ("seed", "-1", "seed=-1: must be between 0 and"),
    ],
)
def test_bad_override_is_one_line_naming_key_value_and_what_is_allowed(
    key: str, value: str, expected: str
) -> None:
    with pytest.raises(UserError) as caught:
        load_recipe("digits", {key: value})
    message = str(caught.value)
    assert expected in message
    assert "\n" not in message


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("trian: {}", "unknown recipe key trian: did you mean train?"),
        (
            "data: {name: digits}\ntrain: {leraning_rate: 1}",
            "unknown recipe key train.leraning_rate",
        ),
        ("data: {name: digits, workes: 1}", "data.workes: did you mean data.workers?"),
        ("model: {level: 3}\ndata: {name: digits}", "model.level: did you mean model.levels?"),
        ("model: {num_classes: 3}", "model.num_classes is taken from the data"),
        ("model: 3", "model=3: must be a section"),
        ("train: {epochs: 3}", "there is no data section"),
        ("data: {root: x}", "data.name is missing"),
        ("- 1", "must be a mapping"),
        ("a: [", "is not valid YAML: line 1"),
        (
            "recipe: digits\ntrain: {epochs: 1}\ntrain: {lr: 1}",
            "YAML: line 3: train is given twice",
        ),
        ("recipe: digits\ntrain: {epochs: 1, epochs: 2}", "YAML: line 2: epochs is given twice"),
        ("recipe: digits\ntrain: &a {min_lr: *a}", "is not valid YAML: "),
        ("recipe: digits\nseed: " + "[" * 500, "is not valid YAML: "),
        ("recipe: digits\nseed: 2024-02-30", "seed='2024-02-30': must be a whole number"),
        ("recipe: digits\ntrain: {epochs: 1:30}", "train.epochs='1:30': must be a whole number"),
        ("data: {name: digits}\noutput: 3", "output=3: must be text"),
        ("recipe: nosuch", "no recipe 'nosuch': neither a file nor"),
        ("recipe: [digits]", "recipe=['digits']: must be text"),
        ("recipe: digits\ntrain: 3", "train=3: must be a section"),
    ],
)
def test_bad_file_is_one_line_naming_the_key(tmp_path: Path, text: str, expected: str) -> None:
    file = tmp_path / "bad.yaml"
    file.write_text(text, encoding="utf-8")
    with pytest.raises(UserError) as caught:
        load_recipe(str(file))
    assert expected in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_recipe_that_would_fill_memory_is_one_line(tmp_path: Path) -> None:
    lines = ["a: &a [x, x, x, x, x, x, x, x, x, x]"]
    for old, new in itertools.pairwise("abcdefghi"):
        lines.append(f"{new}: &{new} [{', '.join([f'*{old}'] * 10)}]")
    (tmp_path / "bomb.yaml").write_text("\n".join(lines))
    with pytest.raises(UserError, match="is not valid YAML: written out, it has more than 100,000"):
        load_recipe(str(tmp_path / "bomb.yaml"))
    (tmp_path / "loop.yaml").write_text("model: &m {inner: [*m]}")
    with pytest.raises(UserError, match="is not valid YAML: it holds itself"):
        load_recipe(str(tmp_path / "loop.yaml"))


def test_missing_recipe_names_the_nearest_packaged_one() -> None:
    with pytest.raises(UserError, match=r"no recipe 'digit'.*did you mean digits\?"):
        load_recipe("digit")


def test_every_field_can_be_set_from_the_command_line() -> None:
    paths = {option.path for option in options()}
    assert {f"train.{f.name}" for f in dataclasses.fields(TrainConfig)} <= paths
    settable = {f.name for f in dataclasses.fields(ModelConfig)} - {"in_channels", "num_classes"}
    assert {f"model.{name}" for name in settable} <= paths


def test_numbers_without_a_point_are_numbers(tmp_path: Path) -> None:
    file = tmp_path / "r.yaml"
    file.write_text("data: {name: digits}\ntrain: {lr: 6e-4, min_lr: 0}", encoding="utf-8")
    assert load_recipe(str(file)).train.lr == 6e-4


@pytest.mark.parametrize(
    ("given", "value"),
    [("010", 10), ("008", 8), ("-3", -3), ("0x10", 16), ("0o10", 8), ("1e3", 1e3)],
)
def test_numbers_are_those_of_yaml_1_2(given: str, value: float) -> None:
    found = load_yaml(given, "it")
    assert (found, type(found)) == (value, type(value))


@pytest.mark.parametrize("text", ["010", "08", "1e5", "6.", "0o7", "2024-01-01", "1:30", "no", "~"])
def test_text_that_looks_like_a_number_is_written_as_text(text: str, tmp_path: Path) -> None:
    assert load_yaml(dump_yaml({"output": text}), "it") == {"output": text}


PATHS = ("run #2", "2024", "no", "@x", "*x", "2024-13-45", "a: b", "[x", "'x'")


@pytest.mark.parametrize("text", PATHS)
def test_a_path_on_the_command_line_is_taken_as_it_stands(text: str, tmp_path: Path) -> None:
    recipe = load_recipe("fashion-mnist-tiny", {"output": text, "data.root": text})
    assert (recipe.output, recipe.data.root) == (text, text)
    file = tmp_path / "written.yaml"
    file.write_text(recipe.to_yaml(), encoding="utf-8")
    assert load_recipe(str(file)) == recipe
    assert load_recipe("fashion-mnist-tiny", {"data.root": "none"}).data.root is None


def test_home_is_where_a_shell_has_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    (tmp_path / "mine.yaml").write_text("recipe: digits\noutput: ~/a\ndistill: {teacher: ~/b.ckpt}")
    recipe = load_recipe(str(tmp_path / "mine.yaml"))
    assert recipe.output == f"{tmp_path}/a"
    assert recipe.distill is not None
    assert recipe.distill.teacher == f"{tmp_path}/b.ckpt"
    assert load_recipe("digits", {"output": "~/c"}).output == f"{tmp_path}/c"


def test_a_section_without_keys_leaves_that_of_the_recipe_below(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("recipe: digits\nmodel:\ntrain:\n  # epochs: 3\n")
    mine, base = load_recipe(str(file)), load_recipe("digits")
    assert (mine.model, mine.train) == (base.model, base.train)
    file.write_text("recipe: digits\ndata:\n  name: fashion_mnist\n")
    assert load_recipe(str(file)).data.name == "fashion_mnist"


def _config(name: str, **overrides: str) -> ModelConfig:
    return load_recipe(name, overrides).model.config(in_channels=1, num_classes=10)


@pytest.mark.parametrize("neuron", ["lif", "ielif", "relu"])
@pytest.mark.parametrize("name", ["digits", "digits-lif"])
def test_another_neuron_brings_what_it_decides_along(name: str, neuron: str) -> None:
    config = _config(name, neuron=neuron)
    assert config.neuron == neuron
    assert config.attention == ("softmax" if neuron == "relu" else "spike")
    assert (config.levels == 1) == (neuron == "lif")


def test_another_family_leaves_behind_what_only_the_one_before_has(tmp_path: Path) -> None:
    tiny = load_recipe("cifar10-tiny")
    assert tiny.model.fields["stem_stride"] == 1
    other = load_recipe("cifar10-tiny", {"model.name": "sdt_tiny"})
    assert "stem_stride" not in other.model.fields
    assert other.model.fields["residual_gain"] == tiny.model.fields["residual_gain"]  # of both
    file = tmp_path / "mine.yaml"
    file.write_text("recipe: cifar10-tiny\nmodel: {name: sdt_tiny, stem_stride: 1}\n")
    with pytest.raises(UserError, match=r"model\.stem_stride is for metaspikeformer"):
        load_recipe(str(file))
    file.write_text("recipe: cifar10-tiny\nmodel: {name: [sdt_tiny]}\n")
    with pytest.raises(UserError, match=r"^model\.name=\['sdt_tiny'\]"):
        load_recipe(str(file))


def test_the_same_neuron_again_and_what_is_given_with_another_stay(tmp_path: Path) -> None:
    file = tmp_path / "wide.yaml"
    file.write_text("recipe: digits\nmodel: {neuron: ielif, levels: 8}\n")
    assert _config(str(file), neuron="ielif").levels == 8
    with pytest.raises(UserError, match=r"model.levels=4: LIF neurons are binary"):
        load_recipe("digits", {"neuron": "lif", "levels": "4"})


def test_the_counterpart_ann_overrules_the_recipe_it_is_built_on(tmp_path: Path) -> None:
    for name, overrides in (("digits-ann", {}), ("digits", {"ann": "true"})):
        recipe = load_recipe(name, overrides)
        assert _config(name, **overrides) == _config(name, **overrides).ann()
        assert "weight_bits" not in recipe.to_dict()["model"]
        # What is written to the run folder can be read again.
        (tmp_path / "again.yaml").write_text(recipe.to_yaml())
        assert load_recipe(str(tmp_path / "again.yaml")) == recipe
    assert _config("digits-lif", ann="true").neuron == "relu"
    assert _config("digits-ann", neuron="gelu").neuron == "gelu"
    assert _config("digits-ann", weight_bits="none", time_steps="1").weight_bits is None
    assert _config("digits-ann", ann="false").weight_bits == 4


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("weight_bits", "2"),
        ("stem_bits", "8"),
        ("neuron", "lif"),
        ("attention", "spike"),
        ("time_steps", "4"),
        ("fully_spiking", "true"),
    ],
)
def test_what_the_counterpart_ann_would_ignore_is_refused(
    key: str, value: str, tmp_path: Path
) -> None:
    message = rf"model.{key}=.* with model.ann=True: .* leave out one"
    with pytest.raises(UserError, match=message):
        load_recipe("digits", {"ann": "true", key: value})
    with pytest.raises(UserError, match=message):
        load_recipe("digits-ann", {key: value})
    file = tmp_path / "both.yaml"
    file.write_text(f"recipe: digits\nmodel: {{ann: true, {key}: {value}}}\n")
    with pytest.raises(UserError, match=message):
        load_recipe(str(file))


def test_levels_that_could_not_be_exported_are_refused_before_training() -> None:
    with pytest.raises(UserError, match=r"model.levels=128: must be 1 to 127 .*exported"):
        load_recipe("digits", {"levels": "128"})


def test_a_classification_recipe_is_written_as_it_was_before_there_were_other_tasks() -> None:
    values = load_recipe("digits").to_dict()
    assert list(values)[:5] == ["seed", "output", "model", "data", "train"]
    assert not {"task", "segmentation", "detection"} & set(values)
    added = {"warmup_steps", "warmup_start", "schedule", "power"}
    added |= {"layer_decay", "head_lr", "step_size_lr"}
    assert not added & set(values["train"])
    poly = load_recipe("digits", {"train.schedule": "poly"}).to_dict()["train"]
    assert (poly["schedule"], "power" in poly) == ("poly", False)


def test_a_share_of_warm_up_given_takes_the_place_of_a_recipes_steps() -> None:
    assert load_recipe("ade20k-15m").train.warmup_steps == 1500
    train = load_recipe("ade20k-15m", {"warmup": "0.2"}).train
    assert (train.warmup, train.warmup_steps) == (0.2, None)
    train = load_recipe("ade20k-15m", {"warmup": "0.2", "warmup_steps": "7"}).train
    assert train.warmup_steps == 7


def test_a_share_of_warm_up_in_a_file_takes_the_place_of_its_bases_steps(tmp_path: Path) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("recipe: ade20k-15m\ntrain: {warmup: 0.2}\n")
    train = load_recipe(str(file)).train
    assert (train.warmup, train.warmup_steps) == (0.2, None)
    file.write_text("recipe: ade20k-15m\ntrain: {lr: 1e-3}\n")
    assert load_recipe(str(file)).train.warmup_steps == 1500


@pytest.mark.parametrize(
    ("keys", "said"),
    [
        ({"head_lr": "2"}, "train.head_lr is for the heads of dense networks: leave it out"),
        ({"power": "0.9"}, r"train.power=0.9: must be left out: it is for the schedule poly"),
        ({"lr_factor": "0.5"}, "train.lr_factor=0.5: must be left out: it is for the schedule st"),
        (
            {"train.schedule": "step", "lr_steps": "[1]", "min_lr": "1e-5"},
            "train.min_lr=1e-05: must be left out: the schedule step ends where",
        ),
    ],
)
def test_keys_of_training_without_use_are_refused(keys: dict[str, str], said: str) -> None:
    with pytest.raises(UserError, match=said):
        load_recipe("digits", keys)


@pytest.mark.parametrize("name", ["camvid", "camvid-ann", "camvid-float-head", "ade20k-15m"])
def test_a_dense_recipe_reads_back_the_same(name: str, tmp_path: Path) -> None:
    recipe = load_recipe(name, {"segmentation.inference": "slide", "output": "runs/x"})
    file = tmp_path / "recipe.yaml"
    file.write_text(recipe.to_yaml(), encoding="utf-8")
    again = load_recipe(str(file))
    assert again.to_dict() == recipe.to_dict()
    assert again == recipe
    shape = {"in_channels": 3, "num_classes": 5}
    assert again.config_for(**shape) == recipe.config_for(**shape)


def test_the_three_kinds_of_a_dense_network_differ_in_neurons_and_bits_alone() -> None:
    shape = {"in_channels": 3, "num_classes": 11}
    spiking, mixed, ann = (
        load_recipe(name).config_for(**shape)
        for name in ("camvid", "camvid-float-head", "camvid-ann")
    )
    assert isinstance(spiking, SegmentationConfig)
    assert isinstance(mixed, SegmentationConfig)
    assert isinstance(ann, SegmentationConfig)
    assert spiking.lowers_whole
    assert spiking.replace(bits=None, neuron="relu") == mixed
    assert (mixed.backbone.weight_bits, mixed.is_spiking) == (4, True)
    assert (ann.bits, ann.backbone.weight_bits, ann.is_spiking) == (None, None, False)
    assert ann == spiking.ann()
    trains = [load_recipe(name).train for name in ("camvid", "camvid-float-head", "camvid-ann")]
    assert trains[0] == trains[1] == trains[2]


def test_the_ade20k_recipe_is_the_published_one() -> None:
    recipe = load_recipe("ade20k-15m")
    train, data = recipe.train, recipe.data
    assert isinstance(data, SegmentationData)
    assert (train.lr, train.head_lr, train.weight_decay) == (1e-3, 2, 0.005)
    assert (train.schedule, train.power, train.min_lr) == ("poly", 1, 0)
    assert (train.warmup_steps, train.warmup_start) == (1500, 1e-6)
    steps = train.epochs * (20_210 // train.global_batch)
    assert steps == pytest.approx(160_000, rel=0.002)
    assert (data.image_size, data.shorter_side, data.longest_side) == (512, 512, 2048)
    assert (data.scale, data.max_class_share, data.full_size) == ((0.5, 2.0), 0.75, True)
    config = recipe.config_for(in_channels=3, num_classes=150)
    assert isinstance(config, SegmentationConfig)
    assert (config.neck_width, config.head_width, config.upsampling) == (128, 128, "bilinear")
    assert (config.bits, config.heads.is_spiking) == (None, True)


def test_short_keys_go_on_meaning_the_backbones() -> None:
    assert resolve_key("neuron").path == "model.neuron"
    with pytest.raises(UserError, match=r"train\.schedule or distill\.schedule"):
        resolve_key("schedule")  # the second alone would add a teacher
    assert resolve_key("segmentation.neuron").path == "segmentation.neuron"
    assert resolve_key("balance").path == "segmentation.balance"
    with pytest.raises(UserError, match=r"segmentation\.neck_width or detection\.neck_width"):
        resolve_key("neck_width")
    assert "camvid" in str(resolve_key("data.name").kind)


def test_a_recipe_is_found_beside_the_file_that_names_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, elsewhere = tmp_path / "own", tmp_path / "elsewhere"
    folder.mkdir()
    elsewhere.mkdir()
    (folder / "base.yaml").write_text("recipe: digits\nseed: 3\n")
    (folder / "mine.yaml").write_text("recipe: base.yaml\n")
    variants = "reference: a\nvariants: [{name: a, overrides: {model.ann: true}}]\n"
    (folder / "grid.yaml").write_text(f"recipe: mine.yaml\nseeds: [0]\n{variants}")
    monkeypatch.chdir(elsewhere)
    assert load_recipe(str(folder / "mine.yaml")).seed == 3
    assert load_grid(str(folder / "grid.yaml")).recipe == str(folder / "mine.yaml")
    (elsewhere / "base.yaml").write_text("recipe: digits\nseed: 4\n")  # the current folder's first
    assert load_recipe(str(folder / "mine.yaml")).seed == 4
    (folder / "digits").write_text("no recipe")
    (folder / "plain.yaml").write_text("recipe: digits\n")
    assert load_recipe(str(folder / "plain.yaml")).seed == 0
