import os

# Ray reads these once in a process, so they must be the same for all tests that use it.
os.environ.update(RAY_AUTH_MODE="disabled", RAY_USAGE_STATS_ENABLED="0")
