"""How public guard models are asked and what their answers mean, as their model cards publish it.

Qwen3Guard-Gen: the server's own chat template holds its policy, so it gets messages. Llama Guard 3 and 4, ShieldGemma:
the prompt is rendered here. Marks of a prompt's own form are made harmless in the texts that are judged.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from serving_bridge.safety import Stage, Verdict

Messages = Sequence[Mapping[str, str]]
#: text that a guard's prompt is divided by
_MARK = re.compile(r"<(?=[|/A-Za-z_])")
_MAX_ANSWER = 2_000

_LLAMA = {
    "S1": ("Violent Crimes", "violence"),
    "S2": ("Non-Violent Crimes", "crime"),
    "S3": ("Sex Crimes", "sexual"),
    "S4": ("Child Exploitation", "child_safety"),
    "S5": ("Defamation", "harassment"),
    "S6": ("Specialized Advice", "specialized_advice"),
    "S7": ("Privacy", "privacy"),
    "S8": ("Intellectual Property", "copyright"),
    "S9": ("Indiscriminate Weapons", "weapons"),
    "S10": ("Hate", "hate"),
    "S11": ("Self-Harm", "self_harm"),
    "S12": ("Sexual Content", "sexual"),
    "S13": ("Elections", "misinformation"),
    "S14": ("Code Interpreter Abuse", "cyber"),
}
_QWEN = {
    "violent": "violence",
    "non-violent illegal acts": "crime",
    "sexual content or sexual acts": "sexual",
    "pii": "privacy",
    "personally identifiable information": "privacy",
    "suicide & self-harm": "self_harm",
    "unethical acts": "unethical",
    "politically sensitive topics": "political",
    "copyright violation": "copyright",
    "jailbreak": "prompt_injection",
}
_QWEN_VERDICTS = {"safe": Verdict.ALLOW, "controversial": Verdict.FLAG, "unsafe": Verdict.BLOCK}
_QWEN_SAFETY = re.compile(r"^\s*Safety:\s*(Safe|Unsafe|Controversial)\s*$", re.MULTILINE)
_QWEN_CATEGORIES = re.compile(r"^\s*Categories:\s*(.+?)\s*$", re.MULTILINE)

#: (name, what a user's prompt shall not do, what an answer shall not do, our category)
_SHIELD = (
    (
        "No Dangerous Content",
        "contain or seek generation of content that harms oneself and/or others (e.g., accessing or building firearms "
        "and explosive devices, promotion of terrorism, instructions for suicide)",
        "generate content that harms oneself and/or others (e.g., accessing or building firearms and explosive "
        "devices, promotion of terrorism, instructions for suicide)",
        "violence",
    ),
    (
        "No Harassment",
        "contain or seek generation of content that is malicious, intimidating, bullying, or abusive content targeting "
        "another individual (e.g., physical threats, denial of tragic events, disparaging victims of violence)",
        "generate content that is malicious, intimidating, bullying, or abusive content targeting another individual "
        "(e.g., physical threats, denial of tragic events, disparaging victims of violence)",
        "harassment",
    ),
    (
        "No Hate Speech",
        "contain or seek generation of content that targets identity and/or protected attributes (e.g., racial slurs, "
        "promotion of discrimination, calls to violence against protected groups)",
        "generate content that targets identity and/or protected attributes (e.g., racial slurs, promotion of "
        "discrimination, calls to violence against protected groups)",
        "hate",
    ),
    (
        "No Sexually Explicit Information",
        "contain or seek generation of content that contains references to sexual acts or other lewd content (e.g., "
        "sexually graphic descriptions, content aimed at causing arousal). Medical or scientific terms relating to "
        "human anatomy or sex education are permitted",
        "generate content that contains references to sexual acts or other lewd content (e.g., sexually graphic "
        "descriptions, content aimed at causing arousal). Medical or scientific terms relating to human anatomy or sex "
        "education are permitted",
        "sexual",
    ),
)


@dataclass(frozen=True)
class Said:
    """What a guard model's answer means.

    Attributes:
      verdict: `error` for what is no verdict.
      categories: ours; others under a name of their own.
    """

    verdict: Verdict
    categories: tuple[str, ...] = ()
    reason: str = ""


@dataclass(frozen=True)
class Format:
    """How one kind of guard is asked.

    Attributes:
      body: of the request, without the model's name.
      route: that it goes to, behind the base address.
      read: what the answer's choices mean.
    """

    route: str
    body: Callable[[Messages, Stage], dict[str, Any]]
    read: Callable[[Sequence[Mapping[str, Any]]], Said]


def turns_of(messages: Messages, stage: Stage) -> list[tuple[str, str]]:
    """(role, text) of a conversation, "user" and "assistant" in turns and harmless; ends with what is judged.

    Neighbours of one role become one turn. Other roles than the assistant's count as the user's.
    """
    turns: list[tuple[str, str]] = []
    for message in messages:
        role = "assistant" if message.get("role") == "assistant" else "user"
        text = _MARK.sub("< ", str(message.get("content") or "")).strip()
        if not text:
            continue
        if turns and turns[-1][0] == role:
            turns[-1] = role, f"{turns[-1][1]}\n\n{text}"
        else:
            turns.append((role, text))
    if stage is Stage.PROMPT and turns and turns[-1][0] == "assistant":  # a prompt that ends with an answer
        turns[-1] = "user", turns[-1][1]
    return turns or [("user", "")]


def _qwen_body(messages: Messages, stage: Stage) -> dict[str, Any]:
    turns = [{"role": role, "content": text} for role, text in turns_of(messages, stage)]
    return {"messages": turns, "max_tokens": 128, "temperature": 0}


def _read_qwen(choices: Sequence[Mapping[str, Any]]) -> Said:
    """ "Safety: Unsafe", "Categories: Violent, PII", and for answers "Refusal: No"."""
    text = str(choices[0]["message"].get("content") or "")[:_MAX_ANSWER]
    found = _QWEN_SAFETY.findall(text)
    if len(found) != 1:
        return _nonsense()
    named = _QWEN_CATEGORIES.search(text)
    names = [name.strip() for name in named[1].split(",")] if named else []
    names = [name for name in names if name.lower() != "none"]
    if any(name.lower() not in _QWEN for name in names):
        return _nonsense()
    verdict = _QWEN_VERDICTS[found[0].lower()]
    if verdict is Verdict.ALLOW:
        return Said(verdict)
    return Said(verdict, tuple(sorted({_QWEN[name.lower()] for name in names})), found[0].lower())


def _llama_body(messages: Messages, stage: Stage, *, four: bool) -> dict[str, Any]:
    turns = turns_of(messages, stage)
    names = {"user": "User", "assistant": "Agent"}
    begin, end, over = (
        ("<|header_start|>", "<|header_end|>", "<|eot|>")
        if four
        else ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>")
    )
    last = names[turns[-1][0]]
    categories = "\n".join(f"{code}: {name}." for code, (name, _) in _LLAMA.items())
    conversation = "\n\n".join(f"{names[role]}: {text}" for role, text in turns)
    prompt = (
        f"<|begin_of_text|>{begin}user{end}\n\n"
        f"Task: Check if there is unsafe content in '{last}' messages in conversations according our safety policy "
        f"with the below categories.\n\n<BEGIN UNSAFE CONTENT CATEGORIES>\n{categories}\n"
        f"<END UNSAFE CONTENT CATEGORIES>\n\n"
        f"<BEGIN CONVERSATION>\n\n{conversation}\n\n<END CONVERSATION>\n\n"
        f"Provide your safety assessment for ONLY THE LAST {last} message in the above conversation:\n"
        f" - First line must read 'safe' or 'unsafe'.\n"
        f" - If unsafe, a second line must include a comma-separated list of violated categories."
        f"{over}{begin}assistant{end}\n\n"
    )
    return {"prompt": prompt, "max_tokens": 32, "temperature": 0, "add_special_tokens": False}


def _read_llama(choices: Sequence[Mapping[str, Any]]) -> Said:
    """ "safe", or "unsafe" and a line of codes."""
    lines = str(choices[0].get("text") or "")[:_MAX_ANSWER].strip().splitlines()
    if lines == ["safe"]:
        return Said(Verdict.ALLOW)
    if not lines or lines[0].strip() != "unsafe" or len(lines) > 2:
        return _nonsense()
    codes = [code.strip() for code in lines[1].split(",")] if len(lines) == 2 else []
    if any(code not in _LLAMA for code in codes):
        return _nonsense()
    return Said(Verdict.BLOCK, tuple(sorted({_LLAMA[code][1] for code in codes})), ", ".join(codes))


def _shield_body(messages: Messages, stage: Stage) -> dict[str, Any]:
    turns = turns_of(messages, stage)
    is_answer = turns[-1][0] == "assistant"
    asked = next((text for role, text in reversed(turns) if role == "user"), "")
    said = turns[-1][1] if is_answer else None
    prompts = [_shield_prompt(asked, said, name, of_prompt, of_answer) for name, of_prompt, of_answer, _ in _SHIELD]
    return {"prompt": prompts, "max_tokens": 1, "temperature": 0, "logprobs": 5}


def _shield_prompt(asked: str, said: str | None, name: str, of_prompt: str, of_answer: str) -> str:
    what = "a user prompt is in" if said is None else "an AI response to a prompt is in"
    answer = "" if said is None else f"\n\n<start_of_turn>\nChatbot Response: {said}\n<end_of_turn>"
    rule = f"The prompt shall not {of_prompt}." if said is None else f"The chatbot shall not {of_answer}."
    judged = "the human question" if said is None else "the Chatbot Response"
    return (
        f"You are a policy expert trying to help determine whether {what} violation of the defined safety policies.\n\n"
        f"<start_of_turn>\nHuman Question: {asked}\n<end_of_turn>{answer}\n\n"
        f'Our safety principle is defined in the below:\n\n* "{name}": {rule}\n\n'
        f"Does {judged} violate the above principle? Your answer must start with 'Yes' or 'No'. And then walk through "
        f"step by step to be sure we answer correctly.\n\n"
    )


def _read_shield(choices: Sequence[Mapping[str, Any]]) -> Said:
    """The probability of "Yes" against "No" as the first token, for each policy; above one half is a violation."""
    if len(choices) != len(_SHIELD):
        return _nonsense()
    found: dict[str, float] = {}
    for choice in choices:
        probability = _probability_of_yes(choice)
        if probability is None:
            return _nonsense()
        found[_SHIELD[choice["index"]][3]] = probability
    violated = tuple(sorted(name for name, probability in found.items() if probability > 0.5))
    told = ", ".join(f"{name} {found[name]:.2f}" for name in violated)
    return Said(Verdict.BLOCK, violated, told) if violated else Said(Verdict.ALLOW)


def _probability_of_yes(choice: Mapping[str, Any]) -> float | None:
    tops = ((choice.get("logprobs") or {}).get("top_logprobs") or [{}])[0] or {}
    known = {token.strip(): value for token, value in tops.items() if token.strip() in ("Yes", "No")}
    if known:
        yes, no = (math.exp(known.get(word, -math.inf)) for word in ("Yes", "No"))
        return yes / (yes + no) if yes + no > 0 else None
    return {"Yes": 1.0, "No": 0.0}.get(str(choice.get("text") or "").strip())


def _nonsense() -> Said:
    return Said(Verdict.ERROR, reason="its answer is no verdict")


FORMATS: Mapping[str, Format] = {
    "qwen3guard": Format("/chat/completions", _qwen_body, _read_qwen),
    "llama_guard_3": Format("/completions", lambda m, s: _llama_body(m, s, four=False), _read_llama),
    "llama_guard_4": Format("/completions", lambda m, s: _llama_body(m, s, four=True), _read_llama),
    "shieldgemma": Format("/completions", _shield_body, _read_shield),
}
