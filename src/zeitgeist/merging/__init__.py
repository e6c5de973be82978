"""Many checkpoints into one.

`merge` is the door for models on disk, `merge_adapters` for LoRA adapters, `merge_tensors` for
tensors at hand. `check` and `compare` look before anything is written; `sweep` and `soup` choose
by a metric of yours.
"""

from zeitgeist.merging.adapters import AdapterMergeReport, merge_adapters
from zeitgeist.merging.check import CheckReport, check
from zeitgeist.merging.conflicts import ConflictReport, compare
from zeitgeist.merging.lines import LinesOptions
from zeitgeist.merging.live import SweepReport, soup, sweep
from zeitgeist.merging.methods import METHODS
from zeitgeist.merging.recipes.recipe import Recipe, load_recipes, parse_recipe
from zeitgeist.merging.tensors import merge_tensors
from zeitgeist.merging.to_disk import MergeReport, merge

__all__ = [
    "METHODS",
    "AdapterMergeReport",
    "CheckReport",
    "ConflictReport",
    "LinesOptions",
    "MergeReport",
    "Recipe",
    "SweepReport",
    "check",
    "compare",
    "load_recipes",
    "merge",
    "merge_adapters",
    "merge_tensors",
    "parse_recipe",
    "soup",
    "sweep",
]
