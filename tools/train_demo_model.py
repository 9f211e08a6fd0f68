"""Train the small language model that ships with lowbit, on the source of Python's standard library.

    python tools/train_demo_model.py --out src/lowbit/demo/model --steps 6000

A Llama with grouped-query attention: 256 wide, 5 blocks, 8 query and 2 key-value heads, 640 hidden (not a
power of two), byte-level BPE of 2048, 3.8 million parameters stored in bfloat16. Muon (Jordan 2024, as in
torch.optim) for the matrices inside blocks, AdamW for the embedding and norms, warm-up then linear decay to
zero. Training text: the library and its test suite; evaluation text: held-out modules of the library.
The run writes the model, its tokenizer and `training.json` with the held-out loss beside a unigram and a
5-gram baseline counted on the same training tokens.
"""

import argparse
import json
import math
import platform
import time
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from lowbit.demo.text import stdlib_texts

END = "<|endoftext|>"
VOCABULARY, CONTEXT = 2048, 512


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=VOCABULARY, special_tokens=[END], initial_alphabet=alphabet)
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, clean_up_tokenization_spaces=False
    )


def encode(tokenizer: PreTrainedTokenizerFast, texts: list[str]) -> np.ndarray:
    """All texts as one stream of token ids, each text led by the end-of-text token."""
    end = tokenizer.convert_tokens_to_ids(END)
    encoded = tokenizer.backend_tokenizer.encode_batch(texts)
    return np.concatenate([np.array([end, *one.ids], dtype=np.int64) for one in encoded])


def config() -> LlamaConfig:
    return LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=5,
        num_attention_heads=8,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=0,
    )


def loss_of(model: LlamaForCausalLM, ids: torch.Tensor) -> torch.Tensor:
    logits = model(input_ids=ids).logits
    return F.cross_entropy(logits[:, :-1].float().flatten(0, 1), ids[:, 1:].flatten())


@torch.no_grad()
def held_out_loss(model: LlamaForCausalLM, stream: np.ndarray, windows: int | None = None) -> float:
    """Mean nats per token over non-overlapping windows of the context length."""
    count = len(stream) // CONTEXT
    ids = torch.from_numpy(stream[: count * CONTEXT]).view(count, CONTEXT)[: windows or count]
    return float(sum(loss_of(model, batch) * len(batch) for batch in ids.split(16)) / len(ids))


def unigram_loss(train: np.ndarray, test: np.ndarray) -> float:
    counts = np.bincount(train, minlength=VOCABULARY) + 1.0
    return float(-np.log(counts / counts.sum())[test].mean())


def ngram_loss(train: np.ndarray, test: np.ndarray, order: int = 5, discount: float = 0.75) -> float:
    """Interpolated absolute discounting (Ney, Essen, Kneser 1994), counts of every order from `train`."""
    train, test = train.astype(np.uint64), test.astype(np.uint64)
    counts = np.bincount(train.astype(np.int64), minlength=VOCABULARY) + 1.0
    probability = (counts / counts.sum())[test.astype(np.int64)]
    for n in range(2, order + 1):
        keys, key_counts = np.unique(_windows(train, n), return_counts=True)
        contexts, first, followers = np.unique(keys >> np.uint64(11), return_index=True, return_counts=True)
        totals = np.add.reduceat(key_counts, first)
        asked = _windows(test, n)
        found = _lookup(keys, key_counts, asked)
        given = asked >> np.uint64(11)
        total, distinct = _lookup(contexts, totals, given), _lookup(contexts, followers, given)
        seen = total > 0
        safe = np.where(seen, total, 1)
        mixed = np.maximum(found - discount, 0) / safe + discount * distinct / safe * probability[n - 1 :]
        probability[n - 1 :] = np.where(seen, mixed, probability[n - 1 :])
    return float(-np.log(probability).mean())


def _windows(ids: np.ndarray, n: int) -> np.ndarray:
    """Every n consecutive ids packed into one integer, 11 bits each (the vocabulary is 2^11)."""
    packed = np.zeros(len(ids) - n + 1, dtype=np.uint64)
    for i in range(n):
        packed = (packed << np.uint64(11)) | ids[i : len(ids) - n + 1 + i]
    return packed


