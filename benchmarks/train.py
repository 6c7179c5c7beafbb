"""LoRA training against TRL's SFTTrainer on the same weights, examples, supervised tokens and hyperparameters.

    python benchmarks/train.py [MODEL_FOLDER] [--examples 240] [--rounds 1] [--only ours TRL]

chatterbot-corpus, LoRA r=16 on q_proj and v_proj, packed to 512 tokens, two rows a step, one pass; in float32 on a CPU,
and with bfloat16 on a GPU, where there is one, as our trainer does it by itself.
Contestants, each in a process of its own, one after the other: our trainer, TRL as it comes, and TRL without the
gradient checkpointing that it switches on by itself. Tokens are those of the examples, all of them. The adapters that
come out are measured by one piece of code on examples that none of them was trained on. Each round has a seed of its
own for the adapters' first weights, dropout and the order of the examples.
"""

import argparse
import json
import resource
import statistics
import tempfile
import time
from pathlib import Path

from mini_claude.training.examples import Conversation, RowProblem, TokenizedExample
from mini_claude.types import Message
from own_process import in_own_process
from torch_engine_setup import embedded_model

CONTESTANTS = ("ours", "TRL", "TRL without checkpointing")
MAX_LENGTH = 512
ROWS_PER_STEP = 2
RANK, ALPHA, DROPOUT = 16, 32, 0.05
TARGETS = ("q_proj", "v_proj")
LEARNING_RATE = 2e-4
NUM_HELD_OUT = 100


def conversations() -> list[Conversation]:
    """chatterbot-corpus in English, shuffled once for all."""
    import random

    import chatterbot_corpus
    import yaml

    examples: list[Conversation] = []
    for path in sorted(Path(chatterbot_corpus.__file__).parent.glob("data/english/*.yml")):
        for turns in yaml.safe_load(path.read_text())["conversations"]:
            turns = turns[: len(turns) // 2 * 2]
            if turns:
                messages = tuple(Message("assistant" if i % 2 else "user", str(turn)) for i, turn in enumerate(turns))
                examples.append(Conversation(messages, len(examples) + 1))
    random.Random(0).shuffle(examples)
    return examples


def tokenized(folder: Path, num_examples: int) -> tuple[list[Conversation], list[TokenizedExample]]:
    """(examples to train on, tokens of the held-out ones). Those that would be cut are left out."""
    from mini_claude.models.causal_lm import CausalLM
    from mini_claude.training.tokenizing import tokenize

    model = CausalLM.from_folder("benchmark", folder)
    kept = []
    for example in conversations():
        tokens = tokenize(example, model, MAX_LENGTH)
        assert not isinstance(tokens, RowProblem)
        if isinstance(tokens, TokenizedExample) and not tokens.truncated:
            kept.append((example, tokens))
    return [e for e, _ in kept[NUM_HELD_OUT:][:num_examples]], [tokens for _, tokens in kept[:NUM_HELD_OUT]]


def train_ours(folder: Path, num_examples: int, output: Path, seed: int) -> tuple[float, int, int]:
    """(seconds, tokens, supervised tokens); saving checkpoints counts."""
    from mini_claude.models.causal_lm import CausalLM
    from mini_claude.training.arguments import LoraSettings, TrainingArguments
    from mini_claude.training.callbacks import Callback, Control, RunStarted, StopReason
    from mini_claude.training.run import run_training
    from mini_claude.training.training_state import TrainingState

    class Stopwatch(Callback):
        def on_start(self, _started: RunStarted, _control: Control) -> None:
            self.seconds = -time.perf_counter()

        def on_end(self, _state: TrainingState, _stop_reason: StopReason | None) -> None:
            self.seconds += time.perf_counter()

    stopwatch = Stopwatch()
    examples, _ = tokenized(folder, num_examples)
    arguments = TrainingArguments(
        learning_rate=LEARNING_RATE,
        num_train_epochs=1.0,
        per_device_train_batch_size=ROWS_PER_STEP,
        batching="packed",
        max_length=MAX_LENGTH,
        lr_scheduler_type="linear",
        warmup_ratio=0.0,
        eval_ratio=0.0,
        seed=seed,
    )
    lora = LoraSettings(RANK, ALPHA, DROPOUT, TARGETS)
    model = CausalLM.from_folder("benchmark", folder)
    result = run_training(folder, model, examples, lora, arguments, output, [stopwatch])
    return stopwatch.seconds, result.state.tokens_seen, result.state.weight_seen


def train_trl(folder: Path, num_examples: int, output: Path, seed: int, checkpointing: bool) -> tuple[float, int, int]:
    """TRL with the labels that our renderer gives: it sees the same tokens and supervises the same ones."""
    import torch
    from datasets import Dataset
    from peft import LoraConfig
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import SFTConfig, SFTTrainer

    from mini_claude.models.causal_lm import CausalLM
    from mini_claude.training.tokenizing import tokenize

    chat_model = CausalLM.from_folder("benchmark", folder)
    rows = []
    for example in tokenized(folder, num_examples)[0]:
        tokens = tokenize(example, chat_model, MAX_LENGTH)
        assert isinstance(tokens, TokenizedExample)
        labels = [t if s else -100 for t, s in zip(tokens.token_ids, tokens.supervised, strict=True)]
        rows.append({"input_ids": list(tokens.token_ids), "labels": labels})
    config = SFTConfig(
        output_dir=str(output / "trl"),
        num_train_epochs=1.0,
        per_device_train_batch_size=ROWS_PER_STEP,
        max_length=MAX_LENGTH,
        packing=True,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="linear",
        bf16=torch.cuda.is_available(),
        use_cpu=not torch.cuda.is_available(),
        gradient_checkpointing=checkpointing,
        report_to=[],
        save_strategy="no",
        seed=seed,
    )
    lora = LoraConfig(
        r=RANK, lora_alpha=ALPHA, lora_dropout=DROPOUT, target_modules=list(TARGETS), task_type="CAUSAL_LM"
    )
    trainer = SFTTrainer(
        AutoModelForCausalLM.from_pretrained(folder, dtype=torch.bfloat16 if config.bf16 else torch.float32),
        args=config,
        train_dataset=Dataset.from_list(rows),
        processing_class=AutoTokenizer.from_pretrained(folder),
        peft_config=lora,
    )
    start = time.perf_counter()
    trainer.train()
    seconds = time.perf_counter() - start
    trainer.model.save_pretrained(output / "output")
    num_supervised = sum(label != -100 for row in rows for label in row["labels"])
    return seconds, sum(len(row["input_ids"]) for row in rows), num_supervised


def held_out_loss(folder: Path, adapter: Path | None) -> float:
    """Nats a supervised token, each example alone, through transformers and PEFT."""
    import torch
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter).eval()
    total = weight = 0.0
    for example in tokenized(folder, 0)[1]:
        labels = [t if s else -100 for t, s in zip(example.token_ids, example.supervised, strict=True)]
        with torch.inference_mode():
            loss = model(input_ids=torch.tensor([example.token_ids]), labels=torch.tensor([labels])).loss.item()
        total += loss * sum(example.supervised)
        weight += sum(example.supervised)
    return total / weight


