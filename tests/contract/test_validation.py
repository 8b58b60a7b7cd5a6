"""Reading YAML and saying what is wrong with it."""

from __future__ import annotations

import json
import math
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from finetune_api.finetunejob import FineTuneJob
from finetune_api.validation import Problem, accepted_values, validate_document
from finetune_api.yaml_document import UnreadableError, read_documents, scalar_value
from tests.contract.corpus_files import BAD, FOLDER, GOOD

SMALLEST = (FOLDER / "good" / "job-smallest.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("text", "meaning"),
    [
        ("2e-4", 0.0002), ("1e3", 1000.0), ("1.", 1.0), (".5", 0.5), ("+.5", 0.5), ("1_0.5", 10.5), ("-0.5", -0.5),
        ("16", 16), ("+5", 5), ("-7", -7), ("1_000", 1000), ("0x1F", 31), ("0o17", 15), ("017", 15), ("0b11", 3),
        ("08", 8.0), ("-0x10", -16), ("-0", 0), ("5_", 5), ("99999999999999999999", 1e20),
        ("yes", True), ("Y", True), ("on", True), ("True", True),
        ("no", False), ("NO", False), ("off", False), ("n", False),
        ("", None), ("~", None), ("null", None), ("NULL", None),
        ("yEs", "yEs"), ("1:30", "1:30"), ("2026-01-01", "2026-01-01"), ("0o8", "0o8"), ("0x", "0x"), ("_1", "_1"),
        (".", "."), ("=", "="), ("1e400", "1e400"), ("10%", "10%"), ("1e", "1e"), ("e5", "e5"), ("triage", "triage"),
    ],
)  # fmt: skip
def test_an_unquoted_word_means_what_it_means_to_the_api_server(text: str, meaning: object) -> None:
    value = scalar_value(text)
    assert value == meaning
    assert type(value) is type(meaning)


def test_what_is_no_number_in_json() -> None:
    assert math.isnan(scalar_value(".nan"))
    assert scalar_value(".inf") == math.inf


def test_quoted_words_stay_words() -> None:
    (document,) = read_documents("a: '2e-4'\nb: \"yes\"\nc: |\n  5\nd: !!str 5\ne: !!int '5'\n")
    assert document.value == {"a": "2e-4", "b": "yes", "c": "5\n", "d": "5", "e": 5}


def test_anchors_and_merges_are_written_out() -> None:
    (document,) = read_documents("a: &x {p: 1, q: [2]}\nb: *x\nc: {<<: *x, p: 3}\nd: {<<: [{r: 1}, *x]}\n")
    assert document.value["b"] == {"p": 1, "q": [2]}
    assert document.value["c"] == {"p": 3, "q": [2]}
    assert document.value["d"] == {"r": 1, "p": 1, "q": [2]}


def test_a_position_is_that_of_the_key_or_of_its_parent() -> None:
    (document,) = read_documents("a:\n  b: [1,\n    {c: 2}]\n")
    assert document.position_of(("a", "b")).line == 2
    assert document.position_of(("a", "b", 1, "c")).line == 3
    assert document.position_of(("a", "b", 1, "missing")).line == 3
    assert document.position_of(("z",)).line == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a: [1", "is not valid YAML"),
        ("a:\n\tb: 1", "is not valid YAML"),
        ("a: *nowhere", "anchor nowhere"),
        ("? [a]\n: b", "a key that is not a word"),
        ("~: 1", "an empty key"),
        ("a: !!binary =", "the tag !!binary"),
        ("<<: 5", "merges something that is not a mapping"),
        ("[" * 100 + "]" * 100, "nested deeper than 64"),
        ("a0: &a0 [x]\n" + "".join(f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 9)}]\n" for n in range(1, 9)), "aliases"),
        ("\x00", "is not valid YAML"),
        ("%YAML 9", "is not valid YAML"),
    ],
)  # fmt: skip
def test_unreadable_text_is_refused_with_its_place(text: str, words: str) -> None:
    with pytest.raises(UnreadableError, match=words):
        read_documents(text)
    (problem,) = validate_document(text)
    assert words in problem.message
    assert problem.line >= 1


