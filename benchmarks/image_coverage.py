"""UniM²Rec with fewer and fewer images: the same fine-tuning at several shares of items that have one.

    python -m benchmarks.image_coverage                                   # the built-in example
    python -m benchmarks.image_coverage --work WORK --domain scientific   # any domain with the features text and image

The items that keep their image at a smaller share are among those of a larger one. Features and runs stay in the work
folder, under `image-<percent>-seed<seed>`, and a finished run is not repeated.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.training import WORK
from ckd.config import RunConfig, load_config
from ckd.data.example import TARGET
from ckd.data.features import TEXT, list_features
from ckd.pipelines.encode_items import EncodeConfig, encode_items
from ckd.pipelines.example import prepare_example
from ckd.pipelines.image_coverage import Covered, image_coverage
from ckd.pipelines.reproduce.methods import teacher
from ckd.pipelines.reproduce.settings import resolve
from ckd.pipelines.workspace import domain_folder

SHARES = (0.0, 0.36, 1.0)
METRICS = ("recall@10", "ndcg@10")


def report(found: dict[int, list[Covered]]) -> None:
    """Mean over seeds, and their standard deviation, by share."""
    headers = ["coverage", *(f"{split} {metric}" for split in ("valid", "test") for metric in METRICS)]
    for line in (headers, ["---"] * len(headers)):
        print("| " + " | ".join(line) + " |")
    for each in zip(*found.values(), strict=True):
        cells = [f"{np.mean([one.coverage for one in each]):.0%}"]
        for split in ("valid", "test"):
            for metric in METRICS:
                values = np.array([one.metrics[split][metric] for one in each])
                spread = f" ±{values.std(ddof=1):.4f}" if len(values) > 1 else ""
                cells.append(f"{values.mean():.4f}{spread}")
        print("| " + " | ".join(cells) + " |")
    print(f"\nseeds: {', '.join(map(str, found))}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", type=Path, help="a work folder with the domain; without, the example is made")
    parser.add_argument("--domain", default=TARGET)
    parser.add_argument("--feature", default="image", help="the images' feature, whole")
    parser.add_argument("--shares", default=",".join(map(str, SHARES)), help="of all items, from 0 to 1")
    parser.add_argument("--seeds", type=int, default=1)
    parser.add_argument("--config", type=Path, help="YAML file; all keys are optional")
    parser.add_argument("-o", "--override", action="append", default=[], metavar="SECTION.KEY=VALUE")
    arguments = parser.parse_args()
    work = arguments.work or WORK
    if arguments.work is None:
        prepare_example(work)
        if TEXT not in list_features(domain_folder(work, TARGET)):
            encode_items(work, TARGET, EncodeConfig())
    config: RunConfig = load_config(arguments.config, arguments.override)
    shares = [float(share) for share in arguments.shares.split(",")]
    found: dict[int, Any] = {}
    for seed in range(config.seed, config.seed + arguments.seeds):
        began = time.perf_counter()
        settings = resolve(teacher("unim2rec"), config, arguments.domain == TARGET, seed)
        found[seed] = image_coverage(work, arguments.domain, shares, settings.config, arguments.feature)
        print(f"seed {seed}: {time.perf_counter() - began:.0f} s")
    report(found)


if __name__ == "__main__":
    main()
