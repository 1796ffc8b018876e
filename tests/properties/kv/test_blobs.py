"""Blobs of any header and payload, and bytes that are none."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from lmcache_kit.errors import BlobError
from lmcache_kit.kv import pack_blob, peek_header, unpack_blob
from lmcache_kit.testing.strategies import blob_headers, damaged_blobs

headers = blob_headers()


@given(headers, st.binary(max_size=2000))
def test_blobs_turn_back_into_header_and_payload(header, payload):
    data = pack_blob(header, payload)
    blob = unpack_blob(data)
    assert bytes(blob.payload) == payload
    found = blob.header
    assert (found.codec, found.codec_version, found.layout) == (header.codec, header.codec_version, header.layout)
    assert (found.num_tokens, found.key, found.payload_bytes) == (header.num_tokens, header.key, len(payload))
    assert found == peek_header(data)
    assert pack_blob(found, payload) == data


@given(headers, st.binary(max_size=200), st.data())
def test_no_change_of_any_bytes_goes_unnoticed(header, payload, data):
    good = pack_blob(header, payload)
    start = data.draw(st.integers(0, len(good) - 1))
    patch = data.draw(st.binary(min_size=1, max_size=20))
    bad = good[:start] + patch + good[start + len(patch) :]
    if bad != good:
        with pytest.raises(BlobError):
            unpack_blob(bad)


@given(damaged_blobs())
def test_no_accident_goes_unnoticed(bad):
    with pytest.raises(BlobError):
        unpack_blob(bad)


@settings(max_examples=300)
@given(st.binary(max_size=300) | st.binary(max_size=300).map(lambda tail: b"LKVB\x01\0" + tail))
def test_bytes_that_are_no_blob_raise_nothing_but_the_error_for_that(data):
    for read in (unpack_blob, peek_header):
        with pytest.raises(BlobError):
            read(data)
