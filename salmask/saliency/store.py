"""The saliency store: a Zarr group of activation maps, written by shard and read as a whole.

    activation/<level>  (N,U,V) float16   maps, each divided by the mean of its absolute values (Eq.
                                          1 ignores scale; raw sums can overflow float16)
    mean/<level>        (N,)    float32   these means
    sha256              (N,32)  uint8     of the image of each row; zeros, with maps of zeros, for
                                          an image that could not be read
    correction/<name>           float32   weights of the `Correction`, if there is one

The unit of work is a shard: one chunk of each array, `shard_rows` images. One process writes a
shard, and then a done-mark with a checksum of the shard's chunks. The existence of chunks is no
proof, because Zarr does not write a chunk of fill values. Each chunk has a checksum, and the
attributes have a digest, so that readers detect damage. They also compare the files of a finished
store with the digests in provenance.json next to it. This is the only module that uses Zarr, which
it imports when needed.
"""

import hashlib
import shutil
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from salmask.errors import UserError
from salmask.files import parse_json, value_digest, write_json
from salmask.saliency.correction import MARGIN, Correction
from salmask.saliency.crops import blend, resample, zoom_of
from salmask.saliency.store_rows import SCHEMA, Maps, StorePlan, known_rows
from salmask.stored_files import changed_files

if TYPE_CHECKING:
    import zarr

_INFINITY = 0x7C00  # the bits of infinity in float16
_CHUNKS_AT_ONCE = 4  # that are read and decoded; more need more memory
_CHECKED_ROWS = 4096  # rows that are checked at once, to limit memory


# --------------------------------------------------------------------------------------- writing


def create(path: Path, plan: StorePlan) -> None:
    """Creates the empty store, unless it exists. Several processes may do this at once.

    Raises UserError when there is another store at `path`.
    """
    import zarr

    if path.exists():
        with _damage_as_user_error(path):
            attributes = dict(zarr.open_group(path, mode="r").attrs)
        if attributes == plan.sealed():
            return
        raise UserError(f"{path} is a different store; remove the folder {path.parent}")
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
    group: "zarr.Group", name: str, plan: StorePlan, cell: tuple[int, ...], dtype: str, fill: float
) -> None:
    group.create_array(
        name,
        shape=(plan.rows, *cell),
        chunks=(plan.shard_rows, *cell),
        dtype=dtype,
        fill_value=fill,
        compressors=_compressors(),
    )


def _compressors() -> list[Any]:
    from zarr.codecs import Crc32cCodec, ZstdCodec

    return [ZstdCodec(), Crc32cCodec()]


def write_shard(path: Path, plan: StorePlan, index: int, maps: Maps) -> None:
    """Writes a whole shard, and then its done-mark."""
    import zarr

    rows = plan.shard(index)
    values = {"sha256": maps.sha256}
    values |= {f"activation/{level}": maps.activation[level] for level in plan.grids}
    values |= {f"mean/{level}": maps.mean[level] for level in plan.grids}
    for name, value in values.items():
        zarr.open_array(path / name, mode="r+")[rows.start : rows.stop] = value.numpy()
    write_json(_mark(path, index), {"shard": index, "sha256": _shard_digest(path, plan, index)})


def write_correction(path: Path, correction: Correction) -> None:
    """Writes the weights of a store's correction, or replaces them."""
    import zarr

    group = zarr.open_group(path, mode="r+")
    for name, weight in correction.state_dict().items():
        group.create_array(
            f"correction/{name}",
            data=weight.numpy(),
            chunks=weight.shape,
            fill_value=float("nan"),
            compressors=_compressors(),
            overwrite=True,
        )


def done_shards(path: Path, plan: StorePlan) -> set[int]:
    """The shards whose done-mark agrees with their chunks on disk."""
    return {i for i in range(plan.shards) if _is_done(path, plan, i)}


