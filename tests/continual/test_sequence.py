"""The loop in memory: tasks learned in turn, and a model whose modes stay its own."""

import pytest
from transformers import AutoModelForCausalLM

from zeitgeist.continual.gradient_restriction import RestrictionOptions
from zeitgeist.continual.sequence import guard_of, learn_tasks, score_tasks, with_lora
from zeitgeist.continual.task_files import Task
from zeitgeist.training import Example, LoraSettings
from zeitgeist.training.models import peft_warnings


@pytest.fixture
def tasks():
    def some(first):
        return tuple(Example((first, 10 + i), (20 + first, 3)) for i in range(4))

    return [Task(name, some(i), some(i)[:2]) for i, name in enumerate(("cat", "dog"), 5)]


@pytest.fixture
def model(tiny_llama):
    return AutoModelForCausalLM.from_pretrained(tiny_llama, local_files_only=True)


@pytest.mark.parametrize("training", [True, False])
def test_scoring_leaves_every_module_in_its_mode(training, model, tasks):
    model.train(training)
    odd = model.model.layers[1].mlp
    odd.train(not training)
    before = [module.training for module in model.modules()]
    scores = score_tasks(model, tasks)
    assert [module.training for module in model.modules()] == before
    assert score_tasks(model.eval(), tasks) == scores
    with pytest.raises(ValueError, match="zero"):
        score_tasks(model.train(), tasks, batch_size=0)
    assert all(module.training for module in model.modules())


@pytest.mark.parametrize("method", ["gem", "agem", "replay"])
def test_rows_tell_in_which_layers_gradients_violated(method, model, tasks):
    lora = LoraSettings(steps=3, batch_size=2, rank=2, warmup_steps=0, seed=1)
    with peft_warnings():
        adapted = with_lora(model, lora)
    guard = guard_of(adapted, tasks, RestrictionOptions(method=method, memory=4, per_step=2))
    first, second = learn_tasks(adapted, tasks, guard, lora, progress=False)
    assert first.violations == {}
    if method == "replay":
        assert second.violations == {}
        return
    assert list(second.violations) == ["model.layers.0", "model.layers.1"]
    assert all(len(shares) == 3 for shares in second.violations.values())
    assert all(0 <= share <= 1 for shares in second.violations.values() for share in shares)
    assert sum(map(sum, second.violations.values())) > 0
