"""The saliency store: one Zarr group of activation maps, written by shard, read whole.

    activation/<level>  (N,U,V) float16   each map divided by the mean of its magnitudes (Eq. 1
                                          ignores scale; raw sums can overflow float16); fill NaN
    mean/<level>        (N,)    float32   what was divided out: the map's mean, for a network
                                          whose last features are not negative
    sha256              (N,32)  uint8     of the image that each row was computed from; zeros, and
                                          maps of zeros, for an image that could not be read
    correction/<name>           float32   the weights of `Correction`, if there is one

A chunk is a shard is the unit of work: `shard_rows` images. Only one process writes a shard, and a
done-mark with the checksum of what was written says that it is complete; that a file exists
proves nothing, since a chunk equal to the fill value is never written. Every chunk carries a
checksum of its own, the attributes a digest, so that a reader meets no damage unawares. This is
the only module that knows Zarr.
"""

import hashlib
import json
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
import zarr
from torch import Tensor
from zarr.codecs import Crc32cCodec, ZstdCodec

from salmask.errors import UserError
from salmask.files import write_json
from salmask.provenance import value_digest
from salmask.saliency.correction import MARGIN, Correction
from salmask.saliency.crops import blend, resample, zoom_of

SCHEMA = "salmask.saliency/2"


