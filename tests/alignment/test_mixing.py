"""Mixed contexts: enumerated distributions, limits, shares, marked tokens, the two modes."""

from itertools import product

import numpy as np
import pytest
import torch
from scipy.stats import chisquare
from transformers import LlamaConfig, LlamaForCausalLM

from zeitgeist.alignment.decoding import control_tokens, drafts, draw_tokens, numbers, rollout
from zeitgeist.alignment.mixing import Replaced, mix, replaceable
from zeitgeist.errors import InputInvalid
from zeitgeist.training import Example
from zeitgeist.training.contexts import UNLABELLED, gold_context

END, PAD = 4, 5


@pytest.fixture(scope="module")
def model():
    """Four symbols, a token that ends and one that fills; its distributions are far from even."""
    config = LlamaConfig(
        vocab_size=6,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        max_position_embeddings=64,
        eos_token_id=END,
        pad_token_id=PAD,
    )
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        made.lm_head.weight *= 40
    return made


FORBIDDEN = torch.tensor([False, False, False, False, True, True])


def mixed(model, examples, share, **further):
    known = {"forbidden": FORBIDDEN, "pad": PAD, **further}
    found = sorted(mix(model, examples, share, **known), key=lambda one: one[0])
    return [context for _, context, _ in found], sum((r for *_, r in found), Replaced())


def ragged(count, seed=0):
    generator = np.random.default_rng(seed)
    made = []
    for _ in range(count):
        prompt = generator.integers(0, 4, generator.integers(1, 6)).tolist()
        answer = generator.integers(0, 4, generator.integers(0, 7)).tolist()
        made.append(Example(tuple(prompt), (*answer, END)))
    return made


@torch.no_grad()
def path_distribution(model, example, share, *, temperature=1.0, gold_prefix=False):
    """Of all answers of three tokens, by enumeration, one forward pass per prefix."""
    allowed = (~FORBIDDEN).nonzero().squeeze(1).tolist()
    found = {}
    for path in product(allowed, repeat=3):
        chance = 1.0
        for t, token in enumerate(path):
            before = example.answer[:t] if gold_prefix else path[:t]
            ids = torch.tensor([[*example.prompt, *before]])
            logits = model(ids).logits[0, -1].double().masked_fill(FORBIDDEN, -torch.inf)
            own = float(torch.softmax(logits / temperature, dim=0)[token])
            chance *= share * (token == example.answer[t]) + (1 - share) * own
        found[path] = chance
    return found


@pytest.mark.parametrize(("mode", "gold_prefix"), [("sequential", False), ("parallel", True)])
@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_mixed_answers_are_distributed_as_the_product_along_their_path(
    model, mode, gold_prefix, temperature
):
    example, share, draws = Example((0, 3), (1, 2, 0, END)), 0.6, 2500
    contexts, _ = mixed(
        model,
        [example] * draws,
        share,
        mode=mode,
        temperature=temperature,
        batch_size=1000,
        seed=(7,),
    )
    wanted = path_distribution(
        model, example, share, temperature=temperature, gold_prefix=gold_prefix
    )
    assert sum(wanted.values()) == pytest.approx(1.0)
    seen = dict.fromkeys(wanted, 0)
    for context in contexts:
        seen[context.input_ids[2:5]] += 1
    # A cell of its own for what is expected fewer than five times.
    likely = [path for path, chance in wanted.items() if chance * draws >= 5]
    counts = [seen[path] for path in likely]
    expected = [wanted[path] * draws for path in likely]
    counts.append(draws - sum(counts))
    expected.append(draws - sum(expected))
    assert chisquare(counts, expected).pvalue > 1e-3
    assert len(likely) > 10


def test_the_two_modes_are_told_apart_by_the_same_test(model):
    """The test above has the power to see which prefix was conditioned on."""
    example = Example((0, 3), (1, 2, 0, END))
    one, other = (
        path_distribution(model, example, 0.6, gold_prefix=gold) for gold in (False, True)
    )
    assert sum(abs(one[path] - other[path]) for path in one) / 2 > 0.05


def test_with_a_gold_share_of_one_contexts_are_those_of_fine_tuning(model):
    examples = ragged(9)
    for mode in ("sequential", "parallel", "uniform"):
        contexts, replaced = mixed(model, examples, 1.0, mode=mode, batch_size=4)
        assert contexts == [gold_context(example) for example in examples]
        assert replaced.replaced == replaced.differing == replaced.read == 0
        assert replaced.agreement == 1.0


