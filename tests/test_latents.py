"""The latent track: captioned images, the matcher that judges them, and the same stages."""

import io
import json
import re

import datasets
import huggingface_hub
import numpy as np
import pyarrow.parquet
import pytest
import torch
from datasets import Dataset, DatasetDict
from datasets import Image as ImageColumn
from PIL import Image

from cfgdistill import GuidedDenoiser, cli, ddim, get_recipe, last
from cfgdistill.course.stages import (
    evaluate_rows,
    home,
    load_recipe_data,
    make_judge,
    teachers_own,
    train_stage_one,
    train_stage_two,
    train_teacher,
)
from cfgdistill.data.autoencoder import VAEEncoder
from cfgdistill.data.base import SPLITS, Data
from cfgdistill.data.captioned import load_captioned
from cfgdistill.data.latents import Latents
from cfgdistill.judge.metrics import Matcher, classification_loss, generate
from cfgdistill.teachers.files import load
from cfgdistill.training.checkpoints import read_card, read_tensors
from cfgdistill.training.loop import train
from cfgdistill.training.optim import Optim
from cfgdistill.training.randomness import random_at
from cfgdistill.training.state import Run

# ---- captioned images ---------------------------------------------------------------------------


def test_the_emoji_come_with_the_package_and_their_splits_share_no_family():
    sizes = {}
    captions = {}
    for source in ("emoji", "emoji-skin-tones"):
        for split in ("train", "test"):
            data = load_captioned(source, split, size=16)
            sizes[source, split] = len(data)
            captions[source, split] = set(data.class_names)
            assert data.shape == (3, 16, 16) and len(data.class_names) == len(data)
    assert list(sizes.values()) == [1716, 182, 3456, 332]
    assert not captions["emoji", "train"] & captions["emoji", "test"]
    assert captions["emoji", "train"] < captions["emoji-skin-tones", "train"]


def test_emoji_have_captions_that_leave_open_which():
    data, plain = (load_captioned("emoji", size=8, also=also) for also in (True, False))
    also = dict(zip(data.class_names, data.also, strict=True))
    assert also["frog"] == ("amphibian", "animal", "green amphibian", "green animal")
    assert also["red heart"] == ("heart", "red heart")
    assert also["grinning face"][:2] == ("smiling face", "face")
    assert also["Japan"] == ("flag",)  # white, and white is the ground
    flags = [name for name, captions in also.items() if "flag" in captions]
    assert len(flags) == 243 and "United Kingdom" in flags
    assert all(also.values()) and plain.also == ()
    assert torch.equal(plain.stored, data.stored) and plain.hash != data.hash


def test_a_red_heart_is_red_and_its_corners_are_white():
    data = load_captioned("emoji", size=64)
    x, label = data.batch(torch.tensor([data.class_names.index("red heart")]))
    assert data.class_names[label.item()] == "red heart"
    red, green, blue = x[0, :, 32, 32]
    assert red > 0.5 and green < 0 and blue < 0
    assert (x[0, :, [0, 0, -1, -1], [0, -1, 0, -1]] == 1).all()


@pytest.fixture
def folder(tmp_path):
    """Twenty pictures of 8 x 6 pixels: the middle square of number k has the red value 10 k."""
    pictures = [Image.new("RGB", (8, 6), (10 * k, 0, 0)) for k in range(20)]
    for picture in pictures:
        picture.putpixel((0, 0), (0, 255, 0))  # outside the middle square
    pictures[3] = Image.new("RGBA", (8, 6), (0, 0, 0, 0))  # nothing on a transparent ground
    rows = {"image": pictures, "caption": [f"red {k}" for k in range(20)]}
    dataset = Dataset.from_dict(rows).cast_column("image", ImageColumn())
    dataset.to_parquet(tmp_path / "pictures.parquet")
    return tmp_path


