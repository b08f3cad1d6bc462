"""Recipes: every number that a run depends on, one row per data set and profile."""

import math
import re
import reprlib
from collections.abc import Callable
from dataclasses import MISSING, asdict, dataclass, fields, replace
from typing import no_type_check

from cfgdistill.core.names import one_of


@no_type_check  # it checks its entries itself, in words
@dataclass(frozen=True)
class Recipe:
    """One run of the whole course: network, teacher, stage one, stage two, evaluation.

    ValueError where an entry does not fit its kind (see KINDS), or does not go with another one.
    """

    dataset: str
    profile: str
    channels: tuple[int, ...]  # of the U-Net, one per resolution
    layers: int  # residual blocks per resolution
    batch: int
    classifier: int  # updates of the feature net that the metrics use
    teacher: int  # updates
    stage_one: int  # updates
    halving: int  # updates per halving of stage two
    start: int  # steps of the first student; its teacher takes twice as many
    samples: int  # per number in the tables
    precision: str  # "mixed": half precision where the device gains from it; "full": float32
    images: int | None = None  # training images read; None: all
    autoencoder: int = 0  # updates; 0: no latents, the pixels themselves
    size: int = 64  # side of images, where the data set leaves it open
    vae_channels: tuple[int, ...] = ()  # of the autoencoder; each after the first halves the side
    text_width: int = 128  # of the text encoder, two layers
    open_captions: float = 0.0  # how often training shows a caption that fits other images too
    text_length: int = 18  # tokens of a caption, with the two at its ends
    patch: int = 1  # side of the squares of pixels that the U-Net sees as channels of one place
    scale_shift: bool = False  # time and condition scale and shift features, not only shift them
    attention: tuple[int, ...] = ()  # sides, in places, at which a U-Net for classes has it
    dropout: float = 0.0  # in the residual blocks of the teacher; students have none
    rate: float = 2e-3  # peak learning rate of the teacher, annealed linearly to 0
    warm_up: int = 50  # updates over which every stage's rate rises to its peak
    rate_one: float = 1e-3  # of stage one
    rate_two: float = 5e-4  # of each halving
    late_rate: float = 1.0  # the students of 2 steps and of 1 learn this many times faster
    batch_distill: int | None = None  # batch of both stages of distillation; None: the teacher's
    ema: float = 0.995  # running average of the teacher's and the stage-one student's weights
    drop: float = 0.1  # condition dropout of the teacher
    t_power: float = 1.0  # the teacher learns at t = u^t_power; 1 is uniform, 0.5 has density 2 t
    w_min: float = 0.0  # students learn w in [w_min, w_max]
    w_max: float = 4.0
    w_power: float = 3.0  # w = w_min + (w_max - w_min) u^w_power; 1 is the paper's uniform w
    balanced: bool = True  # whether both stages divide their losses by (1 + w)^2
    along: float = 0.0  # errors along the guidance count 1 + this many times in stage one
    w_rate: float = 10.0  # the w projection of stage one learns this many times faster
    time_rate: float = 1.0  # and the layers that time and w then go through, this many
    prediction_type: str = "v"  # what the networks say: "v", "eps" or "x"
    weighting: str = "snr_plus_one"  # omega of both stages: see distillation.WEIGHTINGS
    pretrained: bool = True  # whether every student starts with its teacher's weights
    negatives: bool = False  # whether students take a negative condition as an input
    save_every: int | None = None  # updates between two checkpoints; None: minutes
    seed: int = 0
    # Only for images of one's own: see `recipe_like`. For them, and for "sd":
    like: str | None = None  # the data set whose row this was
    image: str = "image"  # the column of images, where they are a table
    label: str = "label"  # and that of their classes, or captions
    mirror: bool = False  # whether half of the images are mirrored in training
    source: str = "emoji"  # a folder, or a data set of the hub; for "sd": see data.load_captioned
    # Only for the data set "sd", whose teacher is a Stable Diffusion pipeline:
    base: str | None = None  # the pipeline: a name on the hub, a folder, or a shipped base
    data_free: int = 0  # steps in which the base paints its own data for the captions; 0: images
    entries: int = 1024  # that students count time in; 1000 for tools that know no other: start=8
    lora: int = 0  # rank of the changes to its weights that are trained; 0: all weights are
    checkpointing: bool = False  # backward computes again what forward need not keep
    eight_bit: bool = False  # Adam's moments in 8 bits, where bitsandbytes and a GPU are present

    def __post_init__(self):
        for entry in fields(self):
            value = getattr(self, entry.name)
            if entry.name in WORDS:
                one_of(entry.name.replace("_", " "), value, WORDS[entry.name])
                continue
            words, fits = KINDS.get(entry.name) or KINDS[entry.type]
            unused = self.track == "sd" and entry.name in UNUSED
            if not (unused or fits(value)):
                raise ValueError(
                    f"{entry.name}={reprlib.repr(value)} does not fit: {entry.name} is {words}."
                )
            if entry.type is float:
                object.__setattr__(self, entry.name, float(value))
        if self.w_min > self.w_max:
            raise ValueError(
                f"w_min={self.w_min:g} is above w_max={self.w_max:g}: students learn the guidance "
                "weights from w_min to w_max."
            )
        if self.track == "sd" and self.negatives:
            raise ValueError(
                "negatives=True does not fit: students of Stable Diffusion take no negative prompt "
                "as an input; guide them away from one in two evaluations, with 4 steps or more "
                "and w_min=0."
            )
        if (self.autoencoder > 0) != (self.track == "emoji"):
            raise ValueError(
                f"autoencoder={self.autoencoder} does not fit: it is above 0 for emoji, which are "
                f"drawn as latents, and 0 for {self.track}."
            )
        if self.track == "sd" and self.entries % self.start:
            raise ValueError(
                f"entries={self.entries} and start={self.start} do not go together: a student of "
                f"{self.start} steps is asked at times between those entries. Pass start=8 with "
                "1000 entries, or leave them at 1024."
            )
        factor = 2 ** (len(self.vae_channels) - 1)
        if self.autoencoder and (
            not self.vae_channels or self.size % (8 * factor) or self.batch < 2
        ):
            raise ValueError(
                f"size={self.size}, vae_channels={self.vae_channels} and batch={self.batch} do not "
                "go together: latents have a side of 8, 16, ... where each of the vae_channels "
                "after the first halves the size, and half a batch trains the autoencoder."
            )

    @property
    def name(self) -> str:
        return f"{self.dataset}-{self.profile}"

    @property
    def track(self) -> str:
        """The data set of the table whose row this is, or was."""
        return self.like or self.dataset

    @property
    def student_batch(self) -> int:
        """Batch of both stages of distillation."""
        return self.batch_distill or self.batch

    @property
    def unet(self) -> dict:
        """What `build_unet` and `build_text_unet` are told of it."""
        given = {key: getattr(self, key) for key in UNET}
        return {"widths": self.channels, **given}

    def __str__(self) -> str:
        """All entries on one line; those that few recipes use, only where they do."""
        plain = {f.name: f.default for f in fields(self) if f.name in SPECIAL}
        return f"{self.name}: " + ", ".join(
            f"{key} {value}"
            for key, value in asdict(self).items()
            if key not in ("dataset", "profile") and (key not in plain or value != plain[key])
        )


