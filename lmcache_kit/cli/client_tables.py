"""Answers of the controller as tables for people."""

from __future__ import annotations

from typing import Any

import typer

from lmcache_kit.cli.output import print_table

__all__ = ["print_health", "print_lookup", "print_status"]


def print_lookup(answer: dict[str, Any]) -> None:
    """Who holds how much of the prefix, and with ``explain`` why it ends there."""
    explained = answer.get("explain")
    layout = answer["layout_info"]
    # LMCache's own controller tells of one location of an instance.
    holders = answer.get("holders", {instance: {location: held} for instance, (location, held) in layout.items()})
    rows = [
        (instance, location, held, "best" if layout.get(instance, [None])[0] == location else "")
        for instance, locations in holders.items()
        for location, held in locations.items()
    ]
    if rows or not explained:
        print_table(["instance", "location", "prefix tokens", ""], rows)
    if explained:
        _print_explained(explained)


def _print_explained(explained: dict[str, Any]) -> None:
    print_table(
        ["instance", "prefix tokens", "why"],
        [(instance, reason["prefix"], reason["why"]) for instance, reason in explained["instances"].items()],
    )
    for spec in explained["specs"]:
        typer.echo(
            f"Instances {', '.join(spec['instances'])}: chunks of {spec['chunk_size']} tokens, hash "
            f"{spec['hash_algorithm']}, NONE_HASH {spec['none_hash']}"
        )
        print_table(
            ["chunk", "tokens", "key", "held by"],
            [
                (chunk["index"], f"{chunk['tokens'][0]} to {chunk['tokens'][1] - 1}", chunk["key"], _holders(chunk))
                for chunk in spec["chunks"]
            ],
        )
        if spec["truncated"]:
            typer.echo(f"and {spec['num_chunks'] - len(spec['chunks'])} more chunks")
    for hint in explained["hints"]:
        typer.echo(f"hint: {hint}")


def _holders(chunk: dict[str, Any]) -> str:
    return ", ".join(f"{instance}/{each}" for instance, locations in chunk["holders"].items() for each in locations)


def print_status(answer: dict[str, Any]) -> None:
    """The registered workers, and how many chunks the controller knows of."""
    columns = ["instance_id", "worker_id", "ip", "port", "peer_init_url"]
    print_table(
        [*columns, "state"],
        [[*(worker.get(column) for column in columns), _state(worker)] for worker in answer["workers"]],
    )
    print_table(
        ["instance_id", "location", "chunks"],
        [
            (instance["instance_id"], location, count)
            for instance in answer["keys"]["instances"]
            # LMCache's own controller counts by instance.
            for location, count in instance.get("locations", {"": instance["key_count"]}).items()
        ],
    )


def _state(worker: dict[str, Any]) -> str | None:
    """What becomes of lookups and calls to this worker; None when the controller does not tell, as LMCache's."""
    if "alive" not in worker:
        return None
    if not worker["alive"]:
        return "dead"
    return "syncing" if worker.get("syncing") or worker.get("sync_reason") else "ready"


def print_health(answer: dict[str, Any]) -> None:
    """The error code of each worker."""
    print_table(
        ["worker", "error code", ""],
        [(worker, code, "not healthy" if code else "healthy") for worker, code in answer["error_codes"].items()],
    )
