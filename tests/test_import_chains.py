"""Imports are not stacked deeper than a reader can follow; who may import whom is checked by `make lint`."""

import pytest
from helpers import ROOT


@pytest.fixture
def chains(monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "benchmarks")
    import import_chains

    return import_chains


def test_no_chain_of_imports_is_too_long(chains):
    modules = chains.module_imports()
    assert len(modules) > 80
    assert len(chains.longest_chain(chains.package_imports(modules))) <= 8
    assert len(chains.longest_chain(modules)) <= 12


def test_the_longest_chain_is_found_and_a_circle_has_none(chains):
    imports = {"a": {"b", "c"}, "b": {"d"}, "c": set(), "d": {"c"}}
    assert chains.longest_chain(imports) == ("a", "b", "d", "c")
    with pytest.raises(RecursionError):
        chains.longest_chain({"a": {"b"}, "b": {"a"}})
