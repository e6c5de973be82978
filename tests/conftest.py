"""Tiny models on disk, made offline and from fixed seeds, for the whole suite."""

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch

VOCABULARY = 288  # four special tokens, the 256 bytes and 28 merges
WORDS = [
    "the",
    "a",
    "cat",
    "dog",
    "sat",
    "ran",
    "on",
    "mat",
    "big",
    "red",
    "and",
    "of",
    "to",
    "in",
    "it",
    "is",
    "was",
    "he",
    "she",
    "they",
]


@dataclass(frozen=True)
class Family:
    """A base and its fine-tunes, each a transformers directory."""

    base: Path
    experts: tuple[Path, ...]


@pytest.fixture(scope="session")
def tiny_tokenizer(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A byte-level BPE tokenizer with a chat template: `AutoTokenizer.from_pretrained` opens it."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    text = [" ".join(WORDS[i:] + WORDS[:i]) for i in range(len(WORDS))]
    tokenizer = Tokenizer(models.BPE(unk_token="<unk>"))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        special_tokens=["<unk>", "<s>", "</s>", "<pad>"],
        show_progress=False,
    )
    tokenizer.train_from_iterator(text, trainer)
    assert tokenizer.get_vocab_size() == VOCABULARY
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        pad_token="<pad>",
    )
    fast.chat_template = "{% for message in messages %}<s>{{ message['content'] }}</s>{% endfor %}"
    path = tmp_path_factory.mktemp("tokenizer") / "tiny"
    fast.save_pretrained(path)
    return path


@pytest.fixture(scope="session")
def save_llama(tiny_tokenizer: Path) -> Callable[..., Path]:
    """Save a 2-layer Llama; ``perturb`` adds normal noise of that size, from its own seed."""
    from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM

    def save(
        path: Path,
        *,
        seed: int = 0,
        perturb: float = 0.0,
        perturb_seed: int = 0,
        shards: int = 1,
        dtype: torch.dtype = torch.bfloat16,
        tied: bool = False,
    ) -> Path:
        config = LlamaConfig(
            vocab_size=VOCABULARY,
            hidden_size=32,
            intermediate_size=64,
            num_hidden_layers=2,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            bos_token_id=1,
            eos_token_id=2,
            pad_token_id=3,
            tie_word_embeddings=tied,
        )
        with torch.random.fork_rng():
            torch.manual_seed(seed)
            model = LlamaForCausalLM(config).to(dtype)
        generator = torch.Generator().manual_seed(perturb_seed)
        with torch.no_grad():
            for parameter in model.parameters():
                noise = torch.randn(parameter.shape, generator=generator)
                parameter += (perturb * noise).to(dtype)
        model.generation_config = GenerationConfig(
            bos_token_id=1, eos_token_id=2, pad_token_id=3, max_new_tokens=7
        )
        nbytes = sum(p.numel() * p.element_size() for p in model.parameters())
        model.save_pretrained(path, max_shard_size=2 * nbytes if shards == 1 else nbytes // shards)
        shutil.copytree(tiny_tokenizer, path, dirs_exist_ok=True)
        return path

    return save


@pytest.fixture(scope="session")
def tiny_llama(save_llama: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random 2-layer Llama in bfloat16, one shard, about 100 KB. Do not write into it."""
    return save_llama(tmp_path_factory.mktemp("llama") / "tiny")


@pytest.fixture(scope="session")
def tiny_llama_sharded(
    save_llama: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """The same weights as `tiny_llama` in several shards with an index."""
    return save_llama(tmp_path_factory.mktemp("llama") / "sharded", shards=4)


@pytest.fixture(scope="session")
def tiny_llama_tied(
    save_llama: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Path:
    """A Llama whose output head is its embedding, as SmolLM2's is."""
    return save_llama(tmp_path_factory.mktemp("llama") / "tied", tied=True)


@pytest.fixture(scope="session")
def tiny_family(
    tiny_llama: Path, save_llama: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory
) -> Family:
    """`tiny_llama` and three fine-tunes of it: the base plus noise of a fine-tune's size."""
    folder = tmp_path_factory.mktemp("family")
    experts = [
        save_llama(folder / f"expert-{i}", perturb=3e-3, perturb_seed=i, shards=1 if i < 3 else 3)
        for i in (1, 2, 3)
    ]
    return Family(tiny_llama, tuple(experts))
