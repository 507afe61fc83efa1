import peers
import pytest
from peers import openpi_python, peer, servers_of

from rpd_jax.policy_server.observation import ObservationMap
from rpd_jax.policy_server.teacher import PolicyServerTeacher


@pytest.fixture(scope="session")
def python_of_openpi():
    return openpi_python()


@pytest.fixture
def openpi_peer(python_of_openpi):
    """A function that returns the context of openpi's own server with a small policy."""
    return lambda *arguments: peer("openpi_peer.py", *arguments, python=python_of_openpi)


@pytest.fixture(scope="session")
def openpi_site_packages():
    return str(peers.openpi_site_packages())


@pytest.fixture
def teacher_of():
    """A function that makes a teacher with short waits, which is closed at the end; `said` is what it said."""
    made = []

    usual = ObservationMap("observation/image", "prompt")

    def make(*addresses, observation=usual, **options):
        said = options.pop("said", [])
        servers = servers_of(addresses, options, said)
        made.append(PolicyServerTeacher(servers, observation, **{"gripper": "signed"} | options))
        made[-1].said = said
        return made[-1]

    yield make
    for teacher in made:
        teacher.close()
