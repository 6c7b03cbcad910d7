"""Writes the golden numbers and models: `python tests/golden/make.py [--models]`.

Run it only when behaviour changes on purpose, and say in the commit what changed and why. The models stay those of the
version that wrote them, as users have them: `--models` writes new ones, for kinds that are new.
"""

from __future__ import annotations

import sys
import warnings
from pathlib import Path

import numpy as np

sys.path.insert(0, str(Path(__file__).parents[1]))

import girih
from golden.cases import CASES, flat, models, of_model

HERE = Path(__file__).parent


def main() -> None:
    warnings.simplefilter("ignore")
    for name, function in CASES.items():
        np.savez_compressed(HERE / f"{name}.npz", **{key: flat(value) for key, value in function().items()})
    if "--models" in sys.argv:
        for name, model in models().items():
            if not (HERE / "models" / name).exists():
                girih.save(model, HERE / "models" / name)
                numbers = {key: flat(value) for key, value in of_model(model).items()}
                np.savez_compressed(HERE / "models" / f"{name}.npz", **numbers)


if __name__ == "__main__":
    main()
