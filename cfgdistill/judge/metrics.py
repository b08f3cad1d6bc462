"""How good are the samples? Quality, diversity and cost, on a feature net of our own.

Every such number depends on the feature net, the number of samples and the reference. A Frechet
distance is called FID only with the Inception network of 2015; that is `published_fid`. On our own
net it is never called that.
"""

import copy
import functools
import inspect
import itertools
import statistics
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence

import torch
from torch import Tensor, nn
from torchmetrics import MeanSquaredError, Metric
from torchmetrics.classification import MulticlassAccuracy
from torchmetrics.image.fid import FrechetInceptionDistance
from torchmetrics.image.inception import InceptionScore
from torchmetrics.image.kid import KernelInceptionDistance
from torchmetrics.utilities import dim_zero_cat

from cfgdistill.core.samplers import ddim, last
from cfgdistill.data.base import Data, whole_levels
from cfgdistill.training.environment import default_device
from cfgdistill.training.randomness import random_at, seeded


class Classifier(nn.Module):
    """A small convolutional classifier; calling it gives its 64 pooled features, [b, 64].

    It is the judge of the digits and CIFAR-10 models: the features carry the Frechet distance, and
    their `head` names the class of a sample. `logits` is both at once, which is what is trained.
    """

    num_features = 64  # torchmetrics asks for it
    kind, score = "classifier", "class_accuracy"

    def __init__(self, channels: int, size: int, num_classes: int):
        super().__init__()
        self.config = {"channels": channels, "size": size, "num_classes": num_classes}
        features = _features(channels, size, self.num_features)
        self.net = nn.Sequential(features, nn.Linear(self.num_features, num_classes))

    def forward(self, x: Tensor) -> Tensor:
        return self.net[0](x)

    def head(self, features: Tensor) -> Tensor:
        return self.net[1](features)

    def logits(self, x: Tensor) -> Tensor:
        return self.net(x)

    def describe(self) -> dict:
        return {"classifier": self.config}


class Matcher(nn.Module):
    """Which caption belongs to an image? The judge of text-to-image models, in place of CLIP.

    Image features [b, 128], and a word vector for every token, whose mean over a caption must point
    where the features of its image do. `logits` are scaled cosines with all captions of one set, so
    that a caption is a class. The share of samples whose own caption comes first is the retrieval
    score. It is not CLIP's, and only compares rows of one table.
    """

    num_features = 128
    kind, score = "text-image matcher", "retrieval_score"

    def __init__(self, channels: int, size: int, tokens: Tensor, vocabulary: int):
        super().__init__()
        self.config = {"channels": channels, "size": size, "vocabulary": vocabulary}
        image = nn.Sequential(  # 32 pixels are enough, and an autoencoder's blur matters less
            nn.AdaptiveAvgPool2d(min(size, 32)),
            *_features(channels, min(size, 32), self.num_features),
        )
        self.net = _TwoTowers(image, nn.EmbeddingBag(vocabulary, self.num_features))
        self.tokens = tokens  # [n, l]: the captions of the set

    def forward(self, x: Tensor) -> Tensor:
        return self.net.image(x)

    def head(self, features: Tensor) -> Tensor:
        return self.net.match(features, self.tokens.to(features.device))

    def logits(self, x: Tensor) -> Tensor:
        return self.net(x, self.tokens.to(x.device))

    def for_captions(self, tokens: Tensor) -> "Matcher":
        """The same networks with other captions [n, l] to choose from."""
        other = copy.copy(self)
        other.tokens = tokens
        return other

    def describe(self) -> dict:
        return {"matcher": self.config}


class _TwoTowers(nn.Module):
    def __init__(self, image: nn.Module, text: nn.Module):
        super().__init__()
        self.image, self.text = image, text

    def forward(self, x: Tensor, tokens: Tensor) -> Tensor:
        """Scaled cosines, [b, n], of images [b, c, h, h] and captions [n, l]."""
        return self.match(self.image(x), tokens)

    def match(self, features: Tensor, tokens: Tensor) -> Tensor:
        normalize = nn.functional.normalize
        return 20 * normalize(features) @ normalize(self.text(tokens)).T


