"""A project of a few small modules, for tests of digests and lineage."""

from pathlib import Path

FILES = {
    "dvc.yaml": "stages: {}\n",
    "stages/__init__.py": "",
    "stages/train.py": (
        "from salmask.deep.part import x\nfrom salmask.model import f\n\nf(x)\n"
    ),
    "stages/score.py": "import salmask.other\nprint(salmask.other)\n",
    "salmask/__init__.py": "",
    "salmask/errors.py": "class UserError(Exception): ...\n",
    "salmask/model.py": (
        '"""A model."""\n\nimport logging\n\nimport salmask.errors\n\n'
        'log = logging.getLogger()\nprintable(2)\n\n\n'
        'def f(a):\n    """Doubles."""\n'
        '    if a < 0:\n        raise ValueError(f"{a} is wrong: it must be positive")\n'
        '    print("doubling")\n    log.warning("rarely seen")\n'
        "    return 2 * a  # twice\n"
    ),
    "salmask/other.py": "import math\n\nY = math.pi\n",
    "salmask/deep/__init__.py": "",
    "salmask/deep/part.py": (
        'import salmask.other\n\nx = salmask.other.Y\nTABLE = "table.json"\n'
    ),
    "salmask/deep/table.json": "{}",
    "salmask/deep/unused.json": "{}",
    "salmask/masks/__init__.py": "",
    "salmask/masks/a.py": 'MASK = Mask(1, label="first")\n',
    "salmask/masks/b.py": 'MASK = Mask(2, label="second")\n',
    "salmask/unused.py": "q = 1\n",
}  # fmt: skip
MODULES = {"train": ("stages.train",), "score": ("stages.score",)}


def write_code_project(folder: Path) -> Path:
    """Writes the project to a new folder, and returns the folder."""
    for name, text in FILES.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text(text)
    return folder


def edit(project: Path, name: str, old: str, new: str) -> None:
    """Replaces a text in a file, or writes the file where `old` is empty."""
    text = (project / name).read_text()
    assert old in text
    (project / name).write_text(text.replace(old, new) if old else new)
