"""CPU time to make the views of a batch, relative to MoCo's two-crop pipeline on PIL images.

    python -m benchmarks.loader --size 224 photos/      # all files of a folder
    python -m benchmarks.loader --size 64               # images drawn by code

Both start from the same files and end in normalised float32 tensors. Ours also crops saliency maps
of three levels, and masks the views, with hard negatives; it ends in channels_last. There are no
worker processes: the figure is the CPU time of all that workers and training process would do.
"""

import random
import tempfile
from collections.abc import Callable
from pathlib import Path

import click
import numpy as np
import torch
from PIL import Image, ImageFilter
from torch import Tensor

from benchmarks.ratios import interleaved, milliseconds, ratio, report
from salmask.data.columns import Digests, Texts
from salmask.data.loader import Schedule, training_views
from salmask.data.manifest import Manifest
from salmask.data.normalisation import IMAGENET_MEAN, IMAGENET_STD
from salmask.masks.wiring import wire_mask
from salmask.memory import keep_large_blocks
from salmask.params.encoder import EncoderConfig
from salmask.params.run import RunConfig
from salmask.params.train import TrainConfig
from salmask.params.values import Choice
from salmask.params.view import ViewConfig
from salmask.saliency.correction import Correction
from salmask.saliency.store import SaliencyStore
from salmask.shapes import Wiring
from salmask.train.batches import make_batch

CPU = torch.device("cpu")
MOCO = Wiring("moco", "moco v2", hard_negatives=True)
MASKS = ("none", "mean", "blur", "high_pass")
LEVELS = {224: 7, 320: 10, 448: 14}  # side in px -> cells per side
GOALS = {224: (0.6, 0.85), 64: (0.45, 0.6)}  # without a mask, with one
WORKERS_GOAL = 0.25  # decoding and crops alone


