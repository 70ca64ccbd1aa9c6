"""A database of an older version is brought to this one when it is opened, with all that it holds."""

import sqlalchemy as sa

from label.store.screening_tables import answer_rating, quality
from label.store.tables import SCHEMA_VERSION, label, meta, person
from tests.label.conftest import add, admit
from tests.label.test_label_store import send, take


def test_version_1_gets_what_came_later_and_loses_nothing(make_workplace):
    workplace = make_workplace()
    add(workplace)
    ada = admit(workplace, "Ada")
    send(workplace, ada, take(workplace, ada))
    with workplace.database.write() as connection:
        # Version 2 added these.
        for table in (answer_rating, quality):
            table.drop(connection)
        connection.exec_driver_sql("ALTER TABLE person DROP COLUMN held_back")
        connection.execute(meta.update().values(value="1"))
    workplace.database.close()

    again = make_workplace()
    with again.database.read() as connection:
        assert connection.execute(sa.select(meta.c.value)).scalar_one() == str(SCHEMA_VERSION)
        assert connection.execute(sa.select(person.c.name, person.c.held_back)).one() == ("Ada", False)
        assert connection.execute(sa.select(label.c.person)).scalars().all() == [ada]
        for table in (answer_rating, quality):
            assert connection.execute(sa.select(table)).all() == []
