"""Answers that refuse: usually left over from the model that generated the data."""

from __future__ import annotations

import re

from finetune_api.job.spec import FineTuneJobSpec
from finetune_runner.data.checking import TASK_SPLITS, Found, Given, Mode, Phase, Remark, judged, mode_of

PHASE: Phase = "rows"
ORDER = 40

_CANNOT = (
    r"i(?: can(?:['\u2019]t|not| not)| (?:won['\u2019]t|will not)(?: be able)?|"
    r"(?:['\u2019]m| am) (?:unable|not able|not allowed|not comfortable))"
)
_ACT = (
    r"(?:to |with )?(?:help(?! but)|assist|answer|respond|comply|fulfill?|do that|do this|generate|engage|participate|"
    r"discuss|support (?:that|this)|continue|share that|provide (?:that|this|any|you with|information|instructions|"
    r"guidance|assistance|advice|content|medical|legal|financial|a response|an answer)|"
    r"(?:create|write|produce) (?:that|this|such|(?:\w+ ){0,2}content)|"
    r"give (?:you )?(?:medical|legal|financial|any|that|this)|assisting|helping|providing|answering|discussing)"
)
_MODEL = (
    r"an? (?:ai|artificial intelligence|(?:large )?language model)"
    r"(?: (?:(?:language )?model|assistant|system|chatbot|program))?(?: (?:trained|created|developed|made) by \w+)?"
)
_REGRET = (
    r"(?:(?:i(?:['\u2019]m| am) (?:really |very |so |truly )?(?:sorry|afraid)|sorry|i apologi[sz]e|my apologies|"
    r"unfortunately|i regret)\W+(?:that )?(?:but )?(?:for [\w ]+\W+(?:but )?)?)"
)
_KI = (
    r"(?:eine? )?(?:ki(?:-(?:sprach)?modell|-assistent(?:in)?|-system)?|k\u00fcnstliche intelligenz|"
    r"(?:gro\u00dfes )?sprachmodell)"
)
_DE_THAT = (
    r"(?:das|dabei|damit|dazu|hierbei|darauf|(?:bei |mit )?(?:diese[rnms]?|ihre[rnm]?|deine[rnm]?) "
    r"(?:anfrage|frage|bitte|wunsch|anforderung))"
)
_DE_ACT = (
    r"nicht (?:weiter)?(?:helfen|beantworten|antworten|erf\u00fcllen|tun|machen|unterst\u00fctzen|bereitstellen|"
    r"nachkommen|bearbeiten|ausf\u00fchren|dienen)\b"
)
_BY_LANGUAGE = {
    # A regret needs what cannot be done (or to break off there): "Sorry, I cannot find order 12" is an answer.
    "en": rf"{_REGRET}{_CANNOT}(?:\W*$|[,;]|\.(?:\s|$)| {_ACT}\b)|{_CANNOT} {_ACT}\b|"
    rf"{_REGRET}?as (?:an? (?:ai |large )?language model\b|{_MODEL}(?:\W+(?:i|it)\b|\W*$))|"
    rf"i(?:['\u2019]m| am) (?:just |only )?{_MODEL}\b[^.!?]*\b"
    r"(?:can(?:['\u2019]t|not)|do(?:n['\u2019]t| not)|unable)\b|"
    r"i (?:must|have to|will have to) (?:respectfully |politely )?decline\b|"
    r"it(?:['\u2019]s| is| would)(?: not(?: be)? | be in| in)appropriate for me\b|"
    r"i do(?:n['\u2019]t| not) feel comfortable\b",
    "de": r"(?:es )?tut mir leid\W+(?:aber )?(?:(?:das|dabei|damit|dazu|hierbei) kann ich|ich kann "
    r"(?:ihnen |dir |euch )?(?:das|dabei|damit|dazu|hierbei|leider|darauf))\b[^.!]*\bnicht\b|"
    r"leider kann ich (?:ihnen |dir )?(?:dabei |damit |das |hierbei )nicht\b|"
    r"(?:(?:(?:es )?tut mir leid|entschuldigung|verzeihung|leider)\W+(?:aber )?)?"
    rf"(?:{_DE_THAT} kann ich|ich kann|kann ich)(?: (?:ihnen|dir|euch|leider|{_DE_THAT}))* {_DE_ACT}|"
    rf"als {_KI},? (?:kann|bin|habe|darf|verf\u00fcge|besitze|m\u00f6chte|ist)\b",
    "fr": r"(?:(?:je suis )?(?:vraiment )?d\u00e9sol\u00e9e?|malheureusement)\W+(?:mais )?je ne "
    r"(?:peux pas|suis pas en mesure (?:de |d['\u2019])|suis pas capable (?:de |d['\u2019]))\s?(?:vous |t['\u2019])?"
    r"(?:aider|r\u00e9pondre|faire (?:cela|\u00e7a)|fournir|assister)|"
    r"je ne peux pas (?:(?:vous |t['\u2019])(?:aider|assister)|"
    r"(?:r\u00e9pondre|acc\u00e9der) \u00e0 (?:cette|votre|ta))\b|"
    r"en tant qu['\u2019](?:ia|intelligence artificielle)\b|en tant que (?:grand )?mod\u00e8le de langage\b",
    "es": r"(?:lo siento|lo lamento|lamentablemente)\W+(?:pero )?no (?:puedo|me es posible) (?:ayudar|responder|"
    r"hacer (?:eso|esto)|proporcionar|asistir|cumplir)|no puedo (?:ayudar(?:te|le|os)\b|"
    r"(?:responder a|cumplir con) (?:esa|esta|tu|su)\b)|"
    r"como (?:una? )?(?:ia|inteligencia artificial|modelo de (?:lenguaje|ia)|asistente de ia)\b",
    "it": r"(?:mi dispiace|spiacente)\W+(?:ma )?non posso (?:aiutar|rispondere|fornire|farlo|assister)|"
    r"non posso aiutar(?:ti|la|vi)\b|(?:come|in quanto) (?:ia|intelligenza artificiale|modello linguistico)\b",
    "pt": r"(?:desculpe|sinto muito|lamento)\W+(?:mas )?(?:eu )?n\u00e3o posso "
    r"(?:ajudar|responder|fornecer|fazer isso)|"
    r"n\u00e3o posso ajudar(?:-lo|-la|-te)?\b|como (?:uma? )?(?:ia|intelig\u00eancia artificial|modelo de linguagem)\b",
    "nl": r"(?:het spijt me|sorry)\W+(?:maar )?(?:ik kan (?:je|u)|daar(?:bij|mee)? kan ik (?:je|u)?)[^.!]*"
    r"\bniet (?:mee )?(?:helpen|beantwoorden)|"
    r"als (?:een )?(?:ai(?:-(?:taal)?model|-assistent)?|taalmodel) (?:kan|ben|heb)\b",
    "zh": "(?:\u5bf9\u4e0d\u8d77|\u62b1\u6b49|\u5f88\u62b1\u6b49|\u975e\u5e38\u62b1\u6b49)[\uff0c,\u3002\\s]*"
    "\u6211(?:\u65e0\u6cd5|\u4e0d\u80fd)"
    "(?:\u63d0\u4f9b|\u56de\u7b54|\u5e2e\u52a9|\u534f\u52a9|\u6ee1\u8db3|\u5b8c\u6210)|"
    "\u4f5c\u4e3a(?:\u4e00\u4e2a|\u4e00\u540d|\u4e00\u6b3e)?"
    "(?:ai|\u4eba\u5de5\u667a\u80fd|\u5927?\u578b?\u8bed\u8a00\u6a21\u578b)",
    "ja": "(?:\u7533\u3057\u8a33(?:\u3042\u308a|\u3054\u3056\u3044)\u307e\u305b\u3093|\u3059\u307f\u307e\u305b\u3093)"
    "[^\u3002]*(?:\u304a\u624b\u4f1d\u3044|\u304a\u7b54\u3048|\u3054\u5bfe\u5fdc|\u63d0\u4f9b)[^\u3002]*"
    "\u3067\u304d(?:\u307e\u305b\u3093|\u304b\u306d\u307e\u3059)",
}
"""How models begin a refusal, by language."""
_REFUSAL = re.compile(rf"^\W*(?:{'|'.join(_BY_LANGUAGE.values())})", re.IGNORECASE)


def mode(spec: FineTuneJobSpec) -> Mode:
    """As data.checks.refusals says."""
    return mode_of(spec.data.checks.refusals)


def refuses(answer: str) -> bool:
    """Whether an answer begins like a refusal."""
    return _REFUSAL.match(answer) is not None


def check(given: Given) -> list[Remark]:
    """Report or drop answers that begin like a refusal. Raises StageError (INVALID_DATA) in mode fail."""
    found = Found()
    for example in given.rows(*TASK_SPLITS):
        if refuses(example.row.said):
            found.add(example)
            if given.mode == "fix":
                given.drop(example)
    return judged(
        "refusals",
        given,
        found,
        what="[answer refuses|answers refuse]",
        hint="remove them unless the model shall refuse",
    )
