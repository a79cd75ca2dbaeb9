import pytest
import torch

from repirl.callbacks.probes import RewardProbes, hollow_responses
from repirl.data.expert import ExpertData
from repirl.data.sources import Table
from repirl.metrics import probe_figures
from repirl.models.prm import PRM
from tests.callbacks.conftest import make_module, make_trainer


class NinePRM(PRM):
    """Rewards each 9 with 1, everything else with 0."""

    def forward(self, rows):
        nine = self.backbone.tokenizer.convert_tokens_to_ids("9")
        return ((rows.response_ids == nine) & rows.response_mask).float() + 0 * super().forward(rows)


def test_hollow_responses_say_nothing():
    codec = make_module(PRM()).codec
    real = codec.encode_response("1+2=3\n3+4=7")
    empty, one_token, copy, repeated = hollow_responses("1+2+4=", real, codec)
    assert [codec.decode(r) for r in (empty, one_token, copy)] == ["", "1", "1+2+4="]
    assert codec.decode(repeated) == "1+2=3\n1+2=3\n"  # as long as the real one or longer, and at least twice
    assert {len(empty), *[r[-1] for r in (empty, one_token, copy, repeated)]} == {1, empty[0]}
    # Without a sentence the response itself is repeated, end token and all.
    assert hollow_responses("1+2=", empty, codec)[3] == (*empty, *empty, *empty)


def test_figures_by_hand():
    # two prompts; columns real, x. Rbar: x below in one, above in the other; R: a tie, and above.
    found = probe_figures(
        means=torch.tensor([[0.5, 0.25], [0.0, 1.0]]),
        totals=torch.tensor([[1.0, 1.0], [0.0, 3.0]]),
        lengths=torch.tensor([[2.0, 4.0], [6.0, 3.0]]),
        kinds=["x"],
    )
    assert {name: round(float(value), 6) for name, value in found.items()} == {
        "real": 0.25, "real_total": 0.5, "x": 0.625, "x_total": 2.0, "x_wins": 0.5, "x_wins_total": 0.75,
        "length_correlation": -1.0,
    }  # fmt: skip


def test_a_prm_that_counts_nines_is_fooled_by_repetition(tmp_path, write_rows):
    rows = [{"problem": f"9+{n}=", "solution": f"9+{n}={9 + n}\n{9 + n}", "answer": str(9 + n)} for n in (1, 2, 3)]
    data = ExpertData(train=Table(write_rows("p.jsonl", rows)), val=Table(write_rows("v.jsonl", rows)), batch_prompts=2)
    trainer = make_trainer(tmp_path, [RewardProbes(limit=2)], limit_val_batches=1.0)
    (found,) = trainer.validate(make_module(NinePRM()), data, verbose=False)
    assert found["probe/empty"] == 0.0
    assert found["probe/empty_wins"] == 0.0
    assert found["probe/one_token"] == 0.5  # "9" and the end token
    assert found["probe/one_token_wins"] == 1.0
    assert found["probe/repeated_wins_total"] == 1.0
    assert found["probe/repeated_total"] > 2 * found["probe/real_total"] > 0
    assert found["probe/prompt_copy"] == pytest.approx(1 / 5)  # "9+1=" and the end token


def test_without_experts_the_policy_is_asked_and_a_bounded_prm_reports_saturation(tmp_path, write_rows):
    rows = [{"problem": f"9+{n}=", "answer": str(9 + n)} for n in range(5)]
    train = Table(write_rows("t.jsonl", [{**row, "solution": "9"} for row in rows]))
    data = ExpertData(train=train, val=Table(write_rows("v.jsonl", rows)), batch_prompts=2)
    trainer = make_trainer(tmp_path, [RewardProbes()], limit_val_batches=1.0)
    (found,) = trainer.validate(make_module(PRM(kind="head")), data, verbose=False)
    assert 0 <= found["probe/saturated"] <= 1
    assert -1 <= found["probe/real"] <= 1
    assert "probe/prompt_copy_wins" in found


def test_a_module_without_prm_and_a_limit_of_none_are_refused(tmp_path, data):
    with pytest.raises(ValueError, match="RePIRL has no prm to probe"):
        make_trainer(tmp_path, [RewardProbes()], limit_val_batches=1).validate(make_module(), data, verbose=False)
    # Where an overlay decides whether there is one, it is nothing to complain about.
    (found,) = make_trainer(tmp_path, [RewardProbes(needs_prm=False)], limit_val_batches=1).validate(
        make_module(), data, verbose=False
    )
    assert not [name for name in found if name.startswith("probe/")]
    with pytest.raises(ValueError, match="limit must be at least 1, not 0"):
        RewardProbes(limit=0)
