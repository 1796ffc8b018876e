"""Every path of controller and instance under requests made from their OpenAPI documents, right ones and wrong ones.

Schemathesis makes the requests and judges the answers: no failure of the server, no status, content type, header or
body that the document does not name, no acceptance of what the document forbids. Half of the names are replaced by
ones that exist, so that operations reach the instances. SURFACE_EXAMPLES is the number of requests per path and kind.
"""

from __future__ import annotations

import os
from typing import Any

import jsonschema
import pytest
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis import strategies as st

schemathesis = pytest.importorskip("schemathesis", reason="the requests are made by schemathesis")

CPU, DISK = "LocalCPUBackend", "LocalDiskBackend"
PROMPT = [(7 * number) % 250 for number in range(64)]  # what the instances hold
EXAMPLES = int(os.environ.get("SURFACE_EXAMPLES", "12"))
# Not asked for: that whatever keeps the schema is accepted. JSON Schema cannot say everything that a request needs:
# names that exist, tokens of the vocabulary, copies that do not contradict each other.
CHECKS = [
    "status_code_conformance",
    "content_type_conformance",
    "response_headers_conformance",
    "negative_data_rejection",
    "missing_required_header",
    "unsupported_method",
]
# Bodies are judged by jsonschema: schemathesis cannot read tuples (prefixItems) under additionalProperties.
# A worker that is gone, and a tier that is full: documented, and nothing broke.
BUSY = {503, 507}
NAMES: dict[str, list[Any]] = {
    "instance_id": ["a", "b", "all"],
    "location": [CPU, DISK],
    "method": ["zstd", "naive", "fp8"],
    "tokens": [PROMPT, PROMPT[:16], None],
    "old_position": [["a", CPU], ["b", DISK]],
    "new_position": [["b", CPU], ["a", DISK]],
    "ip": ["127.0.0.1"],
    "prompt": [PROMPT, "words"],
    "model": ["m"],
    "max_tokens": [1],
}


@pytest.mark.parametrize("mode", ["positive", "negative"])
@pytest.mark.parametrize("which", ["controller", "instance"])
def test_every_answer_is_one_that_the_document_names(surface: Any, which: str, mode: str) -> None:
    from schemathesis.core.result import Ok

    process = surface.controller if which == "controller" else surface.instances[0]
    document = schemathesis.openapi.from_url(f"{process.url}/openapi.json")
    asked = 0
    for found in document.get_all_operations():
        assert isinstance(found, Ok), found.err()
        operation = found.ok()
        if mode == "positive" or operation.body or operation.query:  # else nothing can be wrong with it
            asked += ask(operation, mode)
    assert asked >= EXAMPLES
    process.still_serves()


def ask(operation: Any, mode: str) -> int:
    """Make requests for one path and method and judge the answers; how many."""
    from schemathesis import GenerationMode
    from schemathesis.checks import CHECKS as KNOWN
    from schemathesis.checks import load_all_checks

    load_all_checks()
    checks = KNOWN.get_by_names(CHECKS)
    asked = 0

    @settings(
        max_examples=EXAMPLES,
        deadline=None,
        phases=[Phase.generate],  # a request reads well enough unshrunk
        suppress_health_check=list(HealthCheck),
        database=None,
    )
    @given(case=operation.as_strategy(generation_mode=GenerationMode(mode)), names=st.data())
    def one(case: Any, names: Any) -> None:
        nonlocal asked
        judged = checks
        for key in sorted(NAMES.keys() & case.body.keys()) if isinstance(case.body, dict) else ():
            if names.draw(st.booleans()):
                case.body[key] = names.draw(st.sampled_from(NAMES[key]))
                # What was made wrong may be right now.
                judged = [check for check in checks if check.__name__ != "negative_data_rejection"]
        answer = case.call(timeout=60)
        assert answer.status_code < 500 or answer.status_code in BUSY, (case.as_curl_command(), answer.text)
        case.validate_response(answer, checks=judged)
        _judge_body(operation, answer)
        asked += 1

    one()
    return asked


def _judge_body(operation: Any, answer: Any) -> None:
    """A JSON body keeps the schema of its status."""
    document = operation.schema.raw_schema
    kind = answer.headers["content-type"][0].partition(";")[0]
    said = document["paths"][operation.path][operation.method.lower()]["responses"][str(answer.status_code)]["content"]
    if kind == "application/json":
        schema = {**said[kind]["schema"], "components": document["components"]}
        jsonschema.Draft202012Validator(schema).validate(answer.json())
