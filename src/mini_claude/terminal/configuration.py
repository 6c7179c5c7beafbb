"""`mini-claude config`: every setting, its effective value and where that comes from."""

from pydantic import SecretStr
from rich.console import Console

from mini_claude.utils.config import Settings


def shown(value: object) -> str:
    """A value as people read it; secrets are masked."""
    if isinstance(value, SecretStr):
        return "********"
    if isinstance(value, tuple):
        return ", ".join(map(str, value)) or "(none)"
    return "(unset)" if value is None else str(value)


def print_settings(console: Console, settings: Settings) -> None:
    """Each setting with what it does; what differs from its default is bold."""
    for name, field in Settings.model_fields.items():
        value = getattr(settings, name)
        default = field.get_default(call_default_factory=True, validated_data={})
        style = "bold" if value != default else ""
        console.print(f"{name} = {shown(value)}", style=style, markup=False, highlight=False, soft_wrap=True)
        console.print(f"    {field.description}", style="dim", markup=False, highlight=False, soft_wrap=True)
    console.print(
        "\nSet one as MINI_CLAUDE_<NAME> in the environment, or in ./mini-claude.toml "
        "(another file: MINI_CLAUDE_CONFIG). The environment wins; bold values differ from the default.",
        style="dim",
    )
