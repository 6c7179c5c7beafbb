import subprocess
import sys
from pathlib import Path

import pytest
from tokenizers import Tokenizer

from mini_claude.errors import ModelLoadError
from mini_claude.models.causal_lm import CausalLM
from mini_claude.models.text_codec import TokenizerCodec
from mini_claude.models.tokenizer_files import SUMMARY_FILE, TokenizerSummary, read_tokenizer, write_summary
from mini_claude.types import Message

from .conftest import MakeTokenizer

TEMPLATE = "{{ bos_token }}{% for message in messages %}{{ message.content }}{{ eos_token }}{% endfor %}"


@pytest.fixture
def folder(tmp_path: Path, make_tokenizer: MakeTokenizer, sentencepiece: Tokenizer) -> Path:
    roles = {"bos_token": "<s>", "eos_token": "</s>"}
    make_tokenizer(sentencepiece, TEMPLATE, ["<s>", "</s>"], ["<think>"], **roles).save_pretrained(tmp_path)
    (tmp_path / "config.json").write_text('{"max_position_embeddings": 99}')
    return tmp_path


def test_a_summary_says_what_transformers_says(folder: Path) -> None:
    by_transformers = read_tokenizer(folder)
    write_summary(folder)
    summary = read_tokenizer(folder)
    assert summary.backend.to_str() == by_transformers.backend.to_str()
    for field in ("special_tokens", "chat_template", "begins_with_bos"):
        assert getattr(summary, field) == getattr(by_transformers, field)
    assert summary.token_id("eos_token") == by_transformers.token_id("eos_token") is not None
    assert summary.token_id("unk_token") is None


def test_a_folder_with_a_summary_is_rendered_without_transformers(folder: Path) -> None:
    messages = (Message("user", "Hello <s> there"),)
    expected = CausalLM.from_folder("tiny", folder).render(messages).token_ids
    write_summary(folder)
    program = (
        "import sys; from pathlib import Path; from mini_claude.models.causal_lm import CausalLM; "
        "from mini_claude.types import Message; model = CausalLM.from_folder('tiny', Path(sys.argv[1])); "
        "print(model.render((Message('user', 'Hello <s> there'),)).token_ids); "
        "sys.exit(' '.join({'torch', 'transformers'} & set(sys.modules)))"
    )
    done = subprocess.run([sys.executable, "-c", program, folder], capture_output=True, text=True, check=False)
    assert (done.stdout.strip(), done.stderr.strip()) == (str(expected), "")


def test_gpt2_files_without_tokenizer_json_are_read(tmp_path: Path, byte_level: Tokenizer) -> None:
    byte_level.model.save(str(tmp_path))
    (tmp_path / "tokenizer_config.json").write_text('{"tokenizer_class": "GPT2Tokenizer"}')
    codec = TokenizerCodec(read_tokenizer(tmp_path).backend)
    assert codec.decode(codec.encode("Hello \u00e9")) == "Hello \u00e9"


def test_a_folder_without_tokenizer_is_a_load_error(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError, match="tokenizer"):
        read_tokenizer(tmp_path)


def test_a_damaged_summary_is_a_load_error(folder: Path) -> None:
    (folder / SUMMARY_FILE).write_text('{"backend": "{}"}')
    with pytest.raises(ModelLoadError, match=SUMMARY_FILE):
        read_tokenizer(folder)


def test_of_named_templates_the_one_for_chat_is_taken(make_tokenizer: MakeTokenizer, byte_level: Tokenizer) -> None:
    tokenizer = make_tokenizer(byte_level, None, [])
    tokenizer.chat_template = {"default": TEMPLATE, "tools": "other"}
    assert TokenizerSummary.of(tokenizer).chat_template == TEMPLATE