@dataclass(frozen=True)
class Plan:
    """What a store will hold. grids: level in px -> (U, V). correction: views to fit it on, 0 for
    none. attributes: manifest and localizer, and nothing that differs between equal runs."""

    rows: int
    shard_rows: int
    grids: Mapping[int, tuple[int, int]]
    attributes: Mapping[str, Any]
    correction: int = 0

    @property
    def shards(self) -> int:
        return -(-self.rows // self.shard_rows)

    def shard(self, index: int) -> range:
        """The rows of one shard."""
        start = index * self.shard_rows
        return range(start, min(start + self.shard_rows, self.rows))

    def sealed(self) -> dict[str, Any]:
        """All attributes of the store, with a digest over them."""
        described = dict(self.attributes) | {
            "schema": SCHEMA,
            "rows": self.rows,
            "shard_rows": self.shard_rows,
            "grids": {str(level): list(grid) for level, grid in sorted(self.grids.items())},
            "correction": self.correction,
        }
        return described | {"seal": value_digest(described)}


@dataclass(frozen=True)
class Maps:
    """Rows as they stand in a store. activation: level -> (n,U,V) float16. mean: level -> (n,)
    float32. sha256: (n,32) uint8."""

    activation: Mapping[int, Tensor]
    mean: Mapping[int, Tensor]
    sha256: Tensor

    @property
    def known(self) -> Tensor:
        """Which rows come from an image that could be read: (n,) bool."""
        return _known(self.sha256)

    def pick(self, index: Tensor) -> "Maps":
        """Some of the rows: index (k,) int64, or (n,) bool."""
        return Maps(
            {level: maps[index] for level, maps in self.activation.items()},
            {level: mean[index] for level, mean in self.mean.items()},
            self.sha256[index],
        )


def scaled(raw: Mapping[int, Tensor], sha256: Tensor) -> Maps:
    """Raw activation maps (n,U,V) per level, each divided by the mean of its magnitudes. Rows whose
    sha256 is zero (no image) become zero."""
    known = _known(sha256)[:, None, None]
    raw = {level: torch.where(known, maps.float(), 0) for level, maps in raw.items()}
    mean = {level: maps.abs().mean(dim=(1, 2)) for level, maps in raw.items()}
    scale = {level: torch.where(m > 0, m, 1)[:, None, None] for level, m in mean.items()}
    return Maps({level: (raw[level] / scale[level]).half() for level in raw}, mean, sha256)


def _known(sha256: Tensor) -> Tensor:
    return (sha256 != 0).any(dim=1)


# --------------------------------------------------------------------------------------- writing


def create(path: Path, plan: Plan) -> None:
    """Makes the empty store, or does nothing when this very store is already there.

    Any number of processes may do so at once.
    """
    if path.exists():
        with _told(path):
            found = dict(zarr.open_group(path, mode="r").attrs)
        if found == plan.sealed():
            return
        raise UserError(f"{path} holds another store; remove the folder {path.parent}")
    building = path.with_name(f"{path.name}.{uuid.uuid4().hex}.partial")
    group = zarr.open_group(building, mode="w", attributes=plan.sealed())
    for level, grid in plan.grids.items():
        _add(group, f"activation/{level}", plan, grid, "float16", float("nan"))
        _add(group, f"mean/{level}", plan, (), "float32", float("nan"))
    _add(group, "sha256", plan, (32,), "uint8", 0)
    try:
        building.rename(path)
    except OSError:  # another process was faster
        shutil.rmtree(building)
        create(path, plan)


def _add(
    group: zarr.Group, name: str, plan: Plan, cell: tuple[int, ...], dtype: str, fill: float
) -> None:
    group.create_array(
        name,
        shape=(plan.rows, *cell),
        chunks=(plan.shard_rows, *cell),
        dtype=dtype,
        fill_value=fill,
        compressors=[ZstdCodec(), Crc32cCodec()],
    )


def write_shard(path: Path, plan: Plan, index: int, maps: Maps) -> None:
    """Writes one whole shard and then its done-mark."""
    rows = plan.shard(index)
    group = zarr.open_group(path, mode="r+")
    for level in plan.grids:
        _array(group, f"activation/{level}")[rows.start : rows.stop] = maps.activation[
            level
        ].numpy()
        _array(group, f"mean/{level}")[rows.start : rows.stop] = maps.mean[level].numpy()
    _array(group, "sha256")[rows.start : rows.stop] = maps.sha256.numpy()
    write_json(_mark(path, index), {"shard": index, "sha256": _shard_digest(path, plan, index)})


def write_correction(path: Path, correction: Correction) -> None:
    """Writes, or writes again, the weights of a store's correction."""
    group = zarr.open_group(path, mode="r+")
    for name, weight in correction.state_dict().items():
        group.create_array(
            f"correction/{name}",
            data=weight.numpy(),
            chunks=weight.shape,
            fill_value=float("nan"),
            compressors=[ZstdCodec(), Crc32cCodec()],
            overwrite=True,
        )


def _array(group: zarr.Group, name: str) -> zarr.Array[Any]:
    found = group[name]
    if not isinstance(found, zarr.Array):
        raise UserError(f"{group.store_path}: {name} is not an array")
    return found


def done_shards(path: Path, plan: Plan) -> set[int]:
    """The shards whose done-mark agrees with what lies on disk."""
    return {i for i in range(plan.shards) if _is_done(path, plan, i)}


def _is_done(path: Path, plan: Plan, index: int) -> bool:
    try:
        told = json.loads(_mark(path, index).read_text())["sha256"]
    except (OSError, ValueError, KeyError, TypeError):  # none, or what a crash left of one
        return False
    return bool(told == _shard_digest(path, plan, index))


def _mark(path: Path, index: int) -> Path:
    return path.parent / "shards" / f"{index:05d}.done"


def _shard_digest(path: Path, plan: Plan, index: int) -> str:
    sha = hashlib.sha256()
    names = [f"sha256/c/{index}/0"]
    for level in sorted(plan.grids):
        names += [f"activation/{level}/c/{index}/0/0", f"mean/{level}/c/{index}"]
    for name in names:
        chunk = path / name
        sha.update(chunk.read_bytes() if chunk.is_file() else b"absent")
    return sha.hexdigest()


def fill(
    path: Path,
    plan: Plan,
    compute: Callable[[list[range]], Iterator[Maps]],
    own: Iterable[int] | None = None,
) -> bool:
    """Computes and writes every shard that is not done. compute: shards -> their maps, in order.
    own: the shards that are this process's, all by default.

    A killed process loses at most the shard it was working on. Returns whether the whole store is
    there.
    """
    create(path, plan)
    done = done_shards(path, plan)
    todo = [index for index in own or range(plan.shards) if index not in done]
    made = compute([plan.shard(index) for index in todo])
    for index, maps in zip(todo, made, strict=True):
        write_shard(path, plan, index, maps)
    return len(done_shards(path, plan)) == plan.shards


def tidy(path: Path) -> None:
    """Removes what killed writers left half-written. Nobody may be writing meanwhile."""
    for leftover in path.rglob("*.partial"):
        leftover.unlink()


# --------------------------------------------------------------------------------------- reading


def read_rows(path: Path) -> Maps:
    """Everything that a store holds, row by row. Raises UserError, with the command that repairs
    it, when the store is missing, incomplete, damaged or of another schema."""
    attributes = _attributes(path)
    count = attributes["rows"]
    with _told(path):
        group = zarr.open_group(path, mode="r")
        grids = {int(level): tuple(grid) for level, grid in attributes["grids"].items()}
        rows = Maps(
            {n: _whole(group, f"activation/{n}", (count, *grid)) for n, grid in grids.items()},
            {n: _whole(group, f"mean/{n}", (count,)) for n in grids},
            _whole(group, "sha256", (count, 32)),
        )
    for level, maps in rows.activation.items():
        holes = int((maps.isnan().any(dim=2).any(dim=1) | rows.mean[level].isnan()).sum())
        if holes:
            raise UserError(f"{path}: {holes} rows of level {level} are missing: {_repair(path)}")
        if (~rows.known & (rows.mean[level] != 0)).any():
            raise UserError(f"{path} is damaged (digests are missing): {_repair(path)}")
    return rows


def _repair(path: Path) -> str:
    if _mark(path, 0).parent.is_dir():  # still being made: what is there would be gone on with
        return f"remove the folder {path.parent} and run `dvc repro` again"
    return f"run `dvc repro --force saliency` to rebuild {path}"


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Whatever Zarr says of damaged files, as a sentence with the way out."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path} is damaged ({error}): {_repair(path)}") from None


