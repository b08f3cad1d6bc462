"""The table of recipes, and `make bench` on one of them."""

import dataclasses
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import cfgdistill
from cfgdistill import Recipe, get_recipe
from cfgdistill.core.losses import WEIGHTINGS
from cfgdistill.core.names import one_of
from cfgdistill.core.parameterization import PREDICTION_TYPES
from cfgdistill.course.recipes import PROFILES, RECIPES, SPECIAL, WORDS, as_recipe
from cfgdistill.training.environment import flag


def test_there_is_one_recipe_for_each_data_set_and_profile():
    names = [recipe.name for recipe in RECIPES]
    assert len(set(names)) == len(names)
    assert set(names) == {
        *(
            f"{d}-{p}"
            for d in ("digits", "cifar10", "imagenet64")
            for p in PROFILES
            if p != "shipped"
        ),
        *("digits-shipped", "emoji-smoke", "emoji-laptop", "sd-smoke", "sd-laptop", "sd-colab"),
    }
    assert PROFILES == ("smoke", "laptop", "shipped", "colab", "paper")


@pytest.mark.parametrize("recipe", RECIPES, ids=str)
def test_every_recipe_can_be_run(recipe):
    assert recipe.start & (recipe.start - 1) == 0 and recipe.start >= 1  # it is halved down to 1
    assert 1024 % (2 * recipe.start) == 0  # every grid time is a whole training step of diffusers
    assert all(channels % 8 == 0 for channels in recipe.channels)  # groups of the normalisation
    counts = [recipe.stage_one, recipe.halving, recipe.samples]
    if recipe.dataset != "sd":  # it has no judge of its own, and its teacher is the base as it is
        counts += [recipe.classifier, recipe.teacher]
    assert min(counts) > 0 and recipe.w_max > 0 and 0 < recipe.drop < 1 and 0 <= recipe.ema < 1


@pytest.mark.parametrize("dataset", ["digits", "cifar10"])
def test_a_bigger_profile_trains_longer(dataset):
    profiles = [profile for profile in PROFILES if profile != "shipped"]
    updates = [get_recipe(dataset, profile).teacher for profile in profiles]
    assert updates == sorted(set(updates))


def test_single_values_are_changed_by_name_and_the_table_stays_as_it_is():
    changed = get_recipe("digits", "smoke", teacher=7, seed=3)
    plain = get_recipe("digits", "smoke")
    assert (changed.teacher, changed.seed) == (7, 3)
    assert dataclasses.replace(changed, teacher=plain.teacher, seed=plain.seed) == plain
    assert plain in RECIPES and changed not in RECIPES


def test_a_recipe_cannot_be_changed_in_place():
    with pytest.raises(dataclasses.FrozenInstanceError):
        get_recipe("digits", "smoke").seed = 1


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda recipe: recipe.name)
def test_the_printed_recipe_names_itself_and_every_value_but_special_ones_nobody_set(recipe):
    assert str(recipe).startswith(f"{recipe.name}: ")
    for field in dataclasses.fields(Recipe):
        if field.name not in ("dataset", "profile"):
            value = getattr(recipe, field.name)
            said = f" {field.name} {value}" in str(recipe)
            assert said == (field.name not in SPECIAL or value != field.default)


def test_the_printed_digits_recipe_says_nothing_of_latents():
    assert "autoencoder" not in str(get_recipe("digits", "laptop"))
    assert "t_power 0.4" in str(get_recipe("emoji", "laptop"))


def test_a_recipe_survives_json():
    recipe = get_recipe("emoji", "laptop")
    back = json.loads(json.dumps(dataclasses.asdict(recipe)))
    tuples = {key: tuple(value) for key, value in back.items() if isinstance(value, list)}
    assert Recipe(**back | tuples) == recipe == as_recipe(back)


def test_a_data_set_without_a_row_for_a_profile_says_which_it_has():
    with pytest.raises(ValueError, match="no sd profile 'paper'.* are smoke, laptop, colab"):
        get_recipe("sd", "paper")


ODD = [
    None,
    True,
    -1,
    1.5,
    float("nan"),
    float("inf"),
    10**30,
    "",
    "odd/..",
    b"",
    (),
    (7,),
    [8],
    {},
]


@pytest.mark.parametrize("entry", dataclasses.fields(Recipe), ids=lambda entry: entry.name)
def test_an_entry_of_another_type_or_out_of_range_is_refused_by_its_name(entry):
    plain = get_recipe("digits", "smoke")
    refused = 0
    for value in ODD:
        try:
            made = getattr(dataclasses.replace(plain, **{entry.name: value}), entry.name)
        except ValueError as error:
            said, refused = str(error), refused + 1
            assert entry.name.replace("_", " ") in said.replace("_", " ")
            assert "\n" not in said and said.endswith(".")
        else:  # what is taken is of the declared type, and stays what it was
            kinds = {"tuple[int, ...]": tuple, "int | None": int | None, "str | None": str | None}
            kind = kinds.get(str(entry.type), entry.type)
            assert isinstance(made, kind) and made == value
            assert (type(made) is bool) == (entry.type is bool)
    assert refused >= 10


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"start": 12}, "start=12 does not fit: start is a power of two"),
        ({"w_min": 3.0, "w_max": 2.0}, "w_min=3 is above w_max=2"),
        ({"autoencoder": 10}, "autoencoder=10 does not fit.* and 0 for digits"),
        ({"weighting": "snrr"}, "no weighting 'snrr': did you mean 'snr'"),
        ({"rate": 1001}, "rate=1001 does not fit: rate is a number from 0 to 1000"),
    ],
)
def test_entries_that_do_not_go_together_are_refused_before_anything_is_trained(changes, sentence):
    with pytest.raises(ValueError, match=sentence):
        get_recipe("digits", "smoke", **changes)


