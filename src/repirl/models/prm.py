"""Process reward models: one real number per response token, r_phi(s_t, a_t)."""

import copy
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from repirl import checkpoints
from repirl.models.adapters import check_lora_fields
from repirl.models.heads import HEADS, Head, Kind, head_class
from repirl.models.policy import Policy
from repirl.objectives.steps import step_ends, sum_to_step_ends
from repirl.structs import Rows


class PRM(nn.Module):
    r"""A process reward model over a causal LM.

    Args:
        kind: `q_head`: r = W[a_t] . h(s_t), W zero at the start, read before the token.
            `logit_difference`: beta (z_phi(a_t|s_t) - z_ref(a_t|s_t)), raw logits; ref = the backbone at the start.
            `implicit`: beta (log pi_phi(a_t|s_t) - log pi_ref(a_t|s_t)) (PRIME).
            `head`: a tanh MLP on the hidden state at the token itself, r in (-1, 1); `linear`: one linear layer
                there, zero at the start.
            Or the import path of a Head of your own, such as `my_head.Gated`.
        backbone: its own language model (same tokenizer as the policy); None = a copy of the policy at the start.
        lora: instead of a backbone, adapters on the policy's base weights, which both then share: fields of
            peft.LoraConfig. The policy needs `lora` too, or the base would move under the PRM.
        reference: frozen start model of `logit_difference` and `implicit`, with the same tokenizer; None = the backbone
            at the start. `kind: implicit` with a fine-tuned backbone, the model it was tuned from as the reference and
            `schedule.prm_updates: 0` is the log-ratio of SFT as a frozen PRM.
        beta: scale of `logit_difference` and `implicit`.
        rank: rank of a low-rank q_head (W = U V, U zero); None = full.
        granularity: `token`, or `step`: token rewards of a line summed onto its last token.
        freeze_backbone: train the head only.
        weights: a checkpoint with a PRM of the same kind and sizes, from which this one starts; with
            `schedule.prm_updates` 0 it stays as it is.
    """

    def __init__(
        self,
        kind: Kind | str = "q_head",
        backbone: Policy | None = None,
        beta: float = 1.0,
        rank: int | None = None,
        granularity: Literal["token", "step"] = "token",
        freeze_backbone: bool = False,
        weights: str | None = None,
        lora: dict[str, Any] | None = None,
        reference: Policy | None = None,
    ) -> None:
        super().__init__()
        self.head_class = made = head_class(kind)
        if freeze_backbone and not made.has_weights:
            raise ValueError(
                f"prm: kind {kind!r} has no weights beside its backbone: freeze_backbone would leave nothing to train"
            )
        if rank is not None and not made.takes_rank:
            takers = " and ".join(name for name, head in HEADS.items() if head.takes_rank)
            raise ValueError(f"prm: rank belongs to {takers}, not to {kind!r}")
        if lora is not None and (backbone is not None or freeze_backbone):
            other = "backbone: give the backbone its lora" if backbone is not None else "freeze_backbone: leave one out"
            raise ValueError(f"prm.lora puts trained adapters on the policy's base, which excludes {other}")
        if reference is not None and not made.needs_reference:
            relative = " and ".join(name for name, head in HEADS.items() if head.needs_reference)
            raise ValueError(f"prm: reference belongs to {relative}, not to {kind!r}")
        check_lora_fields(lora or {}, "prm.lora")
        self.lora = lora
        self.kind, self.beta, self.rank, self.granularity = kind, beta, rank, granularity
        self.freeze_backbone, self.weights = freeze_backbone, weights
        self._built, self._of_policy = False, backbone is None
        self.base_measure_of_weights: str | None = None
        self.backbone, self.reference = backbone, reference
        self._starts_at_reference = reference is None

    def build(self, policy: Policy | None = None) -> "PRM":
        """Makes the weights: of the own backbone, or from a copy of the (loaded) policy; nothing the second time.

        policy: None where nothing but the PRM is trained, which needs a backbone then.
        """
        if self._built:
            return self
        self._built = True
        self.backbone = self._backbone_over(policy)
        if policy is not None:
            _require_same_tokens(self.backbone, policy, "prm.backbone", "the policy's")
        if self.freeze_backbone:
            self.backbone.requires_grad_(False)
        if self.reference is not None:
            self.reference.load().requires_grad_(False)
            beside, whose = (self.backbone, "the backbone's") if policy is None else (policy, "the policy's")
            _require_same_tokens(self.reference, beside, "prm.reference", whose)
        elif self.head_class.needs_reference:
            self.reference = self.backbone.start()
        self.head: Head = self.head_class(self.backbone, self.rank)
        self._register_lines(self.backbone.vocabulary_size)
        if self.weights is not None:
            self._load(Path(self.weights), {id(p) for p in policy.parameters()} if policy is not None else set())
        return self.to(self.backbone.device)

    def _backbone_over(self, policy: Policy | None) -> Policy:
        if self.backbone is not None:
            return self.backbone.load()
        if policy is None:
            raise ValueError("prm.backbone: without a policy the PRM needs a language model of its own; give its path")
        if self.lora is not None:
            return policy.view(self.lora, "prm.lora")
        return policy.start() if self.freeze_backbone else copy.deepcopy(policy)

    @property
    def policy_at_start(self) -> Policy | None:
        """The frozen policy of the start, where the PRM has it anyway; who else needs it takes this one."""
        # Loaded weights bring a start of their own, and adapters begin at the policy's base.
        if not self._of_policy or not self._starts_at_reference or self.weights is not None or self.lora is not None:
            return None
        return self.backbone if self.freeze_backbone else self.reference

    def _load(self, path: Path, shared: set[int]) -> None:
        """The PRM of a checkpoint; `shared` are the policy's parameters, which it must not change.

        base_measure_of_weights: what its rewards are relative to, where it says so.

        Raises:
            ValueError: it is missing, has no PRM, or one of another kind, size or base.
        """
        if not path.is_file():
            raise ValueError(f"prm.weights: no such file: {path}; give the checkpoint of a run that trained a PRM")
        checkpoint = checkpoints.read(path)
        described = checkpoint.get(checkpoints.DESCRIPTION) or {}
        if described.get("prm") is not None:
            self.require_same_meaning(described["prm"], f"prm.weights: {path}")
        self.base_measure_of_weights = described.get("base_measure")
        state = checkpoint["state_dict"]
        own = {name.removeprefix("prm."): value for name, value in state.items() if name.startswith("prm.")}
        for name, parameter in self.named_parameters():
            if id(parameter) in shared and name in own and not torch.equal(own[name].to(parameter), parameter):
                raise ValueError(
                    f"prm.weights: {path} has a PRM over another base model than the policy's (weight {name!r}): use the "
                    "policy it was trained with, or give it a prm.backbone of its own"
                )
        try:
            self.load_state_dict(own)
        except RuntimeError as error:
            found = "its PRM has another kind or size" if own else "it holds no PRM"
            raise ValueError(f"prm.weights: {path} does not fit kind {self.kind!r}: {found}") from error

    def meaning(self) -> dict[str, Any]:
        """What the weights alone do not say, and checkpoints store: kind, granularity, and beta where it counts."""
        beta = self.beta if self.head_class.needs_reference else None
        return {"kind": self.kind, "granularity": self.granularity, "beta": beta}

    def description(self) -> dict[str, Any]:
        """What a checkpoint says of this PRM: its meaning, and what rebuilds it."""
        assert self.backbone is not None, "call build(policy) first"
        given = {"rank": self.rank, "freeze_backbone": self.freeze_backbone, "lora": self.lora}
        described = {**self.meaning(), "arguments": given, "backbone": self.backbone.description()}
        if self.reference is not None and not self._starts_at_reference:
            described["reference"] = self.reference.description()
        return described

    @classmethod
    def from_checkpoint(cls, path: str | Path) -> "PRM":
        """The trained PRM of a run's checkpoint, with a backbone of its own; the run's start need not be there any more.

        Raises:
            ValueError: the file is missing, damaged, or describes no PRM.
        """
        return cls.restored(*checkpoints.read_part(Path(path), "prm"))

    @classmethod
    def load(cls, path: str | Path, **options: Any) -> Any:
        """What scores solutions in words by this checkpoint or exported folder; arguments as of `repirl.load_prm`."""
        import repirl  # by its public name: reading words is no business of a model

        loaded: Any = repirl.load_prm
        return loaded(path, **options)

    @classmethod
    def restored(cls, described: Mapping[str, Any], weights: Mapping[str, Tensor]) -> "PRM":
        """A PRM of such a description and these weights."""
        backbone = Policy.described(described["backbone"])
        prm = cls(
            kind=described["kind"],
            backbone=backbone,
            beta=1.0 if described["beta"] is None else described["beta"],
            rank=described["arguments"]["rank"],
            granularity=described["granularity"],
            freeze_backbone=described["arguments"]["freeze_backbone"],
            reference=Policy.described(described["reference"]) if "reference" in described else None,
        ).build(backbone)
        prm.load_state_dict(weights)
        return prm

    def require_same_meaning(self, stored: Mapping[str, Any], where: str) -> None:
        """Raises ValueError where the stored weights are of another kind, beta or granularity; `where` names them."""
        for name, own in self.meaning().items():
            if (there := stored.get(name, own)) != own:
                raise ValueError(
                    f"{where}: its PRM has {name} {there!r}, this one {own!r}: the same weights would be other rewards. "
                    f"Set model.prm.{name}={there}, or use other weights"
                )

    def _register_lines(self, vocabulary: int) -> None:
        """Which tokens end a line, and which hold no word: white space, and special tokens."""
        assert self.backbone is not None
        tokenizer = self.backbone.tokenizer
        pieces = tokenizer.batch_decode([[i] for i in range(len(tokenizer))])
        special = set(tokenizer.all_special_ids)
        flags = torch.zeros(2, max(vocabulary, len(pieces)), dtype=torch.bool)
        flags[0, : len(pieces)] = torch.tensor(["\n" in piece for piece in pieces])
        flags[1, : len(pieces)] = torch.tensor([i in special or not p.strip() for i, p in enumerate(pieces)])
        self.ends_line: Tensor
        self.is_blank: Tensor
        self.register_buffer("ends_line", flags[0].clone(), persistent=False)
        self.register_buffer("is_blank", flags[1].clone(), persistent=False)

    def step_ends(self, rows: Rows) -> Bool[Tensor, "rows time"]:
        """The last token of each line of the responses."""
        ids, mask = rows.response_ids, rows.response_mask
        return step_ends(is_separator=self.ends_line[ids], response_mask=mask, is_blank=self.is_blank[ids])

    def forward(self, rows: Rows) -> Float[Tensor, "rows time"]:
        """r_phi(s_t, a_t) of every response token, float32, 0 outside the response; with granularity `step` by lines."""
        rewards = self.token_rewards(rows)
        if self.granularity == "step":
            ends = self.step_ends(rows)
            rewards = sum_to_step_ends(rewards=rewards, ends=ends, response_mask=rows.response_mask)
        return rewards

    def token_rewards(self, rows: Rows) -> Float[Tensor, "rows time"]:
        """The reward of every response token before a granularity sums it over steps."""
        assert self.backbone is not None, "call build(policy) first"
        mask = rows.response_mask
        tokens = rows.response_ids[mask]
        values = self._values(self.backbone, rows, tokens)
        if self.reference is not None:
            with torch.no_grad():
                values_at_start = self._values(self.reference, rows, tokens)
            values = self.beta * (values - values_at_start)
        return torch.zeros(mask.shape, device=values.device).masked_scatter(mask, values.float())

    @property
    def packs(self) -> bool:
        """Whether the backbone reads rows without padding, and each prompt once."""
        return self.backbone is not None and self.backbone.packs

    @property
    def bound(self) -> float | None:
        """The largest possible |r|, None where rewards are unbounded; so they are where a step sums its tokens'."""
        return self.head_class.bound if self.granularity == "token" else None

    def _values(self, model: Policy, rows: Rows, tokens: Int[Tensor, " actions"]) -> Float[Tensor, " actions"]:
        """The head's value of each response token by the states of the backbone, or of the reference."""
        states = model.action_states(rows, after=self.head.reads_after)
        # Weights of its own compute in float32, whatever the backbone does.
        exact = torch.autocast(states.device.type, enabled=False) if self.head.has_weights else nullcontext()
        with exact:
            values: Tensor = self.head(states, tokens, model)
        return values


def _require_same_tokens(model: Policy, other: Policy, where: str, whose: str) -> None:
    if model.tokenizer.get_vocab() != other.tokenizer.get_vocab():
        raise ValueError(f"{where}: its tokenizer differs from {whose}; token rewards need the same tokens")
