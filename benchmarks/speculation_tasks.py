"""Prompts for measuring speculation: tasks whose answers copy much of the prompt, and tasks whose answers do not.

All were written for this. The default model has 135 M parameters and seldom follows a long instruction, so copying tasks
begin the answer and let it go on, as completion in an editor does, and are as long as the model really copies.
"""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Task:
    """One prompt; `chat`: asked in the model's chat format, else the text is continued."""

    name: str
    prompt: str
    copies: bool = False
    chat: bool = False
    tokens: int = 192  # at most, of the answer


_CODE = '''class Inventory:
    """Counts of the articles that a shop has."""

    def __init__(self, shop_name):
        self.shop_name = shop_name
        self.articles = {}
        self.changes = []

    def add(self, article, count):
        if count < 1:
            raise ValueError("count must be at least 1")
        self.articles[article] = self.articles.get(article, 0) + count
        self.changes.append(("add", article, count))

    def remove(self, article, count):
        present = self.articles.get(article, 0)
        if count > present:
            raise ValueError("there are only " + str(present) + " of " + article)
        self.articles[article] = present - count
        self.changes.append(("remove", article, count))

    def report(self):
        for article, count in sorted(self.articles.items()):
            print(article, count)
'''

_FUNCTION = """def average_temperature(readings, first_day, last_day):
    total = 0.0
    count = 0
    for day, temperature in readings:
        if first_day <= day <= last_day:
            total += temperature
            count += 1
    if count == 0:
        return None
    return total / count


def warmest_day(readings, first_day, last_day):
    best_day = None
    best_temperature = float("-inf")
    for day, temperature in readings:
        if first_day <= day <= last_day and temperature > best_temperature:
            best_day = day
            best_temperature = temperature
    return best_day
"""

_REPORT = (
    "The harbour of Lindmouth was closed for three days after the storm of Tuesday night. According to the harbour "
    "master, Elin Sandberg, two fishing boats were torn from their moorings and driven against the northern pier, where "
    "one of them sank. Nobody was hurt. The ferry to the islands, which usually leaves four times a day, is expected to "
    "run again from Saturday morning. The town council has promised forty thousand crowns for the repair of the pier, "
    "and the sailing club has offered to help with clearing the beach of driftwood and broken glass."
)

_LETTER = (
    "Dear Mr. Okafor, thank you for your order of twelve oak chairs and two dining tables. We are glad to tell you that "
    "the chairs are ready and will be delivered on Monday between eight and ten in the morning. The tables need another "
    "week, because the varnish has to dry in a dust-free room. Please make sure that somebody is at home to sign for the "
    "delivery. If the time does not suit you, call our office before Friday noon and we will find another day. With kind "
    "regards, the workshop of Ruth Hallam and daughters."
)

_TABLE = """name,department,city,phone
Amara Lindqvist,Procurement,Gothenburg,+46 31 555 0182
Benedikt Okonkwo,Quality Control,Rotterdam,+31 10 555 0147
Chiara Vandenberg,Customer Support,Antwerp,+32 3 555 0119
Dmitri Castellanos,Logistics,Valencia,+34 96 555 0166
Eleanor Mbeki,Human Resources,Cape Town,+27 21 555 0133
Farouk Hendriksen,Maintenance,Aarhus,+45 86 555 0174
"""

COPYING = (
    Task("table, again", f"{_TABLE}\nThe same table again:\nname,department,city,phone\nAmara", copies=True),
    Task(
        "edit code",
        f"# inventory.py, before: the shop has no address\n{_CODE}\n"
        "# inventory.py, after: the shop has an address\n"
        'class Inventory:\n    """Counts of the articles that a shop has."""\n\n'
        "    def __init__(self, shop_name, address):\n        self.shop_name = shop_name\n"
        "        self.address = address\n        self.articles = {}\n        self.changes = []\n\n"
        "    def add(self, article, count):",
        copies=True,
    ),
    Task(
        "add a comment",
        f"# weather.py\n{_FUNCTION}\n\n# weather.py, the same with a comment in the first line\n"
        "# Functions for the readings of a thermometer.\ndef average_temperature(readings, first_day, last_day):",
        copies=True,
        tokens=80,
    ),
    Task(
        "summary + quotes",
        f"Article:\n{_REPORT}\n\nSummary of the article, with quotes:\n"
        '- The harbour: "The harbour of Lindmouth was closed for three days after the storm of Tuesday night."\n'
        '- The boats: "According to the harbour master,',
        copies=True,
        tokens=96,
    ),
    Task(
        "repeat, 1 change",
        f"Letter to Mr. Okafor:\n{_LETTER}\n\nThe same letter, but to Mrs. Petrov:\nDear Mrs. Petrov,",
        copies=True,
        tokens=128,
    ),
    Task(
        "news, new name",
        f"First edition:\n{_REPORT}\n\nSecond edition, with the town's name corrected:\nThe harbour of Lyndmouth was closed",
        copies=True,
        tokens=128,
    ),
)

OTHER = (
    Task("story, lighthouse", "Write a short story about a lighthouse keeper who finds a letter.", chat=True),
    Task("story, raw", "The old train stopped in the middle of the forest, and nobody knew why. Marta", tokens=256),
    Task("question, sky", "Why is the sky blue? Explain it to a ten-year-old.", chat=True),
    Task("question, bread", "How do I bake a simple loaf of bread? List the steps.", chat=True),
    Task("email", "Write an email to my landlord about a broken heater.", chat=True),
    Task("poem", "Write a poem about autumn in four verses.", chat=True),
    Task("code from words", "Write a Python function that finds all prime numbers below n.", chat=True),
    Task("comparison", "What are the differences between cats and dogs as pets?", chat=True),
)
