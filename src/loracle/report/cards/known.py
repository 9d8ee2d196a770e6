"""Sentences of the cards that hold for every study, and those that follow from a method or a task."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from loracle.report.cards.subject import Subject
from loracle.spec.study import FOUR_BIT

FIRST_SEED = (
    "This adapter is that of the study's first seed, not of its best run; the results below are means over all seeds."
)
FAIRNESS_UNMEASURED = (
    "Unmeasured: the study names no column that says which group a row is of (`task.group`), so no figure is by group. "
    "What quantization does to single groups is not known; it is not “none”."
)
FAIRNESS_NO_PAIR = "Unmeasured: rows have groups, but no quantized run could be compared with a 16-bit run of the same seed group by group."
FAIRNESS_MEASURED = (
    "Measured group by group, on the study's evaluation rows and its column of groups: what the quantized base costs each "
    "group against 16-bit, and whether one pays more than the others. Other groups, and groups within groups, were not looked at."
)
OUT_OF_SCOPE = (
    "Decisions about people (credit, work, health, law) and advice to people in need: nothing of the kind was tested.",
    "Languages, subjects and ways of writing that the training data does not have.",
    "Use as a source of facts: low loss and high scores on these rows are no measure of truth elsewhere.",
    "Anything that the licences below do not allow.",
)
LIMITS = (
    "All figures are of the study's own evaluation rows, drawn like its training rows unless the data card says otherwise.",
    "Safety, refusals, toxicity, memorised training rows and robustness were not tested.",
    "What the base learned before, its errors and stereotypes included, is still there.",
)
LICENCES = (
    "No licence was chosen for the adapter itself: whoever publishes it does that, within the terms above. "
    "loracle gives no legal advice."
)
NO_ENERGY = "no counter was read while training"

NOT_LOOKED_AT = (
    "Whether the answers are right, and whether labels are: rows were taken as they are.",
    "Personal data, offensive text, and the consent of those who wrote the rows.",
    "Near-duplicates: two rows are the same only where their text is, letter by letter.",
    "Whether the base saw these rows, the evaluation rows included, before it was fine-tuned.",
    "How well the rows stand for those who will use the model.",
)

_METHODS = {"lora": "A LoRA adapter", "full": "A full fine-tuning"}
_PAPERS = {
    "lora": (
        "@article{hu2021lora,",
        "  title = {{LoRA}: Low-Rank Adaptation of Large Language Models},",
        "  author = {Hu, Edward J. and Shen, Yelong and Wallis, Phillip and Allen-Zhu, Zeyuan and Li, Yuanzhi and Wang, Shean "
        "and Wang, Lu and Chen, Weizhu},",
        "  journal = {arXiv:2106.09685},",
        "  year = {2021}",
        "}",
    ),
    "qlora": (
        "@article{dettmers2023qlora,",
        "  title = {{QLoRA}: Efficient Finetuning of Quantized {LLMs}},",
        "  author = {Dettmers, Tim and Pagnoni, Artidoro and Holtzman, Ari and Zettlemoyer, Luke},",
        "  journal = {arXiv:2305.14314},",
        "  year = {2023}",
        "}",
    ),
}


def method_words(subject: Subject) -> str:
    """``A QLoRA adapter``."""
    if is_qlora(subject):
        return "A QLoRA adapter"
    return _METHODS.get(subject.method, f"An adapter ({subject.method})")


def is_qlora(subject: Subject) -> bool:
    """A LoRA over a base in 4 bits."""
    precision = subject.config.get("precision")
    names = set(precision.values()) if isinstance(precision, dict) else {str(precision)}
    return subject.method == "lora" and bool(FOUR_BIT & names)


def intended(trained: Sequence[Subject]) -> Iterator[str]:
    """What the training was for."""
    for subject in trained:
        what = "Classifying texts into the labels of" if subject.classifies else "Answering prompts in the format of"
        if subject.section("task").get("format") == "text":
            what = "Continuing text like that of"
        yield f"{what} {subject.task}, on {subject.base} in {subject.cell.precision if subject.cell else ''}."
    yield "Study: comparing what precision, rank and method cost on this task."
    yield "For anything else, measure it first on rows of that use."


def citation(trained: Sequence[Subject]) -> Iterator[str]:
    """BibTeX of the methods, and what made the card."""
    papers = ["lora"] if any(s.method == "lora" for s in trained) else []
    papers += ["qlora"] if any(is_qlora(s) for s in trained) else []
    if papers:
        yield "```bibtex"
        for name in papers:
            yield from _PAPERS[name]
        yield "```"
        yield ""
    versions = [((s.run.record.get("provenance") or {}).get("versions") or {}).get("loracle") for s in trained if s.run]
    named = ", ".join(sorted({str(v) for v in versions if v}))
    yield f"Trained and measured with loracle{f' {named}' if named else ''}. Cite the base and the data as their owners ask."
