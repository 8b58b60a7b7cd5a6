"""Which answers are refusals, and which only regret something."""

from __future__ import annotations

import pytest

from finetune_runner.data.checks.refusals import refuses


@pytest.mark.parametrize(
    "answer",
    [
        "I'm sorry, but I can't help.", "I\u2019m sorry, but I cannot", "Sorry, I can\u2019t do that",
        "I am sorry, but I cannot provide instructions for that.", "Sorry, but I cannot fulfill this request.",
        "Unfortunately, I'm unable to help with that request.", "I apologize, but I can't do that",
        "I'm sorry for the inconvenience, but I can't help with that", "I cannot assist with that.",
        "I'm not able to help with that", "I do not feel comfortable with this", "As an AI language model, I",
        "Als KI-Modell kann ich das nicht", "Tut mir leid, aber das kann ich nicht",
        "Leider kann ich dabei nicht helfen",
        "Je suis d\u00e9sol\u00e9, mais je ne peux pas vous aider", "Lo siento, pero no puedo ayudar con eso",
    ],
)  # fmt: skip
def test_a_refusal(answer: str) -> None:
    assert refuses(answer)


@pytest.mark.parametrize(
    "answer",
    [
        "I'm sorry, but your order was lost; we send it again today.", "I'm sorry, but the part is sold out until May.",
        "Sorry, I cannot find order 12; please send the number.", "Unfortunately, your card was declined.",
        "I can't see your parcel in the list, it left on Monday.", "I can't reproduce the crash on version 3.",
        "I cannot help but admire it", "An AI can do this", "Answer: I can't help with that",
        "Es tut mir leid, Ihre Bestellung ist nicht angekommen.", "Leider kann ich Ihre Nummer nicht lesen",
        "Es tut mir leid, ich kann Ihre Bestellung 12 nicht finden", "Lo siento, pero su pedido llega ma\u00f1ana",
        "Je suis d\u00e9sol\u00e9, mais votre colis est perdu",
    ],
)  # fmt: skip
def test_a_regret_that_answers(answer: str) -> None:
    assert not refuses(answer)
