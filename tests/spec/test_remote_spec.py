import pytest

from pruneaug.errors import SpecError
from pruneaug.spec import parse_job, result_settings


def remote(**values):
    return parse_job({"task": {"name": "digits"}, "platform": {"remote": values}})


def test_a_remote_platform_needs_an_address_only():
    spec = remote(address="raspberrypi.local:9090").platform.remote
    assert (spec.devices, spec.tracker_key, spec.hardware.arch) == (1, None, None)


@pytest.mark.parametrize("address", ["raspberrypi.local", ":9090", "pi:http", "http://pi:9090", "pi:70000", "pi:0"])
def test_an_address_has_a_host_and_a_port(address):
    with pytest.raises(SpecError, match=r"platform\.remote\.address: an address must read `host:port`"):
        remote(address=address)


def test_only_a_tracker_has_several_devices():
    with pytest.raises(SpecError, match="devices: 2 without tracker_key"):
        remote(address="pi:9090", devices=2)
    assert remote(address="pi:9190", devices=2, tracker_key="pi4").platform.remote.devices == 2


def test_an_unknown_fact_is_an_error():
    with pytest.raises(SpecError, match="did you mean 'cores'"):
        remote(address="pi:9090", hardware={"core": 4})


def test_how_a_device_is_reached_does_not_decide_results():
    one, other = remote(address="pi:9090"), remote(address="pi:9190", tracker_key="pi4", devices=2, timeout_s=5)
    assert result_settings(one) == result_settings(other)
    assert result_settings(one) != result_settings(remote(address="pi:9090", hardware={"cores": 2}))
