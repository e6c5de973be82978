"""stub"""


def check_chat_template(t: str | None) -> str | None:
    return t
