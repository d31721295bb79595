"""How well cached saliency agrees with the map of the view itself, and with true masks.

    python -m benchmarks.saliency_fidelity --photos FOLDER --pets FOLDER [--localizer NAME]
        [-o KEY=VALUE ...] [--overlays FILE.png]

--photos: images, with four random crops of each (MoCo's, 224 px). Each row is one way to compute
the foreground of a view from cached maps; IoU compares it with Eq. 1 on the localizer's map of the
view. --pets: images/BREED/*.jpg and trimaps/BREED/*.png (1 object, 2 background, 3 edge: left out).
"""

from collections.abc import Callable
from pathlib import Path

import click
import torch
from torch import Tensor

from benchmarks import true_masks
from benchmarks.views_and_maps import BORDER, Measured, ViewMaps, measure
from salmask.devices import pick_device, place
from salmask.params.values import bind, pick
from salmask.saliency import correction, crops
from salmask.saliency.localizers import LOCALIZERS
from salmask.saliency.scda import foreground
from salmask.saliency.trunks import Trunk

FOLDS = 5
BANDS = (("20-40%", 0.0, 0.4), ("40-70%", 0.4, 0.7), ("70-100%", 0.7, 1.01))


def blended(maps: dict[int, Tensor], measured: Measured, *levels: int) -> Tensor:
    """The pyramid without correction: (n,7,7)."""
    read = {
        n: crops.resample(_scaled(maps[n])[measured.ids], measured.boxes, measured.grid)
        for n in levels
    }
    return crops.blend(read, crops.zoom_of(measured.boxes))


def area_pooled(maps: dict[int, Tensor], measured: Measured, *levels: int) -> Tensor:
    """As `blended`, but each cell is the exact mean of the map in its area, without
    interpolation."""

    def shares(start: Tensor, side: Tensor, cells: int, grid: int) -> Tensor:
        edges = start[:, None] + side[:, None] * torch.arange(grid + 1) / grid
        low, high = edges[:, :-1, None] * cells, edges[:, 1:, None] * cells
        index = torch.arange(cells)
        covered = torch.minimum(high, index + 1.0) - torch.maximum(low, index * 1.0)
        return covered.clamp(min=0) / (high - low)

    y, x, h, w = measured.boxes.unbind(1)
    read = {}
    for n in levels:
        whole = _scaled(maps[n])[measured.ids]
        rows = shares(y, h, whole.shape[1], measured.grid[0])
        columns = shares(x, w, whole.shape[2], measured.grid[1])
        read[n] = torch.einsum("bui,bij,bvj->buv", rows, whole, columns)
    return crops.blend(read, crops.zoom_of(measured.boxes))


def hysteresis(activation: Tensor, band: float = 0.1) -> Tensor:
    """Eq. 1 with two thresholds: a cell between them counts if its neighbour is above both."""
    strong = foreground(activation, 0.6 - band)
    weak = foreground(activation, 0.6 + band)
    cross = torch.tensor([[0.0, 1, 0], [1, 1, 1], [0, 1, 0]])[None, None]
    beside = torch.nn.functional.conv2d(strong[:, None].float(), cross, padding=1)[:, 0] > 0
    return strong | (weak & beside)


def corrected(measured: Measured, views: int, *levels: int) -> Tensor:
    """The corrected maps; each correction is fitted on views of other images."""
    margin = correction.MARGIN
    read = {
        n: crops.resample(
            _scaled(measured.levels[n])[measured.ids], measured.boxes, measured.grid, margin
        )
        for n in levels
    }
    zoom, result = crops.zoom_of(measured.boxes), torch.empty_like(measured.own)
    generator = torch.Generator().manual_seed(0)
    for fold in range(FOLDS):
        held = measured.ids % FOLDS == fold
        others = torch.nonzero(~held)[:, 0]
        some = others[torch.randperm(len(others), generator=generator)[:views]]
        model = correction.fit(
            {n: c[some] for n, c in read.items()}, zoom[some], measured.own[some]
        )
        result[held] = model({n: c[held] for n, c in read.items()}, zoom[held])
    return result


def _scaled(maps: Tensor) -> Tensor:
    return maps / maps.abs().mean(dim=(1, 2), keepdim=True)


def iou(result: Tensor, expected: Tensor) -> Tensor:
    """(n,U,V) bool twice -> (n,) float32."""
    both = (result & expected).sum(dim=(1, 2))
    return both / (result | expected).sum(dim=(1, 2)).clamp(min=1)