def _lookup(keys: np.ndarray, values: np.ndarray, asked: np.ndarray) -> np.ndarray:
    at = np.searchsorted(keys, asked).clip(max=len(keys) - 1)
    return np.where(keys[at] == asked, values[at], 0)


def train(
    model: LlamaForCausalLM, stream: np.ndarray, held_out: np.ndarray, out: Path, *, steps: int, batch: int, seed: int
) -> None:
    matrices = [p for n, p in model.named_parameters() if p.ndim == 2 and "embed" not in n and "lm_head" not in n]
    others = [p for p in model.parameters() if not any(p is m for m in matrices)]
    muon = torch.optim.Muon(matrices, lr=0.02, momentum=0.95, weight_decay=0.01)
    adam = torch.optim.AdamW(others, lr=4e-3, betas=(0.9, 0.95), weight_decay=0.0)
    peaks = [(group, group["lr"]) for optimizer in (muon, adam) for group in optimizer.param_groups]
    rng, started, running = np.random.default_rng(seed), time.time(), 0.0
    for step in range(steps):
        share = min((step + 1) / 100, (steps - step) / (0.7 * steps), 1.0)
        for group, peak in peaks:
            group["lr"] = peak * share
        starts = rng.integers(0, len(stream) - CONTEXT, size=batch)
        ids = torch.from_numpy(np.stack([stream[s : s + CONTEXT] for s in starts]))
        with torch.autocast("cpu", torch.bfloat16):
            loss = loss_of(model, ids)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(others, 1.0)
        for optimizer in (muon, adam):
            optimizer.step()
            optimizer.zero_grad()
        running = loss.item() if step == 0 else 0.98 * running + 0.02 * loss.item()
        if (step + 1) % 100 == 0:
            pace = (time.time() - started) / (step + 1)
            print(f"step {step + 1}/{steps}  train {running:.4f}  {pace:.2f} s/step", flush=True)
        if (step + 1) % 500 == 0:
            print(f"  held-out {held_out_loss(model, held_out, 64):.4f}", flush=True)
            model.save_pretrained(out)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--start", type=Path, help="go on from this model and tokenizer, with a fresh optimizer")
    parser.add_argument("--steps", type=int, default=6000)
    parser.add_argument("--batch", type=int, default=8)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    torch.manual_seed(arguments.seed)

    train_texts = list(stdlib_texts("calibration", tests=True))
    held_texts = list(stdlib_texts("held-out"))
    start = arguments.start
    tokenizer = PreTrainedTokenizerFast.from_pretrained(start) if start else train_tokenizer(train_texts)
    tokenizer.model_max_length = CONTEXT
    tokenizer.save_pretrained(arguments.out)
    stream, held_out = encode(tokenizer, train_texts), encode(tokenizer, held_texts)
    bytes_per_token = sum(len(t.encode()) for t in held_texts) / len(held_out)
    print(
        f"{len(stream):,} training tokens, {len(held_out):,} held out, {bytes_per_token:.3f} bytes a token", flush=True
    )

    model = LlamaForCausalLM.from_pretrained(start, dtype=torch.float32) if start else LlamaForCausalLM(config())
    print(f"{model.num_parameters():,} parameters", flush=True)
    budget = {"steps": arguments.steps, "batch": arguments.batch, "seed": arguments.seed}
    train(model, stream, held_out, arguments.out, **budget)
    model = model.to(torch.bfloat16)
    model.save_pretrained(arguments.out)
    loss = held_out_loss(model.float(), held_out)
    record = {
        "python": platform.python_version(),
        "parameters": model.num_parameters(),
        "started_from": arguments.start.name if arguments.start else None,
        "steps": arguments.steps,
        "tokens_seen": arguments.steps * arguments.batch * CONTEXT,
        "training_tokens": len(stream),
        "held_out_tokens": len(held_out),
        "bytes_per_token": round(bytes_per_token, 4),
        "held_out_perplexity": {
            "model": round(math.exp(loss), 3),
            "5-gram": round(math.exp(ngram_loss(stream, held_out)), 3),
            "unigram": round(math.exp(unigram_loss(stream, held_out)), 3),
        },
        "held_out_bits_per_byte": round(loss / math.log(2) / bytes_per_token, 4),
    }
    (arguments.out / "training.json").write_text(json.dumps(record, indent=2) + "\n")
    print(json.dumps(record, indent=2))


if __name__ == "__main__":
    main()