def _is_done(path: Path, plan: StorePlan, index: int) -> bool:
    try:
        digest = parse_json(_mark(path, index).read_bytes())["sha256"]
    except (OSError, ValueError, KeyError, TypeError):  # missing, or incomplete after a crash
        return False
    return bool(digest == _shard_digest(path, plan, index))


def _mark(path: Path, index: int) -> Path:
    return path.parent / "shards" / f"{index:05d}.done"


def _shard_digest(path: Path, plan: StorePlan, index: int) -> str:
    sha = hashlib.sha256()
    names = [f"sha256/c/{index}/0"]
    for level in sorted(plan.grids):
        names += [f"activation/{level}/c/{index}/0/0", f"mean/{level}/c/{index}"]
    for name in names:
        chunk = path / name
        sha.update(chunk.read_bytes() if chunk.is_file() else b"absent")
    return sha.hexdigest()


def tidy(path: Path) -> None:
    """Removes incomplete files of killed processes. No process may be writing at the same time."""
    for leftover in path.rglob("*.partial"):
        leftover.unlink()


# --------------------------------------------------------------------------------------- reading


def read_rows(path: Path) -> Maps:
    """All rows of a store.

    Raises UserError, with the command that repairs it, when the store is missing, incomplete,
    damaged or of another schema.
    """
    attributes = _attributes(path)
    sha256 = _read_sha256(path, attributes)
    known = known_rows(sha256)
    levels = {level: _read_level(path, attributes, level, known) for level in _grids(attributes)}
    activation = {level: maps for level, (maps, _) in levels.items()}
    return Maps(activation, {level: mean for level, (_, mean) in levels.items()}, sha256)


def _grids(attributes: Mapping[str, Any]) -> dict[int, tuple[int, ...]]:
    return {int(level): tuple(grid) for level, grid in attributes["grids"].items()}


def _read_sha256(path: Path, attributes: Mapping[str, Any]) -> Tensor:
    with _damage_as_user_error(path):
        return _read(path / "sha256", (attributes["rows"], 32))


def _read_level(
    path: Path, attributes: Mapping[str, Any], level: int, known: Tensor
) -> tuple[Tensor, Tensor]:
    """The maps (N,U,V) float16 and means (N,) float32 of a level. Zarr decodes several chunks at
    the same time.

    Args:
        path: of the store.
        attributes: of the store.
        level: in px.
        known: (N,) bool, the rows whose image could be read.

    Raises:
        UserError: when rows are missing, or maps of images without digest are not zero.
    """
    count = attributes["rows"]
    with _damage_as_user_error(path):
        maps = _read(path / f"activation/{level}", (count, *_grids(attributes)[level]))
        mean = _read(path / f"mean/{level}", (count,))
    if _has_nan(maps) or mean.isnan().any():
        holes = int((maps.isnan().any(dim=2).any(dim=1) | mean.isnan()).sum())
        raise UserError(f"{path}: {holes} rows of level {level} are missing: {_repair(path)}")
    if (~known & (mean != 0)).any():
        raise UserError(f"{path} is damaged (digests are missing): {_repair(path)}")
    return maps, mean


def _has_nan(maps: Tensor) -> bool:
    """Whether a float16 tensor (N,U,V) has a NaN.

    As integers without their sign, NaNs are above infinity. In blocks, this takes a tenth of the
    time of `isnan`, and no memory.
    """
    bits = maps.view(torch.int16)
    return any(bool((part & 0x7FFF).max() > _INFINITY) for part in bits.split(_CHECKED_ROWS))


def _repair(path: Path) -> str:
    if _mark(path, 0).parent.is_dir():  # incomplete: a new run would resume it
        return f"remove the folder {path.parent} and run `dvc repro` again"
    return f"run `dvc repro --force saliency` to rebuild {path}"


@contextmanager
def _damage_as_user_error(path: Path) -> Iterator[None]:
    """Turns any error of Zarr into a UserError with the command that repairs the store."""
    try:
        yield
    except UserError:
        raise
    except Exception as error:
        raise UserError(f"{path} is damaged ({error}): {_repair(path)}") from None