def test_a_folder_without_a_test_split_keeps_every_tenth_row_for_it(folder):
    train_split, test = (load_captioned(str(folder), s, size=6) for s in ("train", "test"))
    assert test.class_names == ("red 9", "red 19") and len(train_split) == 18
    x, _ = train_split.batch(torch.tensor([2, 3]))
    assert torch.equal(((x[0] + 1) * 127.5).round()[:, 0, 0], torch.tensor([20.0, 0.0, 0.0]))
    assert (x[1] == 1).all()  # what is transparent is white
    assert (x[0, 1] == -1).all()  # the green pixel was cut off


def test_a_folder_with_splits_and_the_column_text(folder, tmp_path):
    rows = {"image": [Image.new("RGB", (4, 4), "blue")], "text": ["blue"]}
    made = Dataset.from_dict(rows).cast_column("image", ImageColumn())
    for split, dataset in DatasetDict(train=made, test=made).items():
        dataset.to_parquet(tmp_path / "splits" / f"{split}-00000-of-00001.parquet")
    assert load_captioned(str(tmp_path / "splits"), "test", size=4).class_names == ("blue",)


def write_captioned(path, captions, images=None, **columns):
    """A parquet file by pyarrow alone, which knows nothing of images: they are plain bytes."""
    path.parent.mkdir(parents=True, exist_ok=True)
    images = images or [png(Image.new("RGB", (4, 4), "blue"))] * len(captions)
    table = pyarrow.table({"image": images, "text": captions, **columns})
    pyarrow.parquet.write_table(table, path)


def test_a_source_whose_further_captions_are_none_is_refused(tmp_path):
    for also in ([["c"], None], [["c"], [None]], [[3], [4]], ["c", "d"]):
        write_captioned(tmp_path / "x.parquet", ["a", "b"], also=also)
        with pytest.raises(ValueError, match="no list of texts in row [01] of 'also': write one"):
            load_captioned(str(tmp_path), size=4, also=True)
    write_captioned(tmp_path / "x.parquet", ["a", "b"])
    with pytest.raises(ValueError, match="none of the name 'also'"):
        load_captioned(str(tmp_path), size=4, also=True)


def png(image, kind="PNG", **how):
    file = io.BytesIO()
    image.save(file, kind, **how)
    return file.getvalue()


@pytest.mark.parametrize(
    ("train", "test"),
    [
        ("default/train/0000.parquet", "default/test/0000.parquet"),
        ("birds-train.parquet", "birds-test.parquet"),
        ("TRAIN.parquet", "Test.parquet"),
        ("data/training_1.parquet", "data/evaluation.1.parquet"),
        ("latest-train.parquet", "contest-test.parquet"),
    ],
)
def test_rows_held_out_are_known_by_a_word_in_the_name_of_a_file_or_folder(tmp_path, train, test):
    write_captioned(tmp_path / train, ["a", "b"])
    write_captioned(tmp_path / test, ["c"])
    held_out = train.lower().replace("training", "train").replace("train", "val")
    write_captioned(tmp_path / held_out, ["d"])
    write_captioned(tmp_path / ".hidden" / "train.parquet", ["e"])
    found = [load_captioned(str(tmp_path), split, size=4).class_names for split in SPLITS]
    assert found == [("a", "b"), ("c",)]


@pytest.mark.parametrize(
    ("files", "sentence"),
    [
        (["train.parquet", "more.parquet"], "more.parquet, which names none: rename it"),
        (["train/test.parquet"], "several splits by its name, test, train: rename"),
        (["a/train/0.parquet", "b/train/0.parquet"], "several sets, a, b: name one of them"),
        (["train.parquet", "b/test.parquet"], "several sets, ., b: name one of them"),
        (["test.parquet"], "has no split 'train', only test"),
        (["val.parquet"], "has no split 'train', only validation"),
    ],
)
def test_a_folder_whose_splits_are_not_plain_is_refused_with_its_files(tmp_path, files, sentence):
    for file in files:
        write_captioned(tmp_path / file, ["a"])
    with pytest.raises(ValueError, match=re.escape(sentence)):
        load_captioned(str(tmp_path))