def attempts(measured: Measured) -> dict[str, tuple[float, int, Callable[[], Tensor]]]:
    """Name -> (forwards of 224 px per image, bytes per image, foreground (n,U,V))."""

    def cost(*levels: int) -> float:
        return sum((level / 224) ** 2 for level in levels)

    def size(*levels: int) -> int:
        return sum(2 * measured.levels[n][0].numel() for n in levels)

    def row(read: Callable[..., Tensor], *levels: int, times: float = 1.0):  # type: ignore[no-untyped-def]
        return cost(*levels) * times, size(*levels), lambda: foreground(read(*levels))

    def plain(*levels: int) -> Tensor:
        return blended(measured.levels, measured, *levels)

    pyramid = tuple(sorted(measured.levels))
    result = {f"one level, {n}": row(plain, n) for n in pyramid}
    result["pyramid, 224 and 320"] = row(plain, 224, 320)
    result["pyramid"] = row(plain, *pyramid)
    result["pyramid, exact area pooling"] = row(
        lambda *levels: area_pooled(measured.levels, measured, *levels), *pyramid
    )
    result["pyramid, hysteresis"] = (
        cost(*pyramid),
        size(*pyramid),
        lambda: hysteresis(plain(*pyramid)),
    )
    if measured.reflected:
        wider = sum((n + 2 * BORDER) ** 2 for n in pyramid) / sum(n**2 for n in pyramid)
        result["pyramid, reflection at the border"] = row(
            lambda *levels: blended(measured.reflected, measured, *levels), *pyramid, times=wider
        )
        result["pyramid, mean with its mirror image"] = row(
            lambda *levels: blended(measured.mirrored, measured, *levels), *pyramid, times=2
        )
    for views, levels in ((1024, (224,)), (1024, (224, 320)), (256, pyramid), (1024, pyramid)):
        name = "pyramid" if levels == pyramid else " and ".join(map(str, levels))
        result[f"{name}, correction from {views} views"] = row(
            lambda *levels, views=views: corrected(measured, views, *levels), *levels
        )
    return result


def table(measured: Measured) -> str:
    """The fidelity table in Markdown."""
    expected = foreground(measured.own)
    share = expected.flatten(1).sum(1)
    generator = torch.Generator().manual_seed(0)
    order = (
        torch.rand(len(expected), expected[0].numel(), generator=generator).argsort(1).argsort(1)
    )
    floor = (order < share[:, None]).view_as(expected)
    area = measured.boxes[:, 2] * measured.boxes[:, 3]
    seconds = sum(measured.seconds.values()) / sum((n / 224) ** 2 for n in measured.seconds)

    lines = [
        "| read from | forwards | ms | bytes | IoU | 5th pct. | "
        + " | ".join(name for name, _, _ in BANDS)
        + " |",
        "|---" + "|--:" * (5 + len(BANDS)) + "|",
    ]

    def add(name: str, cost: str, result: Tensor) -> None:
        score = iou(result, expected)
        parts = [f"{score.mean():.3f}", f"{score.quantile(0.05):.2f}"]
        parts += [f"{score[(area >= low) & (area < high)].mean():.3f}" for _, low, high in BANDS]
        lines.append(f"| {name} | {cost} | " + " | ".join(parts) + " |")
        print(lines[-1], flush=True)

    add("floor: as many random patches", "| | ", floor)
    for name, (forwards, size, read) in attempts(measured).items():
        add(name, f"{forwards:.1f} | {1000 * forwards * seconds:.0f} | {size}", read())
    if measured.flipped is not None and measured.bfloat16 is not None:
        add("view mirrored, and back", "| | ", foreground(measured.flipped))
        add("view in bfloat16", "| | ", foreground(measured.bfloat16))
    add("ceiling: view with colours augmented", "| | ", foreground(measured.coloured))
    return "\n".join(lines)


@click.command()
@click.option("--photos", type=click.Path(exists=True, path_type=Path))
@click.option("--pets", type=click.Path(exists=True, path_type=Path))
@click.option("--localizer", default="lite0", show_default=True)
@click.option("-o", "--option", "options", multiple=True, help="KEY=VALUE of the localizer.")
@click.option("--limit", default=500, show_default=True, help="Photographs at most.")
@click.option("--main-rows", is_flag=True, help="Leaves out what costs most and led nowhere.")
@click.option("--precision", default="float32", show_default=True, help="Or bfloat16.")
@click.option("--overlays", type=click.Path(path_type=Path), help="Draws views and foregrounds.")
def main(
    photos: Path | None,
    pets: Path | None,
    localizer: str,
    options: tuple[str, ...],
    limit: int,
    main_rows: bool,
    precision: str,
    overlays: Path | None,
) -> None:
    """Prints the tables in Markdown."""
    chosen = dict(option.split("=", 1) for option in options)
    find = pick(LOCALIZERS, localizer, "--localizer")
    spec, tensors = find(**bind(find, chosen, "-o"))
    trunk = Trunk(spec)
    trunk.layers.load_state_dict(tensors)
    network = ViewMaps(place(trunk, pick_device()), pick_device(), precision)
    if photos:
        paths = sorted(photos.rglob("*.jpg"))
        paths = paths[:: max(1, len(paths) // limit)][:limit]
        measured = measure(network, paths, not main_rows)
        print(f"\n{spec.name} ({spec.arch}), {len(measured.levels[224])} photographs, "
              f"{len(measured.ids)} views\n")  # fmt: skip
        table(measured)
        if overlays:
            overlays.write_bytes(
                measured.sheet(corrected(measured, 1024, *sorted(measured.levels)))
            )
    if pets:
        print(f"\n{spec.name} ({spec.arch}), true masks\n")
        print(true_masks.table(network, pets, (224,) if main_rows else (224, 448)))


if __name__ == "__main__":
    main()
