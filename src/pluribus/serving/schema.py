"""The OpenAPI description of one artefact's server, from its columns and tasks."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pluribus.serving.bodies import ARROW, JSON, PARQUET, Limits

if TYPE_CHECKING:
    from pluribus.data.inputs.record import FittedInput
    from pluribus.modeling import Fitted
    from pluribus.modeling.artefact.preprocessing import Preprocessing
    from pluribus.tasks import Task

REFUSALS = {
    "401": "The bearer token is missing or wrong.",
    "408": "The body did not arrive in time.",
    "413": "The body, its rows or its columns exceed a limit.",
    "415": "The content type or encoding is not one that is read.",
    "422": "The body is no table of rows, or a task is unknown.",
    "503": "Overloaded, or not ready yet; try again.",
}


def row(fitted: Fitted) -> dict[str, Any]:
    """The schema of an input row."""
    columns = fitted.columns
    properties = {one.name: _cell(one, columns) for one in columns.inputs}
    if columns.task_column is not None:
        properties[columns.task_column] = {"type": "string", "enum": list(columns.task_names)}
    required = list(properties)
    if columns.id is not None:
        properties[columns.id] = {"type": ["string", "integer", "null"], "description": "echoed with the row's answer"}
    return {"type": "object", "properties": properties, "required": required}


def _cell(one: FittedInput, columns: Preprocessing) -> dict[str, Any]:
    """The schema of a cell; a column that was fitted on a file that people wrote also takes what stood there ("€9.99")."""
    found = one.schema(columns)
    if one.writing is None or "string" in found["type"]:
        return found
    return {**found, "type": [*found["type"], "string"], "description": f"as text, it is read as a {one.writing.form}"}


def values(tasks: tuple[Task, ...]) -> dict[str, Any]:
    """The schema of a row's predictions: the columns of a prediction file."""
    properties = {name: schema for task in tasks for name, schema in task.record.schema(task).items()}
    return {"type": "object", "properties": properties}


def document(fitted: Fitted, limits: Limits, *, secured: bool) -> dict[str, Any]:
    """The whole OpenAPI 3.1 document."""
    from pluribus import __version__

    names = [task.name for task in fitted.tasks]
    binary = {"schema": {"type": "string", "format": "binary"}}
    refusal = {JSON: {"schema": {"$ref": "#/components/schemas/Refusal"}}}
    rows = {"type": "array", "maxItems": limits.rows, "items": {"$ref": "#/components/schemas/Row"}}
    listed = {
        "type": ["array", "null"],
        "items": {"type": "string", "enum": names},
        "description": "compute these tasks only; all where it is null or left out, none where it is empty",
    }
    body = {"type": "object", "required": ["rows"], "additionalProperties": False, "properties": {"rows": rows, "tasks": listed}}
    picked = {
        "name": "tasks",
        "in": "query",
        "required": False,
        "style": "form",
        "explode": False,
        "description": "compute these tasks only, separated by commas; all where it is left out, none where it is empty",
        "schema": {"type": "array", "items": {"type": "string", "enum": names}},
    }
    text = {"200": {"description": "Yes.", "content": {JSON: {"schema": {"type": "object"}}}}}
    guard: dict[str, Any] = {"security": [{"bearer": []}]} if secured else {}
    refused = {code: {"description": why, "content": refusal} for code, why in REFUSALS.items() if secured or code != "401"}
    failure = {
        "values": {"$ref": "#/components/schemas/Values"},
        "failed": {"type": "object", "additionalProperties": {"type": "string"}, "description": "task → why it has no value"},
        "error": {"type": "string", "description": "why this row has no values at all"},
        "id": {"type": ["string", "integer", "null"]},
    }
    return {
        "openapi": "3.1.0",
        "info": {"title": "Pluribus model", "version": __version__, "description": f"Predicts {', '.join(names)}."},
        "paths": {
            "/predict": {
                "post": {
                    "operationId": "predict",
                    "summary": "Predict rows. A row that does not fit answers its own error in its own place.",
                    "parameters": [picked],
                    "requestBody": {"required": True, "content": {JSON: {"schema": body}, ARROW: binary, PARQUET: binary}},
                    "responses": {
                        "200": {
                            "description": "One answer a row, in order; a table for a table.",
                            "content": {
                                JSON: {"schema": {"$ref": "#/components/schemas/Answers"}},
                                ARROW: binary,
                                PARQUET: binary,
                            },
                        },
                        **refused,
                    },
                    **guard,
                }
            },
            "/health": {"get": {"operationId": "health", "summary": "Is the process alive?", "responses": text}},
            "/ready": {
                "get": {
                    "operationId": "ready",
                    "summary": "Does it answer predictions?",
                    "responses": {**text, "503": {"description": "Not yet, or no longer.", "content": refusal}},
                }
            },
            "/metrics": {
                "get": {
                    "operationId": "metrics",
                    "summary": "Prometheus metrics",
                    "responses": {
                        "200": {"description": "Text.", "content": {"text/plain": {"schema": {"type": "string"}}}},
                        **({"401": refused["401"]} if secured else {}),
                    },
                    **guard,
                }
            },
        },
        "components": {
            "schemas": {
                "Row": row(fitted),
                "Values": values(fitted.tasks),
                "Answer": {"type": "object", "properties": failure},
                "Answers": {
                    "type": "object",
                    "required": ["rows"],
                    "properties": {"rows": {"type": "array", "items": {"$ref": "#/components/schemas/Answer"}}},
                },
                "Refusal": {"type": "object", "required": ["error"], "properties": {"error": {"type": "string"}}},
            },
            **({"securitySchemes": {"bearer": {"type": "http", "scheme": "bearer"}}} if secured else {}),
        },
    }