def test_a_model_that_is_always_right_mixes_gold(model):
    prompts = [(0, 1), (2,), (3, 3, 1)]
    answers = [()] * 3
    for row, answer in drafts(
        model,
        prompts,
        limit=5,
        ending=END,
        forbidden=torch.ones(6, dtype=torch.bool) & FORBIDDEN,
        temperature=0.0,
        pad=PAD,
        seeds=[(0, row) for row in range(3)],
    ):
        answers[row] = answer
    examples = [Example(p, (*a, END)) for p, a in zip(prompts, answers, strict=True)]
    # Where the ending was the likeliest, no replacement says so: such answers are short, not wrong.
    contexts, replaced = mixed(model, examples, 0.0, temperature=0.0)
    assert contexts == [gold_context(example) for example in examples]
    assert replaced.replaced == sum(len(a) for a in answers) and replaced.differing == 0


def test_the_share_replaced_is_what_gold_leaves(model):
    examples = [Example((0, 3), (1, 2, 0, 3, 1, END))] * 800
    for mode in ("sequential", "parallel", "uniform"):
        contexts, replaced = mixed(model, examples, 0.7, mode=mode, batch_size=400)
        assert replaced.positions == 4000
        spread = 3.5 * (0.3 * 0.7 / 4000) ** 0.5
        assert abs(replaced.replaced / replaced.positions - 0.3) < spread
        differing = sum(
            a != b
            for context in contexts
            for a, b in zip(context.input_ids, gold_context(examples[0]).input_ids, strict=True)
        )
        assert differing == replaced.differing
        if mode == "uniform":  # of four symbols three are wrong
            assert abs(differing / replaced.replaced - 0.75) < 3.5 * (0.1875 / 1200) ** 0.5


@torch.no_grad()
def test_as_many_differ_as_the_model_would_be_wrong(model):
    """Parallel: the expected share is (1 - beta)(1 - mean p(gold)), p over what may be drawn."""
    example = Example((0, 3), (1, 2, 0, 3, END))
    ids = torch.tensor([example.prompt + example.answer])
    logits = model(ids).logits[0, 1:5].double().masked_fill(FORBIDDEN, -torch.inf)
    right = float(torch.softmax(logits, dim=1)[range(4), example.answer[:4]].mean())
    _, replaced = mixed(model, [example] * 2000, 0.5, mode="parallel", batch_size=1000)
    bound = 0.5 * (1 - right)
    assert abs(replaced.differing / replaced.positions - bound) < 3.5 * (bound / 8000) ** 0.5


def test_nothing_ends_before_the_end_and_labels_are_gold(model):
    examples = ragged(40, seed=3)
    for mode in ("sequential", "parallel", "uniform"):
        contexts, _ = mixed(model, examples, 0.0, mode=mode, batch_size=16)
        for example, context in zip(examples, contexts, strict=True):
            asked = len(example.prompt)
            assert context.input_ids[:asked] == example.prompt
            assert context.labels[:asked] == (UNLABELLED,) * asked
            assert context.labels[asked:] == example.answer
            assert not {END, PAD} & set(context.input_ids[asked:-1])
            assert context.input_ids[-1] == END


def test_tokens_of_the_template_inside_an_answer_stay(model):
    example = Example((0,), (1, END, 2, PAD, 3, END))
    assert replaceable(example, FORBIDDEN) == [True, False, True, False, True, False]
    for mode in ("sequential", "parallel", "uniform"):
        contexts, replaced = mixed(model, [example] * 20, 0.0, mode=mode)
        assert replaced.replaced == 60
        for context in contexts:
            assert context.input_ids[2] == END and context.input_ids[4] == PAD


def test_up_to_the_first_replacement_both_modes_are_one(model):
    examples = ragged(30, seed=5)
    one, other = (
        mixed(model, examples, 0.6, mode=mode, batch_size=7)[0]
        for mode in ("sequential", "parallel")
    )
    apart = 0
    for example, a, b in zip(examples, one, other, strict=True):
        gold = example.prompt + example.answer
        first = next((t for t, x in enumerate(a.input_ids) if x != gold[t]), len(gold))
        assert a.input_ids[: first + 1] == b.input_ids[: first + 1]
        apart += a != b
    assert apart > 0


def test_parallel_is_one_teacher_forced_pass_and_draws_from_it(model):
    example = Example((0, 3), (1, 2, 0, END))
    contexts, _ = mixed(model, [example], 0.0, mode="parallel", seed=(3,))
    with torch.no_grad():
        logits = model(torch.tensor([example.prompt + example.answer])).logits[0, 1:4]
    draws = numbers((3, 0), 9)[5:8]
    wanted = draw_tokens(logits, torch.from_numpy(draws), temperature=1.0, forbidden=FORBIDDEN)
    assert contexts[0].input_ids[2:5] == tuple(wanted.tolist())


@pytest.mark.parametrize("mode", ["sequential", "parallel", "uniform"])
def test_batches_change_nothing(model, mode):
    examples = ragged(23, seed=1)
    alone, _ = mixed(model, examples, 0.5, mode=mode, batch_size=1)
    for size in (2, 5, 23, 64):
        assert mixed(model, examples, 0.5, mode=mode, batch_size=size)[0] == alone


