"""Models of the built-in algorithm: trained on for one epoch, the mAP is not lower than before.

Random weights in a symbol of the built-in's are overfitted to 8 images, put into its artifact again, and trained on.
It takes about 40 minutes on 2 cores.
"""

import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))

import conftest
from figures import figure
from test_builtin import train_on


def main() -> None:
    conftest.LIMIT = 7200.0
    for base_network, steps in (("resnet-50", 60), ("vgg-16", 100)):
        with tempfile.TemporaryDirectory() as folder:
            before, after = train_on(Path(folder), base_network, 300, steps)
        figure(f"builtin/{base_network}/mAP before", before, None)
        figure(f"builtin/{base_network}/mAP gained by an epoch", after - before, 0.0)


if __name__ == "__main__":
    main()