def test_files_without_the_name_of_a_split_are_one_set(tmp_path):
    for k in range(2):
        write_captioned(tmp_path / f"part{k}" / "trainer.parquet", [f"{k}{i}" for i in range(5)])
    assert load_captioned(str(tmp_path), "test", size=4).class_names == ("14",)


def test_images_come_as_bytes_or_with_a_path_and_under_either_name(tmp_path):
    blue = png(Image.new("RGB", (4, 4), "blue"))
    (tmp_path / "0.png").write_bytes(blue)
    forms = [blue, {"bytes": blue, "path": None}, {"bytes": blue, "path": "gone.png"}]
    for form in [*forms, {"bytes": None, "path": str(tmp_path / "0.png")}, str(tmp_path / "0.png")]:
        for image, text in (("image", "caption"), ("img", "text")):
            table = pyarrow.table({image: [form], text: ["blue"]})
            pyarrow.parquet.write_table(table, tmp_path / "0.parquet")
            data = load_captioned(str(tmp_path), size=2)
            assert data.stored[0, :, 0, 0].tolist() == [0, 0, 255]


GREY = np.array([[0, 127 * 257], [200 * 257, 65535]], dtype=np.uint16)
# Pillow only writes 32 bits as signed: the value of the tag SampleFormat is changed from 2 to 1.
SIGNED = png(Image.fromarray((GREY.astype(np.uint32) * 65537).view(np.int32)), "TIFF")
TAG = b"\x53\x01\x03\x00\x01\x00\x00\x00"
UNSIGNED = SIGNED.replace(TAG + b"\x02", TAG + b"\x01")


@pytest.mark.parametrize(
    "data",
    [
        png(Image.fromarray(GREY)),
        png(Image.fromarray(GREY), "TIFF"),
        UNSIGNED,
    ],
    ids=["16 bits, PNG", "16 bits, TIFF", "32 bits, TIFF"],
)
def test_grey_of_many_bits_is_scaled_by_its_range(tmp_path, data):
    write_captioned(tmp_path / "0.parquet", ["grey"], [data])
    found = load_captioned(str(tmp_path), size=2).stored[0]
    assert found.tolist() == [[[0, 127], [200, 255]]] * 3


def test_hidden_colour_under_transparency_is_white(tmp_path):
    black = Image.new("RGB", (4, 4))
    for image in (black, black.convert("L"), black.convert("P")):
        write_captioned(
            tmp_path / "0.parquet",
            ["nothing"],
            [png(image, transparency=(0, 0, 0) if image.mode == "RGB" else 0)],
        )
        assert (load_captioned(str(tmp_path), size=4).stored == 255).all()


whole = png(Image.effect_noise((64, 64), 50))