UNUSED = ("channels", "layers", "classifier", "teacher")  # by "sd", where they are () and 0
UNET = ("layers", "scale_shift", "dropout", "prediction_type", "seed")


def _whole(low: int, high: int = 10**9) -> tuple[str, Callable]:
    return f"a whole number from {low} to {high:,}", lambda v: type(v) is int and low <= v <= high


def _number(low: int, high: int) -> tuple[str, Callable]:
    return f"a number from {low} to {high}", lambda v: type(v) in (int, float) and low <= v <= high


def _or_none(kind: tuple[str, Callable]) -> tuple[str, Callable]:
    return f"{kind[0]}, or None", lambda v: v is None or kind[1](v)


def _sides(words: str, multiple: int, least: int) -> tuple[str, Callable]:
    def fit(v) -> bool:
        whole = type(v) is tuple and all(type(n) is int and 0 < n <= 4096 for n in v)
        return whole and least <= len(v) <= 8 and not any(n % multiple for n in v)

    return words, fit


# What an entry of a recipe is, in words and as a test: for single ones, else by their type. Upper
# bounds are far beyond what anybody trains, and within what the libraries can count.
WORDS = {
    "precision": ("full", "mixed"),
    "prediction_type": ("v", "eps", "x"),
    "weighting": ("snr", "truncated_snr", "snr_plus_one"),  # losses.WEIGHTINGS
}
CHANNELS = "multiples of 8, one per resolution, such as (24, 48)"  # normalised in groups of 8
KINDS = {
    **dict.fromkeys(
        ("dataset", "profile"),
        ("a name", lambda v: type(v) is str and bool(re.fullmatch(r"\w[\w.-]*", v))),
    ),
    "channels": _sides(CHANNELS, multiple=8, least=1),
    "vae_channels": _sides(CHANNELS, multiple=8, least=0),
    "layers": _whole(1, 100),
    "samples": _whole(4, 10**6),  # fewer have no covariance to speak of
    "start": (
        "a power of two, such as 64, which is halved down to 1",
        lambda v: type(v) is int and 0 < v <= 2**20 and v & (v - 1) == 0,
    ),
    "seed": ("a whole number from 0 to 2^63 - 1", lambda v: type(v) is int and 0 <= v < 2**63),
    "batch": _whole(1, 10**6),
    "batch_distill": _or_none(_whole(1, 10**6)),
    **dict.fromkeys(("size", "patch"), _whole(1, 4096)),
    "text_length": _whole(3, 10**4),
    "text_width": (
        "a multiple of 32 up to 4,096",
        lambda v: type(v) is int and 0 < v <= 4096 and v % 32 == 0,
    ),
    **dict.fromkeys(("autoencoder", "data_free", "lora"), _whole(0)),
    "attention": _sides("sides of the U-Net's resolutions, such as (16, 8), or ()", 1, least=0),
    **dict.fromkeys(("ema", "drop", "dropout", "open_captions"), _number(0, 1)),
    int: _whole(1),
    int | None: _or_none(_whole(1)),
    float: _number(0, 1000),
    bool: ("True or False", lambda v: type(v) is bool),
    str: ("a word", lambda v: type(v) is str),
    str | None: ("a name, a folder or None", lambda v: v is None or type(v) is str),
}

