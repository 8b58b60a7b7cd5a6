"""Files of several documents are read as kubectl reads them."""

from __future__ import annotations

import pytest

from finetune_api.validation import accepted_values, validate_document
from tests.contract.documents import SEVERAL, Several


@pytest.mark.parametrize("several", SEVERAL, ids=lambda several: several.id)
def test_the_documents_of_a_file(several: Several) -> None:
    problems = [str(problem) for problem in validate_document(several.text)]
    if several.names:
        assert problems == []
        assert tuple(value["metadata"]["name"] for value in accepted_values(several.text)) == several.names
    else:
        assert len(problems) == 1
        assert several.says in problems[0]