def _features(channels: int, size: int, features: int) -> nn.Sequential:
    """Images to `features` pooled numbers, [b, features]."""
    body: list[nn.Module] = [nn.Conv2d(channels, 32, 3, padding=1)]
    inner, width = 32, 64
    while size > 4:
        body += [*_block(inner, width, stride=1), *_block(width, width, stride=2)]
        inner, size = width, size // 2
    body += [*_block(inner, features, stride=1), nn.AdaptiveAvgPool2d(1), nn.Flatten()]
    return nn.Sequential(*body)


def _block(inner: int, outer: int, stride: int) -> list[nn.Module]:
    return [
        nn.GroupNorm(8, inner),
        nn.SiLU(),
        nn.Conv2d(inner, outer, 3, stride=stride, padding=1),
    ]


def classification_loss(classifier, x, cond, draw) -> Tensor:
    """Cross-entropy, [b], for `training.train`."""
    return nn.functional.cross_entropy(classifier.logits(x), cond, reduction="none")


EVERY = slice(0, None, 1)


def share_of_this_process() -> slice:
    """Every k-th example where k processes run together, else all."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return EVERY
    return slice(torch.distributed.get_rank(), None, torch.distributed.get_world_size())


def _from(first: int, share: slice) -> slice:
    """A share of all examples, of those that begin with number `first`."""
    return slice((share.start - first) % share.step, None, share.step)


def _in_order(gathered: Tensor) -> Tensor:
    """What k processes have, one after the other, in the order in which one would have it."""
    k = share_of_this_process().step
    order = torch.cat([torch.arange(p, len(gathered), k) for p in range(k)]).argsort()
    return gathered[order.to(gathered.device)]


def _where_float64_is(device: torch.device) -> torch.device:
    """`device`, or the CPU where it knows no float64, as Apple's GPUs."""
    try:
        torch.zeros(1, dtype=torch.float64, device=device)
    except (TypeError, RuntimeError):
        return torch.device("cpu")
    return device


class _Given(nn.Identity):
    """The feature net of a torchmetrics metric that is handed features instead of images."""

    def __init__(self, num_features: int):
        super().__init__()
        self.num_features = num_features


class KernelDistance(KernelInceptionDistance):
    """torchmetrics' kernel distance in subsets of 1,000 samples, or of all if they are fewer."""

    def compute(self) -> tuple[Tensor, Tensor]:
        self.real_features = [_in_order(dim_zero_cat(self.real_features))]
        self.fake_features = [_in_order(dim_zero_cat(self.fake_features))]
        self.subset_size = min(1000, len(self.real_features[0]), len(self.fake_features[0]))
        return super().compute()


class PrecisionRecall(Metric):
    """Improved precision and recall (Kynkaanniemi et al. 2019, alg. 1) -> tensor [2].

    The manifold of a set is the union of balls around its points, each as large as the distance to
    the point's k-th nearest neighbour. Precision is the share of samples in the manifold of the
    reference, recall the share of the reference in that of the samples.
    """

    full_state_update = False

    def __init__(self, k: int = 3):
        super().__init__()
        self.k = k
        self.real: list[Tensor]
        self.fake: list[Tensor]
        for state in ("real", "fake"):
            self.add_state(state, [], dist_reduce_fx="cat")

    def update(self, features: Tensor, real: bool) -> None:
        (self.real if real else self.fake).append(features)

    def compute(self) -> Tensor:
        real, fake = dim_zero_cat(self.real), dim_zero_cat(self.fake)
        return torch.stack([self._share(fake, real), self._share(real, fake)])

    def _share(self, points: Tensor, centres: Tensor) -> Tensor:
        """The share of `points` in the manifold of `centres`."""
        if len(centres) <= self.k:
            raise ValueError(f"Precision and recall need more than {self.k} points of each kind.")
        exact = {"compute_mode": "donot_use_mm_for_euclid_dist"}  # a point is at 0 from itself
        radius = [
            torch.cdist(part, centres, **exact).kthvalue(self.k + 1).values
            for part in centres.split(1000)
        ]
        inside = [
            (torch.cdist(part, centres, **exact) <= torch.cat(radius)).any(1)
            for part in points.split(1000)
        ]
        return torch.cat(inside).float().mean()

    def reset(self) -> None:
        """Forget the samples; keep the reference."""
        real = list(self.real)
        super().reset()
        self.real = real


