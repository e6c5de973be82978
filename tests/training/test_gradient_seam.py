"""The seam between backward and step, in a plain loop and in the Trainer."""

import pytest
import torch
from transformers import AutoModelForCausalLM, Trainer, TrainingArguments

from zeitgeist.errors import InputInvalid
from zeitgeist.training import Example, Schedule
from zeitgeist.training.gradient_seam import (
    GradientSeam,
    answer_loss,
    gradients,
    train_between,
    undisturbed,
)
from zeitgeist.training.trainer import seeded, train_answers

EXAMPLES = [Example((5, 6, 7), (8, 9)), Example((6,), (7, 3)), Example((9, 9), (4,))]


def opened(path):
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, local_files_only=True)


def test_a_seam_that_does_nothing_trains_as_without(tiny_llama):
    schedule = Schedule(steps=4, batch_size=2, learning_rate=1e-3, seed=3)
    plain, seamed, heard = opened(tiny_llama), opened(tiny_llama), []
    with seeded(schedule.seed):
        wanted = train_answers(plain, EXAMPLES, schedule, progress=False)
    found = train_between(seamed, EXAMPLES, schedule, heard.append, progress=False)
    assert found == pytest.approx(wanted, abs=1e-4)
    assert heard == pytest.approx(wanted, abs=1e-3)


def test_the_seam_sees_gradients_before_every_step_and_decides_it(tiny_llama):
    model = opened(tiny_llama)
    before = {name: p.clone() for name, p in model.named_parameters()}

    def only_the_head(_loss):
        for name, parameter in model.named_parameters():
            if "lm_head" not in name:
                parameter.grad.zero_()

    train_between(model, EXAMPLES, Schedule(steps=2, batch_size=1), only_the_head, progress=False)
    changed = {n for n, p in model.named_parameters() if not torch.equal(p, before[n])}
    assert changed == {"lm_head.weight"}


@pytest.mark.parametrize("accumulated", [1, 3])
def test_it_is_called_once_per_step_with_clipped_gradients(tiny_llama, tmp_path, accumulated):
    model, lengths = opened(tiny_llama), []

    def measure():
        squares = [p.grad.double().square().sum() for p in model.parameters()]
        lengths.append(float(torch.stack(squares).sum().sqrt()))

    ids = torch.arange(8).view(2, 4) + 5
    arguments = TrainingArguments(
        output_dir=str(tmp_path),
        max_steps=2,
        per_device_train_batch_size=1,
        gradient_accumulation_steps=accumulated,
        max_grad_norm=0.01,
        report_to=[],
        use_cpu=True,
        save_strategy="no",
        dataloader_pin_memory=False,
        disable_tqdm=True,
    )
    data = [{"input_ids": row, "labels": row} for row in ids] * 3
    with seeded(0):
        Trainer(model, arguments, train_dataset=data, callbacks=[GradientSeam(measure)]).train()
    assert lengths == pytest.approx([0.01, 0.01], rel=1e-3)


def test_gradients_leave_what_is_accumulated(tiny_llama):
    model = opened(tiny_llama)
    answer_loss(model, EXAMPLES[:1]).backward()
    kept = model.lm_head.weight.grad.clone()
    found = gradients(answer_loss(model, EXAMPLES[1:]), [model.lm_head.weight])
    assert torch.equal(model.lm_head.weight.grad, kept)
    assert found[0].shape == kept.shape and not torch.equal(found[0], kept)


def test_padding_is_never_learned(tiny_llama):
    model = opened(tiny_llama).eval()
    alone = [answer_loss(model, [example]).item() for example in EXAMPLES]
    counts = [len(example.answer) for example in EXAMPLES]
    wanted = sum(a * n for a, n in zip(alone, counts, strict=True)) / sum(counts)
    for pad in (0, 3, 8):
        assert answer_loss(model, EXAMPLES, pad=pad).item() == pytest.approx(wanted, rel=1e-5)


def test_nothing_is_disturbed_also_after_an_error():
    net = torch.nn.Sequential(torch.nn.BatchNorm1d(2), torch.nn.Dropout(0.5))
    state = torch.random.get_rng_state()
    with pytest.raises(RuntimeError, match="stop"), undisturbed(net):
        net(torch.randn(4, 2))
        raise RuntimeError("stop")
    assert torch.equal(torch.random.get_rng_state(), state)
    assert net[0].running_mean.tolist() == [0.0, 0.0] and int(net[0].num_batches_tracked) == 0


def test_nothing_to_learn_is_told(tiny_llama):
    with pytest.raises(InputInvalid, match="no examples"):
        train_between(opened(tiny_llama), [], Schedule(), lambda _: None)