@pytest.mark.parametrize(
    "damaged",
    [
        None,
        b"",
        b"<html>not found</html>",
        whole[: len(whole) // 2],
        png(Image.fromarray(np.ones((2, 2), np.float32)), "TIFF"),
        SIGNED,
    ],
    ids=["null", "empty", "html", "truncated", "float", "signed"],
)
def test_an_image_that_cannot_be_read_is_told_with_its_set_split_and_row(tmp_path, damaged):
    images = [png(Image.new("L", (4, 4))), damaged]
    write_captioned(tmp_path / "train.parquet", ["a", "b"], images)
    write_captioned(tmp_path / "test.parquet", ["c"])
    where = f"{re.escape(str(tmp_path))}, split 'train', has no image that can be read in row 1"
    with pytest.raises(ValueError, match=rf"^{where} \(\w+: [^\n]*\): mend that row.*\.$"):
        load_captioned(str(tmp_path), size=4)


@pytest.mark.parametrize(
    ("caption", "sentence"),
    [
        (None, "no caption in row 1"),
        (["two", "of them"], "a caption of type list in row 0: .* pick one"),
        (7, "a caption of type int in row 0: write one text"),
    ],
)
def test_captions_that_are_no_text_are_refused_before_images_are_read(tmp_path, caption, sentence):
    captions = ["one", None] if caption is None else [caption, caption]
    write_captioned(tmp_path / "0.parquet", captions, [b"no image", b"nor this"])
    with pytest.raises(ValueError, match=sentence):
        load_captioned(str(tmp_path))


def test_captions_in_a_file_have_no_mark_at_their_start_and_end_at_line_ends_only(tmp_path):
    file = tmp_path / "captions.txt"
    lines = ["cat", "two\u2028words", "one\x0bmore\x85", "last"]
    for mark, end in (("", "\n"), ("\ufeff", "\r\n"), ("", "\r")):
        file.write_bytes((mark + end.join(lines) + end).encode())
        assert load_captioned(str(file)).class_names == (*lines[:2], "one\x0bmore", "last")


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "latin-1"])
def test_captions_in_another_encoding_are_told_with_file_and_line(tmp_path, encoding):
    file = tmp_path / "captions.txt"
    file.write_bytes("cat\n\u00e9t\u00e9\n".encode(encoding))
    line = 1 if encoding == "utf-16" else 2
    with pytest.raises(ValueError, match=rf"captions.txt is not in UTF-8 \(line {line}: .*save it"):
        load_captioned(str(file))


def test_captioned_sources_that_cannot_be_had_are_refused_in_one_sentence(tmp_path, monkeypatch):
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(OSError, match="first .*nobody/nothing.*or name 'emoji' or a folder"):
        load_captioned("nobody/nothing")
    with pytest.raises(OSError, match="has no parquet files"):
        load_captioned(str(tmp_path))  # an empty folder
    Dataset.from_dict({"image": [1], "name": ["a"]}).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="image, name, and none .* 'text' or 'caption': rename"):
        load_captioned(str(tmp_path))
    Dataset.from_dict({"image": [1], "text": ["a"]}).to_parquet(tmp_path / "x.parquet")
    with pytest.raises(ValueError, match="no image that can be read in row 0"):
        load_captioned(str(tmp_path))
    with pytest.raises(ValueError, match="There is no split"):
        load_captioned("emoji", "validation")


def test_the_hash_covers_captions_and_every_pixel():
    def made(captions, pixel=0):
        stored = torch.zeros(300, 3, 2, 2, dtype=torch.uint8)
        stored[299, 2, 1, 1] = pixel
        return Data("x", "train", stored, torch.arange(300), captions, 255).hash

    names = tuple(f"caption {k}" for k in range(300))
    assert made(names) == made(names)
    assert len({made(names), made(names, 1), made((*names[:-1], "other"))}) == 3


def test_prompts_are_even_over_all_classes_or_spread_from_first_to_last():
    data = Data("x", "train", torch.zeros(4, 1), torch.arange(4), tuple("abcd"), None)
    for n, known in ((8, [0, 1, 2, 3, 0, 1, 2, 3]), (4, [0, 1, 2, 3]), (2, [0, 2])):
        conds, classes = data.prompts(n)
        assert conds.tolist() == classes.tolist() == known


# ---- the matcher --------------------------------------------------------------------------------


def test_the_matcher_finds_the_caption_of_a_picture_and_words_carry_over():
    """Colour at the top, colour below: two words each. Three of four pairs teach the fourth."""
    colours = {"red": 0, "blue": 1}
    tokens = torch.tensor([[0, 2], [0, 3], [1, 2], [1, 3]])  # top word 0 or 1, bottom 2 or 3
    stored = torch.zeros(4, 3, 8, 8, dtype=torch.uint8)
    for k, (top, bottom) in enumerate(tokens.tolist()):
        stored[k, top, :4] = 255
        stored[k, bottom - 2, 4:] = 255
    names = tuple(f"{a} over {b}" for a in colours for b in colours)
    taught = Data("pairs", "train", stored[:3], torch.arange(3), names[:3], 255)
    torch.manual_seed(0)
    matcher = Matcher(3, 8, tokens[:3], vocabulary=4)
    for _ in train(matcher, classification_loss, taught, Optim(80, 12, 3e-3), Run("matcher")):
        pass
    x, own = Data("pairs", "train", stored, torch.arange(4), names, 255).all()
    assert matcher.logits(x[:3]).argmax(1).tolist() == [0, 1, 2]
    assert torch.equal(matcher.head(matcher(x[:3])), matcher.logits(x[:3]))
    assert matcher(x).shape == (4, matcher.num_features)
    with torch.no_grad():
        among_all = matcher.for_captions(tokens).logits(x)
    assert among_all[3].argmax() == own[3] and among_all.shape == (4, 4)
    assert among_all.abs().max() <= 20  # scaled cosines


