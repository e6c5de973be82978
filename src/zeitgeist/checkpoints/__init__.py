"""Weights on disk: resolve a reference, open lazily, stream, write atomically, keep lineage."""

from zeitgeist.checkpoints.adapter import Adapter, LoraFactors, open_adapter, write_adapter
from zeitgeist.checkpoints.atomic import check_output, new_directory
from zeitgeist.checkpoints.cache import cache_directory
from zeitgeist.checkpoints.header import TensorSpec
from zeitgeist.checkpoints.lineage import model_card, versions
from zeitgeist.checkpoints.packaged import PACKAGES, PackagedModel, pull
from zeitgeist.checkpoints.reader import Checkpoint, open_checkpoint
from zeitgeist.checkpoints.reference import is_adapter, resolve
from zeitgeist.checkpoints.writer import CheckpointWriter, plan_shards

__all__ = [
    "PACKAGES",
    "Adapter",
    "Checkpoint",
    "CheckpointWriter",
    "LoraFactors",
    "PackagedModel",
    "TensorSpec",
    "cache_directory",
    "check_output",
    "is_adapter",
    "model_card",
    "new_directory",
    "open_adapter",
    "open_checkpoint",
    "plan_shards",
    "pull",
    "resolve",
    "versions",
    "write_adapter",
]
