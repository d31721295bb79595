"""The saliency store: one Zarr group of activation maps, written by shard, read whole.

    activation/<level>  (N,U,V) float16   each map divided by the mean of its magnitudes (Eq. 1
                                          ignores scale; raw sums can overflow float16); fill NaN
    mean/<level>        (N,)    float32   what was divided out: the map's mean, for a network
                                          whose last features are not negative

A chunk is a shard is the unit of work: `shard_rows` images. Only one process writes a shard, and a
done-mark with the checksum of what was written says that it is complete; that a file exists
proves nothing, since a chunk equal to the fill value is never written. This is the only module
that knows Zarr.
"""

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from torch import Tensor
from torchvision.ops import roi_align

from salmask.errors import UserError
from salmask.files import write_json

SCHEMA = "salmask.saliency/1"
_SAMPLES = 4  # bilinear samples a side of a cell: enough for area-true averages


@dataclass(frozen=True)
class Plan:
    """What a store will hold. grids: level in px -> (U, V)."""

    rows: int
    shard_rows: int
    grids: Mapping[int, tuple[int, int]]
    attributes: Mapping[str, Any]

    @property
    def shards(self) -> int:
        return -(-self.rows // self.shard_rows)

    def shard(self, index: int) -> range:
        """The rows of one shard."""
        start = index * self.shard_rows
        return range(start, min(start + self.shard_rows, self.rows))


def create(path: Path, plan: Plan) -> None:
    """Makes the empty store, or does nothing when this very store is already there."""
    wanted = dict(plan.attributes) | {
        "schema": SCHEMA,
        "rows": plan.rows,
        "shard_rows": plan.shard_rows,
        "levels": sorted(plan.grids),
    }
    if path.exists():
        if dict(zarr.open_group(path, mode="r").attrs) == wanted:
            return
        raise UserError(f"{path} holds another store; remove the folder {path.parent}")
    building = path.with_name(path.name + ".partial")
    group = zarr.open_group(building, mode="w", attributes=wanted)
    for level, (u, v) in plan.grids.items():
        group.create_array(
            f"activation/{level}",
            shape=(plan.rows, u, v),
            chunks=(plan.shard_rows, u, v),
            dtype="float16",
            fill_value=float("nan"),
        )
        group.create_array(
            f"mean/{level}",
            shape=(plan.rows,),
            chunks=(plan.shard_rows,),
            dtype="float32",
            fill_value=float("nan"),
        )
    building.rename(path)


def write_shard(path: Path, plan: Plan, index: int, maps: Mapping[int, Tensor]) -> None:
    """Writes one whole shard and then its done-mark. maps: level -> raw activation (n,U,V)."""
    rows = plan.shard(index)
    group = zarr.open_group(path, mode="r+")
    for level, raw in maps.items():
        mean = raw.abs().mean(dim=(1, 2))
        scale = torch.where(mean > 0, mean, 1)[:, None, None]  # an all-zero map stays zero
        _array(group, f"activation/{level}")[rows.start : rows.stop] = (raw / scale).half().numpy()
        _array(group, f"mean/{level}")[rows.start : rows.stop] = mean.float().numpy()
    write_json(_mark(path, index), {"shard": index, "sha256": _shard_digest(path, plan, index)})


def _array(group: zarr.Group, name: str) -> zarr.Array[Any]:
    found = group[name]
    if not isinstance(found, zarr.Array):
        raise UserError(f"{group.store_path}: {name} is not an array")
    return found


def done_shards(path: Path, plan: Plan) -> set[int]:
    """The shards whose done-mark agrees with what lies on disk."""
    return {i for i in range(plan.shards) if _is_done(path, plan, i)}


def _is_done(path: Path, plan: Plan, index: int) -> bool:
    mark = _mark(path, index)
    if not mark.is_file():
        return False
    return bool(json.loads(mark.read_text())["sha256"] == _shard_digest(path, plan, index))


def _mark(path: Path, index: int) -> Path:
    return path.parent / "shards" / f"{index:05d}.done"


def _shard_digest(path: Path, plan: Plan, index: int) -> str:
    sha = hashlib.sha256()
    for level in sorted(plan.grids):
        for name in (f"activation/{level}/c/{index}/0/0", f"mean/{level}/c/{index}"):
            chunk = path / name
            sha.update(chunk.read_bytes() if chunk.is_file() else b"absent")
    return sha.hexdigest()


def fill(path: Path, plan: Plan, compute: Callable[[range], Mapping[int, Tensor]]) -> None:
    """Computes and writes every shard that is not done. compute: rows -> level -> (n,U,V).

    A killed process loses at most the shard it was working on.
    """
    create(path, plan)
    done = done_shards(path, plan)
    for index in range(plan.shards):
        if index not in done:
            write_shard(path, plan, index, compute(plan.shard(index)))
    for leftover in path.rglob("*.partial"):
        leftover.unlink()


class SaliencyStore:
    """All maps of a store in memory, on one device."""

    def __init__(self, attributes: Mapping[str, Any], maps: Mapping[int, Tensor]) -> None:
        self.attributes = attributes
        self.maps = maps
        self.levels = sorted(maps)

    @classmethod
    def open(
        cls,
        path: Path,
        manifest_digest: str | None = None,
        device: torch.device | None = None,
    ) -> "SaliencyStore":
        """Loads a store. Raises UserError when it is missing, incomplete, of another schema, or
        made from another manifest than the one whose digest is given."""
        repair = f"run `dvc repro --force saliency` to rebuild {path}"
        try:
            group = zarr.open_group(path, mode="r")
        except FileNotFoundError:
            raise UserError(f"no saliency store at {path}: run `dvc repro saliency`") from None
        attributes: dict[str, Any] = dict(group.attrs)
        schema = attributes.get("schema")
        if schema != SCHEMA:
            raise UserError(f"{path} is of schema {schema}, not {SCHEMA}: {repair}")
        if manifest_digest is not None and attributes["manifest"] != manifest_digest:
            raise UserError(
                f"{path} belongs to another set of images (manifest {attributes['manifest'][:12]}, "
                f"yours is {manifest_digest[:12]}): {repair}"
            )
        maps = {}
        for level in attributes["levels"]:
            values = np.asarray(_array(group, f"activation/{level}")[:])
            if np.isnan(values).any():
                holes = int(np.isnan(values).any(axis=(1, 2)).sum())
                raise UserError(f"{path}: {holes} rows of level {level} are missing: {repair}")
            maps[int(level)] = torch.from_numpy(values).to(device or torch.device("cpu"))
        return cls(attributes, maps)

    def activation(self, ids: Tensor, level: int) -> Tensor:
        """The maps of whole images: ids (B,) -> (B,Us,Vs) float32."""
        return self.maps[level][ids].float()

    def crop(self, ids: Tensor, boxes: Tensor, flips: Tensor, grid: tuple[int, int]) -> Tensor:
        """The maps as the views see them: (B,U,V) float32.

        ids: (B,). boxes: (B,4) y, x, h, w in [0,1]. flips: (B,) bool. grid: (U,V). Each cell is
        the average of the map under it, read bilinearly at 4x4 points. The level follows the zoom:
        a crop that covers half the side reads the level of twice the resolution, and between two
        levels, both.
        """
        zoom = 1 / (boxes[:, 2] * boxes[:, 3]).sqrt()
        weights = _level_weights(self.levels, zoom)
        crops = [self._resample(ids, boxes, level, grid) for level in self.levels]
        blended = (torch.stack(crops) * weights[:, :, None, None]).sum(0)
        return torch.where(flips[:, None, None], blended.flip(-1), blended)

    def _resample(self, ids: Tensor, boxes: Tensor, level: int, grid: tuple[int, int]) -> Tensor:
        maps = self.activation(ids, level)
        high, wide = maps.shape[1:]
        y, x, h, w = boxes.unbind(1)
        corners = torch.stack([x * wide, y * high, (x + w) * wide, (y + h) * high], dim=1)
        index = torch.arange(len(ids), device=maps.device, dtype=corners.dtype)
        rois = torch.cat([index[:, None], corners], dim=1)
        return roi_align(maps[:, None], rois, grid, sampling_ratio=_SAMPLES, aligned=True)[:, 0]


def _level_weights(levels: list[int], zoom: Tensor) -> Tensor:
    """How much each level counts at a zoom: (L,B), columns sum to 1.

    The first level is the one for whole images; weights are linear in the logarithm of scale.
    """
    scale = torch.tensor(levels, dtype=torch.float32, device=zoom.device).log()
    wanted = (scale[0] + zoom.log()).clamp(scale[0], scale[-1])
    if len(levels) == 1:
        return torch.ones((1, len(zoom)), device=zoom.device)
    upper = torch.searchsorted(scale, wanted).clamp(1, len(levels) - 1)
    share = (wanted - scale[upper - 1]) / (scale[upper] - scale[upper - 1])
    weights = torch.zeros((len(levels), len(zoom)), device=zoom.device)
    columns = torch.arange(len(zoom), device=zoom.device)
    weights = weights.index_put((upper - 1, columns), 1 - share)
    return weights.index_put((upper, columns), share)
