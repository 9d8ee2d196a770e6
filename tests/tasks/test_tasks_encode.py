"""Golden examples, token by token: what is prompt, what is scored, and what the tokenizer's traps do not change."""

from __future__ import annotations

from typing import Any

import pytest

from conftest import CHATML, make, tokens
from loracle.base.errors import DataError, SpecError
from loracle.spec.study import Task
from loracle.tasks.columns import layout
from loracle.tasks.dataset import _segments, plain_text
from loracle.tasks.encode import cut, encode, habits
from loracle.tasks.formats import Drop, example, parse
from loracle.tasks.rows import IGNORE, Row


def encoded(
    tokenizer: Any, row: dict[str, Any], max_length: int = 512, templated: bool = False, **settings: Any
) -> Row:
    """One row through every step, as ``build`` does it."""
    task = Task(data="x", max_length=max_length, **settings)
    one = example(row, layout(task, list(row), "x.jsonl"), task)
    found = encode(tokenizer, [_segments(one, tokenizer, templated, task.train_on_inputs)], rendered=templated)[0]
    return cut(0, one, found, task.max_length, task.max_new_tokens, habits(tokenizer).prefix).row


CASES = [
    (
        {"instruction": "Name it.", "input": "", "output": "Paris"},
        {},
        [("### Instruction:\nName it.\n\n### Response:\n", False), ("Paris<eos>", True)],
        "Paris",
    ),
    (
        {"instruction": "Add.", "input": 12, "output": 3.5},
        {},
        [("### Instruction:\nAdd.\n\n### Input:\n12\n\n### Response:\n", False), ("3.5<eos>", True)],
        "3.5",
    ),
    ({"prompt": "2 + 2 = ", "completion": "4"}, {}, [("2 + 2 =", False), (" 4<eos>", True)], "4"),
    ({"prompt": "def f", "completion": "oo()"}, {}, [("def f", False), ("oo()<eos>", True)], "oo()"),
    (
        {"q": "why?", "a": "so"},
        {"format": "prompt_completion", "columns": {"completion": "a"}, "template": "Q: {q} {x}\nA:"},
        None,
        None,
    ),
    (
        {"q": "why?", "a": "so"},
        {"format": "prompt_completion", "columns": {"completion": "a"}, "template": "Q: {q} {{}}\nA:"},
        [("Q: why? {{}}\nA:", False), (" so<eos>", True)],
        "so",
    ),
    ({"text": "a fine film"}, {}, [("a", False), (" fine film<eos>", True)], None),
    (
        {"sentence": "a fine film", "label": 1},
        {"labels": ("bad_film", "good_film")},
        [("Text: a fine film\nLabel:", False), (" good film<eos>", True)],
        "good film",
    ),
    (
        {"text": "where?", "category": "card_arrival"},
        {"template": "Query: {text}\nIntent:"},
        [("Query: where?\nIntent:", False), (" card arrival<eos>", True)],
        "card arrival",
    ),
    (
        {
            "conversations": [
                {"from": "human", "value": "hi"},
                {"from": "gpt", "value": "hello"},
                {"from": "human", "value": "how?"},
                {"from": "gpt", "value": " well\n"},
                {"from": "human", "value": "unanswered"},
            ]
        },
        {"system": "Be kind."},
        [
            ("System: Be kind.\nUser: hi\nAssistant:", False),
            (" hello<eos>", True),
            ("\nUser: how?\nAssistant:", False),
            (" well<eos>", True),
        ],
        "well",
    ),
    (
        {"messages": [{"role": "user", "content": "hi "}, {"role": "assistant", "content": "hello"}]},
        {},
        [("User: hi\nAssistant:", False), (" hello<eos>", True)],
        "hello",
    ),
]


@pytest.mark.parametrize(("row", "settings", "golden", "reference"), CASES)
def test_golden(tokenizer: Any, row: Any, settings: Any, golden: Any, reference: Any) -> None:
    if golden is None:
        with pytest.raises(SpecError, match=r"^task\.template: \{x\} is not a column of x\.jsonl"):
            encoded(tokenizer, row, **settings)
        return
    made = encoded(tokenizer, row, **settings)
    if "text" in row and reference is None:  # plain text: all but the first token is scored
        assert "".join(text for text, _ in tokens(tokenizer, made)) == "a fine film<eos>"
        assert made.labels == [IGNORE, *made.input_ids[1:]]
        assert made.prompt_ids is None
    else:
        assert tokens(tokenizer, made) == golden
        assert made.prompt_ids is not None
        assert made.input_ids[: len(made.prompt_ids)] == made.prompt_ids
        assert all(label == IGNORE for label in made.labels[:1])
    assert made.reference == reference


