"""Which entries are in one block."""

import pytest
import torch

from zeitgeist.continual.grains import heads_of, partition
from zeitgeist.errors import InputInvalid


def ids(split, names):
    return dict(zip(names, (piece.ids for piece in split.pieces), strict=True))


def test_a_neuron_is_a_row_and_its_bias():
    net = torch.nn.ModuleDict({"a": torch.nn.Linear(5, 3), "norm": torch.nn.LayerNorm(5)})
    named = dict(net.named_parameters())
    split = partition(named, "neuron")
    own = ids(split, named)
    assert torch.equal(own["a.weight"], own["a.bias"]) and len(set(own["a.bias"].tolist())) == 3
    assert own["norm.weight"].ndim == 0 and own["norm.weight"] != own["norm.bias"]
    assert split.blocks == 5


def attention(heads, keys, width, rank=0):
    def tensor(*shape):
        return torch.zeros(shape)

    made = {}
    for name, out in (("q", heads), ("k", keys), ("v", keys), ("o", None)):
        rows, columns = (out * width, 16) if out else (16, heads * width)
        at = f"layers.0.self_attn.{name}_proj"
        if rank:
            made[f"{at}.lora_A.default.weight"] = tensor(rank, columns)
            made[f"{at}.lora_B.default.weight"] = tensor(rows, rank)
        else:
            made[f"{at}.weight"] = tensor(rows, columns)
    return made


def test_a_head_is_rows_of_the_query_and_columns_of_the_output():
    named = {**attention(4, 2, 3), "layers.0.mlp.up_proj.weight": torch.zeros(7, 16)}
    counts = {"q_proj": 4, "o_proj": 4, "k_proj": 2, "v_proj": 2}
    split = partition(named, "head", heads=counts)
    own = ids(split, named)
    assert split.blocks == 4 + 2 + 1
    at = "layers.0.self_attn."
    assert torch.equal(own[at + "q_proj.weight"], own[at + "o_proj.weight"])
    assert torch.equal(own[at + "k_proj.weight"], own[at + "v_proj.weight"])
    assert not set(own[at + "q_proj.weight"].tolist()) & set(own[at + "k_proj.weight"].tolist())
    assert split.pieces[3].axis == 1 and own["layers.0.mlp.up_proj.weight"].ndim == 0


def test_of_lora_the_factor_at_the_heads_is_split():
    named = attention(4, 2, 3, rank=2)
    split = partition(named, "head", heads={"q_proj": 4, "o_proj": 4, "k_proj": 2, "v_proj": 2})
    shared = [name for name, piece in ids(split, named).items() if piece.ndim == 0]
    at = "layers.0.self_attn."
    assert shared == [
        at + "q_proj.lora_A.default.weight",
        at + "k_proj.lora_A.default.weight",
        at + "v_proj.lora_A.default.weight",
        at + "o_proj.lora_B.default.weight",
    ]


def test_rows_along_either_axis_come_back():
    split = partition(attention(4, 2, 3), "head", heads={"o_proj": 4})
    piece, tensor = split.pieces[3], torch.randn(2, 16, 12)
    rows = piece.rows(tensor, torch.Size((16, 12)))
    assert rows.shape == (2, 12, 16)
    assert torch.equal(piece.back(rows, torch.Size((16, 12))), tensor)


def test_a_function_names_blocks_across_parameters_rows_or_entries():
    layer = torch.nn.Linear(3, 4)
    named = dict(layer.named_parameters())
    assert partition(named, lambda name, _: name[:1]).blocks == 2
    assert partition(named, lambda _, p: torch.arange(len(p)) % 2).blocks == 2
    assert partition(named, lambda _, p: torch.arange(p.numel()).view(p.shape)).blocks == 12
    with pytest.raises(InputInvalid, match=r"gives \(7,\)"):
        partition(named, lambda *_: torch.arange(7))


def test_bad_grains_are_told():
    named = dict(torch.nn.Linear(3, 4).named_parameters())
    with pytest.raises(InputInvalid, match="no grain 'row'"):
        partition(named, "row")
    with pytest.raises(InputInvalid, match="number of heads"):
        partition(named, "head")
    with pytest.raises(InputInvalid, match="no parameter is trained"):
        partition({})
    with pytest.raises(InputInvalid, match="12 rows for 5 heads"):
        partition(attention(4, 2, 3), "head", heads={"q_proj": 5})
    assert heads_of(object()) == {}
