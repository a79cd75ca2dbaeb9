"""Set-up shared by all tests: one thread, no network, and shapes checked in the objectives and metrics."""

import os

os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ["HF_HUB_OFFLINE"] = "1"
os.environ["TOKENIZERS_PARALLELISM"] = "false"

import torch  # after the environment that it reads
from jaxtyping import install_import_hook

torch.set_num_threads(1)
install_import_hook(["repirl.objectives", "repirl.metrics"], "beartype.beartype")