# ---- the same stages ----------------------------------------------------------------------------

RECIPE = get_recipe(
    "emoji", "smoke", teacher=4, stage_one=3, halving=1, start=2, autoencoder=4, classifier=4
)


@pytest.fixture(scope="module")
def track(tmp_path_factory):
    out = tmp_path_factory.mktemp("latents")
    data = load_recipe_data(RECIPE, out)
    return out, data, list(train_stage_two(RECIPE, data, out))


def test_latents_are_what_the_stages_expect_of_data(track):
    out, data, _ = track
    assert isinstance(data, Latents) and data.shape == (4, 16, 16)
    x, tokens = data.batch(torch.tensor([5, 7]))
    torch.testing.assert_close(x, data.vae.encode(data.images.batch(torch.tensor([5, 7]))[0]))
    captions = [data.class_names[5], data.class_names[7]]
    assert torch.equal(tokens, data.text.tokens(captions))
    assert torch.equal(data.null, data.text.tokens([""])[0])
    assert data.stored.mean().abs() < 1e-3 and abs(data.stored.var().item() - 1) < 0.05
    assert data.decode(x).shape == (2, 3, 32, 32) and data.decode(9 * x).abs().max() <= 1
    conds, rows = data.prompts(6)
    assert torch.equal(conds, data.labels[rows]) and rows.tolist() == [0, 10, 20, 30, 40, 50]


def test_one_student_after_the_other_with_the_text_model_of_the_teacher(track):
    out, data, students = track
    assert [student.steps for student in students] == [2, 1]
    teacher, stage_one = (f(RECIPE, data, out) for f in (train_teacher, train_stage_one))
    before = data.text.model.state_dict()
    after = teacher.net.text.state_dict()
    assert any(not torch.equal(before[key], after[key]) for key in after)  # it was trained
    for model in (stage_one, *students):
        kept = model.net.text.state_dict()
        assert all(torch.equal(kept[key], after[key]) for key in after)  # and then it stays
    cards = [read_card(home(RECIPE, out) / name) for name in ("teacher", "stage-one")]
    assert cards[1]["about"]["teacher"] == cards[0]["sha256"]


def test_a_finished_student_comes_back_from_its_folder_with_its_text_model(track):
    out, data, students = track
    found = load(home(RECIPE, out) / "stage-two" / "steps-1")
    z, cond = torch.randn(2, *data.shape), data.labels[:2]
    with torch.no_grad():
        same = [model(z, 1.0, cond, 2.0).x for model in (found, students[-1])]
    assert torch.equal(*same) and found.steps == 1


def test_the_second_call_trains_nothing_and_gives_the_same_latents(track, monkeypatch):
    out, data, _ = track
    monkeypatch.setattr("cfgdistill.course.stages._finish", lambda updates: next(updates, None))
    monkeypatch.setattr(VAEEncoder, "measured", None)  # shift and scale are part of the model
    again = load_recipe_data(RECIPE, out)
    assert torch.equal(again.stored, data.stored) and again.hash == data.hash
    other = load_recipe_data(RECIPE, out, "test")
    assert other.split == "test" and not set(other.class_names) & set(data.class_names)
    assert torch.equal(other.text.null, data.text.null)