SPECIAL = (
    *("autoencoder", "size", "vae_channels", "text_width", "text_length", "t_power", "time_rate"),
    *("patch", "scale_shift", "late_rate", "batch_distill", "attention", "dropout", "warm_up"),
    *("open_captions", "negatives", "along", "base", "like", "image", "label", "mirror", "source"),
    *("data_free", "entries", "lora", "checkpointing", "eight_bit", "save_every"),
)

# fmt: off
# The comments: minutes to train everything, and the Frechet distance at w = 0 of the teacher at 32
# steps, stage one at 32 and the students at 4 steps and 1 step (digits: own 64 features, 400 samples).
RECIPES = (
    #      data set   profile   channels              layers batch clf.  teacher stage_one halving start samples precision images
    Recipe("digits",  "smoke",  (16, 32),             1,     64,   60,   60,     30,       15,     8,    30,     "full",  None),  # seconds; blurs
    Recipe("digits",  "laptop", (24, 48),             1,     64,   400,  1300,   800,      200,    32,   400,    "full",  None,  rate_one=2.5e-3, w_power=2.0),  # 4 min, 2 cores; 0.75 0.79 0.85 0.90
    Recipe("digits",  "shipped", (24, 48),            1,     64,   400,  1300,   25600,    400,    32,   400,    "full",  None,  rate_one=2.5e-3, w_power=1.2),  # the models that come with the package: laptop's teacher, students with patience
    Recipe("digits",  "colab",  (64, 128),            2,     256,  2000, 20000,  8000,     4000,   64,   5000,   "mixed", None),  # not run yet
    Recipe("digits",  "paper",  (64, 128),            2,     256,  2000, 100000, 50000,    50000,  512,  10000,  "mixed", None),  # not run yet
    Recipe("cifar10", "smoke",  (8, 16),              1,     32,   10,   10,     6,        3,      8,    10,     "mixed", 500),   # seconds; noise
    Recipe("cifar10", "laptop", (56, 80, 96),         1,     64,   4000, 13000,  9600,     840,    16,   300,    "mixed", None,  patch=2, scale_shift=True, rate=1e-3, rate_one=8e-4, w_power=2.0, along=3.0, rate_two=3e-4, late_rate=3.0, batch_distill=32, ema=0.999),  # 140 min, 2 cores, from the times of updates
    Recipe("cifar10", "colab",  (96, 192, 192),       2,     128,  4000, 30000,  6000,     1200,   64,   10000,  "mixed", None,  rate=2e-4, rate_one=2e-4, rate_two=5e-5, ema=0.9999, attention=(16, 8), warm_up=1000),  # not run yet; 3 h estimated, see below
    Recipe("cifar10", "paper",  (256, 256, 256, 256), 3,     128,  8000, 800000, 100000,   50000,  512,  50000,  "mixed", None,  rate=2e-4, rate_one=2e-4, rate_two=5e-5, ema=0.9999, attention=(16, 8), dropout=0.2, warm_up=1000, w_power=1.0, balanced=False),  # not run yet; see below
    Recipe("imagenet64", "smoke",  (8, 16),              1,     32,   10,   10,     6,        3,      8,    10,     "mixed", 500,   patch=4),  # seconds; noise
    Recipe("imagenet64", "laptop", (56, 80, 96),         1,     64,   4000, 13000,  4800,     840,    16,   300,    "mixed", None,  patch=4, scale_shift=True, rate=1e-3, rate_one=5e-4, rate_two=3e-4, late_rate=3.0, batch_distill=32, ema=0.999),  # cifar10's, in squares of 4 x 4; too narrow for them, see data/NOTES.md
    Recipe("imagenet64", "colab",  (96, 192, 192),       2,     128,  4000, 30000,  6000,     1200,   64,   10000,  "mixed", None,  patch=2, rate=2e-4, rate_one=2e-4, rate_two=5e-5, ema=0.9999, attention=(16, 8), warm_up=1000),  # not run yet; cifar10's, in squares of 2 x 2
    Recipe("imagenet64", "paper",  (192, 384, 576, 768), 3,     2048, 8000, 550000, 100000,   50000,  512,  50000,  "mixed", None,  rate=3e-4, rate_one=3e-4, rate_two=1e-4, ema=0.9999, attention=(32, 16, 8), dropout=0.1, warm_up=1000, w_power=1.0, balanced=False),  # not run yet; see below
    # Latents of captioned images.
    Recipe("emoji",   "smoke",  (16, 32),             1,     16,   10,   10,     6,        3,      8,    8,      "mixed", 60,    autoencoder=10, size=32, vae_channels=(8, 16), text_width=32, scale_shift=True, w_max=2.0),
    Recipe("emoji",   "laptop", (64, 96, 128),        1,     64,   1200, 3300,   800,      64,     8,    150,    "mixed", None,  autoencoder=900, size=32, vae_channels=(48, 64), scale_shift=True, w_max=2.0, w_power=1.5, t_power=0.4, w_rate=100.0, rate=5e-4, rate_one=1e-4, time_rate=10.0, rate_two=3e-4),  # 57 min, 2 cores, with notebooks 08-10
    # Stable Diffusion, whose teacher is the base, as it is; size is the base's own. get_recipe("sd", "colab", base="...", source="...").
    Recipe("sd",      "smoke",  (),                   0,     2,    0,    0,      3,        2,      4,    4,      "full",  8,     size=16,  lora=4,  checkpointing=True, w_max=8.0),  # random weights, see stable_diffusion.tiny_pipeline; noise
    Recipe("sd",      "laptop", (),                   0,     32,   0,    0,      2700,     128,    8,    150,    "mixed", None,  base="emoji/eps-base", size=32, lora=8, w_max=2.0, w_power=1.5, w_rate=30.0, rate_one=3e-3, rate_two=1e-3),  # a small base that is shipped, see data/make_eps_base.py
    Recipe("sd",      "colab",  (),                   0,     4,    0,    0,      4000,     300,    16,   200,    "mixed", 1000,  source="prompts", data_free=10, size=512, lora=64, checkpointing=True, eight_bit=True, w_min=2.0, w_max=14.0, w_power=1.0, rate_one=1e-4, rate_two=5e-5),  # not run yet; 4 h estimated, see below
)
# fmt: on
# cifar10 at paper: batch, rates, warm-up, dropout, attention, the updates of a halving and the running
# average are those of the released configurations of Salimans & Ho 2022 (their cifar_base and
# cifar_distill), and w is uniform, as in the paper. Not as published: the U-Net is diffusers',
# without attention in its middle, and stage one learns as fast as the teacher.

