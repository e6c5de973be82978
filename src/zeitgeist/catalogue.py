"""The index: one record per system of the newsletter that runs here.

Reading this module imports nothing heavy.
"""

from zeitgeist.catalogue_record import Area, System
from zeitgeist.errors import InputInvalid, did_you_mean

AREAS: tuple[Area, ...] = (
    Area(
        "merging",
        "Model merging",
        "many checkpoints into one, without training",
        "zeitgeist.studies.merging:STUDY",
    ),
    Area(
        "compression",
        "Compression",
        "the same model, cheaper",
        "zeitgeist.studies.compression:STUDY",
    ),
    Area("inspection", "Inspection", "what a model knows, where, and how"),
    Area("optimizers", "Optimizers", "steepest descent under a norm you name"),
    Area(
        "continual",
        "Continual learning",
        "learn the next task without losing the last",
        "zeitgeist.studies.continual:STUDY",
    ),
    Area(
        "alignment",
        "Alignment",
        "what a model should say, from demonstrations, rewards and preferences",
    ),
)

SYSTEMS: tuple[System, ...] = (
    System(
        slug="merging-at-scale",
        title="What Matters for Model Merging at Scale?",
        authors="Yadav, Vu, Lai, Chronopoulou, Faruqui, Bansal, Munkhdalai",
        arxiv="2410.03617",
        sections=("Featured", "Model Merging"),
        area="merging",
        purpose="merge several fine-tunes of one base into one model, without training",
        door="zeitgeist.merging:merge",
        command="merge",
        example="zeitgeist merge --method ties --base BASE --expert A --expert B -o merged",
        configs={
            "task_arithmetic": "zeitgeist.merging.options:TaskArithmetic",
            "ties": "zeitgeist.merging.options:Ties",
            "dare_ties": "zeitgeist.merging.options:DareTies",
        },
        page="docs/merging.md",
        study="zeitgeist.studies.merging_at_scale:STUDY",
        python="""\
from zeitgeist.merging import merge

merge(
    {
        "merge_method": "ties",
        "base_model": "BASE",
        "models": [{"model": "A"}, {"model": "B"}],
    },
    "merged",
)
""",
        limits=(
            "Experts must come from the same base; merge check warns when they do not.",
            "Defaults are the papers', tuned on other models: sweep lambda on held-out data.",
        ),
        published={"ties": {"density": 0.2, "lambda_": 1.0}},
    ),
    System(
        slug="knots",
        title="Model Merging with SVD to Tie the KnOTS",
        authors="Stoica, Ramesh, Ecsedi, Choshen, Hoffman",
        arxiv="2410.19735",
        sections=("Model Merging",),
        area="merging",
        purpose="merge LoRA adapters in one shared basis and get an adapter back",
        door="zeitgeist.merging:merge_adapters",
        command="merge",
        example="zeitgeist merge --method knots_ties --expert lora-a --expert lora-b -o merged",
        configs={"knots_ties": "zeitgeist.merging.knots:KnotsOptions"},
        page="docs/merging.md",
        study="zeitgeist.studies.knots:STUDY",
        python="""\
from zeitgeist.merging import merge_adapters

merge_adapters(["lora-a", "lora-b"], "merged", method="knots_ties")
""",
        limits=(
            "Adapters only: full fine-tunes have no low rank to align.",
            "DoRA magnitudes and adapter biases are refused; modules_to_save are not merged.",
        ),
        published={"knots_ties": {"density": 0.2, "lambda_": 0.6}},
    ),
    System(
        slug="lines",
        title="LiNeS: Post-training Layer Scaling Prevents Forgetting and Enhances Model Merging",
        authors="Wang, Dimitriadis, Favero, Ortiz-Jimenez, Fleuret, Frossard",
        arxiv="2410.17146",
        sections=("Catastrophic Forgetting", "Model Merging"),
        area="merging",
        purpose="shrink a fine-tune's early layers so that it forgets less, or steady a merge",
        door="zeitgeist.merging:merge",
        command="merge",
        example=(
            "zeitgeist merge --method lines --base BASE --expert TUNED --lines-alpha 0.1 -o gentler"
        ),
        configs={"lines": "zeitgeist.merging.lines:LinesOptions"},
        page="docs/merging.md",
        study="zeitgeist.studies.lines:STUDY",
        python="""\
from zeitgeist.merging import merge

merge(
    {
        "merge_method": "lines",
        "base_model": "BASE",
        "models": [{"model": "TUNED"}],
        "lines": {"alpha": 0.1},
    },
    "gentler",
)
""",
        limits=(
            "Uniform scaling (task_arithmetic with lambda below 1) is as cheap: compare both.",
            "A model with several stacks has each scaled over its own depth.",
        ),
    ),
    System(
        slug="attention-drop",
        title="What Matters in Transformers? Not All Attention is Needed",
        authors="He, Sun, Shen, Li",
        arxiv="2406.15786",
        sections=("Computational Enhancement",),
        area="compression",
        purpose="take out attention layers that hardly matter: smaller cache, no training",
        door="zeitgeist.compression.drop:drop",
        command="drop apply",
        example="zeitgeist drop apply MODEL --text calibration.txt --attention 4 -o less",
        configs={"attention_drop": "zeitgeist.compression.drop_ranking:DropOptions"},
        page="docs/attention-drop.md",
        study="zeitgeist.studies.attention_drop:STUDY",
        python="""\
from zeitgeist.compression.drop import drop

drop("MODEL", "less", attention=4, text="calibration.txt")
""",
        limits=(
            "A small model has little to spare: sweep before you drop.",
            "The result opens with transformers after import zeitgeist.compression.dropped.",
        ),
        published={"attention_drop": {"samples": 256, "length": 2048}},
    ),
    System(
        slug="lolcats",
        title="LoLCATs: On Low-Rank Linearizing of Large Language Models",
        authors="Zhang, Arora, Chalamala, Wu, Spector, Singhal, Ramesh, Re",
        arxiv="2410.10254",
        sections=("Featured", "Computational Enhancement"),
        area="compression",
        purpose="teach a softmax model linear attention: constant time and memory per token",
        door="zeitgeist.compression.linearize:linearize",
        command="linearize transfer",
        example="zeitgeist linearize transfer MODEL --text text.txt -o maps",
        configs={"lolcats": "zeitgeist.compression.linearize:LolcatsOptions"},
        page="docs/lolcats.md",
        study="zeitgeist.studies.lolcats:STUDY",
        python="""\
from zeitgeist.compression.linearize import linearize

report = linearize("MODEL", "text.txt", "maps")
print(report.after, report.break_even)
""",
        limits=(
            "Nothing shrinks but the cost of a token: weights stay and maps are added.",
            "Below the break-even context softmax keeps fewer bytes; the report says where it is.",
            "Beyond the length it was taught on the sum over old keys drowns the window.",
        ),
        published={
            "lolcats": {
                "window": 64,
                "length": 1024,
                "batch_size": 8,
                "learning_rate": 1e-2,
                "mse_weight": 1000.0,
            }
        },
    ),
    System(
        slug="subquadratic-limits",
        title="Fundamental Limitations on Subquadratic Alternatives to Transformers",
        authors="Alman, Yu",
        arxiv="2410.04271",
        sections=("Computational Enhancement",),
        area="compression",
        purpose="find most and least similar pairs exactly; see what cheaper mixers lose",
        door="zeitgeist.compression.limits:most_similar_pair",
        command="limits solve",
        example="zeitgeist limits solve documents.txt --problem msd",
        configs={
            "limits": "zeitgeist.compression.limits:LimitsOptions",
            "probe": "zeitgeist.compression.limits_probe:ProbeOptions",
        },
        page="docs/subquadratic-limits.md",
        study="zeitgeist.studies.subquadratic_limits:STUDY",
        python="""\
from zeitgeist.compression.limits import most_similar_pair

found = most_similar_pair(["cats and dogs", "stocks fell", "dogs and cats run"])
print(found.first, found.second, found.value, found.certificate)
""",
        limits=(
            "All pairs are compared: 100,000 items are 5 billion products.",
            "The theorem is conditional, worst-case and asymptotic; no experiment tests it.",
        ),
    ),
    System(
        slug="active-dormant-heads",
        title=(
            "Active-Dormant Attention Heads: Mechanistically Demystifying Extreme-Token Phenomena "
            "in LLMs"
        ),
        authors="Guo, Pai, Bai, Jiao, Jordan, Mei",
        arxiv="2410.13835",
        sections=("Theory",),
        area="inspection",
        purpose="find attention sinks, drained values, residual peaks and heads that sleep",
        door="zeitgeist.inspection.heads:scan",
        command="inspect heads scan",
        example="zeitgeist inspect heads scan MODEL --domain prose=a.txt --domain code=b.txt",
        configs={
            "scan": "zeitgeist.inspection.heads:HeadsOptions",
            "toy": "zeitgeist.inspection.heads_toy:ToyOptions",
        },
        page="docs/active-dormant-heads.md",
        study="zeitgeist.studies.active_dormant_heads:STUDY",
        python="""\
from zeitgeist.inspection.heads import scan

report = scan(model, tokenizer, {"prose": [text], "code": [source]})
print(report.sinks, report.gaps("prose", "code")[:5])
""",
        limits=(
            "Where a token is a sink and a head dormant are thresholds: read the numbers too.",
            "Small models have graded heads, not heads that switch on and off.",
        ),
        published={
            "toy": {
                "width": 256,
                "length": 256,
                "batch_size": 512,
                "steps": 10_000,
                "weight_decay": 1e-4,
                "triggers": 3,
                "seed": 42,
            }
        },
    ),
    System(
        slug="truthfulness-probes",
        title=(
            "LLMs Know More Than They Show: On the Intrinsic Representation of LLM Hallucinations"
        ),
        authors="Orgad, Toker, Gekhman, Reichart, Szpektor, Kotek, Belinkov",
        arxiv="2410.02707",
        sections=("Featured", "LLMs"),
        area="inspection",
        purpose="find where a model's states tell its wrong answers from right ones, keep a probe",
        door="zeitgeist.inspection.truth:find_truth",
        command="inspect truth",
        example="zeitgeist inspect truth MODEL --set capitals -o found --picture map.png",
        configs={
            "asking": "zeitgeist.inspection.answers:AnswerOptions",
            "sampling": "zeitgeist.inspection.answers:SamplingOptions",
            "probing": "zeitgeist.inspection.probes:ProbeOptions",
        },
        page="docs/truthfulness-probes.md",
        study="zeitgeist.studies.truthfulness_probes:STUDY",
        python="""\
from zeitgeist.inspection.truth import find_truth

found = find_truth(model, tokenizer, "questions.jsonl")
print([(row.name, row.auc) for row in found.report.rows])
found.probe.save("probe")
""",
        limits=(
            "Short answers only: without an exact answer there is the last token alone.",
            "A probe may read familiarity rather than truth; compare the question's last token.",
            "A few hundred questions leave a standard error of 0.03 to 0.04 in every area.",
        ),
        published={"sampling": {"count": 30, "temperature": 1.0, "top_p": 1.0}},
    ),
    System(
        slug="circuit-hypothesis",
        title="Hypothesis Testing the Circuit Hypothesis in LLMs",
        authors="Shi, Beltran-Velez, Nazaret, Zheng, Garriga-Alonso, Jesson, Makar, Blei",
        arxiv="2410.13032",
        sections=("Featured", "LLMs"),
        area="inspection",
        purpose="test whether some edges of a transformer are the circuit of a task, or find some",
        door="zeitgeist.inspection.circuit:verify",
        command="inspect circuit test",
        example="zeitgeist inspect circuit test MODEL pairs.jsonl --circuit circuit.json",
        configs={
            "circuit": "zeitgeist.inspection.circuit_options:CircuitOptions",
            "discovery": "zeitgeist.inspection.circuit_options:DiscoveryOptions",
        },
        page="docs/circuit-hypothesis.md",
        study="zeitgeist.studies.circuit_hypothesis:STUDY",
        python="""\
from pathlib import Path

from transformers import AutoModelForCausalLM, AutoTokenizer

from zeitgeist.inspection.circuit import verify
from zeitgeist.inspection.circuit_files import read_pairs

model = AutoModelForCausalLM.from_pretrained("MODEL")
pairs = read_pairs(Path("pairs.jsonl"), AutoTokenizer.from_pretrained("MODEL"))
print(verify(model, pairs, ["embed->a0.h1.v", "a0.h1->logits"]).text())
""",
        limits=(
            "Pre-norm models of Llama's or GPT-2's layout, and small transformers of your own.",
            "Independence passes wherever nothing works without the circuit: read the effects.",
            "A pass is no proof: few examples cannot reject; within asks the other way round.",
        ),
        published={
            "circuit": {
                "eps": 0.1,
                "q_star": 0.9,
                "alpha": 0.05,
                "draws": 100,
                "permutations": 1000,
            },
            "discovery": {"steps": 5},
        },
    ),
    System(
        slug="steepest-descent",
        title="Old Optimizer, New Norm: An Anthology",
        authors="Bernstein, Newhouse",
        arxiv="2409.20325",
        sections=("Theory",),
        area="optimizers",
        purpose="train with the norm each layer's role asks for; see updates under every norm",
        door="zeitgeist.optimizers.steepest:Steepest",
        command="norms",
        example="zeitgeist norms BASE TUNED --norms spectral,rms_spectral -o norms.png",
        configs={"steepest": "zeitgeist.optimizers.options:SteepestOptions"},
        page="docs/steepest-descent.md",
        study="zeitgeist.studies.steepest_descent:STUDY",
        python="""\
from zeitgeist.optimizers.steepest import Steepest

optimizer = Steepest(model, lr=0.02)
print(optimizer.explain())
""",
        limits=(
            "Rates do not carry over from AdamW: sweep, or take scale='match_adamw'.",
            "Sharded parameters (FSDP, DTensor) are not gathered: one device holds each matrix.",
        ),
        published={"steepest": {"lr": 0.02, "momentum": 0.95, "nesterov": True}},
    ),
    System(
        slug="gradient-restriction",
        title=(
            "Fine-Grained Gradient Restriction: A Simple Approach for Mitigating Catastrophic "
            "Forgetting"
        ),
        authors="Liu, Ye, Stone, Liu",
        arxiv="2410.00868",
        sections=("Featured", "Catastrophic Forgetting"),
        area="continual",
        purpose="learn a new task with gradients that may not raise the loss on stored old samples",
        door="zeitgeist.continual.gradient_restriction:GradientRestriction",
        command="continual run",
        example="zeitgeist continual run MODEL first.jsonl second.jsonl -o learned",
        configs={
            "gradient_restriction": "zeitgeist.continual.gradient_restriction:RestrictionOptions",
        },
        page="docs/gradient-restriction.md",
        study="zeitgeist.studies.gradient_restriction:STUDY",
        python="""\
from zeitgeist.continual.gradient_restriction import GradientRestriction

guard = GradientRestriction(model, loss)  # loss(model, samples) -> mean loss
for task in tasks:
    for batch in task:
        optimizer.zero_grad()
        loss(model, batch).backward()
        guard.restrict()
        optimizer.step()
        guard.remember(batch)
    guard.end_task()
""",
        limits=(
            "The guarantee is to first order, on stored samples and for SGD; AdamW has none.",
            "Every step takes a gradient of every stored group: cost grows with the tasks.",
            "Not meant for one head whose classes arrive over time.",
        ),
        published={"gradient_restriction": {"memory": 256, "data_groups": 1, "strength": 0.0}},
    ),
    System(
        slug="self-generated-tokens",
        title="Bridging the Training-Inference Gap in LLMs by Leveraging Self-Generated Tokens",
        authors="Cen, Liu, Zeng, Chaudhari, Rangwala, Karypis, Fakoor",
        arxiv="2410.14655",
        sections=("Featured", "LLMs"),
        area="alignment",
        purpose="fine-tune on demonstrations so that a model holds up on its own prefixes",
        door="zeitgeist.alignment.self_generated:train",
        command="selfgen train",
        example="zeitgeist selfgen train MODEL demonstrations.jsonl --rounds 3 -o tuned",
        configs={
            "self_generated": "zeitgeist.alignment.self_generated_options:SelfGeneratedOptions"
        },
        page="docs/self-generated-tokens.md",
        study="zeitgeist.studies.self_generated_tokens:STUDY",
        python="""\
from zeitgeist.alignment.self_generated import train

report = train("MODEL", "demonstrations.jsonl", "tuned", held_out="held-out.jsonl")
print(report.before.gap, report.after.gap)
""",
        limits=(
            "Where each token depends on the one before, mixed contexts teach a contradiction.",
            "The paper's body was not at hand: what is marked (spec) is this library's reading.",
            "Where many answers are right, keep the gold share at 0.8 or above.",
        ),
    ),
)


def find(slug: str) -> System:
    """The system called ``slug``.

    Raises
    ------
    InputInvalid
        If no such system is here; the message names the nearest slugs.

    Examples
    --------
    >>> find("knots").arxiv
    '2410.19735'
    """
    by_slug = {system.slug: system for system in SYSTEMS}
    if slug not in by_slug:
        raise InputInvalid(f"no system is called {slug!r}", mend=did_you_mean(slug, by_slug))
    return by_slug[slug]
