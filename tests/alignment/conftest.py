"""Demonstrations for a tiny model."""

import gc
import json
from pathlib import Path

import pytest

PAIRS = [
    ("the cat", " sat on the mat"),
    ("a dog ran", " to it"),
    ("he was", " big and red"),
    ("she", " is in it"),
    ("they ran to", " the cat and the dog"),
]


@pytest.fixture
def texts():
    return [{"prompt": prompt, "completion": answer} for prompt, answer in PAIRS]


@pytest.fixture
def chats():
    return [
        {
            "messages": [
                {"role": "user", "content": prompt},
                {"role": "assistant", "content": answer.strip()},
            ]
        }
        for prompt, answer in PAIRS
    ]


@pytest.fixture
def on_disk(texts, tmp_path: Path):
    path = tmp_path / "demonstrations.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in texts))
    return path


@pytest.fixture(autouse=True, scope="session")
def frozen():
    """The Trainer collects garbage at every start, over all that is imported."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def no_flush(monkeypatch):
    """Waiting for the disk shows nothing here."""
    monkeypatch.setattr("zeitgeist.checkpoints.atomic.sync", lambda _: None)