def test_sizes_that_the_autoencoder_cannot_halve_are_refused():
    for changes in ({"size": 40}, {"vae_channels": ()}, {"batch": 1}, {"autoencoder": 0}):
        with pytest.raises(ValueError, match="do not go together|autoencoder=0 does not fit"):
            get_recipe("emoji", "laptop", **changes)


def test_whole_numbers_are_taken_for_numbers_and_kept_as_such():
    assert type(get_recipe("digits", "smoke", rate=1, w_max=2).rate) is float


def test_the_words_that_a_recipe_takes_are_those_that_the_losses_know():
    assert set(WORDS["weighting"]) == set(WEIGHTINGS)
    assert set(WORDS["prediction_type"]) == set(PREDICTION_TYPES)


def test_a_card_names_a_recipe_of_the_table_or_none():
    recipe = get_recipe("emoji", "laptop", seed=3)
    kept = json.loads(json.dumps(dataclasses.asdict(recipe)))
    assert as_recipe(kept) == recipe
    changed = [kept | {"profile": "../.."}, kept | {"dataset": "owner/name"}, kept | {"new": 1}]
    for broken in [*changed, kept | {"dataset": 3}, None, 3, [], {}, "emoji", [kept]]:
        with pytest.raises(ValueError):
            as_recipe(broken)


def test_one_of_gives_back_a_name_that_exists():
    assert one_of("profile", "smoke", PROFILES) == "smoke"


YES, NO = ("1", "true", "True", "YES", "on", " 1 "), ("0", "false", "False", "NO", "off", "")


@pytest.mark.parametrize("word", [*YES, *NO])
@pytest.mark.parametrize("default", [True, False])
def test_a_flag_of_the_environment_is_what_its_word_says_whatever_the_default(
    monkeypatch, word, default
):
    monkeypatch.setenv("CFGDISTILL_RETRAIN", word)
    assert flag("CFGDISTILL_RETRAIN", default) == (word in YES)
    monkeypatch.delenv("CFGDISTILL_RETRAIN")
    assert flag("CFGDISTILL_RETRAIN", default) == default


@pytest.mark.parametrize("word", ["maybe", "2", "-1", "nein"])
def test_a_flag_that_says_neither_yes_nor_no_is_refused_by_name(monkeypatch, word):
    monkeypatch.setenv("CI", word)
    with pytest.raises(ValueError, match=f"^CI={word} says neither yes nor no: set it to 1 or .*"):
        flag("CI")


def test_every_flag_of_the_environment_is_read_by_the_one_parser():
    read = set()
    for file in Path(cfgdistill.__file__).parent.rglob("*.py"):
        read |= set(re.findall(r"environ(?:\.get\(|\[)\s*(\w+|\".+?\")", file.read_text()))
    # Numbers, folders, the parser's own, and what a launcher set (LAUNCHER's keys).
    folders = {'"CFGDISTILL_DATA"', '"CFGDISTILL_CACHE"', '"CFGDISTILL_OUT"'}
    numbers = {'"RANK"', '"WORLD_SIZE"', '"FSDP_VERSION"'}
    assert read <= folders | numbers | {'"TQDM_DISABLE"', "name", "key"}


RATIOS = (
    "update_over_parts loader_wait_fraction sampler_over_calls sampler_over_diffusers "
    "batched_over_two_calls bf16_over_fp32 compiled_over_eager channels_last_over_contiguous "
    "loader_wait_fraction_cifar10".split()
)


def test_make_bench_writes_every_ratio_or_says_why_not(tmp_path):
    # Without a compiler, which takes a minute, and without CIFAR-10: both are then skipped by name.
    file, bench = tmp_path / "new" / "bench.json", Path(__file__).parent / "bench.py"
    hidden = {"CFGDISTILL_DATA": "", "CXX": str(tmp_path / "no-compiler")}
    quick = ["--profile", "smoke", "--repeats", "2", "--seconds", "0", "--to", str(file)]
    done = subprocess.run(
        [sys.executable, str(bench), *quick],
        env={**os.environ, **hidden, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path), "CI": "1"},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(file.read_text())
    skipped = result["skipped"]
    assert {"compiled_over_eager", "loader_wait_fraction_cifar10"} <= skipped.keys()
    assert result["repeats"] == 2 and result["threads"] >= 1 and result["device"]
    recipe = get_recipe("digits", "smoke")
    known = {"batch": recipe.batch, "channels": list(recipe.channels), "image": [1, 8, 8]}
    assert known.items() <= result["sizes"].items()
    for name in RATIOS:
        assert name in done.stdout
        if name in skipped:
            assert result[name] is None and skipped[name] in done.stdout
            continue
        a, b = result["medians_ms"][name].values()
        low, high = result["quartiles"][name]
        assert a > 0 and b > 0 and low <= result[name] <= high
