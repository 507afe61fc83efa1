"""The environment of a process that is given a limit of addresses: glibc's allocator, whoever allocates in the tests.

jemalloc reserves addresses that it does not use, so that the limit would be met elsewhere than where memory is needed.
"""

import os

WITH_GLIBC = os.environ | {"LD_PRELOAD": ""}
