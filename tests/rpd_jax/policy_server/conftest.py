import pytest
from peers import ENVIRONMENT, openpi_python, peer


@pytest.fixture(scope="session")
def python_of_openpi():
    return openpi_python()


@pytest.fixture
def openpi_peer(python_of_openpi):
    """A function that returns the context of openpi's own server with a small policy."""
    return lambda *arguments: peer("openpi_peer.py", *arguments, python=python_of_openpi)


@pytest.fixture(scope="session")
def openpi_site_packages(python_of_openpi):
    (folder,) = (ENVIRONMENT / "lib").glob("python*/site-packages")
    return str(folder)
