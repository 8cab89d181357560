"""The list of ``make mutants`` fits the code: what is mended at once is not forgotten."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.mutants.mutations import Mutation, read_mutations
from tests.structure.sources import ROOT

MUTATIONS = read_mutations()


@pytest.mark.parametrize("mutation", MUTATIONS, ids=lambda mutation: mutation.name)
def test_the_text_that_a_mutant_replaces_is_there_once(mutation: Mutation) -> None:
    text = (ROOT / mutation.file).read_text()
    for old, new in mutation.edits:
        assert text.count(old) == 1, f"fit {mutation.name!r} in mutations.toml to {mutation.file}"
        assert old != new
    assert all((ROOT / test.split("::")[0]).exists() for test in mutation.tests)


def test_names_are_unique() -> None:
    assert Counter(mutation.name for mutation in MUTATIONS).most_common(1)[0][1] == 1
