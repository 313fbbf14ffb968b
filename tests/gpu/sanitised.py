"""Each kernel a few times, small: what compute-sanitizer watches."""

from __future__ import annotations

import numpy as np

from tests.gpu import drawing, gpu, memory
from tests.gpu.library import FORMATS


def main() -> None:
    library = gpu.open_library()
    rng = np.random.default_rng(51)
    drawing.check_sampler(library, [drawing.random_case(rng, 5000) for _ in range(24)])
    for guided in (True, False):
        drawing.check_pictures(library, rng, pictures=2, width=2, guided=guided)
    for name in FORMATS:
        for _ in range(3):
            memory.check_caches(library, rng, name)
    memory.check_embedding(library, rng)


if __name__ == "__main__":
    main()
