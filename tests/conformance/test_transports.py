import pytest
from tests.support.clients import *
async def test_live(stand, transport):
    s = stand.client(transport).open()
    p = await anext(s)
    assert p.kind == "place"
    a = await stand.publish({"type":"a","id":"1"},{"type":"a","id":"2"})
    assert ids(await take(s,2)) == ["1","2"]
    assert s.cursor == a["cursor"]
    s2 = stand.client(transport).open(since="earliest")
    assert ids(await catch_up(s2)) == ["1","2"]
