"""The linear protocol: a classifier on a frozen encoder, trained on augmented views.

Preset `moco` (He et al. 2020): eval-mode encoder, SGD lr 30 at batch 256 and scaled with the batch,
momentum 0.9, no decay, 100 epochs, lr x0.1 at 60 and 80, crop + flip. The last epoch is the result.
"""

import torch
import torch.nn.functional as F
from torch import nn

from salmask.config import ViewConfig
from salmask.data.loader import Schedule, pairs
from salmask.data.manifest import Manifest
from salmask.encoder_file import Encoder
from salmask.evaluate.features import accuracy, extract, validation_splits
from salmask.job import Job
from salmask.progress import progress
from salmask.train import checkpoint


def run(
    encoders: dict[str, Encoder],
    manifest: Manifest,
    job: Job,
    *,
    lr: float = 30.0,
    batch: int = 256,
    epochs: int = 100,
    milestones: tuple[int, ...] = (60, 80),
    momentum: float = 0.9,
    weight_decay: float = 0.0,
    images: str = "stream",
) -> dict[str, float]:
    """Top-1 in percent after the last epoch: `linear_top1`, `<split>_linear_top1`.

    lr: at batch 256. Resumes at epoch ends.
    """
    if not manifest.labelled():
        return {}
    encoder = encoders["trained"]
    config = ViewConfig(
        size=encoder.spec.size, grid=1, crop=(0.08, 1.0), jitter_p=0, gray_p=0, blur_p=0
    )
    ids = manifest.ids("train")
    ids = ids[manifest.labels[ids] >= 0]
    batch = min(batch, len(ids))
    schedule = Schedule(job.seed, ids, batch, epochs)
    labels = manifest.labels.to(job.device)
    with torch.inference_mode():
        width = encoder(torch.zeros(1, 3, config.size, config.size, device=job.device)).shape[1]
    torch.manual_seed(job.seed)
    model = nn.Linear(width, len(manifest.classes))
    nn.init.normal_(model.weight, std=0.01)
    nn.init.zeros_(model.bias)
    model = model.to(job.device)
    optimizer = torch.optim.SGD(
        model.parameters(), lr * batch / 256, momentum=momentum, weight_decay=weight_decay
    )
    epoch = 0
    state = checkpoint.load_newest(job.work, job.fingerprint)
    if state is not None:
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        epoch = state["epoch"]

    steps = schedule.steps_per_epoch
    batches = pairs(
        manifest,
        config,
        schedule,
        images=images,
        device=job.device,
        workers=job.workers,
        start=(epoch, 0),
        branches=("query",),
    )
    with progress("linear", epochs * steps, "steps", done=epoch * steps) as bar:
        for crops in batches:
            for group in optimizer.param_groups:
                passed = sum(crops.epoch >= milestone for milestone in milestones)
                group["lr"] = lr * batch / 256 * 0.1**passed
            with torch.no_grad():
                features = encoder(crops.crops["query"].float() / 255)
            loss = F.cross_entropy(model(features), labels[crops.ids])
            optimizer.zero_grad(set_to_none=True)
            loss.backward()
            optimizer.step()
            bar.advance(1)
            if crops.step == steps - 1:
                state = {
                    "fingerprint": job.fingerprint,
                    "epoch": crops.epoch + 1,
                    "model": model.state_dict(),
                    "optimizer": optimizer.state_dict(),
                }
                checkpoint.save(job.work, crops.epoch + 1, state)
    metrics = {}
    for split, prefix in validation_splits(manifest).items():
        held = extract(encoder, manifest, split, job)
        with torch.inference_mode():
            metrics[f"{prefix}linear_top1"] = accuracy(
                model(held.features).argmax(dim=1), held.labels
            )
    return metrics
