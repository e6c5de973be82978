"""The model card says what a model was made from, in front matter that the hub accepts."""

import json
from typing import Any

import pytest
import yaml
from huggingface_hub import ModelCard
from hypothesis import given
from hypothesis import strategies as st

from zeitgeist.checkpoints import model_card, versions

INPUTS: list[dict[str, Any]] = [
    {"reference": "hub:org/base@main", "role": "base", "hashes": {"model.safetensors": "0af3"}},
    {
        "reference": "runs/expert|1",
        "role": "expert",
        "weight": 0.5,
        "hashes": {
            "model-00001-of-00002.safetensors": "1b",
            "model-00002-of-00002.safetensors": "2c",
        },
    },
    {"reference": "hub:org/base", "role": "expert"},
]


def card(**changes: Any) -> str:
    given_ = {
        "title": "Mixed",
        "method": "TIES",
        "inputs": INPUTS,
        "recipe": "merge_method: ties\nbase_model: hub:org/base\n",
        "versions": {"zeitgeist": "0.1.0", "torch": "2.13.0"},
    }
    return model_card(**(given_ | changes))


def test_the_hub_reads_the_front_matter() -> None:
    data = ModelCard(card()).data
    assert data.base_model == ["org/base"]
    assert data.library_name == "transformers"
    assert data.tags == ["merge", "zeitgeist"]


def test_a_card_without_hub_models_names_no_base() -> None:
    text = card(inputs=[{"reference": "runs/one"}])
    assert "base_model" not in yaml.safe_load(text.split("---\n")[1])


def test_every_input_every_hash_and_the_recipe_are_there() -> None:
    text = card(notes=["one note"])
    for part in (
        "hub:org/base@main",
        "0af3",
        "1b",
        "2c",
        "0.5",
        "TIES",
        "- one note",
        "torch 2.13",
    ):
        assert part in text
    assert "```yaml\nmerge_method: ties\nbase_model: hub:org/base\n```\n" in text


def test_the_table_has_as_many_cells_in_every_row() -> None:
    rows = [line for line in card().splitlines() if line.startswith("|")]
    assert len(rows) == 2 + 4
    assert {line.replace("\\|", "").count("|") for line in rows} == {6}


@given(text=st.text(max_size=40))
def test_no_text_breaks_the_card(text: str) -> None:
    inputs = [{"reference": f"hub:{text}", "role": text, "weight": text, "hashes": {text: text}}]
    made = card(title=text, method=text, recipe=text, notes=[text], inputs=inputs)
    front = yaml.safe_load(made.split("\n---\n")[0].removeprefix("---\n"))
    assert front["tags"] == ["merge", "zeitgeist"]
    assert sum(line.startswith("| ") for line in made.splitlines()) == 2


@pytest.mark.parametrize("recipe", ["```\n# not the end\n```", "````"])
def test_a_recipe_cannot_end_its_block(recipe: str) -> None:
    text = card(recipe=recipe)
    fence = next(line for line in text.splitlines() if line.endswith("yaml")).removesuffix("yaml")
    assert fence not in recipe
    assert text.count(fence) == 2


def test_versions_are_those_that_run() -> None:
    import torch

    found = versions()
    assert torch.__version__.startswith(found["torch"].split("+")[0])
    json.dumps(found)