def drawn_images(folder: Path, size: int, count: int) -> list[Path]:
    """JPEG files of smooth random colours: 500x375 px for large views, else 96x96 px."""
    width, height = (500, 375) if size >= 128 else (96, 96)
    rng, files = np.random.default_rng(0), []
    for number in range(count):
        coarse = rng.integers(0, 256, (height // 12, width // 12, 3), dtype=np.uint8)
        image = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
        grain = rng.normal(0, 8, (height, width, 3))
        image = Image.fromarray((np.asarray(image) + grain).clip(0, 255).astype(np.uint8))
        files.append(folder / f"{number}.jpg")
        image.save(files[-1], quality=92)
    return files


def pil_two_crops(files: list[Path], size: int) -> Callable[[], list[Tensor]]:
    """MoCo v2's augmentation (Chen et al. 2020b), from torchvision's transforms of PIL images."""
    from torchvision import transforms

    def blur(image: Image.Image) -> Image.Image:
        return image.filter(ImageFilter.GaussianBlur(radius=random.uniform(0.1, 2.0)))

    augment = transforms.Compose(
        [
            transforms.RandomResizedCrop(size, scale=(0.2, 1.0)),
            transforms.RandomApply([transforms.ColorJitter(0.4, 0.4, 0.4, 0.1)], p=0.8),
            transforms.RandomGrayscale(p=0.2),
            transforms.RandomApply([transforms.Lambda(blur)], p=0.5),
            transforms.RandomHorizontalFlip(),
            transforms.ToTensor(),
            transforms.Normalize(IMAGENET_MEAN, IMAGENET_STD),
        ]
    )

    def batch() -> list[Tensor]:
        pairs = []
        for file in files:
            with file.open("rb") as stream:
                image = Image.open(stream).convert("RGB")
            pairs.append((augment(image), augment(image)))
        return [torch.stack(views) for views in zip(*pairs, strict=True)]

    return batch


def manifest_of(files: list[Path]) -> Manifest:
    """A manifest of unlabelled training images."""
    sizes = []
    for file in files:
        with Image.open(file) as image:
            sizes.append((image.height, image.width))
    count, paths = len(files), [str(file.resolve())[1:].encode() for file in files]
    return Manifest(
        name="benchmark",
        root=Path("/"),
        classes=(),
        digest="",
        paths=Texts(
            np.frombuffer(b"".join(paths), dtype=np.uint8), np.cumsum([len(p) for p in paths])
        ),
        splits=np.array(["train"] * count, dtype=object),
        labels=torch.full((count,), -1),
        sizes=torch.tensor(sizes),
        sha256=Digests(np.zeros((count, 32), dtype=np.uint8)),
    )


def salmask_views(
    manifest: Manifest,
    view: ViewConfig,
    mask: str,
    images: str,
    device: torch.device = CPU,
    workers: int = 0,
) -> tuple[Callable[[], object], Callable[[], object]]:
    """Two functions: the next masked batch, and the next batch of crops alone. A batch has all
    images of the manifest."""
    count = len(manifest)
    run = RunConfig(
        name="benchmark",
        encoder=EncoderConfig(),
        view=view,
        mask=Choice(mask, {}),
        framework=Choice("moco", {}),
        train=TrainConfig(batch=count),
    )
    wired = wire_mask(run.mask, MOCO, view)
    generator = torch.Generator().manual_seed(0)
    maps = {
        level: torch.rand(count, cells, cells, generator=generator).half().to(device)
        for level, cells in LEVELS.items()
    }
    correction = Correction(len(LEVELS)).eval().requires_grad_(False).to(device)
    store = SaliencyStore({}, maps, correction) if wired.reads_saliency else None
    schedule = Schedule(0, torch.arange(count), count, 10**6)
    crops = training_views(manifest, view, schedule, images=images, device=device, workers=workers)

    @torch.no_grad()
    def batch() -> object:
        return make_batch(next(crops), run, 0, store).views(wired)

    return batch, lambda: next(crops)


@click.command()
@click.argument("folder", required=False, type=click.Path(exists=True, path_type=Path))
@click.option("--size", default=224, help="Side of the views in px.")
@click.option("--batch", default=64)
@click.option("--rounds", default=7, help="Number of timed rounds, after one for warm-up.")
@click.option("--resident", is_flag=True, help="Also with `images: resident`.")
@click.option("--json", "json_file", type=click.Path(path_type=Path))
def main(
    folder: Path | None, size: int, batch: int, rounds: int, resident: bool, json_file: Path | None
) -> None:
    """Prints ms of CPU time per image, and ratios to the PIL pipeline with their goals."""
    torch.set_num_threads(1)
    keep_large_blocks()
    view = ViewConfig(size=size, grid=7 if size % 7 == 0 else 8)
    with tempfile.TemporaryDirectory() as scratch:
        files = sorted(folder.rglob("*.jpg")) if folder else []
        files = files[:: max(1, len(files) // batch)][:batch] if folder else []
        files = files or drawn_images(Path(scratch), size, batch)
        manifest = manifest_of(files)
        work: dict[str, Callable[[], object]] = {"PIL": pil_two_crops(files, size)}
        for images in ("stream", "resident") if resident else ("stream",):
            for mask in MASKS:
                batches, crops = salmask_views(manifest, view, mask, images)
                work[f"{images} {mask}"] = batches
            work[f"{images} decode and crop"] = crops
        times = interleaved(work, rounds)
    print(f"{len(files)} files, views of {size} px, CPU time of one thread")
    for name in work:
        print(f"{name:32} {milliseconds(times, name, len(files)):7.2f} ms per image")
    unmasked, masked = GOALS.get(size, GOALS[224])
    goals = dict.fromkeys(MASKS, masked) | {"none": unmasked, "decode and crop": WORKERS_GOAL}
    report(
        {
            f"{name} / PIL": (ratio(times, name, "PIL"), goals[name.split(" ", 1)[1]])
            for name in work
            if name != "PIL"
        },
        json_file,
    )


if __name__ == "__main__":
    main()