def test_seeds_decide_and_higher_shares_replace_a_subset(model):
    examples = ragged(40, seed=2)
    one = mixed(model, examples, 0.5, seed=(1, 2))
    assert one == mixed(model, examples, 0.5, seed=(1, 2))
    assert one[0] != mixed(model, examples, 0.5, seed=(1, 3))[0]
    counts = [mixed(model, examples, share)[1].replaced for share in (0.9, 0.7, 0.4, 0.0)]
    assert counts == sorted(counts)
    few = mixed(model, examples, 0.8, mode="uniform")[0]
    many = mixed(model, examples, 0.4, mode="uniform")[0]
    for example, a, b in zip(examples, few, many, strict=True):
        gold = example.prompt + example.answer
        for x, y, right in zip(a.input_ids, b.input_ids, gold, strict=True):
            assert x in (right, y)


def test_clean_examples_stay_gold(model):
    examples = [Example((0, 3), (1, 2, 0, 3, END))] * 600
    contexts, replaced = mixed(model, examples, 0.0, clean_share=0.25, batch_size=300)
    clean = sum(context == gold_context(examples[0]) for context in contexts)
    assert 0.2 < 1 - replaced.replaced / replaced.positions < 0.3
    assert clean >= 600 - replaced.replaced / 4


@pytest.mark.parametrize(
    ("further", "told"),
    [
        ({"mode": "paralel"}, "did you mean 'parallel'"),
        ({"temperature": -1.0}, "temperature is -1.0"),
        ({"clean_share": 1.5}, "clean share is 1.5"),
    ],
)
def test_bad_values_are_told(model, further, told):
    with pytest.raises(InputInvalid, match=told):
        mixed(model, ragged(1), 0.5, **further)


def test_a_share_beyond_one_is_told(model):
    with pytest.raises(InputInvalid, match=r"gold share is 1\.1"):
        mixed(model, ragged(1), 1.1)


def test_a_rollout_of_ragged_prompts_is_that_of_each_alone(model):
    prompts = [[0, 1, 2], [3], [2, 2, 1, 0, 3]]

    def likeliest(_, logits):
        return logits.argmax(dim=-1)

    together = rollout(model, prompts, 6, likeliest, pad=PAD)
    for prompt, found in zip(prompts, together, strict=True):
        wanted = model.generate(
            torch.tensor([prompt]), max_new_tokens=6, min_new_tokens=6, do_sample=False
        )
        alone = rollout(model, [prompt], 6, likeliest, pad=PAD)[0]
        assert torch.equal(found, alone)
        if END not in found.tolist():
            assert found.tolist() == wanted[0, len(prompt) :].tolist()
    assert rollout(model, prompts, 0, likeliest, pad=PAD).shape == (3, 0)


def test_a_draw_is_the_categorical_distribution():
    logits = torch.randn(7, generator=torch.Generator().manual_seed(0))
    draws = torch.from_numpy(np.random.default_rng(0).random(20000))
    found = draw_tokens(logits.expand(20000, 7), draws, temperature=0.5)
    wanted = torch.softmax(logits.double() / 0.5, dim=0) * 20000
    assert chisquare(torch.bincount(found, minlength=7), wanted).pvalue > 1e-3


def test_the_highest_draw_is_never_a_forbidden_token():
    for last in (0, 3, 6):
        forbidden = torch.ones(7, dtype=torch.bool)
        forbidden[last] = False
        draws = torch.tensor([0.0, 1 - 2**-53, 0.5], dtype=torch.float64)
        found = draw_tokens(torch.zeros(3, 7), draws, temperature=1.0, forbidden=forbidden)
        assert found.tolist() == [last] * 3


def test_drafts_end_where_the_model_ends_them(model):
    prompts = [(0, 1), (2,), (3, 3, 1), (1,)]
    known = {"limit": 8, "ending": END, "forbidden": FORBIDDEN, "temperature": 1.0, "pad": PAD}
    seeds = [(4, row) for row in range(4)]
    one = dict(drafts(model, prompts, seeds=seeds, batch_size=1, **known))
    together = dict(drafts(model, prompts, seeds=seeds, batch_size=4, **known))
    assert one == together
    assert all(not {END, PAD} & set(answer) for answer in one.values())
    assert any(len(answer) < 8 for answer in one.values())


def test_control_tokens_are_all_that_no_text_is_made_of(tiny_llama):
    from zeitgeist.alignment.policies import open_policy

    opened, tokenizer = open_policy(tiny_llama)
    found = control_tokens(opened, tokenizer).nonzero().squeeze(1).tolist()
    assert found == [0, 1, 2, 3]  # <unk> <s> </s> <pad>
    opened.resize_token_embeddings(300)
    assert control_tokens(opened, tokenizer).sum() == 4 + 12