# imagenet64 at paper: likewise their imagenet64_base and imagenet64_distill, which do not say for how
# long the teacher is trained. Not as published: one head of attention per 192 features, not 64,
# and the two things above.

# cifar10 at colab, on paper: one image through the U-Net (14.4 M parameters) is 6.7 GFLOP. An update
# of the teacher is 3 such passes per image (forward, and backward at twice its cost), one of either
# stage is 5 (two more forwards, of the teacher). 30,000 + 6,000 + 15,600 updates of 128 images make
# 77 + 26 + 67 PFLOP: 3 hours at 15 TFLOP/s, a quarter of a T4's peak in fp16. Not measured on a T4.

# sd at colab, on paper: an image of 512 x 512 through the U-Net of Stable Diffusion 1.5 (860 M
# parameters) is 0.8 TFLOP. A forward, its repetition, a backward at the price of one more (frozen
# weights need no gradients) and the changes' own part are at most 4 such passes per image and
# update; 2 more are the teacher's in either stage. (4,000 + 3,300) * 6 * 4 * 0.8 are 140 PFLOP: 3.4
# hours at 11.5 TFLOP/s, which is what diffusers' own benchmark of sampling on a T4 comes to (1.79
# steps a second of 4 guided images, fp16). 1,000 pictures of its own, of 10 guided steps, take 0.4
# hours more. Not measured on a T4.

