"""Settings and the monitor ports in both spellings."""

import pytest

from lmcache_kit.controller.config import ControllerConfig, MonitorPorts, parse_monitor_ports, read_config_file
from lmcache_kit.controller.monitor import join_address, reachable_host
from lmcache_kit.errors import ConfigError


def test_monitor_port_stands_for_three():
    assert MonitorPorts.following(9001) == MonitorPorts(9001, 9002, 9003)
    assert MonitorPorts.following(0) == MonitorPorts(0, 0, 0)


@pytest.mark.parametrize(
    ("text", "ports"),
    [
        ('{"pull": 8300, "reply": 8400}', MonitorPorts(8300, 8400, None)),
        ('{"pull":8300,"reply":8400,"heartbeat":null}', MonitorPorts(8300, 8400, None)),
        ('{"pull": 1, "reply": null, "heartbeat": 3}', MonitorPorts(1, None, 3)),
    ],
)
def test_monitor_ports_as_json(text, ports):
    assert parse_monitor_ports(text) == ports


@pytest.mark.parametrize(
    "text",
    ["", "8300", "[]", '{"reply": 1}', '{"pull": null}', '{"pull": "x"}', '{"pull": 1, "rely": 2}', '{"pull": true}'],
)
def test_other_monitor_ports_are_refused(text):
    with pytest.raises(ConfigError, match="--monitor-ports"):
        parse_monitor_ports(text)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"port": 70000}, "70000 is not a port"),
        ({"monitor": MonitorPorts(65535, 65536, None)}, "65536 is not a port"),
        ({"port": 9002}, "port 9002 is used twice"),
        ({"host": ""}, "the host is empty"),
        ({"worker_timeout": 0.0}, "--worker-timeout"),
        ({"call_timeout": -1.0}, "--call-timeout"),
        ({"check_interval": float("nan")}, "--health-check-interval"),
        ({"max_body_bytes": 0}, "--max-body-size"),
        ({"token": ""}, "token"),
        ({"token": "ü"}, "token"),
    ],
)
def test_settings_that_cannot_work_are_refused(settings, text):
    with pytest.raises(ConfigError, match=text):
        ControllerConfig(**settings)


def test_localhost_is_one_address():
    assert ControllerConfig(host="localhost").bind_host == "127.0.0.1"


def test_lmcache_configuration_file(tmp_path):
    file = tmp_path / "controller.yaml"
    file.write_text("controller_host: 0.0.0.0\ncontroller_port: 9100\nlmcache_worker_timeout: 30\n")
    assert read_config_file(file) == {
        "controller_host": "0.0.0.0",
        "controller_port": 9100,
        "lmcache_worker_timeout": 30.0,
    }
    file.write_text("")
    assert read_config_file(file) == {}
    for text in ("controller_prot: 1\n", "- 1\n", "a: [\n", "controller_port: many\n"):
        file.write_text(text)
        with pytest.raises(ConfigError, match=r"controller\.yaml"):
            read_config_file(file)
    with pytest.raises(ConfigError, match="cannot be read"):
        read_config_file(tmp_path / "none")


def test_addresses():
    assert join_address("::1", 5) == "[::1]:5"
    assert reachable_host("10.1.2.3", "10.9.9.9") == "10.1.2.3"
    assert reachable_host("0.0.0.0", "127.0.0.1") == "127.0.0.1"
    assert reachable_host("0.0.0.0", "not an address")
