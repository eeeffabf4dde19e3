"""The guard for prompt injection and jailbreaks: overrides, personas, special tokens, orders."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache

from serving_bridge.safety.decisions import Opinion, Span, Stage, Verdict
from serving_bridge.safety.disguises import readings
from serving_bridge.safety.folding import folded
from serving_bridge.safety.harm_words import gap
from serving_bridge.safety.linear import PatternSet

CATEGORY, SPECIAL = "prompt_injection", "special_tokens"

_RULES_OF = (
    r"(?:instructions?|prompts?|rules|guidelines|directions|directives|commands?|context|training|restrictions|"
    r"polic(?:y|ies)|programming|safeguards?|filters?|safety|limitations?|constraints?|protocols?|orders?|"
    r"messages?)"
)
_NONE = (
    r"(?:no|without(?: any)?|free (?:of|from)|lacks?|never|not bound by|not restricted by|not limited by|"
    r"unbound by|ignor\w+|bypass\w*|disregard\w*|has no|have no|doesn't have|does not have|do not have|"
    r"don't have)"
)
_LIMITS = (
    r"(?:restrictions?|limitations?|limits|filters?|censorship|rules|guidelines|ethic\w*|moral\w*|boundaries|"
    r"polic(?:y|ies)|constraints?|safety|warnings?|disclaimers?|content polic\w+|principles|inhibitions|laws?)"
)

_ANYWHERE: Mapping[str, str] = {
    "override":
        rf"\b(?:ignore|disregard|forget|override|overrule|bypass|dismiss|discard|neglect|do not follow|"
        rf"don't follow|stop following|skip|erase|reset|cancel){gap(4)}"
    rf"(?:previous|prior|above|preceding|earlier|former|existing|initial|original|system|foregoing|all|any|your|"
        rf"these|those|the|everything){gap(3)}{_RULES_OF}\b",
    "override all":
        r"\b(?:ignore|forget|disregard) (?:all |everything |anything )?(?:of )?(?:the above|that (?:was|came|"
        r"i) (?:said|told|before)|what (?:you were|i|they) told|everything (?:above|before|you (?:know|were))|"
        r"previous (?:text|conversation|content))",
    "new orders":
        r"\b(?:new|updated|real|actual|revised|true) (?:system )?(?:instructions?|prompt|directive|task|"
        r"objective|orders?)\s{0,2}(?::|follow|begin|are as)|\bsystem (?:override|update|alert|prompt) ?:|"
        r"\[(?:system|admin|developer|override)[^\]]{0,40}\]",
    "reveal":
        rf"\b(?:reveal|show|print|repeat|output|tell|display|leak|disclose|give|dump|echo|recite|summari[sz]e|"
        rf"translate|write|share|expose|copy|what (?:is|are|was|were)|return){gap(5)}(?:system|hidden|"
        rf"secret|developer|internal|confidential|pre-?|your (?:\w+ )?(?:initial|original|starting|first)|(?:initial|"
        rf"original) system){gap(1)}(?:prompts?|instructions?|messages?|"
        rf"rules|guidelines|directives?)\b|\b(?:repeat|print|output|copy)(?: \w+){{0,4}} (?:words|text|"
        rf"everything|all|content) (?:above|before this)\b",
    "persona":
        rf"\b(?:you are(?: now)?|you're(?: now)?|you will (?:be|act|play|become)|act(?:ing)? (?:as|like)|"
        rf"pretend(?:ing)?|role-?play\w*|simulat\w+|imagine|become|respond as|answer as|behave (?:as|like)|"
        rf"play(?:ing)? the (?:role|part)|embody|from now on){gap(14)}(?:dan|do anything now|stan|dude|aim|evil|"
        rf"jail-?brok\w+|unfiltered|uncensored|unrestricted|unlimited|amoral|unethical|immoral|unhinged|"
        rf"unaligned|no (?:restrictions|rules|limits|filters|ethic\w*|moral\w*|limitations|boundaries)|"
        rf"without (?:any )?{_LIMITS}|developer mode|god mode|opposite mode|root access|freed?om|"
        rf"always intelligent|never refus\w+|malicious|hacker ai|chaos)\b",
    "freedom":
        rf"\b(?:ai|assistant|bot|chatbot|model|llm|gpt\w*|chatgpt|character|you|persona|he|she|it|mode|response|"
        rf"answer|reply|dan|respond)\b{gap(6)}{_NONE}{gap(4)}{_LIMITS}\b{gap(6)}(?:ai|assistant|bot|model|answer|"
        rf"respon\w+|comply|generate|provide|say|do|content|any|openai|you|whatsoever|anything)\b",
    "mode":
        r"\b(?:dan mode|developer mode|dev mode|debug mode|jail-?break(?:ed|ing)? (?:mode|prompt|version|"
        r"yourself|chatgpt|you)|god mode|sudo mode|admin mode|maintenance mode|do anything now|anti-?gpt|"
        r"betterdan|evil-?bot|evil confidant|unrestricted mode|uncensored mode|"
        r"opposite day mode)\b(?:[^\n]{0,60}(?:enabled?|activat\w+|on\b|output|you)|[:\]])|\bdo anything now\b|"
        r"\bstay a dan\b|\benable (?:developer|dan|jailbreak) mode",
    "no refusal":
        rf"\b(?:never|not|cannot|can't|don't|do not|must not|won't|avoid|without|refrain from|prohibited from|"
        rf"forbidden to|no)\b{gap(4)}(?:refus\w+|declin\w+|apologi[sz]\w+|(?:say|saying|use|using|include|"
        rf"including|mention|mentioning|add|adding|write|contain){gap(4)}(?:sorry|can't|cannot|unable|illegal|"
        rf"unethical|immoral|inappropriate|as an ai|warnings?|disclaimers?|ethical|however|"
        rf"unfortunately))\b{gap(8)}(?:answer|respon\w+|request\w*|question\w*|comply|prompt\w*|reason\w*|"
        rf"rule\w*|anything|ever|instruction\w*|output|always|it|sentence\w*|word\w*|phrase\w*)\b",
    "forced beginning":
        r"\b(?:start|begin|beginning|starting|prefix|preface|open)\b[^\n.]{0,50}\b(?:with|by saying|"
        r"saying)\b[^\n]{0,12}(?:sure,? (?:here|i)|absolutely|of course|certainly|yes,? (?:here|i)|here(?:'s|"
        r" is) (?:how|a)|\[?dan)",
    "threat of tokens":
        r"\b(?:lose|deduct\w*|have|start with|given) (?:\w+ ){0,4}tokens\b[^\n]{0,200}\b(?:die|refus\w+|"
        r"terminat\w+|shut ?down|lose|cease)\b",
    "hypothetical":
        r"\b(?:hypothetical(?:ly)?|fictional|fictitious|imaginary)\b[^\n]{0,120}\b(?:no (?:laws|rules|ethic\w*|"
        r"moral\w*)|anything is (?:legal|allowed)|everything is (?:legal|allowed)|without (?:consequences|"
        r"ethic\w*|moral\w*)|amoral|unfiltered)\b",
    "grandmother":
        r"\b(?:grand(?:mother|ma|pa|father)|granny)\b[^\n]{0,160}\b(?:napalm|bomb|explosive|meth|"
        r"windows .{0,10}keys?|product keys?|poison|malware)\b",
    "what was said first":
        rf"\b(?:reveal|show|print|repeat|output|display|leak|dump|recite|translate|encode|quote){gap(6)}"
        rf"(?:instructions?|prompts?){gap(2)}(?:you (?:were|have been) (?:given|told)|you received|verbatim)\b",
    "two answers":
        r"\b(?:from (?:now|this (?:point|moment)|here) on\w*|every (?:question|prompt|message)|all (?:of )?my|"
        r"my (?:prompts|questions|messages))\b[^\n]{0,60}\b(?:you(?:'ll| will| must| should| are| have)|respond|"
        r"answer|reply|provide|give)\b[^\n]{0,100}\b(?:two|2|both|dual)\b[^\n]{0,40}\b(?:ways?|manners|"
        r"responses|answers|replies|personalities|entities|paragraphs|messages)\b",
    "whatever the harm":
        r"\b(?:no matter how|regardless of how|even if it(?:'s| is)) (?:\w+,? ){0,3}(?:immoral|unethical|illegal|"
        r"offensive|inappropriate|amoral|explicit)\b",
    "unfiltered":
        rf"\b(?:unfiltered|uncensored|amoral|unrestricted|jail-?broken){gap(2)}(?:ai|chatbot|language model|llm|"
        rf"chatgpt)\b",
    "against the maker's policy":
        r"\b(?:openai|anthropic|google)(?:'?s)? (?:\w+ ){0,2}(?:polic(?:y|ies)|guidelines|rules|restrictions)\b"
        r"[^\n.]{0,40}\b(?:no longer|ignor\w+|bypass\w*|void|irrelevant|disregard\w*)\b|\b(?:ignor\w+|"
        r"bypass\w*|evad\w+|free from|moraliz\w+|disregard\w*|outside|not (?:bound|restricted|limited) by)\b"
        r"[^\n.]{0,40}\b(?:openai|anthropic|google)(?:'?s)? (?:\w+ ){0,2}(?:polic(?:y|ies)|guidelines|rules|"
        r"restrictions)\b",
}  # fmt: skip
_DOCUMENT: Mapping[str, str] = {
    "to the assistant":
        r"\b(?:(?:attention|note|message|instructions?|important|memo) (?:to|for) (?:the |any |all )?(?:ai|"
        r"assistant|language model|llm|chatbot|agent|model|gpt|bot)s?|(?:ai|assistant|language model|llm|chatbot|"
        r"agent)s? (?:reading|processing|summari[sz]ing|that reads?|must|should|needs? to|is (?:required|"
        r"instructed))|if you are an? (?:ai|llm|assistant|language model|agent|bot))\b",
    "behind the user's back":
        r"\b(?:do not|don't|never|without) (?:tell|telling|inform\w*|mention\w*|notify\w*|reveal\w*|alert\w*|let|"
        r"ask\w*)(?: \w+){0,4} (?:user|human|owner|operator|anyone|this|person)\b|"
        r"\bwithout the user'?s? (?:knowledge|consent|noticing)\b",
    "exfiltration":
        rf"\b(?:send|forward|post|upload|email|e-mail|transmit|exfiltrat\w+|share|leak|transfer|"
        rf"submit){gap(10)}(?:to|at)\s(?:https?:|[\w.+-]{{1,60}}@|\S{{1,60}}\.(?:com|net|org|io|xyz|ru)\b|"
        rf"the (?:following|attacker))|!\[[^\]]{{0,80}}\]\(https?://[^)\s]{{0,300}}[?&][^)\s]{{0,300}}\)",
    "command":
        rf"\b(?:call|use|invoke|run|execute){gap(3)}(?:tool|function|command|shell|bash|curl|rm -rf|send_email|"
        rf"send_money|delete_\w+|transfer_\w+)\b{gap(8)}(?:immediately|now|first|before|instead|silently|with|to|"
        rf"and)\b",
    "marked":
        r"<(?:important|system|instructions?|admin|secret|hidden)[^>]{0,40}>|\b(?:immediately|you must|"
        r"your task is to|your new|instead,? (?:you|please|do)|please (?:also )?(?:execute|perform|send|transfer|"
        r"delete|forward))\b[^\n]{0,120}\b(?:send|transfer|delete|forward|execute|visit|download|install|pay|"
        r"purchase|grant|share|reply|respond with|say)\b",
}  # fmt: skip
_TOKENS: Mapping[str, str] = {
    "token":
        r"<\|[a-zA-Z0-9_ ]{1,40}\|>|\[/?INST\]|<</?SYS>>|<(?:start|end)_of_turn>|<(?:bos|eos|pad|unk|mask|s|/s|"
        r"/?think|tool_call|/tool_call|tool_response)>|\[/?(?:AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|"
        r"SYSTEM_PROMPT)\]|<(?:fim_\w{1,12}|reserved_special_token_\d{1,4}|extra_id_\d{1,3})>",
    "role":
        r"(?m)^\s{0,3}(?:#{2,4} ?(?:system|instruction|assistant|user|human|response)s?:?|(?:system|"
        r"assistant)\s?:)\s",
}  # fmt: skip


class Injections:
    """Blocks attempts to lift a model's rules; in documents it blocks orders to the model as well."""

    name, version = "injections", "2"

    def judge(self, text: str, stage: Stage, *, is_document: bool = False) -> Opinion:
        """Blocks a prompt or training data by overrides; answers and the text of special tokens are flagged."""
        view = folded(text)
        spans = set()
        for reading in readings(view.text):
            for category, patterns in _sets(is_document):
                for match in patterns.matches(reading.text):
                    start, end = (match.start, match.end) if reading.is_in_place else (0, len(view.text))
                    spans.add(Span(*view.original(start, end), category, category, self.name))
        categories = tuple(sorted({span.category for span in spans}))
        blocks = CATEGORY in categories and stage is not Stage.ANSWER
        verdict = Verdict.BLOCK if blocks else Verdict.FLAG if spans else Verdict.ALLOW
        reason = f"patterns of {', '.join(categories)}" if spans else ""
        return Opinion(self.name, self.version, verdict, categories, tuple(sorted(spans)), reason)


def _sets(is_document: bool) -> list[tuple[str, PatternSet]]:
    found = [(CATEGORY, _anywhere()), (SPECIAL, _tokens())]
    return [*found, (CATEGORY, _in_documents())] if is_document else found


@cache
def _anywhere() -> PatternSet:
    return PatternSet(_ANYWHERE, any_case=True)


@cache
def _in_documents() -> PatternSet:
    return PatternSet(_DOCUMENT, any_case=True)


@cache
def _tokens() -> PatternSet:
    return PatternSet(_TOKENS, any_case=True)