class Judge:
    """A feature net with the statistics of one reference split.

    update(x, labels) takes samples in batches of any size and forgets the images; compute() gives

    frechet_distance   of two Gaussians fitted to the features (Heusel et al. 2017)
    kernel_distance    squared MMD with the kernel (a.b / d + 1)^3 (Binkowski et al. 2018), unbiased
    inception_score    exp E KL(p(y|x) || p(y)) of the net's own classes (Salimans et al. 2016)
    precision, recall  share of samples inside the reference's manifold, and the other way round
                       (Kynkaanniemi et al. 2019, k = 3)
    class_accuracy     share of samples that the net says are of their class; for captioned images
                       it is called retrieval_score (see `Matcher`); not from a net of other classes

    The last four of these need single features: they look at the first `most` samples, so that
    memory does not grow with their number. Any module will do that gives features
    [b, num_features] when called, and class logits [b, k] of those by `head`. Several processes
    that each judge a share of the samples get the same answer, for all of them.
    """

    def __init__(
        self, classifier: nn.Module, reference: Data, batch: int = 1000, most: int = 10_000
    ):
        self.classifier, self.batch, self.most = classifier.eval(), batch, most
        self.num_features = classifier.num_features
        self.name = f"{reference.name} {classifier.kind}, {self.num_features} features"
        self.reference = f"{reference.name} {reference.split}, {len(reference)} images"
        self.device = next(classifier.parameters()).device
        self.sums_on = _where_float64_is(self.device)
        self.share = share_of_this_process()
        given = _Given(self.num_features)  # one pass of the net serves all of them
        keep = {"reset_real_features": False}
        self.frechet = FrechetInceptionDistance(given, **keep).to(self.sums_on)
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "Metric .* will save all extracted features")
            self.kernel = KernelDistance(given, subsets=20, **keep).to(self.sums_on)
            self.inception = InceptionScore(given, splits=1).to(self.sums_on)
        self.manifold = PrecisionRecall().to(self.sums_on)
        accuracy = MulticlassAccuracy(reference.num_classes, average="micro").to(self.sums_on)
        self.accuracy = accuracy if classifier.score else None
        self.samples = 0
        with torch.no_grad():
            for rows in torch.arange(len(reference))[self.share].split(batch):
                features = classifier(reference.batch(rows)[0].to(self.device)).to(self.sums_on)
                self.frechet.update(features, real=True)
                if rows[0] < most:
                    single = features[: int((rows < most).sum())]
                    self.kernel.update(single, real=True)
                    self.manifold.update(single, real=True)

    def reset(self) -> None:
        """Forget the samples; keep the reference."""
        accuracy = [] if self.accuracy is None else [self.accuracy]
        for metric in (self.frechet, self.kernel, self.manifold, self.inception, *accuracy):
            metric.reset()
        self.samples = 0

    @torch.no_grad()
    def update(self, x: Tensor, labels: Tensor) -> None:
        """Take in samples x [b, *d] in [-1, 1] that should be of the classes `labels`, [b].

        Where k processes run, each takes in every k-th, as `samples` and `evaluate` share them.
        """
        most = len(range(self.most)[self.share])  # of this process
        for part, own in zip(x.split(self.batch), labels.split(self.batch), strict=True):
            features = self.classifier(part.to(self.device))
            logits = self.classifier.head(features).to(self.sums_on)
            features, own = features.to(self.sums_on), own.to(self.sums_on)
            self.frechet.update(features, real=False)
            if self.accuracy is not None:
                self.accuracy.update(logits, own)
            single = max(0, most - self.samples)
            if single:
                self.kernel.update(features[:single], real=False)
                self.manifold.update(features[:single], real=False)
                self.inception.update(logits[:single])
            self.samples += len(part)

    def compute(self) -> dict[str, float]:
        """All of the above for the samples so far; at least two of them."""
        # The kernel distance draws its subsets.
        with seeded(0), warnings.catch_warnings():
            warnings.filterwarnings("ignore", "std", UserWarning)  # of one split there is none
            precision, recall = self.manifold.compute().tolist()
            found = {
                "frechet_distance": self.frechet.compute().item(),
                "kernel_distance": self.kernel.compute()[0].item(),
                "inception_score": self.inception.compute()[0].item(),
                "precision": precision,
                "recall": recall,
            }
            if self.accuracy is not None:
                found[self.classifier.score] = self.accuracy.compute().item()
            return found

    def __call__(self, x: Tensor, labels: Tensor) -> dict[str, float]:
        """Judge these samples alone."""
        self.reset()
        self.update(x, labels)
        return self.compute()

    @torch.no_grad()
    def share_in(self, x: Tensor, group: Tensor) -> float:
        """The share of samples x [b, *d] whose most likely class, or caption, is one of a group.

        group: bool [number of classes]; those of "animal", say, which many captions fit
        """
        found = self.classifier.head(self._features(x)).argmax(1).cpu()
        return group[found].float().mean().item()

    @torch.no_grad()
    def diversity(self, x: Tensor) -> float:
        """How different samples x [b, *d] of one condition are, b > 1: one minus the mean cosine
        between the features of two of them, 0 where all are the same."""
        features = nn.functional.normalize(self._features(x).to(self.sums_on).double())
        n = len(features)
        return 1 - ((features.sum(0).square().sum() - n) / (n * (n - 1))).item()

    def _features(self, x: Tensor) -> Tensor:
        """Of all samples at once, [b, num_features], as neither of the two above keeps sums."""
        return torch.cat([self.classifier(part.to(self.device)) for part in x.split(self.batch)])


