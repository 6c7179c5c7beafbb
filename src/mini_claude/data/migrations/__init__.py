"""Alembic's environment and versions; `Database.migrate` runs them."""
