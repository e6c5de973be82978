"""``make bench``: every benchmark at its quick size."""

from benchmarks import (
    attention_transfer,
    capture,
    circuits,
    gradient_restriction,
    gradient_restriction_steps,
    head_scan,
    hybrid_attention,
    knots_factored,
    merge_vs_mergekit,
    steepest_descent,
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
print("\n## Testing a circuit, many circuits in one pass against one at a time\n", flush=True)
circuits.main(["--quick"])
print("\n## A step of steepest descent against other optimisers\n", flush=True)
steepest_descent.main(["--quick"])
print("\n## Answers with their states, batched against one by one\n", flush=True)
truth_answers.main(["--quick"])
print("\n## Probes of every cell against scikit-learn in a loop\n", flush=True)
truth_probes.main(["--quick"])
print("\n## GEM's projection against the published arithmetic\n", flush=True)
gradient_restriction.main(["--quick"])
print("\n## Whole training steps of GEM and A-GEM\n", flush=True)
gradient_restriction_steps.main(["--quick"])
