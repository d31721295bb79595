"""The detection protocol: an encoder as the trunk of Faster or Mask R-CNN, trained and scored."""

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field, NonNegativeInt, PositiveFloat, PositiveInt

from salmask.detection import score_coco as coco
from salmask.detection import score_voc as voc
from salmask.detection.batches import Example, Resizing, trainable, training_batches
from salmask.detection.detector import ANCHORS, Detector, Norm
from salmask.detection.drawing import sheet
from salmask.detection.inference import search
from salmask.detection.objects import Annotations, Detections, Scores
from salmask.detection.recipes import adapted
from salmask.detection.training import precise_batch_norm, train
from salmask.devices import Precision, place
from salmask.distributed import rank
from salmask.encoders.on_disk import Encoder
from salmask.errors import UserError
from salmask.files import write_bytes, write_rows
from salmask.job import Job
from salmask.params.values import Share

CLASSES, SHEET = "classes.csv", "detections.png"
Sides = Annotated[tuple[PositiveInt, ...], Field(min_length=1)]  # px


@dataclass(frozen=True)
class Sets:
    """What to train on and what to score. name: of the dataset, as metrics and files carry it."""

    name: str
    train: Annotations
    test: Annotations


def run(
    encoders: Mapping[str, Encoder],
    sets: Sets,
    job: Job,
    *,
    recipe: str,
    masks: bool | None = None,
    freeze_encoder: bool = False,
    norm: Norm = "sync",
    precise_norm: NonNegativeInt = 200,
    iterations: PositiveInt | None = None,
    milestones: tuple[PositiveInt, ...] | None = None,
    batch: PositiveInt | None = None,
    lr: PositiveFloat | None = None,
    scale_lr: bool = False,
    warmup: NonNegativeInt | None = None,
    warmup_factor: Share | None = None,
    short_sides: Sides | None = None,
    test_short_side: PositiveInt = 800,
    long_side: PositiveInt = 1333,
    flip: Share = 0.5,
    difficult: bool = True,
    anchors: Sides = ANCHORS,
    regions: PositiveInt = 512,
    pictures: PositiveInt = 8,
    precision: Precision = "auto",
) -> dict[str, float]:
    """AP in percent: `detect_<dataset>_box_ap`, `_box_ap50`, `_box_ap75`; on COCO's format also
    `_box_ap_s`, `_m`, `_l` and, with masks, all six as `_mask_...`.

    Trains with `encoders["trained"]`, which stays as it is. recipe: one of RECIPES; iterations to
    short_sides take the place of its own where given. batch: images of all processes. scale_lr: the
    recipe's rate times batch / its batch.
    precise_norm: batches of training images that batch norms take their statistics from before the
    tests, 0 to keep the running averages.
    masks: whether there is a mask head (None: where all annotations have masks). difficult: learn
    VOC's difficult objects too. regions: of an image that the heads learn on. pictures: how many to
    draw. precision: `auto` is bfloat16 on CUDA. Writes to `job.out` each class's results, CLASSES,
    and the drawn ones, SHEET. Several processes call this together; the first one writes and tells,
    the others return nothing. Raises UserError for what does not fit.
    """
    chosen = adapted(
        recipe,
        scale_lr,
        iterations=iterations,
        milestones=milestones,
        batch=batch,
        lr=lr,
        warmup=warmup,
        warmup_factor=warmup_factor,
        short_sides=short_sides,
    )
    masks = _checked(sets, masks)
    detector = Detector(
        encoders["trained"],
        len(sets.train.classes),
        masks=masks,
        freeze_encoder=freeze_encoder,
        norm=norm,
        anchors=anchors,
        regions=regions,
        seed=job.seed,
    )
    place(detector, job.device)
    learned = trainable(sets.train, difficult)
    if not learned:
        raise UserError(f"no image to train on in {sets.name} shows an object that counts")
    looks = Resizing(chosen.short_sides, long_side, flip)

    def batches(start: int, end: int) -> Iterator[list[Example]]:
        return training_batches(
            learned,
            looks,
            seed=job.seed,
            batch=chosen.batch,
            start=start,
            end=end,
            masks=masks,
            workers=job.workers,
        )

    train(detector, batches, chosen, job, precision)
    precise_batch_norm(detector, batches, chosen.iterations, precise_norm, job, precision)
    found = search(detector, sets.test.pictures, test_short_side, long_side, job, precision)
    if rank():
        return {}
    scores = scored(sets.test, found, masks)
    write_rows(job.out / CLASSES, *_table(sets.test, scores))
    write_bytes(job.out / SHEET, sheet(sets.test, found, pictures))
    return {
        f"detect_{sets.name}_{kind}_{name}": value
        for kind, some in scores.items()
        for name, value in some.overall.items()
    }


def scored(
    annotations: Annotations, found: Sequence[Detections], masks: bool
) -> dict[coco.Kind, Scores]:
    """By the annotations' own rule, boxes and, by COCO's with masks, masks."""
    if annotations.rule == "voc":
        return {"box": voc.score(annotations, found)}
    scores: dict[coco.Kind, Scores] = {"box": coco.score(annotations, found, "box")}
    if masks:
        scores["mask"] = coco.score(annotations, found, "mask")
    return scores


def _checked(sets: Sets, masks: bool | None) -> bool:
    """Whether there are to be masks. Raises UserError for sets that do not belong together."""
    if not re.fullmatch(r"[\w-]+", sets.name):
        raise UserError(f"a dataset's name goes into metrics' names: letters only, not {sets.name}")
    if (sets.train.classes, sets.train.rule) != (sets.test.classes, sets.test.rule):
        raise UserError(f"the classes or formats of {sets.name}'s train and test sets differ")
    there = sets.train.has_masks() and sets.test.has_masks()
    if masks and not there:
        raise UserError(f"masks are asked for, and {sets.name} was read without")
    return there if masks is None else masks


def _table(
    annotations: Annotations, scores: Mapping[coco.Kind, Scores]
) -> tuple[list[dict[str, Any]], list[str]]:
    """One row for each kind and class, and the columns; empty where a class has no objects."""
    names = list(dict.fromkeys(name for some in scores.values() for name in some.overall))
    rows: list[dict[str, Any]] = []
    for kind, some in scores.items():
        for name in annotations.classes:
            row = some.classes[name]
            aps = {ap: f"{row[ap]:.4f}" if ap in row else "" for ap in names}
            rows.append({"kind": kind, "class": name, "objects": int(row["objects"])} | aps)
    return rows, ["kind", "class", "objects", *names]