@pytest.mark.parametrize(("row", "settings", "golden", "reference"), [case for case in CASES if case[2] is not None])
@pytest.mark.parametrize("bos", [False, True])
def test_train_on_inputs_scores_all_but_the_first_token(
    row: Any, settings: Any, golden: Any, reference: Any, bos: bool
) -> None:
    tokenizer = make(bos=bos)
    usual = encoded(tokenizer, row, **settings)
    made = encoded(tokenizer, row, **settings, train_on_inputs=True)
    assert made.labels == [IGNORE, *made.input_ids[1:]]
    assert (made.input_ids, made.prompt_ids, made.reference) == (usual.input_ids, usual.prompt_ids, reference)


def test_train_on_inputs_scores_a_templates_marks_too() -> None:
    tokenizer = make(bos=True, chat_template="<bos>" + CHATML)
    row = {"messages": [{"role": r, "content": c} for r, c in (("user", "a"), ("assistant", "b")) * 2]}
    usual, made = (encoded(tokenizer, row, templated=True, train_on_inputs=on) for on in (False, True))
    assert tokens(tokenizer, made)[0] == ("<bos>", False)
    assert made.labels == [IGNORE, *made.input_ids[1:]]
    assert (made.input_ids, made.prompt_ids) == (usual.input_ids, usual.prompt_ids)


def test_pad_equal_to_eos_leaves_the_last_eos_scored() -> None:
    tokenizer = make(pad_token="<eos>")
    made = encoded(tokenizer, {"prompt": "a", "completion": " b"})
    assert tokenizer.pad_token_id == tokenizer.eos_token_id == made.input_ids[-1] == made.labels[-1]


def test_a_bos_only_where_the_tokenizer_puts_one(tokenizer: Any) -> None:
    adds = make(bos=True)
    row = {"prompt": "a card", "completion": " here"}
    assert tokens(adds, encoded(adds, row)) == [("<bos>a card", False), (" here<eos>", True)]
    assert encoded(adds, row).input_ids[1:] == encoded(tokenizer, row).input_ids


def test_a_tokenizer_that_glues_a_space_does_not_glue_one_to_the_answer() -> None:
    glues = make(space=True)
    made = encoded(glues, {"instruction": "Name it.", "output": "Paris"})
    assert tokens(glues, made)[-1] == ("Paris<eos>", True)


def test_chat_template_scores_every_answer_with_its_end() -> None:
    tokenizer = make(eos_token="<|im_end|>", chat_template=CHATML)
    messages = [("system", "Be kind."), ("user", "hi"), ("assistant", "hello"), ("user", "hi"), ("assistant", "hi")]
    row = {"messages": [{"role": role, "content": content} for role, content in messages]}
    made = encoded(tokenizer, row, templated=True)
    assert tokens(tokenizer, made) == [
        ("<|im_start|>system\nBe kind.<|im_end|>\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n", False),
        ("hello<|im_end|>", True),
        ("\n<|im_start|>user\nhi<|im_end|>\n<|im_start|>assistant\n", False),
        ("hi<|im_end|>", True),
    ]
    rendered = tokenizer.apply_chat_template(row["messages"][:-1], add_generation_prompt=True)["input_ids"]
    assert made.prompt_ids == rendered


@pytest.mark.parametrize("start", ["<bos>", "<bos><bos>"])
def test_a_template_never_leads_to_two_bos(start: str) -> None:
    tokenizer = make(bos=True, chat_template=start + CHATML)
    row = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]}
    made = encoded(tokenizer, row, templated=True)
    assert made.input_ids.count(tokenizer.bos_token_id) == 1
    assert made.prompt_ids == made.input_ids[: len(made.prompt_ids or [])]
    assert tokens(tokenizer, made)[-1] == ("hello<|im_end|>", True)


def test_a_template_without_an_end_gets_an_eos() -> None:
    template = "{% for m in messages %}{% if m['role'] == 'user' %}Q{{ m['content'] }}A{% else %}{{ m['content'] }}"
    tokenizer = make(chat_template=template + "{% endif %}{% endfor %}")
    row = {"messages": [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "yes"}]}
    assert tokens(tokenizer, encoded(tokenizer, row, templated=True)) == [("QhiA", False), ("yes<eos>", True)]


def test_a_template_that_rewrites_earlier_answers_is_followed() -> None:
    """Like Qwen3's: the last answer has a thought in front, earlier ones have lost theirs."""
    body = "{% if m['role'] == 'assistant' and loop.last %}<t></t>{% endif %}{{ m['content'] }}"
    tokenizer = make(eos_token="<|im_end|>", chat_template=CHATML.replace("{{ m['content'] }}", body))
    row = {"messages": [{"role": r, "content": c} for r, c in (("user", "a"), ("assistant", "b")) * 2]}
    scored = [text for text, is_scored in tokens(tokenizer, encoded(tokenizer, row, templated=True)) if is_scored]
    assert scored == ["b<|im_end|>", "<t></t>b<|im_end|>"]


