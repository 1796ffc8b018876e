"""Every key has one name, and every name one key."""

from hypothesis import assume, given
from hypothesis import strategies as st

from lmcache_kit.errors import InvalidRequestError
from lmcache_kit.kv import ChunkKey

models = st.text("abcdefghijklmnopqrstuvwxyz0123456789-_", min_size=1, max_size=64)
hashes = st.integers(-(2**128) + 1, 2**128 - 1)


@given(models, hashes)
def test_names_turn_back_into_their_keys(model, value):
    key = ChunkKey(model, value)
    name = key.name()
    assert ChunkKey.parse(name) == key
    assert len(name) <= 128
    assert set(name) <= set("abcdefghijklmnopqrstuvwxyz0123456789-_.")


@given(models, hashes, models, hashes)
def test_different_keys_have_different_names(model, value, other_model, other_value):
    assume((model, value) != (other_model, other_value))
    assert ChunkKey(model, value).name() != ChunkKey(other_model, other_value).name()


@given(st.text(max_size=20) | st.from_regex(r"[a-z]{1,3}\.n?[0-9a-f]{1,4}", fullmatch=True))
def test_what_parses_is_the_name_of_what_it_parses_to(text):
    try:
        key = ChunkKey.parse(text)
    except InvalidRequestError:
        return
    assert key.name() == text