PROFILES = tuple(dict.fromkeys(recipe.profile for recipe in RECIPES))


def get_recipe(dataset: str, profile: str, **changes) -> Recipe:
    """The row of the table for a data set and a profile, with single values changed by name."""
    one_of("data set", dataset, dict.fromkeys(recipe.dataset for recipe in RECIPES))
    one_of("profile", profile, PROFILES)
    for key in changes:
        one_of("recipe entry", key, [field.name for field in fields(Recipe)])
    rows = {recipe.profile: recipe for recipe in RECIPES if recipe.dataset == dataset}
    return replace(rows[one_of(f"{dataset} profile", profile, rows)], **changes)


SIDES = {"digits": 8, "cifar10": 32, "imagenet64": 64}  # of the images that a row is for


def recipe_like(like: str, name: str, *, size: int, source: str = "", **changes) -> Recipe:
    """The row "data set/profile", for square images [c, size, size] of another data set `name`.

    The U-Net sees as many places as in that row, or nearly: larger images fall into larger squares
    of pixels. `source` is where `load_recipe_data` finds the images: a folder, or owner/name on the
    hub; data that are made in Python need none. `changes` are entries of the recipe, and stay.
    ValueError for a name that the table has, and for a size that fits no squares.
    """
    dataset, _, profile = like.partition("/")
    rows = dict.fromkeys(recipe.dataset for recipe in RECIPES)
    if name in rows:
        raise ValueError(
            f"{name} is the name of a data set that comes with this package: give the folder "
            "another name."
        )
    row = get_recipe(dataset, profile)
    fitted = {"size": size, "source": source}
    if row.track in SIDES:
        photographs = row.track in ("cifar10", "imagenet64")  # mirrored digits are none
        fitted |= {**_squares(row, size), "mirror": photographs}
    else:
        fitted["label"] = "text"
    row = get_recipe(dataset, profile, **fitted | changes)
    return replace(row, dataset=name, like=dataset)


def _squares(row: Recipe, size: int) -> dict:
    """The side of squares with which a row fits images of another size, and its attention."""
    side, halved = SIDES[row.dataset], 2 ** (len(row.channels) - 1)

    def patch(size: int) -> int | None:
        least = math.ceil(row.patch * size / side)
        return next((p for p in range(least, 2 * least + 1) if size % (p * halved) == 0), None)

    found = patch(size)
    if found is None:
        other = next((s for s in range(size, 0, -1) if patch(s)), halved)
        raise ValueError(
            f"size={size} does not fall into squares for {len(row.channels)} resolutions, each "
            f"half of the one before: ask for size={other}."
        )
    places = {side // row.patch >> k: size // found >> k for k in range(len(row.channels))}
    return {"patch": found, "attention": tuple(places[place] for place in row.attention)}


def as_recipe(kept: object) -> Recipe:
    """A recipe as a model's card has it; ValueError where it is none of this package.

    An entry that the card does not name was not there yet: it has its default, not the row's.
    """
    try:
        changes = {k: tuple(v) if isinstance(v, list) else v for k, v in kept.items()}
        dataset, like = changes.pop("dataset"), changes.pop("like", None)
        later = {f.name: f.default for f in fields(Recipe) if f.default is not MISSING}
        row = get_recipe(like or dataset, changes.pop("profile"), **later | changes)
        return replace(row, dataset=dataset, like=like)
    except (AttributeError, KeyError, TypeError) as error:
        raise ValueError(f"No recipe of cfgdistill: {reprlib.repr(kept)}.") from error
