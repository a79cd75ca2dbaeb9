"""Real vLLM on the CPU: small caches, and only where it is installed."""

import os

import pytest

os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
pytest.importorskip("vllm", reason="vLLM is not installed: make vllm-test")
