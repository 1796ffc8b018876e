"""Chunks between instances: the server that offers them and the client that sends and fetches them."""

from __future__ import annotations

from lmcache_kit.instance.peer.client import Adjustment, PeerClient
from lmcache_kit.instance.peer.server import PeerServer, PeerStore
from lmcache_kit.instance.peer.url import normal_peer_url, same_peer

__all__ = ["Adjustment", "PeerClient", "PeerServer", "PeerStore", "normal_peer_url", "same_peer"]
