"""``make bench``: every benchmark at its quick size."""

from benchmarks import (
    attention_transfer,
    capture,
    head_scan,
    hybrid_attention,
    knots_factored,
    merge_vs_mergekit,
    ties_kernels,
    truth_answers,
    truth_probes,
)

print("## Merging on disk against mergekit\n", flush=True)
merge_vs_mergekit.main(["--quick"])
print("\n## TIES of one tensor, compiled loops against torch\n", flush=True)
ties_kernels.main(["--quick"])
print("\n## KnOTS, factored against dense\n", flush=True)
knots_factored.main(["--quick"])
print("\n## Hybrid attention against softmax attention and its quadratic form\n", flush=True)
hybrid_attention.main(["--quick"])
print("\n## Attention transfer, layer by layer against all at once\n", flush=True)
attention_transfer.main(["--quick"])
print("\n## Capturing activations against a plain forward pass\n", flush=True)
capture.main(["--quick"])
print("\n## Scanning attention heads against all attention matrices\n", flush=True)
head_scan.main(["--quick"])
print("\n## Answers with their states, batched against one by one\n", flush=True)
truth_answers.main(["--quick"])
print("\n## Probes of every cell against scikit-learn in a loop\n", flush=True)
truth_probes.main(["--quick"])
