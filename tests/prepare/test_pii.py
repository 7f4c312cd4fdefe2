"""What is masked, what looks like it and is not, and that no text takes more than linear time."""

from __future__ import annotations

import pytest

from kiloq.prepare.pii import PersonalData, is_card, is_identity

from .samples import ENGLISH, edited, run

AMAZON = "AKIA" + "ABCDEFGHIJ234567"
GITHUB = "ghp_" + "a1B2" * 9
OPENAI = "sk-" + "proj-" + "a1B2c3D4" * 4
BLOCK = "-----BEGIN RSA PRIVATE KEY-----\nProc-Type: 4,ENCRYPTED\nDEK-Info: DES-EDE3-CBC\n\n" + "MIIEow1b\n" * 20
BLOCK_END = "-----END RSA PRIVATE KEY-----"


@pytest.mark.parametrize(
    ("text", "masked", "edit"),
    [
        ("write to ann.lee+x@mail.example.org.", "write to [e-mail].", "e-mail addresses"),
        ("邮箱ann@example.cn，谢谢", "邮箱[e-mail]，谢谢", "e-mail addresses"),
        ("call +44 20 7946 0958 now", "call [phone number] now", "phone numbers"),
        ("call +1 (555) 234-5678.", "call [phone number].", "phone numbers"),
        ("(555) 234-5678", "[phone number]", "phone numbers"),
        ("555-234-5678", "[phone number]", "phone numbers"),
        ("电话13812345678。", "电话[phone number]。", "phone numbers"),
        ("手机：138 1234 5678", "手机：[phone number]", "phone numbers"),
        ("010-62345678", "[phone number]", "phone numbers"),
        ("card 4111 1111 1111 1111, thanks", "card [card number], thanks", "card numbers"),
        ("5500-0000-0000-0004", "[card number]", "card numbers"),
        ("卡号378282246310005", "卡号[card number]", "card numbers"),
        ("3782 822463 10005", "[card number]", "card numbers"),
        ("4111 1111 1111 1111 123", "[card number] 123", "card numbers"),
        ("6222 0212 3456 7890 128", "[card number]", "card numbers"),
        ("身份证11010519491231002X", "身份证[identity number]", "identity numbers"),
        ("from 8.8.8.8: ping", "from [IP address]: ping", "IP addresses"),
        (f"key = {AMAZON}", "key = [secret]", "secrets"),
        (f'"{GITHUB}"', '"[secret]"', "secrets"),
        (f"export KEY={OPENAI}", "export KEY=[secret]", "secrets"),
        (f"a\n{BLOCK}{BLOCK_END}\nb", "a\n[private key]\nb", "private keys"),
        ("-----BEGIN PRIVATE KEY-----\n" + "QUJD" * 16 + "\nend", "[private key]\nend", "private keys"),
    ],
)
def test_what_is_masked(text: str, masked: str, edit: str) -> None:
    assert edited(PersonalData(), text) == masked
    assert run(PersonalData(), text).edits == {f"{edit} masked": 1}
    assert edited(PersonalData(), masked) == masked


@pytest.mark.parametrize(
    "text",
    [
        ENGLISH,
        "@home, a @ b, x@y and me@localhost",
        "4111 1111 1111 1112",  # Luhn's digit is wrong
        "0000 0000 0000 0000",
        "192.168.0.1, 127.0.0.1, 10.0.0.1, 300.1.1.1, 1.2.3.4.5, v1.2.3.4x",
        "110105194912310021",  # the check character would be X
        "pi is 3.14159265358979, the year 1998-2004, ISBN 978-3-16-148410-0",
        "2024-11-25 12:30:45, 1,234,567,890",
        "sk-loading-indicator-animation-wrapper",
        "A header says -----BEGIN PRIVATE KEY----- and then the key follows.",
        "commit 9f86d081884c7d659a2feaa0c55ad015a3bf4f1b",
        "+1 vote, C++11, 1+1=2, +5 +6 +7",
    ],
)
def test_what_is_not(text: str) -> None:
    assert edited(PersonalData(), text) == text


def test_kinds_switch_off() -> None:
    text = f"a@b.org 8.8.8.8 4111111111111111 13812345678 {AMAZON} 11010519491231002X"
    off = PersonalData(secrets=False, emails=False, cards=False, identities=False, phones=False, addresses=False)
    assert edited(off, text) == text
    assert (
        edited(PersonalData(), text) == "[e-mail] [IP address] [card number] [phone number] [secret] [identity number]"
    )


def test_check_digits() -> None:
    """The card numbers that issuers publish for tests, and the standard's own example of an identity number."""
    assert all(map(is_card, ["4242424242424242", "5555555555554444", "371449635398431", "6011111111111117"]))
    assert not is_card("4242424242424241")
    assert is_identity("11010519491231002X")
    assert not is_identity("11010519491331002X")


@pytest.mark.parametrize(
    "unit",
    ["a", "a@", "a.", "1 ", "4 ", "1", "+1234567890123456789012345678901234567890 ", "eyJaaaaaaaaaa.", "sk-",
     "sk-" + "a1" * 150 + " ", "-----BEGIN PRIVATE KEY-----", "-----BEGIN PRIVATE KEY-----\n" + "a" * 500,
     "1.1.1.1.", "+1 ", "(555) ", "-", "@", "0-", "gh" + "p_a1"],
)  # fmt: skip
def test_a_megabyte_of_anything_ends(unit: str) -> None:
    """Every expression is bounded: where one was quadratic, a megabyte would take far longer than the suite allows."""
    text = unit * (1_000_000 // len(unit)) + "@1"
    assert run(PersonalData(), text).reasons == [None]
