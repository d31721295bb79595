"""The detection protocol: an encoder as the trunk of Faster or Mask R-CNN, trained and scored."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from salmask.detection import score_coco, score_voc
from salmask.detection.architecture import ANCHORS, Norm
from salmask.detection.batches import Example, Resizing, trainable, training_batches
from salmask.detection.drawing import sheet
from salmask.detection.inference import detect
from salmask.detection.objects import Annotations, DetectionData, Detections, DetectionScores
from salmask.detection.recipes import REPLACEABLE, DetectorRecipe, resolved
from salmask.detection.score_coco import Kind
from salmask.detection.training import precise_batch_norm, train
from salmask.devices import Precision, place
from salmask.distributed import rank
from salmask.encoders.on_disk import Encoder
from salmask.errors import UserError
from salmask.files import write_bytes, write_rows
from salmask.job import Job
from salmask.params.ranges import (
    Milestones,
    NonNegativeInt,
    Positive,
    PositiveInt,
    Several,
    Share,
    Side,
)
from salmask.params.values import bind

CLASSES, SHEET = "classes.csv", "detections.png"
Sides = Several[Side]  # px


def run(
    encoders: Mapping[str, Encoder],
    data: DetectionData,
    job: Job,
    *,
    recipe: str,
    masks: bool | None = None,
    freeze_encoder: bool = False,
    norm: Norm = "sync",
    precise_norm: NonNegativeInt = 200,
    iterations: PositiveInt | None = None,
    milestones: Milestones | None = None,
    batch: PositiveInt | None = None,
    lr: Positive | None = None,
    scale_lr: bool = False,
    warmup: NonNegativeInt | None = None,
    warmup_factor: Share | None = None,
    short_sides: Sides | None = None,
    test_short_side: Side = 800,
    long_side: Side = 1333,
    flip: Share = 0.5,
    difficult: bool = True,
    anchors: Sides = ANCHORS,
    regions: PositiveInt = 512,
    pictures: PositiveInt = 8,
    precision: Precision = "auto",
) -> dict[str, float]:
    """Trains a detector around `encoders["trained"]` and scores it on the test images.

    Writes the results of each class, CLASSES, and drawn detections, SHEET, to `job.out`. Several
    processes call this together; the first one writes.

    Args:
        encoders: the encoder `trained`; the detector works on a copy.
        data: images to train on and to test on.
        job: device, seed and folders.
        recipe: name of a published schedule, one of RECIPES. None below keeps its value.
        masks: whether there is a mask head; None: if all annotations have masks.
        freeze_encoder: whether the stem to layer3 keep their weights.
        norm: `sync`, `local` or `frozen`, as in `Detector`.
        precise_norm: training batches from which batch norms take their statistics before the
            test; 0 keeps the running averages.
        iterations: number of optimizer steps.
        milestones: iterations at which the rate is multiplied by 0.1.
        batch: images of all processes.
        lr: learning rate.
        scale_lr: multiply the rate by batch / the recipe's batch.
        warmup: iterations of the linear warm-up.
        warmup_factor: share of the rate at which the warm-up begins.
        short_sides: px; one of them is drawn for each training image.
        test_short_side: px, of test images.
        long_side: maximum of the long side, px.
        flip: share of training images that are flipped.
        difficult: whether to learn from VOC's difficult objects.
        anchors: sides in px.
        regions: number of regions of an image that the heads are trained on.
        pictures: number of test images on the sheet.
        precision: `auto` is bfloat16 on CUDA.

    Returns:
        AP in percent: `detect_<dataset>_box_ap`, `_box_ap50`, `_box_ap75`; with COCO's rule also
        `_box_ap_s`, `_box_ap_m`, `_box_ap_l` and, with masks, all six as `_mask_...`. Empty in all
        processes but the first.

    Raises:
        UserError: options and data do not fit together. Also what `train` raises.
    """
    from salmask.detection.detector import Detector  # imports torchvision, which is slow

    schedule = resolved(
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
    masks = _uses_masks(data, masks)
    detector = Detector(
        encoders["trained"],
        len(data.train.classes),
        masks=masks,
        freeze_encoder=freeze_encoder,
        norm=norm,
        anchors=anchors,
        regions=regions,
        seed=job.seed,
    )
    place(detector, job.device)
    images = trainable(data.train, difficult)
    if not images:
        raise UserError(f"{data.name} has no training image with an object to learn from")
    resizing = Resizing(schedule.short_sides, long_side, flip)

    def batches(start: int, end: int) -> Iterator[list[Example]]:
        return training_batches(
            images,
            resizing,
            seed=job.seed,
            batch=schedule.batch,
            start=start,
            end=end,
            masks=masks,
            workers=job.workers,
            device=job.device,
        )

    train(detector, batches, schedule, job, precision)
    precise_batch_norm(detector, batches, schedule.iterations, precise_norm, job, precision)
    detections = detect(detector, data.test.images, test_short_side, long_side, job, precision)
    if rank():
        return {}
    scores = score(data.test, detections, masks)
    write_rows(job.out / CLASSES, *_class_table(data.test, scores))
    write_bytes(job.out / SHEET, sheet(data.test, detections, pictures))
    return {
        f"detect_{data.name}_{kind}_{name}": value
        for kind, of_kind in scores.items()
        for name, value in of_kind.overall.items()
    }


def training_options(given: Mapping[str, Any], where: str) -> tuple[dict[str, Any], DetectorRecipe]:
    """The options of `run`, and the recipe that they resolve to.

    Args:
        given: the section `detect.<name>.training` of params.yaml.
        where: the place of the section, for messages.

    Raises:
        UserError: an option is missing or has a wrong value, or there is no such recipe.
    """
    options = bind(run, given, where)
    changes = {key: options[key] for key in REPLACEABLE}
    try:
        return options, resolved(options["recipe"], options["scale_lr"], **changes)
    except UserError as error:
        raise UserError(f"{where}.{error}") from None


def score(
    annotations: Annotations, detections: Sequence[Detections], masks: bool
) -> dict[Kind, DetectionScores]:
    """Scores of boxes by the annotations' rule, and of masks by COCO's rule if there are masks."""
    if annotations.rule == "voc":
        return {"box": score_voc.score(annotations, detections)}
    scores: dict[Kind, DetectionScores] = {"box": score_coco.score(annotations, detections, "box")}
    if masks:
        scores["mask"] = score_coco.score(annotations, detections, "mask")
    return scores


def _uses_masks(data: DetectionData, masks: bool | None) -> bool:
    """Whether the detector has a mask head. Raises UserError for data that do not fit together."""
    available = data.train.has_masks() and data.test.has_masks()
    if masks and not available:
        raise UserError(f"masks: {data.name} was read without masks: set `masks: null`")
    return available if masks is None else masks


def _class_table(
    annotations: Annotations, scores: Mapping[Kind, DetectionScores]
) -> tuple[list[dict[str, Any]], list[str]]:
    """One row for each kind and class, and the columns; a class without objects has no scores."""
    names = list(dict.fromkeys(name for of_kind in scores.values() for name in of_kind.overall))
    rows: list[dict[str, Any]] = []
    for kind, of_kind in scores.items():
        for class_name in annotations.classes:
            row = of_kind.classes[class_name]
            aps = {ap: f"{row[ap]:.4f}" if ap in row else "" for ap in names}
            objects = {"kind": kind, "class": class_name, "objects": int(row["objects"])}
            rows.append(objects | aps)
    return rows, ["kind", "class", "objects", *names]