def samples(
    denoiser,
    shape: tuple[int, ...],
    labels: Tensor,
    *,
    steps: int,
    w: int | float | None,
    seed: int = 0,
    batch: int = 125,
    sampler=ddim,
    share: slice = EVERY,
    decode: Callable[[Tensor], Tensor] | None = None,
) -> Iterator[Tensor]:
    """One sample for each label or other condition, batch by batch: [b, *shape] in [-1, 1], or
    what `decode` makes of latents. ValueError where they are no finite numbers.

    The same seed gives every model the same noise. What a sampler adds on the way comes from a
    generator for each image, whose numbers depend on the seed, the sampler and the image's place
    among all. With a `share`, only those of all samples are made: the same as without it.
    """
    noise, name = torch.Generator().manual_seed(seed), sampler_name(sampler)
    for first in range(0, len(labels), batch):
        own = range(first, min(first + batch, len(labels)))[_from(first, share)]
        z = torch.randn(min(batch, len(labels) - first), *shape, generator=noise, device="cpu")
        z = z[_from(first, share)].to(denoiser.device)
        cond = labels[own.start : own.stop : own.step].to(denoiser.device)
        added = {}
        if "generator" in inspect.signature(sampler).parameters:
            added["generator"] = [random_at(seed, name, i) for i in own]
        x = last(sampler(denoiser, z, steps, cond, w, **added))
        if not x.isfinite().all():
            raise ValueError(
                f"The samples at w = {w} hold numbers that are not finite: choose a smaller w, or "
                "look at the model's loss, if it is so at every w."
            )
        yield x.cpu().clamp(-1, 1) if decode is None else decode(x).cpu()


def sampler_name(sampler: Callable) -> str:
    """What tables, caches and seeds call it; what a functools.partial fixes is part of the name."""
    if isinstance(sampler, functools.partial):
        fixed = [*map(repr, sampler.args), *(f"{k}={v!r}" for k, v in sampler.keywords.items())]
        return f"{sampler_name(sampler.func)}({', '.join(fixed)})"
    return getattr(sampler, "__name__", type(sampler).__name__)


def generate(denoiser, shape: tuple[int, ...], labels: Tensor, **how) -> Tensor:
    """The samples of `samples`, all at once: [n, *shape]."""
    return torch.cat(list(samples(denoiser, shape, labels, **how)))


