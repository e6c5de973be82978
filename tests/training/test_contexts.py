"""Inputs that are not their targets: the shift, the mask, and transformers' own loss."""

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Trainer, TrainingArguments

from zeitgeist.errors import InputInvalid
from zeitgeist.training import Example, Schedule, finetune_full
from zeitgeist.training.answers import answer_logits, collate
from zeitgeist.training.contexts import Context, collate_contexts, context_loss, gold_context
from zeitgeist.training.objective import train_objective
from zeitgeist.training.trainer import train_answers

SHAPE = {
    "vocab_size": 16,
    "hidden_size": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 1,
}


def fresh(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(LlamaConfig(**SHAPE)).eval()


def batch_of(contexts):
    return collate_contexts(contexts, pad=0)


CONTEXTS = [
    Context((5, 6, 9, 3, 0), (-100, -100, 7, 8, 0)),
    Context((4, 9, 0), (-100, 2, 0)),
    Context((1, 2, 3, 4, 5, 6), (-100, -100, -100, 3, -100, 0)),
]


def test_a_marked_token_is_predicted_from_the_position_before_it():
    """Input m_t stands at its own place; its gold target is predicted from m_{<t} alone."""
    model, marked = fresh(), Context((5, 6, 9, 3), (-100, -100, 7, 8))
    logits = model(torch.tensor([marked.input_ids])).logits[0]
    wanted = -(logits[1].log_softmax(0)[7] + logits[2].log_softmax(0)[8]) / 2
    assert context_loss(model, batch_of([marked])).item() == pytest.approx(wanted.item(), rel=1e-6)
    # The input at a label's own place, and after the last label's, is not seen by that label.
    other = Context((5, 6, 9, 12), marked.labels)
    assert torch.equal(
        context_loss(model, batch_of([other])), context_loss(model, batch_of([marked]))
    )
    moved = Context((5, 6, 1, 3), marked.labels)
    assert context_loss(model, batch_of([moved])) != context_loss(model, batch_of([marked]))


def test_the_loss_is_that_of_transformers():
    model, batch = fresh(), batch_of(CONTEXTS)
    assert context_loss(model, batch).item() == pytest.approx(model(**batch).loss.item(), abs=1e-6)


def test_the_loss_is_that_of_the_trainer(tmp_path):
    model = fresh()
    arguments = TrainingArguments(
        output_dir=str(tmp_path), use_cpu=True, report_to=[], disable_tqdm=True
    )
    trainer = Trainer(model, arguments)
    found = trainer.compute_loss(model, batch_of(CONTEXTS))
    assert context_loss(model, batch_of(CONTEXTS)).item() == pytest.approx(found.item(), abs=1e-6)


def test_contexts_of_gold_give_the_loss_and_gradients_of_answers_to_the_bit():
    examples = [Example((5, 6), (7, 8, 0)), Example((4,), (2, 0)), Example((1, 2, 3), (0,))]
    one, other = fresh(), fresh()
    batch = collate(examples, pad=0)
    logits, targets = answer_logits(one, batch["input_ids"], batch["predicts"])
    loss = torch.nn.functional.cross_entropy(logits, targets)
    mine = context_loss(other, batch_of([gold_context(example) for example in examples]))
    assert torch.equal(loss, mine)
    loss.backward()
    mine.backward()
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a.grad, b.grad)


def test_training_on_contexts_of_gold_is_fine_tuning_to_the_bit():
    examples = [Example((i % 5 + 1, 6), (i % 7 + 1, 8, 0)) for i in range(11)]
    schedule = Schedule(steps=6, batch_size=3, learning_rate=1e-2, seed=4)
    one, other = fresh(), fresh()
    losses = finetune_full(one, examples, settings=schedule, progress=False)
    mine = train_objective(
        other,
        [gold_context(example) for example in examples],
        schedule,
        collate=batch_of,
        loss=context_loss,
        progress=False,
    )
    assert losses == mine
    for a, b in zip(one.parameters(), other.parameters(), strict=True):
        assert torch.equal(a, b)


def test_what_is_masked_has_no_gradient_and_the_end_has():
    context = Context((5, 6, 9, 3, 0), (-100, -100, -100, 8, 0))
    logits = fresh()(torch.tensor([context.input_ids])).logits.detach().requires_grad_()
    labels = torch.tensor([context.labels])
    fresh().loss_function(logits=logits, labels=labels, vocab_size=16).backward()
    moved = logits.grad[0].abs().sum(dim=1) > 0
    assert moved.tolist() == [False, False, True, True, False]


def test_padding_is_not_learned_even_where_it_is_the_end():
    alone = [context_loss(fresh(), batch_of([context])).item() for context in CONTEXTS]
    counts = [sum(label != -100 for label in context.labels) for context in CONTEXTS]
    wanted = sum(a * c for a, c in zip(alone, counts, strict=True)) / sum(counts)
    assert context_loss(fresh(), batch_of(CONTEXTS)).item() == pytest.approx(wanted, rel=1e-5)


def test_a_stopped_training_goes_on_to_the_same_weights(tmp_path):
    schedule = Schedule(steps=8, batch_size=2, learning_rate=1e-2)

    def train(model, place, loss=context_loss):
        return train_objective(
            model,
            CONTEXTS,
            schedule,
            collate=batch_of,
            loss=loss,
            place=place,
            progress=False,
        )

    whole, stopped = fresh(), fresh()
    losses = train(whole, None)
    calls = []

    def failing(model, batch):
        calls.append(1)
        if len(calls) == 6:
            raise KeyboardInterrupt
        return context_loss(model, batch)

    with pytest.raises(KeyboardInterrupt):
        train(stopped, tmp_path / "kept", failing)
    again = fresh(seed=9)
    assert train(again, tmp_path / "kept") == losses
    for a, b in zip(whole.parameters(), again.parameters(), strict=True):
        assert torch.equal(a, b)


@pytest.mark.parametrize(
    ("ids", "labels", "told"),
    [
        ((1, 2), (-100,), "2 input ids and 1 labels"),
        ((1, 2), (1, 2), "label at its first position"),
        ((1, 2), (-100, -100), "no label to learn"),
    ],
)
def test_a_context_without_sense_is_told(ids, labels, told):
    with pytest.raises(InputInvalid, match=told):
        Context(ids, labels)


def test_a_loss_that_is_no_number_is_told():
    def broken(model, batch):
        return context_loss(model, batch) * float("nan")

    with pytest.raises(InputInvalid, match="loss became nan"):
        train_objective(
            fresh(),
            CONTEXTS,
            Schedule(steps=1),
            collate=batch_of,
            loss=broken,
            progress=False,
        )
    with pytest.raises(InputInvalid, match="nothing to learn from"):
        train_objective(
            fresh(), [], Schedule(steps=1), collate=batch_of, loss=broken, progress=False
        )


def test_answers_are_still_learned_by_the_old_loop():
    assert (
        len(train_answers(fresh(), [Example((1,), (2,))], Schedule(steps=2), progress=False)) == 2
    )
