"""Where the records of the master are kept: a SQL database through SQLAlchemy, migrated by Alembic.

SQLite (WAL, every commit on disk) by default; any other database by `--registry`. Loading gives the `Durable` that folding all
committed records gives.
"""