def _attributes(path: Path) -> dict[str, Any]:
    if not path.exists():
        raise UserError(f"no saliency store at {path}: run `dvc repro saliency`")
    import zarr

    with _damage_as_user_error(path):
        attributes: dict[str, Any] = dict(zarr.open_group(path, mode="r").attrs)
    schema = attributes.get("schema")
    if schema != SCHEMA:
        raise UserError(f"{path} is of schema {schema}, not {SCHEMA}: {_repair(path)}")
    described = {key: value for key, value in attributes.items() if key != "seal"}
    if attributes.get("seal") != value_digest(described):
        raise UserError(f"{path} is damaged (its attributes were changed): {_repair(path)}")
    if changed := changed_files(path):  # a chunk of other rows has a valid checksum too
        raise UserError(
            f"{path} is damaged ({changed[0]} is not the one in provenance.json): {_repair(path)}"
        )
    return attributes


def _read(path: Path, shape: tuple[int, ...]) -> Tensor:
    import zarr

    with zarr.config.set({"async.concurrency": _CHUNKS_AT_ONCE}):
        values = np.asarray(zarr.open_array(path, mode="r")[:])
    if values.shape != shape:
        raise ValueError(f"{path.name} is of shape {values.shape}, not {shape}")
    return torch.from_numpy(values)


class SaliencyStore:
    """All maps of a store, in the memory of one device.

    Attributes:
        levels: sides in px at which the images were scored, in ascending order.
        attributes: of the store: manifest digest, localizer, grids, schema.
    """

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
        """Reads a store.

        Args:
            path: of the store, which ends in .zarr.
            manifest_digest: expected digest of the manifest.
            localizer: expected content of localizer.json.
            device: for the maps; by default the CPU.

        Raises:
            UserError: with the command that repairs the store, when it is missing, incomplete,
                damaged, of another schema, or not of the expected manifest or localizer.
        """
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
        place = device or torch.device("cpu")
        known = known_rows(_read_sha256(path, attributes))  # the digests themselves are not kept
        maps = {}
        for level in _grids(attributes):
            maps[level] = _read_level(path, attributes, level, known)[0].to(place)
        if not attributes["correction"]:
            return cls(attributes, maps)
        return cls(attributes, maps, _read_correction(path, len(maps)).to(place))

    def activation(self, ids: Tensor, level: int) -> Tensor:
        """The maps of whole images: ids (B,) -> (B,Us,Vs) float32."""
        return self.maps[level][ids].float()

    def crop(self, ids: Tensor, boxes: Tensor, flips: Tensor, grid: tuple[int, int]) -> Tensor:
        """The maps of views: (B,U,V) float32.

        The zoom of a view selects the levels: between two levels, both are blended. The correction,
        if the store has one, brings the result closer to the localizer's map of the view itself.

        Args:
            ids: (B,) int64, rows of the manifest.
            boxes: (B,4) y, x, h, w in [0,1].
            flips: (B,) bool, whether a view is mirrored.
            grid: (U, V).
        """
        margin = MARGIN if self.correction else 0
        zoom = zoom_of(boxes)
        crops = {
            level: resample(self.activation(ids, level), boxes, grid, margin)
            for level in self.levels
        }
        maps = self.correction(crops, zoom) if self.correction else blend(crops, zoom)
        return torch.where(flips[:, None, None], maps.flip(-1), maps)


def _named(localizer: Mapping[str, Any]) -> str:
    return f"{localizer.get('name')} {str(localizer.get('source'))[:12]}"


def _read_correction(path: Path, levels: int) -> Correction:
    correction = Correction(levels)
    with _damage_as_user_error(path):
        weights = {
            name: _read(path / f"correction/{name}", tuple(weight.shape))
            for name, weight in correction.state_dict().items()
        }
    if any(weight.isnan().any() for weight in weights.values()):
        raise UserError(f"{path}: its correction is incomplete: {_repair(path)}")
    correction.load_state_dict(weights)
    return correction.eval().requires_grad_(False)
