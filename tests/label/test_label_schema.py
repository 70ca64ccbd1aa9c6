"""Requests that schemathesis makes from the workplace's schema, as each role: none is a server's error."""

from collections import Counter

import pytest
import schemathesis
from fastapi.testclient import TestClient
from hypothesis import HealthCheck, given, settings
from schemathesis.checks import not_a_server_error

from label.api.app import create_app
from label.server import serving
from label.store import people
from tests.label.conftest import BOTH, add, admit, item_rows

ENDS = ("/end", "/leave", "/forget", "/me/pause", "/people/{person}/state", "/api/items")
"""Tested by hand: after most of these a person may do no more, and items are lines of JSON."""


def ask(operation, url, headers, counts):
    @settings(max_examples=20, suppress_health_check=list(HealthCheck))
    @given(case=operation.as_strategy())
    def check(case):
        answer = case.call(base_url=url, headers=headers, timeout=60)
        counts[answer.status_code] += 1
        case.validate_response(answer, checks=[not_a_server_error])

    check()


@pytest.mark.slow
@BOTH
def test_requests_made_from_the_schema_are_no_errors_of_the_server(make_workplace):
    workplace = make_workplace(requests_per_10_s=10**6)
    add(workplace, 20)
    gold = [{**row, "prompt": f"G {row['prompt']}", "gold": {"ranks": [1, 2, 3]}} for row in item_rows(2)]
    add(workplace, rows=gold, name="gold", purpose="gold")
    schema = schemathesis.openapi.from_dict(TestClient(create_app(workplace)).get("/api/openapi.json").json())
    counts = Counter()
    with serving(workplace) as url:
        for role in ("labeler", "reviewer", "owner"):
            person = admit(workplace, role, role)
            with workplace.database.write() as connection:
                headers = {"authorization": f"Bearer {people.create_key(connection, person)}"}
            for result in schema.get_all_operations():
                operation = result.ok()
                if operation.path.endswith(ENDS):
                    continue
                ask(operation, url, headers, counts)
    print(f"\nschemathesis: {counts.total()} requests, by status {dict(sorted(counts.items()))}")
    assert counts[200] > 100