def _attributes(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise UserError(f"no saliency store at {path}: run `dvc repro saliency`")
    with _told(path):
        attributes: dict[str, Any] = dict(zarr.open_group(path, mode="r").attrs)
    schema = attributes.get("schema")
    if schema != SCHEMA:
        raise UserError(f"{path} is of schema {schema}, not {SCHEMA}: {_repair(path)}")
    described = {key: value for key, value in attributes.items() if key != "seal"}
    if attributes.get("seal") != value_digest(described):
        raise UserError(f"{path} is damaged (its attributes were changed): {_repair(path)}")
    return attributes


def _whole(group: zarr.Group, name: str, shape: tuple[int, ...]) -> Tensor:
    values = np.asarray(_array(group, name)[:])
    if values.shape != shape:
        raise ValueError(f"{name} is of shape {values.shape}, not {shape}")
    return torch.from_numpy(values)


class SaliencyStore:
    """All maps of a store in memory, on one device."""

    def __init__(
        self,
        attributes: Mapping[str, Any],
        maps: Mapping[int, Tensor],
        correction: Correction | None = None,
    ) -> None:
        self.attributes = attributes
        self.maps = maps
        self.correction = correction
        self.levels = sorted(maps)

    @classmethod
    def open(
        cls,
        path: Path,
        manifest_digest: str | None = None,
        localizer: Mapping[str, Any] | None = None,
        device: torch.device | None = None,
    ) -> "SaliencyStore":
        """Loads a store. Raises UserError, with the command that repairs it, when it is missing,
        incomplete, damaged or of another schema, or made from another manifest or by another
        localizer than those given."""
        attributes = _attributes(path)
        if manifest_digest is not None and attributes["manifest"] != manifest_digest:
            raise UserError(
                f"{path} belongs to another set of images (manifest {attributes['manifest'][:12]}, "
                f"yours is {manifest_digest[:12]}): {_repair(path)}"
            )
        if localizer is not None and attributes["localizer"] != localizer:
            raise UserError(
                f"{path} was made by another localizer ({_named(attributes['localizer'])}, yours "
                f"is {_named(localizer)}): {_repair(path)}"
            )
        rows = read_rows(path)
        place = device or torch.device("cpu")
        maps = {level: found.to(place) for level, found in rows.activation.items()}
        if not attributes["correction"]:
            return cls(attributes, maps)
        return cls(attributes, maps, _read_correction(path, len(maps)).to(place))

    def activation(self, ids: Tensor, level: int) -> Tensor:
        """The maps of whole images: ids (B,) -> (B,Us,Vs) float32."""
        return self.maps[level][ids].float()

    def crop(self, ids: Tensor, boxes: Tensor, flips: Tensor, grid: tuple[int, int]) -> Tensor:
        """The maps as the views see them: (B,U,V) float32.

        ids: (B,). boxes: (B,4) y, x, h, w in [0,1]. flips: (B,) bool. grid: (U,V). The level
        follows the zoom, between two levels both count, and the correction, if the store has
        one, brings the result closer to what the localizer says of the view itself.
        """
        margin = MARGIN if self.correction else 0
        zoom = zoom_of(boxes)
        crops = {
            level: resample(self.activation(ids, level), boxes, grid, margin)
            for level in self.levels
        }
        found = self.correction(crops, zoom) if self.correction else blend(crops, zoom)
        return torch.where(flips[:, None, None], found.flip(-1), found)


def _named(localizer: Mapping[str, Any]) -> str:
    return f"{localizer.get('name')} {str(localizer.get('source'))[:12]}"


def _read_correction(path: Path, levels: int) -> Correction:
    correction = Correction(levels)
    with _told(path):
        group = zarr.open_group(path, mode="r")
        weights = {
            name: _whole(group, f"correction/{name}", tuple(weight.shape))
            for name, weight in correction.state_dict().items()
        }
    if any(weight.isnan().any() for weight in weights.values()):
        raise UserError(f"{path}: its correction is incomplete: {_repair(path)}")
    correction.load_state_dict(weights)
    return correction.eval().requires_grad_(False)
