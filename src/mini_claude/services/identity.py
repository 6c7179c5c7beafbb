"""Who is asking."""

from dataclasses import dataclass

LOCAL_OWNER = "local"  # no key id looks like this: those are 32 hexadecimal digits


@dataclass(frozen=True, slots=True)
class Caller:
    """`owner` is whose sessions these are: the key's id, or "local" where no key is needed."""

    owner: str
    key_id: str | None


LOCAL = Caller(LOCAL_OWNER, None)
