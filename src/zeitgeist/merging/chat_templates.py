"""The chat template of a merged model: one of the inputs', a well-known one, or the user's own.

A recipe says ``chat_template: auto`` (the one most inputs have), the name of a format below, or
the jinja itself, as in mergekit (arXiv:2403.13257).
"""

import json
from collections import Counter
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from zeitgeist.errors import InputInvalid, did_you_mean

_TURNS = "{%- for message in messages -%}"
_END = "{%- endfor -%}{%- if add_generation_prompt -%}"

CHAT_TEMPLATES: Mapping[str, str] = {
    # OpenAI's ChatML
    "chatml": _TURNS
    + "{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' -}}"
    + _END
    + "{{- '<|im_start|>assistant\\n' -}}{%- endif -%}",
    # Meta, Llama 3 model card: prompt format
    "llama3": "{{- bos_token -}}"
    + _TURNS
    + "{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' -}}"
    "{{- message['content'] | trim + '<|eot_id|>' -}}"
    + _END
    + "{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' -}}{%- endif -%}",
    # Mistral 7B Instruct; the system message goes before the first question
    "mistral": "{{- bos_token -}}{%- set system = namespace(text='') -%}"
    + _TURNS
    + "{%- if message['role'] == 'system' -%}"
    "{%- set system.text = message['content'] + '\\n\\n' -%}"
    "{%- elif message['role'] == 'user' -%}"
    "{{- ' [INST] ' + system.text + message['content'] + ' [/INST]' -}}"
    "{%- set system.text = '' -%}"
    "{%- else -%}{{- ' ' + message['content'] + eos_token -}}{%- endif -%}{%- endfor -%}",
    # Taori et al., Stanford Alpaca
    "alpaca": _TURNS + "{%- if message['role'] == 'user' -%}{{- '### Instruction:\\n' -}}"
    "{%- elif message['role'] == 'assistant' -%}{{- '### Response:\\n' -}}{%- endif -%}"
    "{{- message['content'] | trim + '\\n\\n' -}}"
    + _END
    + "{{- '### Response:\\n' -}}{%- endif -%}",
    # LG AI Research, EXAONE 3 model card
    "exaone": "{%- if not messages or messages[0]['role'] != 'system' -%}"
    "{{- '[|system|][|endofturn|]\\n' -}}{%- endif -%}"
    + _TURNS
    + "{{- '[|' + message['role'] + '|]' + message['content'] -}}"
    "{%- if message['role'] != 'user' -%}{{- '[|endofturn|]' -}}{%- endif -%}{{- '\\n' -}}"
    + _END
    + "{{- '[|assistant|]' -}}{%- endif -%}",
}
"""Formats a recipe may name."""


def check_chat_template(value: str | None) -> str | None:
    """``value``, if a recipe may say it.

    Raises
    ------
    InputInvalid
        A word that is neither ``auto`` nor the name of a format nor jinja.

    Examples
    --------
    >>> check_chat_template("chatml"), check_chat_template(None)
    ('chatml', None)
    """
    if value is None or value == "auto" or value in CHAT_TEMPLATES or "{" in value:
        return value
    raise InputInvalid(
        f"chat_template is {value!r}",
        mend=f"{did_you_mean(value, ['auto', *CHAT_TEMPLATES])}, or jinja",
    )


def choose_chat_template(value: str | None, models: Iterable[Path]) -> str | None:
    """The jinja that ``value`` stands for.

    Parameters
    ----------
    value
        ``auto``, the name of a format, jinja, or none.
    models
        Directories of the inputs, the base first; asked by ``auto`` alone.

    Returns
    -------
    str or None
        None for none, and for ``auto`` where no input has a template. When templates are equally
        frequent, ``auto`` takes the one met first.

    Examples
    --------
    >>> choose_chat_template("{{ messages }}", [])
    '{{ messages }}'
    """
    if value != "auto":
        return CHAT_TEMPLATES.get(value, value) if value is not None else None
    found = [template.strip() for model in models if (template := read_chat_template(model))]
    return Counter(found).most_common(1)[0][0] if found else None


def read_chat_template(model: Path) -> str | None:
    """The template a model directory carries, in any of the three places transformers looks."""
    jinja = model / "chat_template.jinja"
    if jinja.is_file():
        return jinja.read_text(encoding="utf-8")
    for name in ("tokenizer_config.json", "chat_template.json"):
        template = _json(model / name).get("chat_template")
        if isinstance(template, list):  # several, by name
            named = {entry.get("name"): entry.get("template") for entry in template}
            template = named.get("default")
        if isinstance(template, str) and template:
            return template
    return None


def write_chat_template(directory: Path, template: str) -> None:
    """Make ``template`` the one that transformers finds in ``directory``."""
    (directory / "chat_template.jinja").write_text(template, encoding="utf-8")
    (directory / "chat_template.json").unlink(missing_ok=True)
    path = directory / "tokenizer_config.json"
    config = _json(path)
    if config.pop("chat_template", None) is not None:
        path.write_text(json.dumps(config, indent=2, ensure_ascii=False), encoding="utf-8")


def _json(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise InputInvalid(
            f"{path} is not JSON", mend="restore it from where the model came from"
        ) from error
    return data if isinstance(data, dict) else {}