@pytest.mark.parametrize("text", ["", "# nothing\n", "---\n---\n", "~"])
def test_an_empty_file_is_a_problem(text: str) -> None:
    (problem,) = validate_document(text)
    assert "is empty" in problem.message


def test_all_problems_are_told_at_once_in_the_order_of_their_lines() -> None:
    text = SMALLEST + "  training: {epochs: 0, packing: enable}\n  compute:\n    nodes: 0\n    pol: a100\n"
    problems = validate_document(text)
    assert [(p.path, p.line) for p in problems] == [
        ("spec.training.epochs", 9),
        ("spec.training.packing", 9),
        ("spec.compute.nodes", 11),
        ("spec.compute.pol", 12),
    ]
    assert problems[-1] == Problem("spec.compute.pol", 12, 5, "is not a field of spec.compute", "did you mean pool?")


def test_all_broken_rules_of_one_object_are_told() -> None:
    text = SMALLEST + "  evaluation: {metrics: [{name: f1}, {name: schemaValid}]}\n"
    assert len(validate_document(text)) == 2


def test_every_document_of_a_file_is_judged() -> None:
    pool = (FOLDER / "good" / "pool-smallest.yaml").read_text(encoding="utf-8")
    assert validate_document(f"{pool}---\n{SMALLEST}") == []
    broken = SMALLEST.replace("hf://acme/base", "hf://acme")
    (problem,) = validate_document(f"{pool}---\n{broken}")
    assert problem.path == "spec.model.source"
    assert problem.line == 5 + len(pool.splitlines()) + 1


def test_a_byte_order_mark_and_windows_lines_are_read() -> None:
    assert validate_document("\ufeff" + SMALLEST.replace("\n", "\r\n")) == []


def test_a_status_from_kubectl_get_is_passed_over() -> None:
    assert validate_document(SMALLEST + "status: {phase: Running, whatever: 1}\n") == []


COMPLETE = """\
apiVersion: finetune.dev/v1alpha1
kind: FineTuneJob
metadata: {name: support-triage, namespace: team-a}
spec:
  serviceAccountName: finetune-runner
  model: {source: hf://meta-llama/Llama-3.1-8B-Instruct, revision: main, secretRef: {name: hf}}
  data:
    train: [{source: s3://team-a/support/train.jsonl, format: chat}]
    validation: {fraction: 0.10}
    test: {fraction: 0.15}
    replay: {source: s3://shared/general.jsonl, fraction: 0.15}
    checks: {minimumRows: 200, duplicates: drop, pii: redact}
  method: {type: qlora, rank: 16, alpha: 32, dropout: 0, targetModules: all-linear}
  training: {epochs: 3, learningRate: 2e-4, globalBatchSize: 16, maxLength: 2048, packing: auto, evalSteps: auto, earlyStopping: {patience: 3}, seed: 42}
  compute: {pool: a100-80, nodes: 1, gpusPerNode: 2, strategy: auto, queue: team-a, maxCost: 200, maxDuration: 24h}
  evaluation:
    task: {type: classification, labelPath: $.category, schema: {type: object}}
    baselinePrompt: "Classify the ticket. Answer with one JSON object: ..."
    metrics: [{name: f1, average: macro}, {name: schemaValid}]
    outOfDomain: {source: s3://shared/general-eval.jsonl}
    gates:
    - {metric: f1, minimum: 0.85}
    - {metric: f1, over: baseline, minimumGain: 0.05}
    - {metric: outOfDomainLoss, over: base, maximumRegression: "10%"}
    humanReview: {samples: 50}
  output: {adapterRef: {name: support-triage}, servedAs: adapter, exports: [gguf]}
"""  # noqa: E501 - as people write it


def test_of_the_complete_job_only_what_is_not_built_yet_is_refused() -> None:
    assert [(problem.path, problem.fix) for problem in validate_document(COMPLETE)] == [
        ("spec.output.exports", "leave output.exports out"),
    ]


