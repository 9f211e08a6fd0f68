"""A run's record as the pipeline writes it, with names that would break a careless page."""

HOSTILE = "<script>alert('x')</script> & \"quotes\" {{ 7 * 7 }} $x_1^2$"

_MATRICES = {"self_attn.q_proj": [64, 64], "mlp.up_proj": [96, 64], "mlp.down_proj": [64, 96]}


def outcome(kind="damping raised", detail="0.1 was used.", remedy="Use more tokens."):
    return {"kind": kind, "detail": detail, "remedy": remedy}


def layer(name, shape=(64, 64), relative_loss=0.01, outcomes=(), above=0.5):
    return {
        "name": name,
        "shape": list(shape),
        "recipe": "optq",
        "bits_per_weight": 3.25,
        "loss": 12 * relative_loss,
        "relative_loss": relative_loss,
        "nearest_relative_loss": 1.5 * relative_loss,
        "limit": 0.0 if above is None else 12 * relative_loss / 4**above,
        "bits_above_limit": above,
        "bound": 40 * relative_loss,
        "clamped": 0.0012,
        "weights": {"low": -0.5, "high": 0.5, "counts": [0, 10, 1000, 20, 1]},
        "errors": {"low": -0.0625, "high": 0.0625, "counts": [300, 400, 500, 400, 300]},
        "tokens": 65536,
        "seconds": 0.5,
        "outcomes": list(outcomes),
    }


def layers(blocks=3):
    return [
        layer(
            f"model.layers.{block}.{matrix}",
            shape,
            0.001 * (1 + block) * (2 + column),
            above=0.3 + 0.1 * column + 0.02 * block,
        )
        for block in range(blocks)
        for column, (matrix, shape) in enumerate(_MATRICES.items())
    ]


def measures():
    return {
        "text": "stdlib",
        "windows": 12,
        "length": 128,
        "tokens": 1524,
        "nats": {"mean": 1.9, "error": 0.02},
        "perplexity": {"mean": 6.712, "error": 0.13},
        "divergence": {
            "perplexity": {"mean": 6.213, "error": 0.12},
            "kl": {"mean": 0.0713, "error": 0.0012},
            "kl_quantiles": {"50": 0.021, "90": 0.18, "99": 0.71, "99.9": 1.9, "max": 6.2},
            "kl_histogram": {"low": -4.0, "high": 2.0, "counts": [0, 0, 3, 700, 800, 100, 11, 2, 0, 0, 0, 0]},
            "agreement": {"mean": 0.912, "error": 0.0012},
        },
        "size": {"bytes": 3_100_000, "parameters": 3_900_000, "bits_per_parameter": 6.4, "bits_per_weight": 3.25},
        "tasks": {"hellaswag": {"acc": {"mean": 0.2931, "error": 0.0123}}},
    }


def record(**changes):
    return {
        "lowbit_version": "0.1.0",
        "command": "lowbit quantize demo --recipe optq --out out",
        "model": {"source": "demo", "architecture": "LlamaForCausalLM", "parameters": 3_900_000, "bytes": 15_600_000},
        "recipe_name": "optq",
        "recipe": {"name": "optq", "code": {"part": "IntegerGrid", "bits": 3}},
        "calibration": {
            "source": "stdlib",
            "samples": 128,
            "sequence_length": 512,
            "tokens": 65536,
            "seed": 0,
            "digest": "7e53",
        },
        "layers": layers(),
        "left_alone": [{"name": "model.embed_tokens", "shape": [2048, 256], "reason": "embedding"}],
        "size": {
            "before": 15_600_000,
            "after": 3_100_000,
            "bits_per_weight": 3.25,
            "bits_per_parameter": 6.4,
            "parts": parts(),
        },
        "seconds": {"total": 83.2, "solve": 55.1},
        "versions": {"torch": "2.13.0"},
        **changes,
    }


def parts():
    stored = [("codes", "codes", 18_432), ("code", "scale", 1_200), ("transform", "left_signs", 96)]
    stored += [("side-car", "kept_columns", 240), ("not quantized", "model.embed_tokens.weight", 2_000_000)]
    stored += [("not quantized", f"model.layers.*.norm{i}.weight", 1024 - i) for i in range(4)]
    return [{"part": part, "field": field, "bytes": count} for part, field, count in stored]


def continuations():
    return [{"prompt": "def area(r):", "original": "\n    return pi * r", "quantized": "\n    return 3 * r"}]


def rows():
    return [
        {
            "recipe": recipe,
            "bits": bits,
            "bits_per_weight": bits + 0.25,
            "bytes": 600_000 * bits,
            "perplexity": 6.2 + loss / bits,
            "kl": loss / bits**2,
            "agreement": 1 - loss / 10,
            "seconds": 3.0,
        }
        for recipe, loss in (("original", 0.0), ("rtn", 1.0), ("optq", 0.4))
        for bits in (2, 3)
    ]
