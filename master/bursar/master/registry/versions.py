"""Which version a registry has, and bringing it up to date.

A new registry is made from the schema at once, and one that is up to date is left alone; Alembic is imported for those that lie
between only: it takes longer than either.
"""

from __future__ import annotations

from pathlib import Path

import sqlalchemy as sa
from sqlalchemy.engine import Connection

from bursar.master.registry import schema

MIGRATIONS = Path(__file__).parent / "migrations"
#: The newest; migrations are numbered, and their files named so.
NEWEST = max(path.name for path in (MIGRATIONS / "versions").glob("[0-9]*.py")).partition("_")[0]

#: As Alembic makes it.
_version = sa.Table(
    "alembic_version",
    sa.MetaData(),
    sa.Column("version_num", sa.String(32), nullable=False),
    sa.PrimaryKeyConstraint("version_num", name="alembic_version_pkc"),
)


class UnknownVersion(Exception):
    """A registry was made by a version of Bursar that this one does not know."""


def bring_up_to_date(connection: Connection) -> None:
    """Give a database the newest schema. Raises UnknownVersion, and SQLAlchemyError."""
    tables = set(sa.inspect(connection).get_table_names())
    if tables.isdisjoint({_version.name, *schema.metadata.tables}):
        if connection.dialect.name == "sqlite":
            # Python's module begins no transaction by itself before tables are made: all or none, and the disk is waited for once.
            connection.exec_driver_sql("BEGIN")
        schema.metadata.create_all(connection)
        _version.create(connection)
        connection.execute(_version.insert().values(version_num=NEWEST))
    elif _version.name not in tables or connection.scalars(sa.select(_version.c.version_num)).all() != [NEWEST]:
        migrate(connection)


def migrate(connection: Connection) -> None:
    """Run the migrations that a database lacks. Raises UnknownVersion, and SQLAlchemyError."""
    from alembic import command
    from alembic.config import Config
    from alembic.util import CommandError

    config = Config()
    config.set_main_option("script_location", str(MIGRATIONS).replace("%", "%%"))
    config.attributes["connection"] = connection
    try:
        command.upgrade(config, "head")
    except CommandError as error:
        raise UnknownVersion(str(error)) from error
