"""Small texts that the tests of this folder share: prose that every rule keeps, in English and in Chinese."""

from __future__ import annotations

from typing import Any

from kiloq.prepare.documents import Result, batch_of, texts_of

ENGLISH = """The old lighthouse stood on the northern edge of the island, and nobody had lived there for years.
Every autumn a storm would come from the west and shake its windows until the glass began to sing.
Children from the village believed that a keeper still climbed the stairs to light the lamp at night.
Their parents knew better, but they have never found a good reason to spoil such a fine story.
When the council decided to sell the tower, three families wrote letters to the newspaper in protest.
In the end a painter bought it, cleaned the rooms, and opened the door to visitors with a cup of tea."""

CHINESE = """北方的岛上有一座旧灯塔，已经很多年没有人住在那里了。每年秋天，风暴从西边过来，把窗户吹得嗡嗡作响。
村里的孩子们相信，夜里还有一位守塔人沿着楼梯走上去点灯。他们的父母当然知道真相，可是谁也不愿意破坏这个美丽的故事。
后来镇上决定把灯塔卖掉，三户人家给报社写信表示反对。最后一位画家买下了它，打扫了房间，为来访的客人准备热茶。
从那以后，每逢周末都有旅客乘船过来，在塔顶看海上的日落，听老人讲从前的事情，也把自己的名字写进那本厚厚的册子。
画家说，他最喜欢的是清晨：雾还没有散，海鸟已经醒来，远处渔船的灯光一盏一盏地熄灭，新的一天就这样开始了。"""


def run(step: Any, *texts: str, **row: Any) -> Result:
    """What `step` makes of `texts`, as rows that share the other columns."""
    return step.apply(batch_of([{"text": text, **row} for text in texts]))


def reason(step: Any, text: str, **row: Any) -> str | None:
    """The reason against one text."""
    return run(step, text, **row).reasons[0]


def edited(step: Any, text: str, **row: Any) -> str:
    """One text as `step` leaves it."""
    return texts_of(run(step, text, **row).batch)[0]