def test_an_accepted_text_becomes_plain_values_for_the_models() -> None:
    text = SMALLEST + "  training: {epochs: 2e0, globalBatchSize: 8.0}\n  compute:\nstatus: {phase: Failed}\n"
    assert validate_document(text) == []
    (job,) = accepted_values(text)
    assert job["spec"]["training"] == {"epochs": 2, "globalBatchSize": 8}
    assert "compute" not in job["spec"]
    assert "status" not in job
    assert FineTuneJob.from_wire(job).spec.training.epochs == 2.0


def test_a_long_value_is_shown_short() -> None:
    (problem,) = validate_document(SMALLEST + f"  compute: {{pool: {'A' * 60}}}\n")
    assert "AAA..." in problem.message
    assert len(problem.message) < 120


# The parser's own weak spots, found by this test and kept as examples.
@given(st.text(max_size=80))
@example("%")
@example("\ufeff")
@example("!<")
@example("a: !<>\n")
@example("\x85- ")
@example('"\\xZZ"')
@example('"\\U00110000"')
@example("%TAG ! \n---")
@example("&a *a")
@example("a: &a {b: *a}")
def test_no_text_raises(text: str) -> None:
    assert all(problem.message and problem.fix for problem in validate_document(text))


ALPHABET = st.sampled_from(
    [
        *"abc:-{}[]!&*|>%@`'\"#?,~ \n\t",
        "- ",
        ": ",
        "\n  ",
        "spec",
        "kind: FineTuneJob\n",
        "---\n",
        "<<",
        "1e5",
        "\x85",
        "\u2028",
    ]
)


@given(st.lists(ALPHABET, max_size=40).map("".join))
def test_no_text_that_looks_like_yaml_raises(text: str) -> None:
    assert all(problem.message for problem in validate_document(text))


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=8,
)
LINES = [line for file in (*GOOD, *BAD) for line in file.read_text(encoding="utf-8").splitlines()]


@given(st.lists(st.sampled_from(LINES), max_size=12))
def test_no_mixture_of_real_lines_raises(lines: list[str]) -> None:
    assert all(problem.message and problem.fix for problem in validate_document("\n".join(lines)))


@given(st.data())
def test_any_value_anywhere_is_judged_without_a_traceback(data: st.DataObject) -> None:
    job: dict[str, Any] = read_documents(SMALLEST)[0].value
    part: Any = job
    for _ in range(data.draw(st.integers(0, 4))):
        names = [name for name, value in part.items() if isinstance(value, dict)]
        if not names:
            break
        part = part[data.draw(st.sampled_from(names))]
    key = data.draw(st.sampled_from([*part, "training", "compute", "evaluation", "metadata", "x"]))
    part[key] = data.draw(JSON)
    assert all(problem.message and problem.fix for problem in validate_document(json.dumps(job)))


def test_a_folded_text_has_no_marks_of_the_parser() -> None:
    (document,) = read_documents("a: >\n  one\n  two\n\n  three\nb: >-\n  one\n  two\n")
    assert document.value == {"a": "one two\nthree\n", "b": "one two"}


def test_tabs_stay_where_they_are_text() -> None:
    (document,) = read_documents("a:\t1\nb: 'c\td'\ne: |\n  f:\tg\n  \th\ni: [1,\t2]\t# j\n")
    assert document.value == {"a": 1, "b": "c\td", "e": "f:\tg\n\th\n", "i": [1, 2]}
    assert document.positions[("i", 1)].column == 8


@pytest.mark.parametrize(
    "text", ["a: {b: c\n \t}\n", "a: {\n\tb: c}\n", "{a: b\n\t}", "a:\n  - {b: c,\n\td: e\n   \t}\n", "a: 'b\n\tc'"]
)
def test_tabs_behind_the_indentation_are_white_space(text: str) -> None:
    assert len(read_documents(text)) == 1


@pytest.mark.parametrize(
    "text",
    [
        "a:\n\tb: 1\n", "a:\n- \tb: 1\n", "\ta: 1\n", "a: {b: c\n\t}\n", "a: b\n\t\nc: d\n",
        "a:\n  - {b: c,\n\td: e\n \t}\n",
    ],
)  # fmt: skip
def test_tabs_that_indent_are_refused(text: str) -> None:
    with pytest.raises(UnreadableError) as caught:
        read_documents(text)
    assert "spaces, not with tabs" in caught.value.error.fix
