"""Run by alembic: migrates the connection that `Database.migrate` passes, inside its transaction."""

from alembic import context

from mini_claude.data.tables import Base

context.configure(
    connection=context.config.attributes["connection"],
    target_metadata=Base.metadata,
    transactional_ddl=True,
    render_as_batch=True,  # SQLite alters a table by making a new one
)
with context.begin_transaction():
    context.run_migrations()