def test_a_template_that_cannot_be_cut_says_what_to_do() -> None:
    tokenizer = make(chat_template="{{ messages | length }}{% for m in messages %}{{ m['content'] }}{% endfor %}")
    row = {"messages": [{"role": r, "content": c} for r, c in (("user", "a"), ("assistant", "b")) * 2]}
    with pytest.raises(DataError, match=r"set task\.chat_template: plain"):
        encoded(tokenizer, row, templated=True)


def test_cut_on_the_right_and_prompt_on_the_left() -> None:
    tokenizer = make(bos=True)
    row = {"prompt": "abc def ghi jkl mno pqr " * 5, "completion": " yes"}
    whole = encoded(tokenizer, row)
    made = encoded(tokenizer, row, max_length=40, max_new_tokens=10)
    assert made.input_ids == whole.input_ids[:40]
    assert made.target_tokens == 0
    assert made.prompt_ids is not None
    assert whole.prompt_ids is not None
    assert made.prompt_ids == [tokenizer.bos_token_id, *whole.prompt_ids[-29:]]


def test_rows_of_no_use_are_dropped_with_their_reason() -> None:
    def turns(*roles: str) -> dict[str, Any]:
        return {"messages": [{"role": role, "content": "x"} for role in roles]}

    bad = [
        turns("assistant"), turns("user"), turns("user", "user", "assistant"), turns("wizard", "assistant"),
        {"messages": []}, {"messages": None}, {"messages": "hi"}, {"messages": ["hi"]},
        {"messages": [{"role": "user", "content": " "}, {"role": "assistant", "content": "x"}]},
    ]  # fmt: skip
    task = Task(data="x")
    found = parse([*bad, turns("user", "assistant")], layout(task, ["messages"], "x"), task)
    assert [item for item, _ in found.examples] == [9]
    assert found.dropped == {
        "the turns do not alternate between user and assistant, the user first": 2,
        "the conversation has no assistant turn": 1,
        "a message has the role 'wizard'": 1,
        "the conversation is empty": 2,
        "the conversation is not a list of messages": 1,
        "a message is not an object": 1,
        "a message is empty": 1,
    }


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        (None, "output is empty"), ("  ", "output is empty"), (float("nan"), "output is empty"),
        (["x"], "output is a list, not text"), ("\ud800", "output is not valid Unicode"),
    ],
)  # fmt: skip
def test_an_answer_that_is_no_text_is_dropped(output: Any, reason: str) -> None:
    task = Task(data="x")
    row = {"instruction": "Do.", "output": output}
    with pytest.raises(Drop, match=reason):
        example(row, layout(task, list(row), "x"), task)


@pytest.mark.parametrize(
    ("columns", "format"),
    [
        (("messages", "topic"), "messages"), (("id", "conversations"), "sharegpt"),
        (("instruction", "context", "response"), "alpaca"), (("question", "answer"), "prompt_completion"),
        (("label", "sentence"), "text_label"), (("text", "category"), "text_label"), (("text", "source"), "text"),
    ],
)  # fmt: skip
def test_the_format_is_guessed_from_the_columns(columns: tuple[str, ...], format: str) -> None:
    assert layout(Task(data="x"), columns, "x").format == format


def test_columns_that_fit_nothing_are_listed_with_the_way_out() -> None:
    with pytest.raises(DataError, match=r"x\.csv: the columns \(foo, bar\) fit no format: set task\.format"):
        layout(Task(data="x"), ["foo", "bar"], "x.csv")
    with pytest.raises(DataError, match=r"no column 'output' for format alpaca \(there are instruction, outptu\), did"):
        layout(Task(data="x", format="alpaca"), ["instruction", "outptu"], "x.csv")
    with pytest.raises(SpecError, match=r"task\.columns\.txt: format text has no column 'txt', did you mean 'text'"):
        layout(Task(data="x", format="text", columns={"txt": "foo"}), ["foo"], "x.csv")
    with pytest.raises(DataError, match=r"no column 'fooo' .*did you mean 'foo'\?; map it with task\.columns"):
        layout(Task(data="x", format="text", columns={"text": "fooo"}), ["foo"], "x.csv")


def test_plain_text_is_scored_from_its_second_token(tokenizer: Any) -> None:
    rows = plain_text(tokenizer, 64)
    assert len(rows) > 20
    assert all(row.labels == [IGNORE, *row.input_ids[1:]] and len(row.input_ids) <= 64 for row in rows)