def test_rows_have_retrieval_and_the_distance_to_the_teachers_own_pictures(track):
    out, data, students = track
    judge = make_judge(RECIPE, data, out)
    assert judge.name == "emoji text-image matcher, 128 features"
    assert judge.reference == "emoji train, 60 images"
    teacher = GuidedDenoiser(train_teacher(RECIPE, data, out), data.null)
    conds, _ = data.prompts(RECIPE.samples)
    how = dict(shape=data.shape, labels=conds, steps=4, w=1.0, decode=data.decode)
    truth = teachers_own(teacher, data, RECIPE, out, steps=4, weights=(1.0,))
    assert torch.equal(truth[1.0], generate(teacher, **how))
    common = dict(judge=judge, data=data, recipe=RECIPE, out=out, weights=(1.0,), truth=truth)
    (own,) = evaluate_rows(teacher, model="teacher", steps=(4,), **common)
    (row,) = evaluate_rows(students[0], model="student", steps=(2,), **common)
    assert own["distance_to_teacher"] == 0 and own["nfe"] == 8
    x = generate(students[0], **{**how, "steps": 2})
    known = (x - truth[1.0]).square().mean().sqrt().item()
    assert row["distance_to_teacher"] == pytest.approx(known, abs=1e-4) and row["nfe"] == 2
    score = judge(x, data.prompts(RECIPE.samples)[1])["retrieval_score"]
    assert row["retrieval_score"] == pytest.approx(score, abs=1e-4)


# ---- the command line ---------------------------------------------------------------------------


def test_a_text_student_is_sampled_judged_and_exported_from_the_command_line(
    track, tmp_path, capsys
):
    out, data, students = track
    folder, file = str(home(RECIPE, out) / "stage-two" / "steps-2"), tmp_path / "x.safetensors"
    prompts = ["red heart", "cat"]
    words = ["sample", folder, "--prompt", *prompts, "--n", "4", "--w", "1", "--to", str(file)]
    assert cli.main(words) == 0, capsys.readouterr().err
    assert json.loads(capsys.readouterr().out)["nfe"] == 2
    tensors, _ = read_tensors(file)
    cond = data.text.tokens([*prompts, *prompts])
    noises = [torch.randn(data.shape, generator=random_at(0, "sample", i)) for i in range(4)]
    ours = data.decode(last(ddim(students[0], torch.stack(noises), 2, cond, 1.0)))
    torch.testing.assert_close(tensors["images"], ours)

    assert cli.main(["evaluate", folder, "--w", "1", "--n", "8"]) == 0
    (row,) = json.loads(capsys.readouterr().out)["rows"]
    assert row["nfe"] == 2 and 0 <= row["retrieval_score"] <= 1

    to = tmp_path / "exported"
    assert cli.main(["export", folder, "--to", str(to)]) == 0, capsys.readouterr().err
    index = json.loads((to / "model_index.json").read_text())
    assert index["_class_name"] == "StableDiffusionPipeline"
    assert "exactly 2" in (to / "README.md").read_text()


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--classes", "3"], "draws from text: pass --prompt, not --classes."),
        ([], "draws from text: say what, with --prompt."),
        (["--prompt", "cat", "--w", "9"], r"w = 9 is outside [0, 2]"),
        (["--prompt", "cat", "--steps", "8"], "distilled for 2 steps, not 8"),
    ],
)
def test_what_a_text_student_cannot_do_is_said_in_one_sentence(track, capsys, words, sentence):
    folder = str(home(RECIPE, track[0]) / "stage-two" / "steps-2")
    assert cli.main(["sample", folder, "--n", "1", *words]) == 1
    assert sentence in capsys.readouterr().err


def test_the_empty_prompt_is_the_null_condition(track):
    _, data, students = track
    cond = data.text.tokens([""])
    assert torch.equal(cond[0], data.null)
    z = torch.randn(1, *data.shape)
    assert last(ddim(students[0], z, 2, cond, 1.0)).isfinite().all()
