r"""What the looks of ULRL's default see in networks without a backdoor: the rates of false alarm of its bounds.

    python benchmarks/clean_looks.py --data digits --train 1200 --clean 150 --epochs 12 --batch-size 64 \
        --out runs/clean-looks

Trains a clean network for each seed and appends, of its surest class: the score of the share of unlearning, the
smallness of its patch, the smallest patch of all and the largest leads of a change and of a warp. A run that was
stopped goes on where it was.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from classifiers import NONE, Bench
from image_attacks import image_parser, prepare
from rows import append, read_rows

from detrojan.defenses.ulrl import UlrlOptions, locate
from detrojan.metrics.inversion import smallest_patches, smallness
from detrojan.metrics.universal import leads
from detrojan.metrics.warps import universal_warps
from detrojan.types import Run


def main() -> None:
    flags = image_parser(__doc__, train=1200, out=Path("runs/clean-looks"))
    flags.add_argument("--seeds", type=int, nargs="*", default=list(range(100, 134)))
    arguments = flags.parse_args()
    arguments.out.mkdir(parents=True, exist_ok=True)
    results = arguments.out / "results.jsonl"
    done = {(r["data"], r["seed"]) for r in read_rows(results)}
    for seed in arguments.seeds:
        if (arguments.data, seed) not in done:
            row = {"data": arguments.data, "seed": seed, **look(prepare(arguments, seed))}
            append(results, row)
            print(row, flush=True)


def look(bench: Bench) -> dict[str, Any]:
    network, _ = bench.plant(NONE, 0)
    run = Run(seed=bench.seed)
    small = smallness(smallest_patches(network, bench.clean, bench.seed))
    share = locate(network, bench.clean, UlrlOptions(locate="share"), run).scores
    surest = int(share.argmax())
    return {
        "share": round(float(share[surest]), 3),
        "class": surest,
        "patch_of_it": round(float(small[surest]), 3),
        "patch": round(float(small.max()), 3),
        "lead": round(float(leads(network, bench.clean, bench.seed).max()), 3),
        "warp": round(float(universal_warps(network, bench.clean, bench.seed).leads.max()), 3),
    }


if __name__ == "__main__":
    main()
