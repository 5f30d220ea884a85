"""How deep imports are stacked: `python benchmarks/import_chains.py` prints the longest chains.

Imports within functions count too. The rules of who may import whom are contracts in `pyproject.toml`.
"""

from __future__ import annotations

from collections.abc import Mapping, Set
from functools import cache

import grimp

KIT = "hf_cxr"


def module_imports() -> dict[str, set[str]]:
    """Module of the kit → the modules of the kit that it imports."""
    graph = grimp.build_graph(KIT)
    return {module: set(graph.find_modules_directly_imported_by(module)) for module in graph.modules}


def package_imports(modules: Mapping[str, Set[str]]) -> dict[str, set[str]]:
    """The same of the packages at the top, `hf_cxr.config` among them."""

    def package(module: str) -> str:
        return ".".join(module.split(".")[:2])

    found: dict[str, set[str]] = {}
    for module, imported in modules.items():
        others = {package(other) for other in imported} - {package(module), KIT}
        found.setdefault(package(module), set()).update(others)
    return found


def longest_chain(imports: Mapping[str, Set[str]]) -> tuple[str, ...]:
    """The longest chain in which each imports the next. Raises `RecursionError` if imports go round in a circle."""

    @cache
    def chain(name: str) -> tuple[str, ...]:
        return (name, *max((chain(other) for other in sorted(imports.get(name, ()))), key=len, default=()))

    return max((chain(name) for name in sorted(imports)), key=len)


if __name__ == "__main__":
    modules = module_imports()
    print(f"{len(modules)} modules, {sum(map(len, modules.values()))} imports")
    for kind, imports in (("packages", package_imports(modules)), ("modules", modules)):
        longest = longest_chain(imports)
        names = " → ".join(name.removeprefix(f"{KIT}.") for name in longest)
        print(f"longest chain of {kind}: {len(longest)}\n  {names}")
