"""The sentences of README and docs that quote a measured figure, each written from a committed results file.

A test looks every sentence up where it stands. After new figures it says which sentence is no longer true: correct it
in the document, and here where its words change. A percentage in `CHECKED` that is neither in a table, nor in such a
sentence, nor listed below fails the test too.
"""

from __future__ import annotations

import quoted_classifiers as classifiers
import quoted_language as language

README = "README.md"
RESULTS = "docs/results/README.md"
PROOF = "docs/proof.md"
ULRL = "docs/ulrl.md"
CHECKED = (README, RESULTS)
NOT_MEASURED = (
    "(5 %, `--clean 1000`",
    "the host took 5 to 12 % of the cores",
    "within 10 % of the attacked model's",  # the ladder's setting
    "Our goals were a mean of 2 % and none above 10 %",
    "it reached 0.5 to 68 % in trials whose rows were not kept",
    "With 100 clean images (0.5 %,",
    "(Its version before ended 4.6 to 7.2 % above it.)",  # its rows were replaced by today's
    "CROW `paper` left 96 and 98 % of it",  # a trial whose rows were not kept
)
"""Settings, and figures whose results were not kept."""


def sentences() -> dict[str, list[str]]:
    """Return what must stand in each document, by its path."""
    results = [
        *language.demo(),
        *language.text_attacks(),
        *language.neighbours(),
        *language.fifteen(),
        *language.removal(),
        *language.more_samples(),
        *classifiers.scanning(),
        *classifiers.image_demo(),
        *classifiers.small_image(),
        *classifiers.image_attacks(),
        *classifiers.transformer(),
        *classifiers.texts(),
    ]
    looks = [*classifiers.scanned(), *classifiers.clean_looks(), *classifiers.big_looks()]
    return {README: language.in_short(), RESULTS: results, PROOF: language.prove(), ULRL: looks}