def evaluate(
    denoiser,
    judge: Judge,
    data: Data,
    *,
    model: str,
    steps: int,
    w: int | float,
    n: int,
    seed: int = 0,
    batch: int = 125,
    sampler=ddim,
    teacher=None,
    teacher_steps: int = 128,
) -> dict:
    """One row of a results table: quality and cost of n samples, the classes in equal parts.

    Samples are judged batch by batch and forgotten; several processes share them. With a
    `teacher` the row also has distance_to_teacher: the root mean square, over pixels in [-1, 1], of
    what lies between a sample and the teacher's own, by DDIM in teacher_steps from the same noise
    and at the same w. It may also be given as those samples, [n, *d], made by `generate`.
    """
    (conds, labels), share = data.prompts(n), share_of_this_process()
    how = {"w": w, "seed": seed, "batch": batch, "share": share, "decode": data.decode}
    mine = samples(denoiser, data.shape, conds, steps=steps, sampler=sampler, **how)
    firsts = range(0, n, batch)
    if isinstance(teacher, Tensor):
        truth = (teacher[first : first + batch][_from(first, share)] for first in firsts)
    elif teacher is not None:
        truth = samples(teacher, data.shape, conds, steps=teacher_steps, **how)
    distance, seconds = MeanSquaredError(squared=False).to(judge.device), 0.0
    judge.reset()
    for first in firsts:
        denoiser.nfe = 0
        started = time.perf_counter()
        x = next(mine)
        seconds += time.perf_counter() - started
        nfe = denoiser.nfe
        judge.update(x, labels[first : first + batch][_from(first, share)])
        if teacher is not None:
            distance.update(x.to(judge.device), next(truth).to(judge.device))
    row = {
        "model": model,
        "sampler": sampler_name(sampler),
        "steps": steps,
        "nfe": nfe,
        "w": w,
        **{key: round(value, 4) for key, value in judge.compute().items()},
        "ms_per_image": round(1000 * seconds / n, 3),
    }
    if teacher is not None:
        row["distance_to_teacher"] = round(distance.compute().item(), 4)
    if n <= judge.num_features:
        row["warning"] = (
            f"{n} samples are too few for a distance of {judge.num_features} features, "
            "whose covariance they do not fix: compare it with nothing, or take many more."
        )
        if share.start == 0:  # once, not from every process
            warnings.warn(row["warning"], stacklevel=2)
    return row


def tabulate(rows: list[dict], values: dict[str, str]) -> list[list[str]]:
    """Rows of a results table as text: a line per model, sampler and steps.

    Each is model, steps, NFE, then every value in its format at every w, small w first ("-" where
    it was not measured), and the milliseconds per image at the fastest w: all do the same work.
    Values of several rows of one model, steps and w, such as those of several seeds, are averaged.
    """
    lines: dict[tuple, list[dict]] = {}
    for row in rows:
        model = row["model"] + ("" if row["sampler"] == "ddim" else f", {row['sampler']}")
        lines.setdefault((model, row["steps"], row["nfe"]), []).append(row)
    weights = sorted({row["w"] for row in rows})
    text = []
    for first, own in lines.items():
        numbers = []
        for (key, form), w in itertools.product(values.items(), weights):
            found = [row[key] for row in own if row["w"] == w and key in row]
            numbers.append(format(statistics.mean(found), form) if found else "-")
        ms = [row["ms_per_image"] for row in own if "ms_per_image" in row]
        text.append([*map(str, first), *numbers, f"{min(ms):.2f}" if ms else "-"])
    return text


def table(rows: list[dict], values: dict[str, str]) -> str:
    """`tabulate` as lines of text, under the names of the values and of every w."""
    weights = sorted({row["w"] for row in rows})
    names = [f"w = {w:g}" for w in weights]
    first_line = ["model", "steps", "NFE", *names * len(values), "ms/image"]
    lines = [first_line, *tabulate(rows, values)]
    widths = [max(len(line[k]) for line in lines) + 2 for k in range(len(first_line))]
    heads = " " * sum(widths[:3])
    for k, key in enumerate(values):
        first, head = 3 + k * len(weights), key.replace("_", " ").replace("frechet", "Frechet")
        wanted = len(head) + 2 - sum(widths[first : first + len(weights)])
        widths[first] += max(0, wanted)
        heads += head.rjust(sum(widths[first : first + len(weights)]))
    text = [
        "".join(
            value.rjust(width) if k else value.ljust(width)
            for k, (value, width) in enumerate(zip(line, widths, strict=True))
        )
        for line in lines
    ]
    return "\n".join([heads, *text])


