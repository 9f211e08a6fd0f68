"""Tiny random models of every architecture, saved as the hub stores them, with a tokenizer of bytes."""

import functools
from pathlib import Path

import torch
import transformers as T
from transformers import AutoModelForCausalLM, PretrainedConfig

from evaluation.models import byte_tokenizer

SIZES = {
    "vocab_size": 272,
    "hidden_size": 32,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 64,
    "bos_token_id": 256,
    "eos_token_id": 256,
    "pad_token_id": None,
}
GPT2 = {"vocab_size": 272, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 64}
OPT = {"ffn_dim": 48, "word_embed_proj_dim": 32, "pad_token_id": 0}
PARALLEL = {"num_key_value_heads": None, "rotary_pct": 0.5}

CONFIGS: dict[str, functools.partial[PretrainedConfig]] = {
    "llama": functools.partial(T.LlamaConfig, **SIZES, tie_word_embeddings=True),
    "llama_biased": functools.partial(T.LlamaConfig, **SIZES, attention_bias=True, mlp_bias=True),
    "mistral": functools.partial(T.MistralConfig, **SIZES, sliding_window=16),
    "qwen2": functools.partial(T.Qwen2Config, **SIZES, use_sliding_window=True, sliding_window=16, max_window_layers=1),
    "qwen3": functools.partial(T.Qwen3Config, **SIZES, head_dim=8),
    "gemma2": functools.partial(T.Gemma2Config, **SIZES, head_dim=8, sliding_window=16),
    "gemma3": functools.partial(T.Gemma3TextConfig, **SIZES, head_dim=8, sliding_window=16),
    "phi3": functools.partial(T.Phi3Config, **SIZES),
    "gpt2": functools.partial(T.GPT2Config, **GPT2, bos_token_id=256, eos_token_id=256),
    "opt": functools.partial(T.OPTConfig, **{k: v for k, v in (SIZES | OPT).items() if k != "intermediate_size"}),
    "mixtral": functools.partial(T.MixtralConfig, **SIZES, num_local_experts=4),
    "qwen3_moe": functools.partial(
        T.Qwen3MoeConfig, **SIZES, head_dim=8, num_experts=4, num_experts_per_tok=2, moe_intermediate_size=24
    ),
    # Not in the table of architectures: found by walking.
    "gpt_neox": functools.partial(T.GPTNeoXConfig, **SIZES),
}


def save_tiny(kind: str, folder: Path, seed: int = 0) -> Path:
    """A random model of the kind with its tokenizer, in float32; weights are large enough for layers to matter."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(CONFIGS[kind](), dtype=torch.float32)
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.ndim > 1:
                parameter.mul_(3)
            elif not parameter.any():
                parameter.normal_(std=0.1)
    model.save_pretrained(folder)
    byte_tokenizer().save_pretrained(folder)
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    """Every file of a finished folder but the reports, which hold times and the command."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files if path.stem not in ("report", "README")}
