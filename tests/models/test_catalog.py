import subprocess
import sys
from pathlib import Path

import pytest

from mini_claude.errors import InvalidRequest, UnsafeModelFile
from mini_claude.models.catalog import BUILTIN, model_folder, valid_model_name

BAD_NAMES = [
    "", ".", "..", "../x", "a/b", "/etc/passwd", "a\\b", "C:\\x", "~", "~root", ".hidden", "UPPER", "a b", "a\n",
    "a\0b", "é", "a" * 65, "%2e%2e", "a:b", "a@1", "a*", "$HOME", "..\\..", "./a", "a/", "／etc", "a;b", "a|b", "١",
]  # fmt: skip


@pytest.mark.parametrize("name", BAD_NAMES)
def test_names_that_are_more_than_a_name_are_refused(tmp_path: Path, name: str) -> None:
    assert not valid_model_name(name)
    with pytest.raises(InvalidRequest, match="model name") as caught:
        model_folder(tmp_path, name)
    assert caught.value.param == "model"


@pytest.mark.parametrize("name", ["a", "smollm2-135m", "qwen3_0.6b", "a..b", "0", "a" * 64])
def test_plain_names_get_a_folder_of_their_own(tmp_path: Path, name: str) -> None:
    assert model_folder(tmp_path, name) == tmp_path / name


def test_a_link_out_of_the_models_folder_is_refused(tmp_path: Path) -> None:
    models = tmp_path / "models"
    models.mkdir()
    (models / "x").symlink_to(tmp_path)
    with pytest.raises(UnsafeModelFile, match="link"):
        model_folder(models, "x")


def test_the_models_folder_itself_may_be_a_link(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "models").symlink_to(tmp_path / "real")
    assert model_folder(tmp_path / "models", "x") == tmp_path / "models" / "x"


def test_builtin_names_are_valid_and_unique() -> None:
    names = [spec.name for spec in BUILTIN]
    assert names == ["smollm2-135m", "dialogpt-small", "dialogpt-medium", "dialogpt-large"]
    assert all(map(valid_model_name, names))


def test_catalog_and_file_checks_need_no_torch() -> None:
    code = (
        "import sys; import mini_claude.models.catalog, mini_claude.models.model_files, mini_claude.models.echo_model; "
        "assert not {'torch', 'transformers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
