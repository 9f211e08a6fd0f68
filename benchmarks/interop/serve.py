"""Does `transformers serve` answer from a lowbit folder what lowbit itself generates?

Environment: lowbit and `pip install transformers[serving]`; no GPU.

    python benchmarks/interop/serve.py LOWBIT_FOLDER ...

Starts the very command of the README, asks for one greedy chat completion and one plain completion over HTTP, and
fails where either is not, letter for letter, what `lowbit.load(...).generate` says. A model without a chat template is
served from a copy that has one.
"""

import json
import shutil
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from pathlib import Path
from tempfile import TemporaryDirectory

from transformers import AutoTokenizer

import lowbit

PROMPT = "def fibonacci(n):"
TOKENS = 24
PATIENCE = 180
PLAIN_TEMPLATE = "{% for message in messages %}{{ message['content'] }}{% endfor %}"


def main(*folders: str) -> int:
    return sum(not served(Path(folder)) for folder in folders)


def served(folder: Path) -> bool:
    with TemporaryDirectory() as place:
        copy = Path(place) / folder.name
        shutil.copytree(folder, copy)
        if AutoTokenizer.from_pretrained(copy).chat_template is None:
            (copy / "chat_template.jinja").write_text(PLAIN_TEMPLATE)
        expected = generated(copy)
        found = answers(copy)
    for way, text in found.items():
        print(
            f"{folder.name}, {way}: {'the same' if text == expected[way] else 'ANOTHER'} answer, {text!r}", flush=True
        )
    return found == expected


def generated(folder: Path) -> dict[str, str]:
    """By lowbit, in this process."""
    model, tokenizer = lowbit.load(folder), AutoTokenizer.from_pretrained(folder)
    chat = [{"role": "user", "content": PROMPT}]
    inputs = {
        "chat": tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_tensors="pt", return_dict=True),
        "completion": tokenizer(PROMPT, return_tensors="pt"),
    }
    texts = {}
    for way, tokens in inputs.items():
        out = model.generate(**tokens, max_new_tokens=TOKENS, do_sample=False)
        texts[way] = tokenizer.decode(out[0, tokens["input_ids"].shape[1] :], skip_special_tokens=True)
    return texts


def answers(folder: Path) -> dict[str, str]:
    """By a server of its own."""
    port = free_port()
    command = ["transformers", "serve", str(folder), "--trust-remote-code", "--device", "cpu", "--port", str(port)]
    server = subprocess.Popen(command)
    try:
        wait_for(f"http://localhost:{port}/health", server)
        asked = {"model": str(folder), "max_tokens": TOKENS, "temperature": 0}
        chat = post(port, "chat/completions", asked | {"messages": [{"role": "user", "content": PROMPT}]})
        plain = post(port, "completions", asked | {"prompt": PROMPT})
        return {"chat": chat["choices"][0]["message"]["content"], "completion": plain["choices"][0]["text"]}
    finally:
        server.kill()
        server.wait()


def free_port() -> int:
    with socket.socket() as unused:
        unused.bind(("localhost", 0))
        return unused.getsockname()[1]


def wait_for(address: str, server: subprocess.Popen) -> None:
    for _ in range(PATIENCE):
        if server.poll() is not None:
            sys.exit(f"The server ended with {server.returncode}.")
        try:
            urllib.request.urlopen(address, timeout=5).close()
            return
        except urllib.error.URLError:
            time.sleep(1)
    sys.exit(f"No answer from {address} in {PATIENCE} seconds.")


def post(port: int, path: str, body: dict) -> dict:
    request = urllib.request.Request(
        f"http://localhost:{port}/v1/{path}", json.dumps(body).encode(), {"Content-Type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        return json.load(answer)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