def run_one(arguments: argparse.Namespace) -> dict[str, float]:
    """In the contestant's own process; "loss" measures an adapter, or with an empty output the base."""
    name, folder, output = arguments.contestant, arguments.folder, arguments.output
    if name == "loss":
        return {"loss": held_out_loss(folder, output)}
    if name == "ours":
        seconds, num_tokens, num_supervised = train_ours(folder, arguments.examples, output, arguments.seed)
    else:
        seed, checkpointing = arguments.seed, name == "TRL"
        seconds, num_tokens, num_supervised = train_trl(folder, arguments.examples, output, seed, checkpointing)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6  # Linux counts in KiB
    cpu_seconds = time.process_time()
    return {
        "seconds": seconds,
        "tokens_per_second": num_tokens / seconds,
        "supervised": num_supervised,
        "peak_mb": peak,
        "cpu_seconds": cpu_seconds,
    }


def apart(contestant: str, folder: Path, num_examples: int, output: Path | None, seed: int = 0) -> dict[str, float]:
    options = ["--contestant", contestant, "--examples", str(num_examples), "--seed", str(seed)]
    options += [] if output is None else ["--output", str(output)]
    result: dict[str, float] = in_own_process(__file__, str(folder), *options)
    return result


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("--examples", type=int, default=240)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--contestant", choices=(*CONTESTANTS, "loss"))
    parser.add_argument("--output", type=Path)
    parser.add_argument("--seed", type=int, default=42)
    parser.add_argument("--only", nargs="+", choices=CONTESTANTS, default=CONTESTANTS)
    arguments = parser.parse_args()
    if arguments.contestant:
        print(json.dumps(run_one(arguments)))
        return
    folder = arguments.folder or embedded_model()
    results: dict[str, list[dict[str, float]]] = {name: [] for name in arguments.only}
    for number in range(arguments.rounds):
        for name in results:
            with tempfile.TemporaryDirectory() as output:
                result = apart(name, folder, arguments.examples, Path(output), arguments.seed + number)
                result |= apart("loss", folder, 0, Path(output) / "output")
            results[name].append(result)
            shown = f"{result['tokens_per_second']:6.1f} tokens/s, held-out loss {result['loss']:.4f}"
            print(f"round {number + 1}: {name:<26} {shown}", flush=True)
    report(results, apart("loss", folder, 0, None)["loss"])


def report(results: dict[str, list[dict[str, float]]], base_loss: float) -> None:
    print(f"\nheld-out loss of the base: {base_loss:.4f}")
    speed = {n: statistics.median(r["tokens_per_second"] for r in rounds) for n, rounds in results.items()}
    for name, rounds in results.items():
        loss = statistics.fmean(r["loss"] for r in rounds)
        print(
            f"{name:<26} {speed[name]:6.1f} tokens/s   peak {max(r['peak_mb'] for r in rounds):5.0f} MB   "
            f"mean held-out loss {loss:.4f} after {rounds[0]['supervised']:.0f} supervised tokens"
        )
    peaks = {name: max(r["peak_mb"] for r in rounds) for name, rounds in results.items()}
    losses = {name: statistics.fmean(r["loss"] for r in rounds) for name, rounds in results.items()}
    for name in results:
        if name == "ours" or "ours" not in results:
            continue
        print(
            f"ours / {name}: {speed['ours'] / speed[name]:.2f}x tokens/s, {peaks['ours'] / peaks[name]:.2f}x memory, "
            f"loss {losses['ours'] / losses[name] - 1:+.2%}"
        )


if __name__ == "__main__":
    main()
