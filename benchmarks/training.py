"""Training speed of SASRec beside RecBole's, as shipped and with its padding trimmed, and what distillation adds.

    python -m benchmarks.training --data FOLDER [--domain scientific] [--repeats 3] [--out FILE.json]

Every variant is a process of its own, run in turn; what is reported is the median over repeats with minimum and
maximum, and ratios of medians. RecBole runs in an environment of its own, made below `benchmarks/.cache` when missing.
Nothing else should run meanwhile.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import venv
from pathlib import Path
from typing import Any

import torch

from benchmarks.device import memory_cells, memory_headers
from ckd.config import load_config
from ckd.console import out
from ckd.data.atomic import replace_file
from ckd.data.domain import SPLITS, Domain, Split
from ckd.pipelines.encode_items import EncodeConfig, encode_items
from ckd.pipelines.finetune_teacher import finetune_teacher
from ckd.pipelines.plan import make_plan
from ckd.pipelines.prepare import prepare
from ckd.pipelines.teacher_score import teacher_score
from ckd.pipelines.workspace import domain_folder

HERE = Path(__file__).parent
CACHE = HERE / ".cache"
WORK = CACHE / "work"

#: Of ckd, the first a warm-up: where epochs take seconds, and where they take a minute.
EPOCHS, EPOCHS_OF_LARGE = 8, 3

#: The paper's sizes, by the names of either side.
RECBOLE = (
    *("hidden_size=300", "inner_size=256", "n_layers=2", "n_heads=2", "hidden_dropout_prob=0.1"),
    *("attn_dropout_prob=0.1", "loss_type=CE", "train_batch_size=512", "eval_batch_size=2048", "learning_rate=0.001"),
)


def recbole_python() -> Path:
    """The interpreter of RecBole's environment, made when it is missing or has another torch than runs this.

    Versions of torch differ in speed, and its builds by hundreds of MB before anything is trained.
    """
    folder = CACHE / "recbole-env"
    python = folder / "bin" / "python"
    stamp = folder / ".ready"
    same = f"torch=={torch.__version__.split('+')[0]}"
    if not stamp.exists() or stamp.read_text() != same:
        out.print(f"making {folder}")
        venv.create(folder, with_pip=True, clear=True)
        requirements = HERE / "recbole" / "requirements.txt"
        subprocess.run([python, "-m", "pip", "install", "--quiet", "-r", requirements, same], check=True)
        stamp.write_text(same)
    return python


def benchmark_files(source: Path, name: str) -> Path:
    """A folder of the domain's split files, laid out and named as RecBole wants them; written where it has none."""
    folder = CACHE / "recbole-data" / name
    folder.mkdir(parents=True, exist_ok=True)
    for split in SPLITS:
        file = folder / f"{name}.{split}.inter"
        found = sorted(source.glob(f"*.{split}.inter"))
        if file.exists():
            continue
        if found:
            file.symlink_to(found[0].resolve())
        else:
            _write_split(Domain.load(domain_folder(WORK, name)), split, file)
    return folder.parent


def _write_split(domain: Domain, split: Split, path: Path) -> None:
    """One line for each instance, its history written out."""
    instances = domain.instances(split)
    with replace_file(path) as partial, partial.open("w") as file:
        file.write("user_id:token\titem_id_list:token_seq\titem_id:token\n")
        columns = (instances.users, instances.starts, instances.stops, instances.targets)
        for user, start, stop, target in zip(*(column.tolist() for column in columns), strict=True):
            file.write(f"{user}\t{' '.join(map(str, domain.items[start:stop]))}\t{target}\n")


def prepared(data: Path, name: str) -> None:
    """Prepare the domain in the benchmarks' work folder, where it is not there."""
    if not domain_folder(WORK, name).exists():
        prepare(WORK, data / name, name=name)


def peer(data: Path, name: str, model: str) -> list[Any]:
    """The command that trains RecBole's model on the domain, to which options and settings are added."""
    return [recbole_python(), HERE / "recbole" / "peer.py", benchmark_files(data / name, name), name, model]


