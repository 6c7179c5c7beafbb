"""Databases as an earlier version of the program would have left them."""

from alembic import command
from alembic.config import Config
from alembic.script import ScriptDirectory

from mini_claude.data.database import MIGRATIONS, Database


def migrate_to(database: Database, revision: str) -> None:
    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS))
    with database._writer.begin() as connection:
        config.attributes["connection"] = connection
        command.upgrade(config, revision)


def revisions() -> list[str]:
    """All of them, oldest first. Raises where there is more than one newest."""
    scripts = ScriptDirectory(str(MIGRATIONS))
    return [script.revision for script in scripts.walk_revisions("base", str(scripts.get_current_head()))][::-1]
