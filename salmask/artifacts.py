"""Where the artifacts lie in a project, and which of their files later stages depend on."""

from pathlib import Path

DATA = Path("artifacts/data")
LOCALIZER = Path("artifacts/localizer")
SALIENCY = Path("artifacts/saliency")
PRETRAIN = Path("artifacts/pretrain")
EVALUATE = Path("artifacts/evaluate")
TRANSFER = Path("artifacts/transfer")
DETECT = Path("artifacts/detect")
REPORT = Path("artifacts/report")

# Later stages depend on these contents of an artifact, and not on its provenance.json: changed code
# that makes the same files reruns nothing downstream.
MANIFEST_FILES = [DATA / "manifest.csv", DATA / "dataset.json"]
LOCALIZER_SPEC = LOCALIZER / "localizer.json"
LOCALIZER_FILES = [LOCALIZER_SPEC, LOCALIZER / "weights.safetensors"]
STORE = SALIENCY / "saliency.zarr"
ENCODER_FILES = ("encoder.json", "encoder.safetensors")
PROJECTOR = "projector.safetensors"  # in the encoder's folder; only `variance` reads it