def teachers(domain: str, count: int) -> list[str]:
    """Runs of teachers trained for one epoch that have scored the plan: their cost does not depend on quality."""
    config = load_config(overrides=["plan.difficulty=none", "plan.buckets=1", "train.epochs=1"])
    plan = make_plan(WORK, domain, config).plan
    runs = []
    for number in range(count):
        run = f"bench-{number}"
        finetune_teacher(WORK, domain, "unisrec", config.model_copy(update={"seed": number}), run=run)
        teacher_score(WORK, domain, run, config, plan.id)
        runs.append(run)
    return runs


def run(command: list[Any]) -> dict[str, Any]:
    """The JSON on the last line of what a command prints."""
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(map(str, command))}\n{done.stderr[-2000:]}")
    found: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--domain", default="scientific")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--out", type=Path)
    parser.add_argument(
        "--train-only",
        action="store_true",
        help="no teachers, no validation by RecBole: on a large domain they take long",
    )
    arguments = parser.parse_args()
    name = arguments.domain
    prepared(arguments.data, name)
    three: list[str] = []
    if not arguments.train_only:
        encode_items(WORK, name, EncodeConfig())
        three = teachers(name, 3)
    theirs = [*peer(arguments.data, name, "SASRec"), *(["--train-only"] if arguments.train_only else [])]
    # What distillation adds is less than two epochs of one process differ from two of another.
    epochs = EPOCHS if three else EPOCHS_OF_LARGE
    ours = [sys.executable, "-m", "benchmarks.ours", WORK, name, "--epochs", epochs]
    bf16 = "train.precision=bf16"
    variants: dict[str, list[Any]] = {
        "RecBole as shipped": [*theirs, "--steps", 8, *RECBOLE],
        "RecBole trimmed": [*theirs, "--steps", 40, "--trim", *RECBOLE],
        "ckd": ours,
        "ckd bf16": [*ours, bf16],
    }
    if three:
        variants["ckd, 1 teacher"] = [*ours, "--teachers", three[0]]
        variants["ckd, 3 teachers"] = [*ours, "--teachers", ",".join(three)]
        variants["ckd bf16, 3 teachers"] = [*ours, "--teachers", ",".join(three), bf16]
    measured: dict[str, list[dict[str, Any]]] = {variant: [] for variant in variants}
    for _ in range(arguments.repeats):
        for variant, command in variants.items():
            measured[variant].append(run(command))
    report(measured)
    if arguments.out:
        arguments.out.write_text(json.dumps(measured, indent=1) + "\n")


def report(measured: dict[str, list[dict[str, Any]]]) -> None:
    """Medians, spread and ratios."""

    def median(variant: str, key: str) -> float:
        return statistics.median(each[key] for each in measured[variant])

    shipped, trimmed = (median(f"RecBole {kind}", "instances_per_second") for kind in ("as shipped", "trimmed"))
    rows = []
    for variant, runs in measured.items():
        rate = median(variant, "instances_per_second")
        rates = [each["instances_per_second"] for each in runs]
        rows.append(
            [
                variant,
                f"{rate:,.0f} ({min(rates):,.0f}–{max(rates):,.0f})",
                f"{median(variant, 'epoch_seconds'):.1f}",
                f"{rate / shipped:.1f}",
                f"{rate / trimmed:.2f}",
                f"{median(variant, 'evaluate_seconds'):.2f}" if "evaluate_seconds" in runs[0] else "",
                *memory_cells(runs),
            ]
        )
    headers = ["SASRec", "inst/s (min–max)", "s/epoch", "× shipped", "× trimmed", "s/validation", *memory_headers()]
    for line in (headers, ["---"] * len(headers), *rows):
        print("| " + " | ".join(line) + " |")
    for precision in ("", " bf16"):
        base = median(f"ckd{precision}", "epoch_seconds")
        for count in ("1 teacher", "3 teachers"):
            variant = f"ckd{precision}, {count}"
            if variant in measured:
                ratio = median(variant, "epoch_seconds") / base
                waiting = median(variant, "waiting_share")
                out.print(f"{variant}: {ratio:.3f} times the base's epoch, waiting on scores {waiting:.2%} of it")


if __name__ == "__main__":
    main()
