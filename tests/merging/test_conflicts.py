"""Comparing task vectors: against brute force over the flattened models."""

import itertools
import math

import pytest
import torch
from safetensors.torch import load_file

from zeitgeist.errors import InputInvalid
from zeitgeist.merging import compare
from zeitgeist.merging.blocks import detect_blocks

OUTSIDE = ("model.embed_tokens.weight", "model.norm.weight", "lm_head.weight")


def weights_of(path):
    return {
        name: tensor.double()
        for file in sorted(path.glob("*.safetensors"))
        for name, tensor in load_file(file).items()
    }


def recipe_of(base, experts, **more):
    models = [{"model": str(x)} for x in experts]
    return {"merge_method": "ties", "base_model": str(base), "models": models} | more


def run(recipe, **options):
    return compare(recipe, progress=False, **{"threads": 1} | options)


@pytest.fixture(scope="module")
def aligned(family32, rewrite, tmp_path_factory):
    """Experts that share part of their updates, more so in the second block."""
    base = weights_of(family32.base)
    folder = tmp_path_factory.mktemp("aligned")

    def towards(first, tensors):
        return {
            name: (
                tensor.double()
                + (2.0 if ".layers.1." in name else 0.3) * (first[name] - base[name])
            ).float()
            for name, tensor in tensors.items()
        }

    first = weights_of(family32.experts[0])
    others = [
        rewrite(x, folder / x.name, lambda held: towards(first, held)) for x in family32.experts[1:]
    ]
    return type(family32)(family32.base, (family32.experts[0], *others))


@pytest.mark.parametrize("density", [0.2, 0.7])
@pytest.mark.parametrize("threads", [1, 2])
def test_norms_cosines_and_conflicts_are_those_of_brute_force(density, threads, aligned):
    report = run(recipe_of(aligned.base, aligned.experts), density=density, threads=threads)
    base, experts = weights_of(aligned.base), [weights_of(x) for x in aligned.experts]
    deltas = [{name: x[name] - base[name] for name in base} for x in experts]
    thresholds = []
    for delta in deltas:
        sizes = torch.cat([d.flatten() for d in delta.values()]).abs().float()
        thresholds.append(sizes.sort(descending=True).values[int(density * len(sizes)) - 1])
    groups = {"other": list(OUTSIDE)}
    (stack,) = detect_blocks(base)
    for (number,), names in zip(stack.indices, stack.names, strict=True):
        groups[f"model.layers.{number}"] = list(names)
    groups["all"] = list(base)
    assert {part.block for part in report.blocks} == set(groups)
    assert report.whole.block == "all"
    for part in report.blocks:
        names = groups[part.block]
        flat = [torch.cat([delta[name].flatten() for name in names]) for delta in deltas]
        start = torch.cat([base[name].flatten() for name in names])
        kept = [
            torch.where(d.abs().float() >= limit, d, 0.0)
            for d, limit in zip(flat, thresholds, strict=True)
        ]
        assert part.entries == len(start)
        assert part.base_norm == pytest.approx(start.norm().item())
        assert part.norms == pytest.approx([d.norm().item() for d in flat])
        assert part.kept == pytest.approx([(k != 0).double().mean().item() for k in kept])
        for i, k in itertools.product(range(3), repeat=2):
            cosine = flat[i] @ flat[k] / flat[i].norm() / flat[k].norm()
            assert part.cosine[i][k] == pytest.approx(cosine.item(), abs=1e-12)
            product = kept[i].sign() * kept[k].sign()
            share = (product < 0).sum().item() / (product != 0).sum().item()
            assert part.conflict[i][k] == pytest.approx(share, abs=1e-15)


def test_shared_updates_show_as_cosine_and_fewer_conflicts(aligned):
    report = run(recipe_of(aligned.base, aligned.experts))
    parts = {part.block: part.summary() for part in report.blocks}
    _, cosine_0, conflict_0 = parts["model.layers.0"]
    _, cosine_1, conflict_1 = parts["model.layers.1"]
    assert cosine_1 > cosine_0 and conflict_1 < conflict_0


def test_opposite_experts_conflict_everywhere(family32, rewrite, tmp_path):
    base = load_file(family32.base / "model.safetensors")
    one = family32.experts[0]
    mirrored = rewrite(
        one, tmp_path / "mirrored", lambda held: {n: 2 * base[n] - held[n] for n in held}
    )
    whole = run(recipe_of(family32.base, [one, mirrored])).whole
    assert whole.cosine[0][1] == pytest.approx(-1, abs=1e-6)
    assert whole.conflict[0][1] == pytest.approx(1, abs=1e-3)


def test_the_same_expert_twice_never_conflicts(family32, rewrite, tmp_path):
    twin = rewrite(family32.experts[0], tmp_path / "twin")
    whole = run(recipe_of(family32.base, [family32.experts[0], twin])).whole
    assert whole.cosine[0][1] == pytest.approx(1) and whole.conflict[0][1] == 0


def test_an_expert_equal_to_the_base_is_no_division_by_zero(family32, rewrite, tmp_path):
    same = rewrite(family32.base, tmp_path / "same")
    report = run(recipe_of(family32.base, [same, family32.experts[0]]))
    assert report.whole.norms[0] == 0 and report.whole.cosine[0][1] == 0
    assert report.whole.kept[0] == 0 and report.whole.conflict[0][1] == 0


def test_one_expert_has_norms_and_no_pairs(family32):
    report = run(recipe_of(family32.base, family32.experts[:1]))
    norm, cosine, conflict = report.whole.summary()
    assert norm == pytest.approx(report.whole.norms[0] / report.whole.base_norm)
    assert math.isnan(cosine) and math.isnan(conflict)


@pytest.mark.parametrize("method", ["linear", "slerp", "dare_ties", "sce", "knots_ties"])
def test_the_method_does_not_matter(method, family32):
    experts = family32.experts[: 1 if method == "slerp" else 3]
    recipe = recipe_of(family32.base, experts, merge_method=method)
    assert run(recipe) == run(recipe_of(family32.base, experts))


def test_adapters_are_compared_on_their_base(family32, save_lora, tmp_path):
    loras = [save_lora(tmp_path / f"lora-{i}", i) for i in (1, 2)]
    report = run(recipe_of(family32.base, loras, merge_method="knots_ties"))
    parts = {part.block: part for part in report.blocks}
    assert parts["other"].norms == (0.0, 0.0)
    assert min(parts["model.layers.0"].norms) > 0


def test_rows_are_tidy(aligned):
    report = run(recipe_of(aligned.base, aligned.experts))
    rows = report.rows()
    blocks, experts = len(report.blocks), len(report.experts)
    assert len(rows) == blocks * (experts + 2 * experts * (experts - 1) // 2)
    row = next(
        r for r in rows if r["block"] == "all" and r["quantity"] == "cosine"
        and (r["expert"], r["other"]) == (report.experts[2], report.experts[0])
    )  # fmt: skip
    assert row["value"] == report.whole.cosine[2][0]


def test_no_base_no_task_vectors(family32):
    models = [{"model": str(x)} for x in family32.experts]
    with pytest.raises(InputInvalid, match="base_model"):
        run({"merge_method": "linear", "models": models})


def test_a_density_outside_its_range_is_refused(family32):
    with pytest.raises(InputInvalid, match="density is 0"):
        run(recipe_of(family32.base, family32.experts), density=0.0)
