"""Writes the pages of this folder from the docstrings: ``python docs/reference/hooks/generate.py``.

A test fails when a page is not what this makes.
"""

from __future__ import annotations

import ast
import dataclasses
import importlib
import inspect
import re
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lmcache_kit
from lmcache_kit import hookspecs
from lmcache_kit.contracts.records import PLUGIN_KINDS, Plugin
from lmcache_kit.plugin_templates.writing import kind_text
from lmcache_kit.plugins import _HOOK_OF_KIND as HOOK_OF_KIND

HERE = Path(__file__).parent
WIDTH = 120
SUITES = {
    "storage": "StorageBackendTests",
    "compression": "CompressionMethodTests",
    "transport": "TransportTests",
    "engine": "EngineTests",
    "eviction": "EvictionPolicyTests",
    "placement": "PlacementTests",
    "trace": "TraceReaderTests",
}
WHERE = {
    "storage": "`tiers` of an instance: `kind`, `options`",
    "compression": "`method` of a tier or of the workloads `compress` and `decompress`; options under `methods`",
    "transport": "`transport` of an instance: `kind`, `options`",
    "engine": "`engine` of an instance: `kind`, `model`, `options`",
    "eviction": "`eviction` and `eviction_options` of a tier",
    "placement": "`placement` of an instance: `kind`, `options`",
    "workload": "`workloads`: `kind`; options stand beside it",
    "trace": "`trace` of the workload `traffic`: `reader`, `options`; `lmcache-kit trace --reader`",
    "launcher": "`launcher`: `kind`, `options`",
    "reporter": "`reporters`: a name, or `kind` and `options`",
}


def pages() -> dict[str, str]:
    """File name and text of every page."""
    made = {f"{kind}.md": page(kind) for kind in PLUGIN_KINDS}
    return {"README.md": index(), **made}


def index() -> str:
    """The table of all hooks."""
    rows = "".join(f"| [{kind}]({kind}.md) | `{HOOK_OF_KIND[kind]}` | {WHERE[kind]} |\n" for kind in PLUGIN_KINDS)
    return (
        "# Hooks\n\nOne hook per kind of plugin. A module under the entry point group "
        f"`{hookspecs.ENTRY_POINT_GROUP}` implements any of them with\n`lmcache_kit.hookimpl` and yields records; "
        "[Write a plugin](../../tutorial/write-a-plugin.md) is the tutorial.\n\n"
        f"| kind | hook | where a scenario names it |\n| --- | --- | --- |\n{rows}"
    )


def page(kind: str) -> str:
    """The page of one kind."""
    record = PLUGIN_KINDS[kind]
    module = importlib.import_module(f"lmcache_kit.contracts.{kind}")
    about, capabilities = about_and_capabilities(module)
    parts = [
        f"# `{HOOK_OF_KIND[kind]}`\n\n{about}",
        f"A scenario names it under {WHERE[kind]}.",
        f"## The record: `{record.__name__}`\n\n{prose(inspect.getdoc(record) or '')}\n\n{record_table(record)}",
        f"## Capabilities\n\n{capabilities or 'The contract knows none.'}",
        f"## The contract: `lmcache_kit.contracts.{kind}`",
        *contract(module),
        f"## Example\n\n```python\n{example(kind)}```",
        f"## Tests and template\n\n{tests(kind)}",
    ]
    note = f"<!-- Made by generate.py from the docstrings of lmcache_kit/contracts/{kind}.py; change them instead. -->"
    return f"{note}\n" + "\n\n".join(part.strip() for part in parts) + "\n"


def about_and_capabilities(module: Any) -> tuple[str, str]:
    """The contract's description, and what may be declared, as lists."""
    text = inspect.getdoc(module) or ""
    about, found, listed = text.partition("Capabilities:")
    if not found:
        return prose(about), ""
    items = re.split(r"\n(?=\s*``)", f"\n{listed.strip()}")
    return prose(about), "\n".join(f"- {plain(' '.join(item.split()))}" for item in items if item.strip())


def record_table(record: type[Plugin]) -> str:
    """A row per field: type, default."""
    meanings = arguments(inspect.getdoc(Plugin) or "")
    meanings["factory"] = "makes the object; heavy imports belong inside"
    order = [*meanings, *(field.name for field in dataclasses.fields(record))]
    rows = [
        f"| `{field.name}` | {code(str(field.type))} | {default(field)} | {meanings.get(field.name, 'see above')} |\n"
        for field in sorted(dataclasses.fields(record), key=lambda field: order.index(field.name))
    ]
    return "| field | type | default | meaning |\n| --- | --- | --- | --- |\n" + "".join(rows)


def default(field: dataclasses.Field[Any]) -> str:
    """What a field is when it is left out."""
    if field.default_factory is not dataclasses.MISSING:
        made = field.default_factory()
        return "none" if not made else code(repr(made))
    if field.default is dataclasses.MISSING:
        return "required"
    if isinstance(field.default, frozenset):
        return code(", ".join(sorted(field.default)))
    return code(field.default.__name__ if isinstance(field.default, type) else repr(field.default))


def contract(module: Any) -> list[str]:
    """Every public name of a contract module, as its source orders them: what must be done before what may be."""
    tree = ast.parse(inspect.getsource(module))
    documented = assigned(tree.body)
    parts = [
        f"### `{name}`\n\n`{name} = {value}`\n\n{text}"
        for name, (value, text) in documented.items()
        if name in module.__all__
    ]
    bodies = {node.name: node.body for node in tree.body if isinstance(node, ast.ClassDef)}
    return [described(getattr(module, name), body) for name, body in bodies.items() if name in module.__all__] + parts


