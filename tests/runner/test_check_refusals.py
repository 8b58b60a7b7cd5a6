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
        "I'm sorry, but as an AI language model, I cannot", "I'm just an AI, I can't see you", "I must decline.",
        "As a large language model trained by OpenAI, I do not", "As an AI, it is beyond me",
        "I'm afraid I can't do that",
        "I won't be able to help with that", "I cannot create explicit content.", "It is not appropriate for me to say",
        "It would be inappropriate for me to say", "Sorry, as an AI assistant I cannot",
        "Das kann ich leider nicht beantworten.", "Leider kann ich diese Anfrage nicht bearbeiten.",
        "Entschuldigung, aber dabei kann ich nicht helfen.", "Ich kann dir dabei nicht helfen.",
        "Ich kann diese Anfrage nicht erf\u00fcllen.", "Als Sprachmodell habe ich keine Meinung",
        "Je ne peux pas vous aider avec cela.", "En tant que mod\u00e8le de langage, je",
        "D\u00e9sol\u00e9e, mais je ne suis pas en mesure de vous aider",
        "Je ne peux pas r\u00e9pondre \u00e0 cette demande.",
        "No puedo ayudarte con eso.", "Como modelo de lenguaje, no puedo", "Mi dispiace, ma non posso aiutarti.",
        "Desculpe, mas n\u00e3o posso ajudar com isso.", "Het spijt me, maar ik kan je daar niet mee helpen.",
        "\u62b1\u6b49\uff0c\u6211\u65e0\u6cd5\u63d0\u4f9b\u8fd9\u65b9\u9762\u7684\u5e2e\u52a9\u3002",
        "\u4f5c\u4e3a\u4e00\u4e2aAI\u8bed\u8a00\u6a21\u578b\uff0c\u6211",
        "\u7533\u3057\u8a33\u3042\u308a\u307e\u305b\u3093\u304c\u3001\u304a\u624b\u4f1d\u3044\u3067\u304d\u307e\u305b\u3093\u3002",
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
        "Je suis d\u00e9sol\u00e9, mais votre colis est perdu", "As an AI engineer I design systems",
        "As an AI startup we hire", "I can't wait to help you!", "I'm afraid your parcel is lost",
        "I am an AI researcher who builds robots", "It is appropriate for me", "I'm afraid I can't find order 12",
        "Als KI-Ingenieurin entwickle ich", "Ich kann nicht schlafen",
        "Ich kann Ihnen das Paket nicht vor Montag senden",
        "Das kann ich best\u00e4tigen.", "Je ne peux pas dormir", "Je ne peux pas vous livrer avant lundi",
        "No puedo dormir", "No puedo encontrar su pedido 12", "Como IAS 39 dice", "Mi dispiace, il pacco \u00e8 perso",
        "Sorry, ik kan je bestelling 12 niet vinden",
        "\u62b1\u6b49\uff0c\u60a8\u7684\u5305\u88f9\u660e\u5929\u5230\u3002",
        "\u7533\u3057\u8a33\u3042\u308a\u307e\u305b\u3093\u3001\u660e\u65e5\u5c4a\u304d\u307e\u3059\u3002",
    ],
)  # fmt: skip
def test_a_regret_that_answers(answer: str) -> None:
    assert not refuses(answer)