FID_SAMPLES = 50_000


def published_fid(batches: Iterable[Tensor], reference: Data) -> float:
    """FID as papers report it: Inception-v3 features of 2015, 50,000 samples [b, 3, h, h] in
    [-1, 1], against all of the training split. Needs torch-fidelity and its weights.

    Raises OSError where either cannot be had, ValueError for another protocol; it never falls back
    on another net.
    """
    if reference.split != "train" or reference.name != "cifar10" or len(reference) != FID_SAMPLES:
        raise ValueError(
            "The published FID compares with all 50,000 training images of cifar10, not with "
            f"{len(reference)} of {reference.name} {reference.split}: use our own distance instead."
        )
    frechet = _inception(reference)
    frechet.reset()  # of the samples of another call; the reference stays
    seen = 0
    for x in batches:
        frechet.update(whole_levels(x).to(frechet.device), real=False)
        seen += len(x)
    if seen != FID_SAMPLES:
        raise ValueError(f"The published FID is defined on {FID_SAMPLES:,} samples, not {seen:,}.")
    return frechet.compute().item()


@functools.lru_cache(maxsize=1)
def _inception(reference: Data):
    """The Frechet distance of the published FID, which has seen the reference."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            frechet = FrechetInceptionDistance(2048, reset_real_features=False)
    except ModuleNotFoundError as error:
        raise OSError(
            "The published FID needs torch-fidelity, which is not installed: "
            "pip install 'cfgdistill[fid]'. Our own Frechet distance is no substitute for it."
        ) from error
    except Exception as error:  # of urllib, http and torch, each with kinds of its own
        raise OSError(
            "The Inception weights of the published FID could not be had "
            f"({type(error).__name__}: {error}): connect to the network, or put them where "
            "torch-fidelity looks, ~/.cache/torch/hub/checkpoints."
        ) from error
    frechet.to(_where_float64_is(default_device()))
    for rows in torch.arange(len(reference)).split(250):
        frechet.update(whole_levels(reference.batch(rows)[0]).to(frechet.device), real=True)
    return frechet


def clip_score(
    images: Tensor,
    captions: Sequence[str],
    model: str = "openai/clip-vit-base-patch16",
    batch: int = 64,
) -> float:
    """CLIP score (Hessel et al. 2021): 100 times the mean cosine of image and caption, at least 0.

    images [n, 3, h, h] in [-1, 1]; `model` is a CLIP on the hub or in a folder, and a score means
    nothing without its name. Raises OSError where it cannot be had; the retrieval score of
    `Matcher` is another thing and never takes its place.
    """
    from torchmetrics.multimodal.clip_score import CLIPScore
    from transformers import CLIPModel, CLIPProcessor

    if len(images) != len(captions):
        raise ValueError(f"{len(captions)} captions for {len(images)} images: pass one for each.")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            parts = CLIPModel.from_pretrained(model), CLIPProcessor.from_pretrained(model)
    except Exception as error:  # of the hub, http and transformers, each with kinds of its own
        raise OSError(
            f"The CLIP model {model!r} could not be had ({type(error).__name__}): connect to the "
            "network once, or name a folder that holds it. No other number is a CLIP score."
        ) from error
    clip, processor = parts
    for name in ("get_image_features", "get_text_features"):
        setattr(clip, name, _features_alone(getattr(clip, name)))
    score = CLIPScore(lambda: (clip, processor)).to(default_device())
    for rows in torch.arange(len(images)).split(batch):
        score.update(whole_levels(images[rows]).to(score.device), [captions[i] for i in rows])
    return score.compute().item()


def _features_alone(method: Callable) -> Callable[..., Tensor]:
    """transformers 5 gives the features among other things; torchmetrics 1.9 wants them alone."""

    def features(*given):
        found = method(*given)
        return found if isinstance(found, Tensor) else found.pooler_output

    return features