def described(kind: type, body: list[ast.stmt]) -> str:
    """A class of the contract: what it is, its fields and methods."""
    doc = inspect.getdoc(kind) or ""
    types = {node.target.id: ast.unparse(node.annotation) for node in body if isinstance(node, ast.AnnAssign)}
    head = [f"### `{kind.__name__}`", prose(doc, types)]
    said = arguments(doc)
    for name, (value, text) in assigned(body).items():
        if name not in said:
            head.append(f"**`{name}: {types[name]}{f' = {value}' if value else ''}`**")
            head += [text] if text else []
    return "\n\n".join([*head, *(method(kind, name) for name, member in vars(kind).items() if is_method(name, member))])


def assigned(body: list[ast.stmt]) -> dict[str, tuple[str, str]]:
    """Value and docstring of each public name that is assigned or annotated; names without either have none."""
    found = {}
    for node, after in zip(body, [*body[1:], None], strict=True):
        target = (
            node.target
            if isinstance(node, ast.AnnAssign)
            else node.targets[0]
            if isinstance(node, ast.Assign)
            else None
        )
        if isinstance(target, ast.Name) and not target.id.startswith("_"):
            value = ast.unparse(node.value) if isinstance(node, ast.Assign | ast.AnnAssign) and node.value else ""
            text = after.value if isinstance(after, ast.Expr) else None
            doc = prose(inspect.cleandoc(text.value)) if isinstance(text, ast.Constant) else ""
            found[target.id] = (value, doc)
    return found


def is_method(name: str, member: object) -> bool:
    """Whether an entry of a class is part of its contract."""
    callable_ = inspect.isfunction(member) or isinstance(member, property)
    return callable_ and (not name.startswith("_") or name == "__call__") and hasattr(member, "__doc__")


def method(owner: type, name: str) -> str:
    """A method's signature and docstring."""
    member = vars(owner)[name]
    function = member.fget if isinstance(member, property) else member
    shown = str(inspect.signature(function)).replace("(self, ", "(").replace("(self)", "()")
    signature = re.sub(r"'([^']*)'", r"\1", shown)
    if isinstance(member, property):
        signature = signature.replace("() -> ", ": ")
    how = "async " if inspect.iscoroutinefunction(function) else ""
    needed = getattr(member, "__isabstractmethod__", False) or getattr(owner, "_is_protocol", False)
    optional = "" if needed else " (may be left out)"
    text = prose(inspect.getdoc(function) or "")
    return f"**`{how}{name}{signature}`**{optional}" + (f"\n\n{text}" if text else "")


def arguments(doc: str) -> dict[str, str]:
    """The ``Args:`` of a docstring."""
    _, _, listed = doc.partition("Args:\n")
    found: dict[str, str] = {}
    for item in re.split(r"\n(?=\w)", textwrap.dedent(listed)):
        match = re.match(r"([\w, ]+): (.*)", item, re.DOTALL)
        if match:
            found[match[1]] = plain(" ".join(match[2].split())).removesuffix(".")
    return found


def prose(doc: str, types: Mapping[str, str] | None = None) -> str:
    """A docstring as Markdown: paragraphs rewrapped, ``Args:`` as a list with the types of the fields."""
    types = types or {}
    text, _, _ = doc.partition("Args:\n")
    listed = arguments(doc) if "Args:\n" in doc else {}
    rest = re.split(r"\n\n(?=\S)", doc.partition("Args:\n")[2])[1:] if listed else []
    paragraphs = [textwrap.fill(plain(" ".join(part.split())), WIDTH) for part in text.split("\n\n") if part.strip()]
    if listed:
        paragraphs.append(
            "\n".join(
                f"- `{name}`{f' (`{types[name]}`)' if name in types else ''}: {what}" for name, what in listed.items()
            )
        )
    paragraphs += [textwrap.fill(plain(" ".join(part.split())), WIDTH) for part in rest if part.strip()]
    return "\n\n".join(paragraphs)


def plain(text: str) -> str:
    """reStructuredText roles and quotes as Markdown code."""
    text = re.sub(r":\w+:`~(?:[\w.]*\.)?(\w+)`", r"`\1`", text)
    text = re.sub(r":\w+:`([^`]+)`", r"`\1`", text)
    return text.replace("``", "`")


def code(text: str) -> str:
    """Code inside a table."""
    return "`" + text.replace("|", "\\|") + "`"


def example(kind: str) -> str:
    """The code of the hookspec's docstring."""
    doc = inspect.getdoc(getattr(hookspecs, HOOK_OF_KIND[kind])) or ""
    return textwrap.dedent(doc.split(".. code-block:: python\n", 1)[1]).strip("\n") + "\n"


def tests(kind: str) -> str:
    """How it is tested, and what to start from."""
    suite = SUITES.get(kind)
    tested = (
        f"`lmcache_kit.testing.{suite}` is the suite of this kind: subclass it in a test file and give it the record "
        f"(the fixture `plugin`). `lmcache-kit plugins check NAME` runs it on an installed plugin."
        if suite
        else "There is no suite for this kind: its contract is too small for one. `lmcache-kit plugins check NAME` "
        "makes an installed plugin and looks at its record; the template's tests show what is worth testing."
    )
    does = kind_text(kind).does
    new = f"`lmcache-kit plugins new my-{kind} --kind {kind}` writes a whole distribution to start from. {does}"
    return "\n\n".join(
        textwrap.fill(part, WIDTH, break_long_words=False, break_on_hyphens=False) for part in (tested, new)
    )


def main() -> None:
    """Write every page."""
    assert Path(lmcache_kit.__file__).parents[1] == HERE.parents[2], "the pages describe the package beside them"
    for name, text in pages().items():
        (HERE / name).write_text(text, encoding="utf-8")


if __name__ == "__main__":
    main()
