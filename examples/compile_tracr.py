"""Compile the two RASP programs that ship with `zeitgeist.inspection.circuit_tracr`.

    python -m venv compiler && compiler/bin/pip install tracr-pypi==1.0.0
    compiler/bin/python examples/compile_tracr.py weights.npz
    python examples/compile_tracr.py weights.npz src/zeitgeist/inspection/tracr

The first step needs tracr (Apache-2.0, Google DeepMind; JAX, about 650 MB) and writes arrays;
the second needs zeitgeist and writes a `SmallTransformer` per program. What the compiled programs
answer on some inputs is kept beside the weights, so that tests can compare without tracr.

Lindner, Kramar, Farquhar, Rahtz, McGrath, Mikulik: "Tracr: Compiled Transformers as a Laboratory
for Interpretability", arXiv 2301.05062.
"""

import json
import sys
from pathlib import Path

import numpy as np

EXAMPLES = {
    "proportion": [["x", "w", "x", "z"], ["w", "w", "x", "y"], ["x", "x", "x", "x"], ["z", "x"]],
    "reverse": [["a", "b", "c"], ["c", "b", "a"], ["a", "a", "b", "c", "b"], ["b"]],
}
PARTS = {"q": "query", "k": "key", "v": "value"}


def compiled(path: Path) -> None:
    """Write the arrays of both programs."""
    from tracr.compiler import compiling, lib
    from tracr.rasp import rasp

    programs = {
        "proportion": (lib.make_frac_prevs(rasp.tokens == "x"), {"w", "x", "y", "z"}, "frac_prevs"),
        "reverse": (lib.make_reverse(rasp.tokens), {"a", "b", "c"}, "reverse"),
    }
    arrays: dict[str, np.ndarray] = {}
    for name, (program, vocabulary, label) in programs.items():
        model = compiling.compile_rasp_to_model(
            program, vocab=vocabulary, max_seq_len=5, compiler_bos="BOS"
        )
        shape = model.model_config
        assert shape.num_heads == 1 and not shape.layer_norm and not shape.causal
        for module, weights in model.params.items():
            for key, value in weights.items():
                arrays[f"{name}/{module}/{key}"] = np.asarray(value)
        encoding = model.input_encoder.encoding_map
        kept = [i for i, each in enumerate(model.residual_labels) if each.startswith(label)]
        told = {
            "layers": shape.num_layers,
            "key_size": shape.key_size,
            "mlp": shape.mlp_hidden_size,
            "vocabulary": sorted(encoding, key=encoding.get),
            "outputs": kept,
            "labels": [model.residual_labels[i] for i in kept],
        }
        arrays[f"{name}/told"] = np.array(json.dumps(told))
        for i, words in enumerate(EXAMPLES[name]):
            ids = [encoding[word] for word in ["BOS", *words]]
            found = model.apply(["BOS", *words]).transformer_output
            arrays[f"{name}/example{i}/tokens"] = np.array(ids)
            arrays[f"{name}/example{i}/outputs"] = np.asarray(found)[0][:, kept]
    np.savez(path, **arrays)


def converted(path: Path, place: Path) -> None:
    """Write a small transformer per program, and what it should answer."""
    import torch

    from zeitgeist.inspection.circuit_models import SmallConfig, SmallTransformer

    arrays = dict(np.load(path, allow_pickle=False))
    for name in EXAMPLES:
        told = json.loads(str(arrays[f"{name}/told"]))
        token, place_ = (
            arrays[f"{name}/{each}/embeddings"] for each in ("token_embed", "pos_embed")
        )
        layers, width = told["layers"], token.shape[1]
        model = SmallTransformer(
            SmallConfig(
                vocabulary=len(told["vocabulary"]),
                positions=len(place_),
                width=width,
                layers=layers,
                heads=1,
                head_width=told["key_size"],
                mlp_width=told["mlp"],
                outputs=len(told["outputs"]),
                norm="none",
                causal=False,
                activation="relu",
            )
        )

        def stacked(part: str, key: str, name: str = name, layers: int = layers) -> torch.Tensor:
            rows = [arrays[f"{name}/transformer/layer_{i}/{part}/{key}"] for i in range(layers)]
            return torch.from_numpy(np.stack(rows))

        weights = {
            "token": torch.from_numpy(token),
            "position": torch.from_numpy(place_),
            "unembed": torch.eye(width)[:, told["outputs"]],
            "o": stacked("attn/linear", "w")[:, None],
            "o_bias": stacked("attn/linear", "b"),
            "mlp_in": stacked("mlp/linear_1", "w"),
            "mlp_in_bias": stacked("mlp/linear_1", "b"),
            "mlp_out": stacked("mlp/linear_2", "w"),
            "mlp_out_bias": stacked("mlp/linear_2", "b"),
        }
        for short, part in PARTS.items():
            weights[short] = stacked(f"attn/{part}", "w")[:, None]
            weights[f"{short}_bias"] = stacked(f"attn/{part}", "b")[:, None]
        missing, unknown = model.load_state_dict(weights, strict=False)
        assert not unknown and set(missing) == {"scale", "shift"}, (missing, unknown)
        model.save(place / f"{name}.safetensors")
        examples = [
            {
                "tokens": arrays[f"{name}/example{i}/tokens"].tolist(),
                "outputs": arrays[f"{name}/example{i}/outputs"].tolist(),
            }
            for i in range(len(EXAMPLES[name]))
        ]
        words = {"vocabulary": told["vocabulary"], "labels": told["labels"], "examples": examples}
        (place / f"{name}.json").write_text(json.dumps(words, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    if len(sys.argv) == 2:
        compiled(Path(sys.argv[1]))
    else:
        converted(Path(sys.argv[1]), Path(sys.argv[2]))
