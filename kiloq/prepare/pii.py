"""Personal data and secrets are masked: e-mail, phone and card numbers, identity numbers, addresses, keys.

Each find is replaced by a fixed word in brackets that no rule finds again, so a second pass changes nothing. Numbers
with a check digit must pass it (ISO/IEC 7812 for cards, GB 11643 for Chinese resident identity numbers), addresses
must be public (a private one names nobody), phone numbers must be written as such. Every expression has bounded
repeats and cannot start inside its own match, so the time is linear in the text whatever the text is.
Sources: RFC 5322 and 1035 (e-mail), E.164 (phones), the issuers' documentation (prefixes of keys); FineWeb (Penedo et
al. 2024, section 3.8) masks e-mail and public IP addresses.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar

from kiloq.prepare.documents import Outcome, Result, each_text

_EMAIL = re.compile(
    r"(?<![A-Za-z0-9._%+-])[A-Za-z0-9._%+-]{1,64}@(?:[A-Za-z0-9-]{1,63}\.){1,8}[A-Za-z]{2,24}(?![A-Za-z0-9-])"
)
_CARD_BEFORE, _CARD_AFTER = r"(?<![\w.+-])", r"(?![\w-])"
_LONG_CARD = re.compile(rf"{_CARD_BEFORE}6\d{{3}}([ -])\d{{4}}\1\d{{4}}\1\d{{4}}\1\d{{1,3}}{_CARD_AFTER}", re.ASCII)
_CARD = re.compile(
    rf"{_CARD_BEFORE}(?:[2-6]\d{{12,18}}|[2-6]\d{{3}}([ -])\d{{4}}\1\d{{4}}\1\d{{4}}|3\d{{3}}([ -])\d{{6}}\2\d{{5}}){_CARD_AFTER}",
    re.ASCII,
)
_IDENTITY = re.compile(r"(?<![0-9A-Za-z])[1-9]\d{16}[0-9Xx](?![0-9A-Za-z])")
_IPV4 = re.compile(r"(?<![\w.])(?:[0-9]{1,3}\.){3}[0-9]{1,3}(?!\.?\w)", re.ASCII)
_PHONES = re.compile(
    r"""(?<![\w.+/=-])(?:
        \+[1-9](?:[ .()-]{0,2}\d){7,14}                          # international: +44 20 7946 0958
      | (?:\(86\)[ -]?|86[ -])?1[3-9]\d(?:[ -]?\d{4}){2}         # Chinese mobile: 138 1234 5678
      | 0\d{2,3}[ -]\d{7,8}                                      # Chinese landline: 010-62345678
      | (?:1[ .-])?(?:\([2-9]\d{2}\)[ ]?|[2-9]\d{2}[.-])[2-9]\d{2}[.-]\d{4}   # North America: (555) 234-5678
    )(?![\w-])(?!\.\d)""",
    re.VERBOSE | re.ASCII,
)
_KEY_BLOCK = re.compile(
    r"""-----BEGIN[ ][A-Z0-9 ]{0,40}PRIVATE[ ]KEY(?:[ ]BLOCK)?-----(?:
        (?:[^-]|-(?!----)){0,20000}-----END[ ][A-Z0-9 ]{0,40}PRIVATE[ ]KEY(?:[ ]BLOCK)?-----
      | (?:\s{1,4}[A-Za-z0-9+/=]{16,100}){1,400}     # cut off: lines of base64
    )""",
    re.VERBOSE,
)
_SECRET = re.compile(
    r"""(?<![A-Za-z0-9_-])(?:
        (?:AKIA|ASIA)[0-9A-Z]{16}                     # Amazon
      | LTAI[0-9A-Za-z]{12,26}                        # Alibaba Cloud
      | AIza[0-9A-Za-z_-]{35}                         # Google
      | gh[pousr]_[0-9A-Za-z]{36,255}                 # GitHub
      | github_pat_[0-9A-Za-z_]{22,255}
      | glpat-[0-9A-Za-z_-]{20,64}                    # GitLab
      | sk-[0-9A-Za-z_-]{20,255}                      # OpenAI, Anthropic, DashScope
      | (?:sk|rk|pk)_(?:live|test)_[0-9A-Za-z]{16,255}    # Stripe
      | xox[abeoprs]-[0-9A-Za-z-]{10,255}             # Slack
      | hf_[0-9A-Za-z]{30,255}                        # Hugging Face
      | npm_[0-9A-Za-z]{36}
      | pypi-[0-9A-Za-z_-]{50,255}
      | eyJ[0-9A-Za-z_-]{10,2000}\.eyJ[0-9A-Za-z_-]{10,4000}\.[0-9A-Za-z_-]{10,2000}   # JSON Web Token
    )(?![A-Za-z0-9_-])""",
    re.VERBOSE,
)


@dataclass(frozen=True, kw_only=True)
class PersonalData:
    """Masks what is found and counts it as edits; drops nothing. False switches a kind off."""

    name: ClassVar[str] = "pii"

    secrets: bool = True  # keys with a known prefix, JSON Web Tokens, private key blocks
    emails: bool = True  # e-mail addresses
    cards: bool = True  # payment card numbers
    identities: bool = True  # Chinese resident identity numbers
    phones: bool = True  # phone numbers: international, Chinese, North American
    addresses: bool = True  # public IPv4 addresses

    def apply(self, batch: Any) -> Result:
        return each_text(batch, self.mask)

    def mask(self, text: str) -> Outcome:
        """`text` with everything found masked."""
        edits: dict[str, int] = {}
        has_digit = any(digit in text for digit in "0123456789")
        if self.secrets and "-----BEGIN" in text:
            text, edits["private keys masked"] = _KEY_BLOCK.subn("[private key]", text)
        if self.secrets and has_digit:
            text, edits["secrets masked"] = _replace(_SECRET, is_secret, "[secret]", text)
        if self.emails and "@" in text:
            text, edits["e-mail addresses masked"] = _EMAIL.subn("[e-mail]", text)
        if has_digit:
            for wanted, what, kind, check, word in (
                (self.cards, "card numbers masked", _LONG_CARD, is_card, "[card number]"),
                (self.cards, "card numbers masked", _CARD, is_card, "[card number]"),
                (self.identities, "identity numbers masked", _IDENTITY, is_identity, "[identity number]"),
                (self.phones, "phone numbers masked", _PHONES, is_phone, "[phone number]"),
                (self.addresses, "IP addresses masked", _IPV4, is_public, "[IP address]"),
            ):
                if wanted:
                    text, count = _replace(kind, check, word, text)
                    edits[what] = edits.get(what, 0) + count
        return Outcome(text, None, edits)


def _replace(kind: re.Pattern[str], check: Callable[[str], bool], word: str, text: str) -> tuple[str, int]:
    """`text` with every match of `kind` that passes `check` replaced by `word`, and how many there were."""
    count = 0

    def one(found: re.Match[str]) -> str:
        nonlocal count
        if not check(found[0]):
            return found[0]
        count += 1
        return word

    return kind.sub(one, text), count


def _digits(text: str) -> str:
    return "".join(filter(str.isdecimal, text))


def is_card(text: str) -> bool:
    """Whether the digits have an issuer's length and Luhn's check digit (ISO/IEC 7812-1, annex B)."""
    digits = [int(digit) for digit in _digits(text)]
    if not 13 <= len(digits) <= 19 or len(set(digits)) == 1:
        return False
    doubled = [digit if place % 2 == 0 else digit * 2 - 9 * (digit > 4) for place, digit in enumerate(digits[::-1])]
    return sum(doubled) % 10 == 0


def is_identity(text: str) -> bool:
    """Whether date and check character fit (GB 11643-1999: ISO 7064 MOD 11-2 over 17 digits)."""
    if not ("1900" <= text[6:10] <= "2099" and "01" <= text[10:12] <= "12" and "01" <= text[12:14] <= "31"):
        return False
    total = sum(int(digit) * pow(2, 17 - place, 11) for place, digit in enumerate(text[:17]))
    return "10X98765432"[total % 11] == text[17].upper()


def is_phone(text: str) -> bool:
    """Whether the number of digits is one that E.164 allows, and there are enough of them for a subscriber."""
    return 8 <= len(_digits(text)) <= 15


def is_public(text: str) -> bool:
    """Whether this is an IPv4 address that the internet routes."""
    try:
        return ipaddress.IPv4Address(text).is_global
    except ValueError:
        return False


def is_secret(text: str) -> bool:
    """Whether a match has digits, as random keys do and names that happen to begin so do not."""
    return sum(map(str.isdigit, text)) >= 2
